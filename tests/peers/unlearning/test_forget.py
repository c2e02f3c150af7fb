"""unweft forget: from blocks/, and from the merged adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from coordinator_free.identifiers import BlockKey
from peers.errors import InputError
from peers.lora.bases import Bases, Recipe
from peers.lora.blocks import BlockSet
from peers.lora.layout import ModuleShape
from peers.storage.adapter_folder import saved_blocks, weight_names, write_adapter
from peers.unlearning.forget import forget

MODULES = (
    ModuleShape("m.0.proj", 32, 24, "early", 4),
    ModuleShape("m.1.proj", 40, 16, "late", 2),
)


@pytest.fixture
def union() -> BlockSet:
    torch.manual_seed(0)
    recipe = Recipe(7, "orthogonal", 4.0, 6, "some-model", "0" * 64, MODULES)
    union = BlockSet(Bases(recipe))
    for slot, device in enumerate(["d0", "d1", "d3"]):
        block = union.add(BlockKey(device, 0), slot)
        for values in block.data.values():
            values.copy_(torch.randn_like(values))
    return union


def saved(union: BlockSet, folder: Path) -> Path:
    recipe = Recipe(7, "orthogonal", 4.0, 6, "some-model", "0" * 64, MODULES)
    write_adapter(folder, recipe, saved_blocks(union, union.keys()))
    return folder


def dense(folder: Path, module: str) -> torch.Tensor:
    flat = load_file(folder / "adapter_model.safetensors")
    a, b = weight_names(module)
    return flat[b] @ flat[a]


@pytest.mark.parametrize("path", ["blocks", "gram"])
def test_the_result_is_the_adapter_without_the_block(union: BlockSet, tmp_path: Path, path: str) -> None:
    adapter = saved(union, tmp_path / "adapter")
    if path == "gram":
        shutil.rmtree(adapter / "blocks")
    report = forget(adapter, "d3", tmp_path / "out")
    assert report.path == path
    assert report.survivors == ("d0@0", "d1@0")
    assert report.residual < 1e-5
    kept = [BlockKey("d0", 0), BlockKey("d1", 0)]
    for module in MODULES:
        torch.testing.assert_close(
            dense(tmp_path / "out", module.name), union.delta(module.name, kept), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("path", ["blocks", "gram"])
def test_the_files_have_no_trace_of_the_device(union: BlockSet, tmp_path: Path, path: str) -> None:
    adapter = saved(union, tmp_path / "adapter")
    if path == "gram":
        shutil.rmtree(adapter / "blocks")
    forget(adapter, "d3", tmp_path / "out")
    files = list((tmp_path / "out").rglob("*"))
    assert files
    assert not any("d3" in p.name for p in files)
    assert not any(b'"d3' in p.read_bytes() for p in files if p.suffix == ".json")
    basis = union[BlockKey("d3", 0)].bases["m.0.proj"]
    assert float((dense(tmp_path / "out", "m.0.proj") @ basis).abs().max()) < 1e-5


def test_forgetting_everyone_leaves_a_zero_adapter(union: BlockSet, tmp_path: Path) -> None:
    folder = saved(union, tmp_path / "a0")
    for step, device in enumerate(["d0", "d1", "d3"]):
        forget(folder, device, tmp_path / f"a{step + 1}")
        folder = tmp_path / f"a{step + 1}"
    assert float(dense(folder, "m.0.proj").abs().max()) == 0.0


def test_errors_for_bad_input_are_one_line(union: BlockSet, tmp_path: Path) -> None:
    adapter = saved(union, tmp_path / "adapter")
    with pytest.raises(InputError, match=r"'d9' has no block .* d0, d1, d3"):
        forget(adapter, "d9", tmp_path / "out")
    with pytest.raises(InputError, match="not an empty folder"):
        forget(adapter, "d3", adapter)
    with pytest.raises(InputError, match="no adapter that unweft wrote"):
        forget(tmp_path, "d3", tmp_path / "out")
    (adapter / "adapter_model.safetensors").write_bytes(b"junk")
    shutil.rmtree(adapter / "blocks")
    with pytest.raises(InputError, match="cannot be read"):
        forget(adapter, "d3", tmp_path / "out")
    assert not (tmp_path / "out").exists()
