"""The Python API: scenarios with changes, results as tables, deletion, and a script without a main guard."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

import unweft
from emulation.launch import forkserver
from tests.support.synthetic_run import write
from unweft import main_guard

PANDAS = find_spec("pandas") is not None


def rows(table: object) -> list[dict[str, object]]:
    """A table as a list of dicts, with pandas and without it."""
    found = table.to_dict("records") if PANDAS else table  # type: ignore[attr-defined]
    assert isinstance(found, list)
    return found


# -- scenarios -------------------------------------------------------------------------------------------
def test_a_scenario_takes_changes_as_tables_and_as_key_paths() -> None:
    found = unweft.scenario("quick", seed=3, round={"count": 20}, **{"data.batch": 4})
    assert (found.seed, found.round.count, found.data.batch) == (3, 20, 4)
    assert found.round.local_steps == 1 and found.name == "quick"  # of the file
    again = unweft.scenario(found, clock="virtual")
    assert (again.seed, again.clock, again.round.count) == (3, "virtual", 20)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"round": {"cuont": 3}}, r"unweft.run: round.cuont: unknown key; did you mean count\?"),
        ({"radio": {"loss": 2}}, "unweft.run: radio.loss: 2 is not allowed"),
    ],
)
def test_a_wrong_change_is_one_line(changes: dict[str, object], words: str) -> None:
    with pytest.raises(unweft.InputError, match=words):
        unweft.scenario("quick", **changes)


def test_a_run_into_a_used_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(unweft.InputError, match="is not empty"):
        unweft.run("quick", tmp_path)


# -- results ---------------------------------------------------------------------------------------------
def test_the_results_of_a_run_are_tables(tmp_path: Path) -> None:
    found = unweft.load(write(tmp_path / "run"))
    assert found.scenario.devices.count == 3 and found.summary["final"]["accuracy_all"]
    assert len(rows(found.rounds)) == sum(len(r) for r in ROUNDS)
    first = rows(found.rounds)[0]
    assert (first["device"], first["round"], first["loss"]) == ("d0", 0, 3.0)
    assert {row["src"] for row in rows(found.links)} == {"d0", "d1", "d2", "d3"}
    assert [row["kind"] for row in rows(found.events)] == ["leave", "join"]
    assert {row["tag"] for row in rows(found.accuracy)} >= {"round", "before:d2", "end"}
    assert [row["id"] for row in rows(found.devices)] == ["d0", "d1", "d2", "d3"]


ROUNDS = [("d0", "d1", "d2")] * 5 + [("d0", "d1")] * 3 + [("d0", "d1", "d3")] * 2


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(unweft.InputError, match="holds no run"):
        unweft.load(tmp_path)


def test_tables_need_no_pandas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("unweft.results.find_spec", lambda name: None)
    assert isinstance(unweft.load(write(tmp_path / "run")).rounds, list)


@pytest.mark.skipif(not PANDAS, reason="pandas is not installed; pip install 'unweft[tables]'")
def test_tables_are_frames(tmp_path: Path) -> None:
    frame = unweft.load(write(tmp_path / "run")).accuracy
    assert frame[frame.tag == "end"].groupby("device").accuracy.mean()["d0"] > 0.5


def test_forget_needs_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(unweft.InputError, match=r"unweft\.json: cannot be read"):
        unweft.forget(tmp_path, "d3", tmp_path / "out")


# -- the import ------------------------------------------------------------------------------------------
def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_the_import_is_light() -> None:
    done = python("import sys, unweft; print([n for n in ('torch', 'matplotlib') if n in sys.modules])")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_python_m_unweft_is_the_command() -> None:
    command = [sys.executable, "-m", "unweft", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"unweft {unweft.__version__}\n"


# -- the main guard --------------------------------------------------------------------------------------
def test_a_child_that_imports_the_script_ends_at_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "from unweft.main_guard import refuse_in_child\n"
        "refuse_in_child()\n"
        "child = multiprocessing.get_context('spawn').Process(target=print)\n"
        "child.start()\n"
        "child.join()\n"
        "print(child.exitcode)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == (f"{main_guard.UNGUARDED}\n", "")


@pytest.mark.parametrize(
    ("code", "words"),
    [(main_guard.UNGUARDED, "is called outside `if __name__ == '__main__':`"), (1, "cannot import it")],
)
def test_the_user_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    class Forkserver:
        def __init__(self, *given: object) -> None:
            pass

        def start(self, target: object, name: str) -> SimpleNamespace:
            return SimpleNamespace(join=lambda: None, exitcode=code)

        def close(self) -> None:
            pass

    monkeypatch.setattr(forkserver, "Forkserver", Forkserver)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "script.py", raising=False)  # workers have none
    with pytest.raises(unweft.InputError, match=words) as caught:
        main_guard.check(unweft.Scenario())
    assert "\n" not in str(caught.value)
