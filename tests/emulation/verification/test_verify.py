"""`unweft verify` on a real run in virtual time, and on what somebody may have done to its folder.

All devices run in this process, once for the whole file: tiny models, 8 rounds, d2 leaves after round 2.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from coordinator_free.identifiers import BlockKey
from emulation.analysis import records
from emulation.launch import one_process
from emulation.scenario.loading import load
from emulation.verification.findings import Findings
from emulation.verification.verify import Verdict, verify
from peers.errors import InputError
from peers.lora.bases import Bases, Recipe
from peers.lora.blocks import BlockSet
from peers.storage import checkpoint
from peers.storage.adapter_folder import SavedBlock, saved_blocks, write_adapter
from peers.storage.snapshots import Snapshot, read_snapshot, write_snapshot
from peers.storage.tensor_file import save_tensors
from peers.unlearning.forget import forget, read_about
from tests.support import receipts
from tests.support.command_line import QUICK, unweft
from tests.support.receipts import OWNER, change, resign
from transport.security import keys

D0, D1, D2 = (BlockKey(device, 0) for device in ("d0", "d1", "d2"))
FEW = ["round.count=8", "eval.every=100", "adapter.rank=2"]


def run_quick(out: Path, *sets: str) -> Path:
    one_process.run(load(Path(QUICK), [*FEW, *sets], None, "virtual"), out, ())
    return out


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `on`, the same run `off`, and `snapshots` of `on` from before the deletion."""
    base = tmp_path_factory.mktemp("receipts")
    (base / "on" / records.KEPT_SNAPSHOTS).mkdir(parents=True)
    run_quick(base / "on", "membership.receipts=true")
    (base / "on" / records.KEPT_SNAPSHOTS).rename(base / "snapshots")
    run_quick(base / "off")
    return base


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original / "on", tmp_path / "run")


@pytest.fixture
def before(original: Path) -> Path:
    """d0's snapshot right before it deleted the block of d2."""
    return next((original / "snapshots" / "d0").glob("*-before-d2.safetensors"))


def faults(verdict: Verdict) -> list[str]:
    return [str(fault) for fault in verdict.findings.faults]


def chain_of(run: Path, device: str) -> Path:
    return run / "devices" / device / "receipts.jsonl"


# -- an honest run ---------------------------------------------------------------------------------------
def test_an_honest_run_verifies(run: Path) -> None:
    verdict = verify(run)
    assert (faults(verdict), verdict.findings.notes) == ([], [])
    assert [(d.device, d.deletions, d.faults) for d in verdict.devices] == [
        ("d0", 1, 0),
        ("d1", 1, 0),
        ("d2", 0, 0),
    ]
    (block,) = verdict.blocks
    assert (block.block, block.reason, block.held_by) == ("d2@0", "leave", ())
    assert block.deleted_by == block.confirmed_by == ("d0", "d1")


def metrics(run: Path, device: str) -> list[dict[str, object]]:
    """The lines of a device without the times of the machine."""
    lines = records.read_lines(run / "devices" / device / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in ("cpu_s", "compute_s")} for line in lines]


def test_receipts_change_no_adapter_and_no_byte_and_off_writes_none(original: Path) -> None:
    assert not list((original / "off").rglob("receipts.jsonl"))
    for name in ("adapters/d0/adapter_model.safetensors", "adapters/d1/adapter_model.safetensors"):
        assert (original / "on" / name).read_bytes() == (original / "off" / name).read_bytes()
    for device in ("d0", "d1", "d2"):
        on, off = (
            records.read_lines(original / x / "devices" / device / "metrics.jsonl") for x in ("on", "off")
        )
        varying = ("cpu_s", "compute_s")
        assert [{k: v for k, v in line.items() if k not in varying} for line in on] == [
            {k: v for k, v in line.items() if k not in varying} for line in off
        ]


def test_an_exported_adapter_verifies_alone_also_after_another_deletion(run: Path, tmp_path: Path) -> None:
    verdict = verify(run / "adapters" / "d0")
    assert (faults(verdict), verdict.findings.notes) == ([], [])
    assert [(row.block, row.deleted_by, row.held_by) for row in verdict.blocks] == [("d2@0", ("d0",), ())]
    forget(run / "adapters" / "d0", "d1", tmp_path / "without")
    verdict = verify(tmp_path / "without")
    assert faults(verdict) == []
    assert [note.text for note in verdict.findings.notes] == ["d1@0 was deleted from it after the export"]


