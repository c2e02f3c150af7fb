"""When a device writes its checkpoint, and when it removes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from peers.config import CheckpointConfig
from peers.runtime.run_checkpoints import RunCheckpoints

PATH = Path("d0.safetensors")
LAST = 9


def checkpoints(
    files: Files, path: Path = PATH, closed: Callable[[], int] = lambda: LAST, **config: int
) -> RunCheckpoints:
    return RunCheckpoints(CheckpointConfig.model_validate(config), path, files, closed, LAST)


class Files:
    """Notes what would happen to the file."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.closed: list[int] = []

    def checkpoint(self, path: Path, closed: int) -> None:
        assert path.name == PATH.name
        self.done.append("write")
        self.closed.append(closed)

    def remove(self, path: Path) -> None:
        assert path.name == PATH.name
        self.done.append("remove")


@pytest.fixture
def files() -> Files:
    return Files()


def test_every_third_round_is_written(files: Files) -> None:
    kept = checkpoints(files, every=3)
    for round_ in range(7):
        kept.on_round(round_)
    assert files.done == ["write"] * 2  # after rounds 2 and 5
    kept.on_export(run_over=True)
    assert files.done == ["write"] * 3


def test_a_deleted_block_leaves_the_file_at_once(files: Files) -> None:
    kept = checkpoints(files, every=2)
    kept.on_block_dropped()
    assert files.done == []  # there is no file yet
    kept.on_round(1)
    kept.on_block_dropped()
    assert files.done == ["write"] * 2


@pytest.mark.parametrize("leaves", [True, False])
def test_a_device_that_goes_removes_its_file(files: Files, leaves: bool) -> None:
    kept = checkpoints(files, every=1)
    kept.on_round(0)
    if leaves:
        kept.on_leave()
    else:
        kept.on_export(run_over=False)  # it retires
    kept.on_block_dropped()  # its end drops more blocks
    assert files.done == ["write", "remove"]


def test_without_rounds_only_the_end_is_written(files: Files) -> None:
    kept = checkpoints(files, save=True)
    kept.on_round(0)
    kept.on_export(run_over=True)
    assert files.done == ["write"]


def test_without_checkpoints_nothing_is_written(files: Files) -> None:
    kept = checkpoints(files)
    kept.on_round(0)
    kept.on_block_dropped()
    kept.on_export(run_over=True)
    kept.on_leave()
    assert files.done == []


def test_a_run_that_ends_before_its_last_round_can_go_on(files: Files) -> None:
    kept = checkpoints(files, closed=lambda: 4)
    kept.on_export(run_over=True)
    assert files.done == ["write"] and files.closed == [4]
    before_a_round = checkpoints(files, closed=lambda: -1)
    before_a_round.on_export(run_over=True)
    assert files.done == ["write"]


def test_the_file_of_an_earlier_process_loses_a_deleted_block_at_once(files: Files, tmp_path: Path) -> None:
    path = tmp_path / PATH.name
    path.touch()
    kept = checkpoints(files, path)
    kept.on_block_dropped()
    kept.on_export(run_over=True)  # the run is done, and the scenario wants no checkpoint
    assert files.done == ["write", "remove"]
