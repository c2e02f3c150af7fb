"""Goes on with a run that was interrupted: by Ctrl-C, by a crash of the launcher, or of the machine.

`plan` reads the records of the run and decides who starts, in which round, and which events are left.
`prepare` makes the files fit: no file keeps a forgotten block, and what was measured in rounds that are lost
is removed. docs/checkpoints.md describes what goes on and what begins anew.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from coordinator_free.identifiers import BlockKey
from emulation.analysis import device_histories, forgotten_files, records, tombstones
from emulation.analysis.evaluator import DONE_MARKER
from emulation.analysis.records import Record, RunRecords
from emulation.launch.device_scripts import executed_events, not_executed
from emulation.launch.start import Start
from emulation.scenario import loading
from emulation.scenario.events import ARRIVALS, GONE, OF_THE_NETWORK, EventConfig, cut_off
from emulation.scenario.schema import Scenario
from emulation.testbed import epoch
from peers.errors import InputError
from peers.runtime import partition
from peers.runtime.recorder import next_life
from peers.storage import checkpoint, leave_wishes
from peers.storage.record_files import end_line, is_held

WAIT_S, LOOK_S = 15.0, 0.1  # longest wait for processes of the interrupted run; pause between two looks


# -- reading -------------------------------------------------------------------------------------------
def scenario_of(folder: Path) -> Scenario:
    """The scenario of the run in a folder. Raises InputError if there is none, or if it cannot be written."""
    path = folder / "scenario.toml"
    if not path.is_file():
        raise InputError(
            f"--resume: {folder} holds no run (no scenario.toml); allowed: a folder that `unweft run` wrote"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"--resume: {folder} cannot be written; allowed: a folder that this user may write")
    data = loading.read_toml(path)
    data.get("checkpoint", {}).pop("resume", None)  # the run goes on with its own checkpoints
    return loading.from_table(data, str(path))


def plan(folder: Path) -> Start:
    """How the run in a folder goes on. Writes nothing.

    Raises InputError if the folder holds no run that was interrupted, or no checkpoint.
    """
    run = records.load(folder)
    lines = records.read_lines(folder / records.INJECTED)
    if (folder / epoch.FILE).exists():
        raise InputError(
            f"--resume: the devices of {folder} were containers, Slurm tasks or started one by one; "
            "allowed: a run whose devices are processes of `unweft run`"
        )
    resumed = [line for line in lines if line["kind"] == records.RESUMED]
    done = _done(run)
    histories = device_histories.find(run, done, tombstones.find(run))
    live = records.in_order([device for device, found in histories.items() if not found.gone])
    _check_unfinished(run, live)
    first = _first_round(run, live)
    correct_until = _correct_until(done, first, run.scenario.correction.rounds)
    elapsed_s = _elapsed_s(run, lines)
    now: Record = {"round": first, "kind": records.RESUMED, "device": ", ".join(live), "t_s": elapsed_s}
    return Start(
        devices=tuple(live),
        events=tuple(not_executed(run.scenario, done)),
        lives={path.name: next_life(path) for path in (folder / "devices").iterdir() if path.is_dir()},
        first_round=first,
        elapsed_s=elapsed_s,
        ended=tuple(incarnation for found in histories.values() for incarnation in found.incarnations),
        correct_until=correct_until,
        done=tuple(done),
        facts=run.run.get("devices", {}),
        partition=_partition(run.scenario.events, done),
        resumed=(*resumed, now),
    )


def _done(run: RunRecords) -> list[Record]:
    """The events that happened. The devices of a virtual run record their own ones."""
    if run.scenario.clock == "virtual":
        return executed_events(run.folder, run.devices)
    return list(run.seen)


def _partition(events: Iterable[EventConfig], done: Sequence[Record]) -> tuple[tuple[str, ...], ...]:
    """The groups of the partition that has not been healed."""
    last = next((e for e in reversed(done) if e["kind"] in OF_THE_NETWORK), None)
    if last is None or last["kind"] == "heal":
        return ()
    same = (int(last["round"]), "partition")
    return next((event.groups for event in events if (event.round, event.kind) == same), ())


def _check_unfinished(run: RunRecords, live: Sequence[str]) -> None:
    """Raises InputError if no device is left, or if all of them have done all rounds."""
    report = f"its report: unweft report {run.folder}"
    if not live:
        raise InputError(
            f"--resume: no device of {run.folder} is left; allowed: an interrupted run; {report}"
        )
    if all(_has_finished(run, device) for device in live):
        raise InputError(
            f"--resume: the run in {run.folder} is finished; allowed: an interrupted run; {report}"
        )


def _has_finished(run: RunRecords, device: str) -> bool:
    metrics, events = run.metrics.get(device, []), run.events.get(device, [])
    done = bool(metrics) and int(metrics[-1]["round"]) >= run.scenario.round.count - 1
    return done and any(e["event"] == "finished" and e["life"] == metrics[-1]["life"] for e in events)


def _first_round(run: RunRecords, live: Iterable[str]) -> int:
    """The round after the latest checkpoint. At least the last round is left, so that all devices mix."""
    paths = [checkpoint.path_of(run.folder, device) for device in live]
    closed = [checkpoint.closed_round(path) for path in paths if path.is_file()]
    if not closed:
        raise InputError(
            f"--resume: {run.folder} holds no checkpoint; allowed: a run that Ctrl-C ended after its first "
            "round, or a run with checkpoint.every above 0"
        )
    return min(max(closed) + 1, run.scenario.round.count - 1)


def _correct_until(done: Iterable[Record], first: int, rounds: int) -> int:
    """The last round of the correction that goes on. -1: none does.

    The correction of an event after the last checkpoint begins with the first round.
    """
    starts = [min(int(e["round"]) + 1, first) for e in done if e["kind"] in (*GONE, *ARRIVALS)]
    until = max(starts, default=-1) + rounds
    return until if rounds and starts and until >= first else -1


def _elapsed_s(run: RunRecords, lines: Iterable[Record]) -> float:
    """The time of the last record of the run."""
    times = [float(line["t1_s"]) for found in run.metrics.values() for line in found]
    times += [float(e["t_s"]) for found in run.events.values() for e in found]
    times += [float(line["t_s"]) for line in lines]
    return max(times, default=0.0)


# -- waiting -------------------------------------------------------------------------------------------
def wait_for_end(folder: Path, wait_s: float = WAIT_S) -> None:
    """Wait until no process of the interrupted run writes its records. They end with their launcher.

    Raises InputError if one goes on.
    """
    until = time.monotonic() + wait_s
    while held := [path for path in _written(folder) if is_held(path)]:
        if time.monotonic() >= until:
            raise InputError(
                f"--resume: a process of the run still writes {held[0]}; allowed: a run whose processes have "
                "ended"
            )
        time.sleep(LOOK_S)


def _written(folder: Path) -> list[Path]:
    return [*sorted((folder / "devices").glob("*/events.jsonl")), folder / records.EVALUATIONS]


# -- writing -------------------------------------------------------------------------------------------
def prepare(folder: Path, scenario: Scenario, start: Start) -> None:
    """Make the files of the run fit its next part. May be interrupted and done again.

    Raises InputError if a file cannot be made to forget a block.
    """
    _remove_unfinished(folder)
    _forget(folder, [incarnation.key for incarnation in start.ended if incarnation.end == "leave"])
    _remove_lost(folder, start.first_round)
    _settle_wishes(folder)
    for device in start.devices:
        reached = cut_off(device, start.partition, scenario.all_devices) if start.partition else ()
        partition.write(folder / "devices" / device, reached)
    for name in ("run.json", DONE_MARKER):
        (folder / name).unlink(missing_ok=True)
    injected = folder / records.INJECTED
    end_line(injected)
    with injected.open("a", encoding="utf-8") as file:
        file.write(json.dumps(start.resumed[-1]) + "\n")


def _forget(folder: Path, gone: Sequence[BlockKey]) -> None:
    """Delete the blocks of devices that left from all files: a device starts with what its file holds."""
    forgotten_files.correct(folder, also=gone)
    holding = forgotten_files.check(folder, gone).holding if gone else []
    if holding:
        raise InputError(
            f"--resume: {holding[0]} holds a forgotten block and cannot be corrected; "
            "allowed: to remove the file"
        )


def _remove_unfinished(folder: Path) -> None:
    """Remove the files that killed processes had not finished."""
    for path in folder.rglob("*.tmp"):
        path.unlink(missing_ok=True)
    for path in [*(folder / "adapters").glob(".*"), *(folder / "adapters").glob("*/.*")]:
        if path.is_dir():
            shutil.rmtree(path)


def _remove_lost(folder: Path, first: int) -> None:
    """Remove what was measured of rounds that are done again, and of the end that was none.

    The measurements around an event stay: the event is not done again.
    """
    for path in (folder / "devices").glob("*/snapshots/*.safetensors"):
        round_, _, tag = path.name.removesuffix(".safetensors").partition("-")
        if _is_lost(int(round_), tag, first):
            path.unlink()
    lines = records.read_lines(folder / records.EVALUATIONS)
    kept = [line for line in lines if not _is_lost(int(line["round"]), str(line.get("tag")), first)]
    if len(kept) < len(lines):
        text = "".join(json.dumps(line) + "\n" for line in kept)
        records.write_whole(folder / records.EVALUATIONS, text)


def _is_lost(round_: int, tag: str, first: int) -> bool:
    return tag == "end" or (tag in ("round", "corrected") and round_ >= first)


def _settle_wishes(folder: Path) -> None:
    """Mark the leaves in the folders of devices as known: all devices start with their tombstones."""
    for path in (folder / "devices").iterdir():
        wish = leave_wishes.read(path)
        if wish.records:
            leave_wishes.write(path, wish.records, confirmed=True)
        (path / leave_wishes.DELIVERED).unlink(missing_ok=True)
