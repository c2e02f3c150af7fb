"""`unweft.run`, `unweft.resume`, `unweft.scenario` and `unweft.forget`."""

from __future__ import annotations

import io
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from emulation.launch.errors import RunFailed
from emulation.scenario import library, loading
from emulation.scenario.loading import Override
from emulation.scenario.schema import Scenario
from unweft import main_guard
from unweft.results import Run, load

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from peers.unlearning.forget import ForgetReport

OPTION = "unweft.run"  # the origin of an override, in errors


def scenario(given: str | Path | Scenario, **overrides: object) -> Scenario:
    """A checked scenario: a file, a name of `unweft list scenarios`, or another scenario with changes.

    overrides: keys of a scenario. A table changes only the keys that it names: `round={"count": 20}`. A key
    path works too: `**{"round.count": 20}`. Raises InputError.
    """
    changes = [Override(keys, value, OPTION) for keys, value in _flat(overrides)]
    if isinstance(given, Scenario):
        return loading.from_table(tomllib.loads(loading.dump(given)), OPTION, changes)
    path = library.find(Path(given))
    return loading.from_table({"name": loading.name_of(path), **loading.read_toml(path)}, str(path), changes)


def run(
    given: str | Path | Scenario,
    out: str | Path | None = None,
    *,
    on: str = "local",
    progress: bool = True,
    track: str | None = None,
    **overrides: object,
) -> Run:
    """Run a scenario, write its folder as `unweft run` does, and return the results.

    given, overrides: as for `scenario`. out: default runs/<time>-<scenario>. on: "local" or "compose".
    progress: print what `unweft run` prints. track: as --track. Raises InputError for bad input, and
    RunFailed. After a KeyboardInterrupt the folder is kept and complete.
    """
    main_guard.refuse_in_child()
    from emulation.commands.output_folder import check_usable
    from emulation.commands.run import execute
    from emulation.report import trackers
    from emulation.scenario.preflight import check_against_model

    if track is not None:
        trackers.check(track)
    found = scenario(given, **overrides)
    folder = Path(out) if out is not None else Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{found.name}"
    check_usable(folder)
    check_against_model(found)
    main_guard.check(found)
    return _result(execute(found, folder, on, _console(progress), track), folder)


def resume(folder: str | Path, *, progress: bool = True, track: str | None = None) -> Run:
    """Go on with an interrupted run, as `unweft run --resume` does, and return the results.

    progress, track: as for `run`. Raises InputError if the run cannot go on, and RunFailed.
    """
    main_guard.refuse_in_child()
    from emulation.commands.run import execute
    from emulation.launch import resume as resuming
    from emulation.report import trackers

    if track is not None:
        trackers.check(track)
    found = resuming.scenario_of(Path(folder))
    main_guard.check(found)
    status = execute(found, Path(folder), "local", _console(progress), track, goes_on=True)
    return _result(status, Path(folder))


def _console(progress: bool) -> Console:
    return Console() if progress else Console(file=io.StringIO())


def _result(status: int, folder: Path) -> Run:
    """The results of a run. Raises RunFailed unless its exit status is 0."""
    if status:
        raise RunFailed(f"{folder}: the run ended, but its result is not right; see {folder}/summary.json")
    return load(folder)


def forget(adapter: str | Path, device: str, out: str | Path) -> ForgetReport:
    """Write a saved adapter without the contribution of a device to `out`; no training data is needed.

    Raises InputError, as `unweft forget`.
    """
    from peers.unlearning import forget as unlearning

    return unlearning.forget(Path(adapter), device, Path(out))


def load_adapter(model: PreTrainedModel, adapter: str | Path) -> PeftModel:
    """The base model with a saved adapter of any kind in it; changes `model` in place.

    Plain PEFT loads LoRA and `vera` too (docs/adapters.md). Raises InputError if unweft did not write it, if
    a file is missing or damaged, or if the base model does not fit.
    """
    from peers.unlearning import saved_model

    return saved_model.load_adapter(model, Path(adapter))


def _flat(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[list[str], object]]:
    """The values of a nested table with their key paths."""
    for key, value in table.items():
        keys = (*path, *key.split("."))
        if isinstance(value, Mapping) and value:
            yield from _flat(value, keys)
        else:
            yield list(keys), value
