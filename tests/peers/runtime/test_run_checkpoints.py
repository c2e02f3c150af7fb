"""When a device writes its checkpoint, and when it removes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from peers.config import CheckpointConfig
from peers.runtime.run_checkpoints import RunCheckpoints

PATH = Path("d0.safetensors")


class Files:
    """Notes what would happen to the file."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def checkpoint(self, path: Path) -> None:
        assert path == PATH
        self.done.append("write")

    def remove(self, path: Path) -> None:
        assert path == PATH
        self.done.append("remove")


@pytest.fixture
def files() -> Files:
    return Files()


def test_every_third_round_is_written(files: Files) -> None:
    kept = RunCheckpoints(CheckpointConfig(every=3), PATH, files)
    for round_ in range(7):
        kept.on_round(round_)
    assert files.done == ["write"] * 2  # after rounds 2 and 5
    kept.on_export(run_over=True)
    assert files.done == ["write"] * 3


def test_a_deleted_block_leaves_the_file_at_once(files: Files) -> None:
    kept = RunCheckpoints(CheckpointConfig(every=2), PATH, files)
    kept.on_block_dropped()
    assert files.done == []  # there is no file yet
    kept.on_round(1)
    kept.on_block_dropped()
    assert files.done == ["write"] * 2


@pytest.mark.parametrize("leaves", [True, False])
def test_a_device_that_goes_removes_its_file(files: Files, leaves: bool) -> None:
    kept = RunCheckpoints(CheckpointConfig(every=1), PATH, files)
    kept.on_round(0)
    if leaves:
        kept.on_leave()
    else:
        kept.on_export(run_over=False)  # it retires
    kept.on_block_dropped()  # its end drops more blocks
    assert files.done == ["write", "remove"]


def test_without_rounds_only_the_end_is_written(files: Files) -> None:
    kept = RunCheckpoints(CheckpointConfig(save=True), PATH, files)
    kept.on_round(0)
    kept.on_export(run_over=True)
    assert files.done == ["write"]


def test_without_checkpoints_nothing_is_written(files: Files) -> None:
    kept = RunCheckpoints(CheckpointConfig(), PATH, files)
    kept.on_round(0)
    kept.on_block_dropped()
    kept.on_export(run_over=True)
    kept.on_leave()
    assert files.done == []