# -- tampering -------------------------------------------------------------------------------------------
def cut_all(lines: list[bytes]) -> list[bytes]:
    return lines[:1]


def test_a_cut_chain_is_found_by_the_events_and_by_the_confirmations_of_others(run: Path) -> None:
    change(chain_of(run, "d1"), cut_all)
    found = faults(verify(run))
    assert [fault.partition("jsonl: ")[2] for fault in found[:3]] == [
        "has no confirmation for d2@0, and d0 heard one",
        "life 0 has no end: the last lines were removed",
        "life 0 deleted d2@0, with no receipt",
    ]
    assert found[3] == "adapters/d1: its receipts.jsonl is not the device's chain up to the last export"


def test_a_chain_that_was_signed_again_with_another_key_is_found(run: Path) -> None:
    for folder in (run / "devices" / "d0", run / "adapters" / "d0"):
        change(folder / "receipts.jsonl", lambda lines: resign(lines, OWNER))
    text = "devices/d0/receipts.jsonl: is not signed with the key that {} names for d0"
    verdict = verify(run)
    assert faults(verdict) == [text.format("d1"), text.format("d2")]
    assert [row.faults for row in verdict.devices] == [2, 0, 0]


def test_a_missing_chain_is_found(run: Path) -> None:
    chain_of(run, "d1").unlink()
    assert faults(verify(run))[0].startswith("devices/d1/receipts.jsonl: is missing")


def test_a_cut_copy_beside_an_adapter_is_found(run: Path) -> None:
    change(run / "adapters" / "d1" / "receipts.jsonl", cut_all)
    assert [fault.partition(":")[0] for fault in faults(verify(run))] == ["adapters/d1"]


def test_another_scaling_of_an_adapter_is_found(run: Path) -> None:
    path = run / "adapters" / "d1" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 1}))
    (fault,) = faults(verify(run))
    assert fault.endswith("lora_alpha differs from r: not as unweft wrote it")


def test_an_adapter_that_no_device_with_receipts_exported_is_found(run: Path) -> None:
    shutil.copytree(run / "adapters" / "d0", run / "adapters" / "d9")
    assert faults(verify(run)) == ["adapters/d9: no device with receipts has exported it"]


def test_a_life_that_was_killed_has_notes_and_no_faults(run: Path) -> None:
    """d1 was killed after it told others of its deletion, and before it had written it."""
    path = run / "devices" / "d1" / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"finished"' not in line and '"exported"' not in line))
    change(chain_of(run, "d1"), cut_all)
    shutil.rmtree(run / "adapters" / "d1")
    assert len(faults(verify(run))) == 3  # the launcher saw that it ended in order
    launched = json.loads((run / "run.json").read_text())
    launched["devices"]["d1"]["exit"] = -9
    (run / "run.json").write_text(json.dumps(launched))
    verdict = verify(run)
    assert faults(verdict) == []
    assert [note.text for note in verdict.findings.notes] == [
        "has no confirmation for d2@0, and d0 heard one",
        "life 0 has no end: it was killed, or it still runs",
        "life 0 deleted d2@0, with no receipt",
    ]


def test_a_receipt_with_other_hashes_than_the_events_is_found(run: Path) -> None:
    path = run / "devices" / "d0" / "events.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.update({"sha256_after": "00"} if line["event"] == "deleted" else {})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert faults(verify(run)) == [
        "devices/d0/receipts.jsonl: the deletion of d2@0 has other hashes in events.jsonl"
    ]


def test_a_leave_with_another_key_than_the_owner_saved_is_found(run: Path) -> None:
    path = run / "devices" / "d2" / "leave.json"
    path.write_text(json.dumps({"confirmed": True, "records": [receipts.leave()]}))
    assert faults(verify(run))[0].endswith("with another key than that of the owner's leave.json")


def test_a_device_that_held_the_block_at_its_end_is_found(run: Path) -> None:
    """d1 never deleted the block, and all its records agree."""

    def keeps(line: dict[str, object]) -> None:
        if line["kind"] == "end":
            line["blocks"] = ["d0@0", "d1@0", "d2@0"]

    path = chain_of(run, "d1")
    change(path, lambda lines: resign([x for x in lines if b'"deleted"' not in x], OWNER, keeps))
    text = "devices/d1/receipts.jsonl: the device held d2@0 at its end, and has not deleted it"
    assert text in faults(verify(run))
    assert verify(run).blocks[0].held_by == ("d1",)


