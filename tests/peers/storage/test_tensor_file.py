"""Files of tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peers.storage.tensor_file import save_tensors


def test_a_file_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-folder"):
        save_tensors({"a": torch.zeros(2)}, tmp_path / "no-folder" / "f", {})


def test_tensors_and_metadata_are_saved(tmp_path: Path) -> None:
    from safetensors import safe_open

    save_tensors({"a": torch.ones(2)}, tmp_path / "f", {"round": "3"})
    with safe_open(tmp_path / "f", "pt") as file:
        assert file.metadata() == {"round": "3"} and file.get_tensor("a").tolist() == [1.0, 1.0]
