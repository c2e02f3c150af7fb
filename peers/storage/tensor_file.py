"""Files of tensors with metadata, in the format of safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors in the format of safetensors. Raises OSError if the file cannot be written.

    safetensors has an error class of its own for a full disk, which is no OSError.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from None


def read_meta(path: Path) -> dict[str, str]:
    """The metadata of a file, without its tensors. Raises SafetensorError or OSError."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def load_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on `device`, and its metadata. Raises SafetensorError or OSError."""
    with safe_open(path, framework="pt", device=device) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, dict(file.metadata() or {})


def values_sha256(matrix: Tensor) -> str:
    """SHA-256 in hex of the bytes of a matrix on the CPU, without its name and shape."""
    return sha256(matrix.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()