def test_an_allow_list_says_whose_key_is_whose(run: Path, tmp_path: Path) -> None:
    keys.generate(tmp_path / "keys", ["d0", "d1", "d2"])
    identity = keys.load(tmp_path / "keys", "d1").identity()
    assert identity is not None and keys.load_signers(tmp_path / "keys")["d1"] == identity.public
    text = "its chain is not signed with the key that the allow-list names"
    assert faults(verify(run, tmp_path / "keys")) == [f"{d}: {text}" for d in ("d0", "d1", "d2")]
    with pytest.raises(InputError, match=r"--keys: .*allowed\.json"):
        verify(run, tmp_path)


# -- a planted copy of the block -------------------------------------------------------------------------
def with_block(adapter: Path, before: Path) -> tuple[Recipe, list[SavedBlock]]:
    """The blocks of d0 before the deletion, in the form of an adapter."""
    recipe, _ = read_about(adapter)
    snapshot = read_snapshot(before)
    union = BlockSet(Bases(recipe))
    slots = json.loads(snapshot.meta["slots"])
    for key in snapshot.blocks():
        union.add(key, slots[str(key)])
        for group in recipe.layout.groups:
            union.set(key, group, snapshot.tensors[f"{key}/{group}"])
    return recipe, saved_blocks(union, union.keys())


def in_an_adapter(run: Path, before: Path) -> str:
    adapter = run / "adapters" / "d0"
    write_adapter(adapter, *with_block(adapter, before))
    return "adapters/d0"


def in_a_checkpoint(run: Path, before: Path) -> str:
    path = checkpoint.path_of(run, "d0")
    path.parent.mkdir()
    shutil.copyfile(before, path)
    return "checkpoint/d0.safetensors"


def in_a_checkpoint_under_another_name(run: Path, before: Path) -> str:
    """The values of the forgotten block, under the name of the own block."""
    snapshot: Snapshot = read_snapshot(before)
    tensors = {name.replace("d2@0", "d0@0"): t for name, t in snapshot.tensors.items() if "d2@0" in name}
    write_snapshot(checkpoint.path_of(run, "d0"), tensors, {"d0@0": 0}, {})
    return "checkpoint/d0.safetensors"


def in_a_snapshot(run: Path, before: Path) -> str:
    path = run / "devices" / "d1" / "snapshots" / "00003-round.safetensors"
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(before, path)
    return "devices/d1/snapshots/00003-round.safetensors"


def in_another_place(run: Path, before: Path) -> str:
    shutil.copyfile(before, run / "old.safetensors")
    return "old.safetensors"


def in_another_adapter(run: Path, before: Path) -> str:
    write_adapter(run / "mine", *with_block(run / "adapters" / "d0", before))
    return "mine"


PLACES: list[Callable[[Path, Path], str]] = [
    in_an_adapter,
    in_a_checkpoint,
    in_a_checkpoint_under_another_name,
    in_a_snapshot,
    in_another_place,
    in_another_adapter,
]


@pytest.mark.parametrize("plant", PLACES)
def test_a_planted_copy_of_the_block_is_found(
    run: Path, before: Path, plant: Callable[[Path, Path], str]
) -> None:
    where = plant(run, before)
    verdict = verify(run)
    assert {fault.where for fault in verdict.findings.faults} == {where}
    assert plant is in_another_place or set(verdict.blocks[0].held_by) == {where}


def named_in_the_list(adapter: Path, before: Path) -> None:
    write_adapter(adapter, *with_block(adapter, before))


def under_another_name(adapter: Path, before: Path) -> None:
    """The values of the forgotten block in place of those of d1."""
    recipe, blocks = with_block(adapter, before)
    own, _, gone = blocks
    write_adapter(adapter, recipe, [own, SavedBlock(D1, 1, gone.factors)])


def in_blocks_only(adapter: Path, before: Path) -> None:
    recipe, blocks = with_block(adapter, before)
    write_adapter(adapter.parent / "other", recipe, blocks)
    shutil.copytree(adapter.parent / "other" / "blocks" / "d2", adapter / "blocks" / "d2")


def beside_it(adapter: Path, before: Path) -> None:
    shutil.copyfile(before, adapter / "more.safetensors")


def inside_another_s_file(adapter: Path, before: Path) -> None:
    """The matrices are in the file of another device, under names that are not those of the recipe."""
    path = adapter / "blocks" / "d0" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_tensors({**tensors, f"x.{name}": tensors[name].clone()}, path, {"format": "pt"})


IN_AN_ADAPTER: dict[Callable[[Path, Path], None], str] = {
    named_in_the_list: "adapter: holds d2@0, or it cannot be read",
    under_another_name: "adapter: the values under the name d1@0 are not those of the export",
    in_blocks_only: "adapter: holds d2@0, or it cannot be read",
    beside_it: "adapter: more.safetensors is no file of an export, and may hold any block",
    inside_another_s_file: "adapter: blocks/d0/adapter_model.safetensors holds more than its blocks",
}


@pytest.mark.parametrize("plant", IN_AN_ADAPTER)
def test_a_copy_in_an_adapter_alone_is_found(
    run: Path, before: Path, plant: Callable[[Path, Path], None]
) -> None:
    adapter = run / "adapters" / "d0"
    plant(adapter, before)
    assert IN_AN_ADAPTER[plant] in faults(verify(adapter))


def test_a_change_of_one_value_of_an_adapter_is_found(run: Path) -> None:
    adapter = run / "adapters" / "d0"
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name][0, 0] += 1e-3
    save_tensors(tensors, path, {"format": "pt"})
    assert any("are not those of the export" in fault for fault in faults(verify(adapter)))


def test_a_chain_beside_an_adapter_without_its_export_is_found(run: Path) -> None:
    adapter = run / "adapters" / "d0"
    change(adapter / "receipts.jsonl", lambda lines: lines[:-1])
    assert faults(verify(adapter))[0] == (
        "receipts.jsonl: does not end with the export of the adapter: lines are missing"
    )


# -- the command -----------------------------------------------------------------------------------------
def test_the_command_prints_tables_and_findings(
    run: Path, before: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert unweft(monkeypatch, "verify", run) == 0
    assert "All receipts hold" in capsys.readouterr().out
    in_a_snapshot(run, before)
    assert unweft(monkeypatch, "verify", run, "--json", run / "found.json") == 1
    out = capsys.readouterr().out
    assert "finding: devices/d1/snapshots/00003-round.safetensors: holds d2@0" in out and "All rec" not in out
    written = json.loads((run / "found.json").read_text())
    assert (written["kind"], written["holds"], len(written["faults"])) == ("run", False, 1)
    assert written["blocks"][0]["held_by"] == ["devices/d1/snapshots/00003-round.safetensors"]


def test_bad_input_is_one_line(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "none", original / "off", original / "off" / "adapters" / "d0"):
        assert unweft(monkeypatch, "verify", folder) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"unweft: {folder}: ") and said.count("\n") == 1 and "; allowed: " in said


def test_a_chain_with_the_listed_key_holds(tmp_path: Path) -> None:
    keys.generate(tmp_path / "keys", ["d0"])
    identity = keys.load(tmp_path / "keys", "d0").identity()
    assert identity is not None
    receipts.write(tmp_path / "adapter", signer=identity.for_run(receipts.RUN))
    change(tmp_path / "adapter" / "receipts.jsonl", lambda lines: lines[:-1])
    (tmp_path / "adapter" / "unweft.json").write_text("{}")
    (fault,) = faults(verify(tmp_path / "adapter", tmp_path / "keys"))
    assert "format None is not known" in fault  # the file is no adapter, and the chain holds


@pytest.mark.parametrize(
    "line",
    ['{"event": "deleted", "t_s": 1, "life": 0}', '{"t_s": 1, "life": 0}', '{"event": "slot", "t_s": "x"}'],
)
def test_a_damaged_record_is_one_line(run: Path, line: str) -> None:
    path = run / "devices" / "d0" / "events.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match="a record of the run is damaged"):
        verify(run)


def test_what_is_printed_has_no_control_characters() -> None:
    found = Findings()
    found.fault("devices/\x1b[2J", "a\nb")
    assert list(map(str, found.faults)) == ["devices/?[2J: a?b"]
