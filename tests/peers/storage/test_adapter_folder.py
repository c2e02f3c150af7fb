"""Exported folders: plain PEFT loads them and gives the logits of the device."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from coordinator_free.identifiers import BlockKey
from peers.storage.adapter_folder import WEIGHTS, adapter_sha256, folder_of
from tests.support.learners import OTHERS, OWN, fill, joined, logits, small_learner, small_loaded
from tests.support.tiny_models import Family

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",  # PEFT 0.21, transformers 5.23
    "ignore:fan_in_fan_out is set to True:UserWarning",  # GPT-2 mixes Conv1D and Linear
    "ignore:Model has `tie_word_embeddings=True`:UserWarning",  # a target that shares its weight
)
FAMILIES: tuple[Family, ...] = ("llama", "qwen2", "gpt2")
RANKS = {"early": 1, "mid": 2, "late": 4}


def loaded_by_peft(folder, family: Family = "llama") -> torch.Tensor:
    return logits(PeftModel.from_pretrained(small_loaded(family).model, folder))


@pytest.mark.parametrize("rank", [2, RANKS], ids=["one-rank", "ranks-by-group"])
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_peft_gives_the_same_logits(family, rank, tmp_path):
    learner = joined(family, adapter={"rank": rank})
    learner.export(tmp_path / "a")
    expected = logits(learner.model)
    assert torch.allclose(loaded_by_peft(tmp_path / "a", family), expected, atol=1e-5)
    assert not torch.allclose(logits(small_loaded(family).model), expected, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_owner_alone(family, tmp_path):
    learner = joined(family, adapter={"rank": RANKS})
    learner.export(tmp_path / "a")
    learner.delete_block(OWN)
    learner.delete_block(OTHERS[0])
    alone = loaded_by_peft(tmp_path / "a" / "blocks" / "d2", family)
    assert torch.allclose(alone, logits(learner.model), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_blocks_it_is_the_base(family, tmp_path):
    small_learner(family).export(tmp_path / "a")
    assert torch.equal(loaded_by_peft(tmp_path / "a", family), logits(small_loaded(family).model))
    assert not (tmp_path / "a" / "blocks").exists()


def test_the_hash_of_the_file_equals_the_hash_of_the_learner(tmp_path):
    learner = joined()
    hashed = learner.export(tmp_path / "a")
    about = json.loads((tmp_path / "a" / "unweft.json").read_text())
    assert hashed == learner.sha256() == adapter_sha256(tmp_path / "a") == about["adapter_sha256"]
    fill(learner, OWN, seed=99)
    assert learner.sha256() != hashed


def test_devices_with_equal_copies_export_equal_hashes():
    a, b = joined(), small_learner(device="d1")
    for slot, key in reversed(list(enumerate([OWN, *OTHERS]))):
        b.set_own(key, slot) if key == OTHERS[0] else b.add_block(key, slot)
        for group in a.groups:
            b.write(key, group, a.read(key, group))
    assert a.sha256() == b.sha256()


def test_unweft_json_lists_the_blocks(tmp_path):
    joined().export(tmp_path / "a")
    about = json.loads((tmp_path / "a" / "unweft.json").read_text())
    assert about["blocks"][1] == {"device": "d1", "incarnation": 0, "slot": 1}
    recipe = about["recipe"]
    assert recipe["scale"] == 4.0 and recipe["seed"] == 0 and recipe["model_name"] == "small"
    assert recipe["model_sha256"] == small_loaded().sha256
    assert recipe["modules"][0]["in_features"] == 32


def test_the_file_has_scale_in_b_and_alpha_equal_to_r(tmp_path):
    learner = joined()
    learner.export(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 6 and not config["rank_pattern"]
    module = learner.layout.modules[0].name
    b = load_file(tmp_path / "a" / WEIGHTS)[f"base_model.model.{module}.lora_B.weight"]
    rows = learner.layout.slices("early")[module]
    assert torch.equal(b[:, 2:4], 4.0 * learner.read(OTHERS[0], "early")[rows])


def test_two_incarnations_of_an_owner_share_its_folder(tmp_path):
    learner = joined()
    learner.add_block(BlockKey("d1", 1), 3)
    fill(learner, BlockKey("d1", 1), seed=7)
    learner.export(tmp_path / "a")
    assert sorted(p.name for p in (tmp_path / "a" / "blocks").iterdir()) == ["d0", "d1", "d2"]
    learner.delete_block(OWN)
    learner.delete_block(OTHERS[1])
    alone = loaded_by_peft(tmp_path / "a" / "blocks" / "d1")
    assert torch.allclose(alone, logits(learner.model), atol=1e-5)


def test_an_export_replaces_the_earlier_one_without_leftovers(tmp_path):
    learner = joined()
    learner.export(tmp_path / "a")
    learner.delete_block(OTHERS[0])
    learner.export(tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert not any("d1" in p.name for p in (tmp_path / "a").rglob("*"))
    assert torch.allclose(loaded_by_peft(tmp_path / "a"), logits(learner.model), atol=1e-5)


def test_an_export_does_not_replace_other_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds other things"):
        joined().export(tmp_path / "a")
    assert (tmp_path / "a" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("owner", ["..", ".", "../../x", "a/b", ".hidden", "/etc", "d 1", "ü"])
def test_no_device_id_escapes_the_folder(owner, tmp_path):
    name = folder_of(owner)
    assert "/" not in name and not name.startswith(".")
    learner = small_learner()
    learner.add_block(BlockKey(owner, 0), 0)
    learner.export(tmp_path / "a")
    assert [p.name for p in (tmp_path / "a" / "blocks").iterdir()] == [name]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_paper_literal_exports_the_own_block_alone(tmp_path):
    learner = joined(mixing={"mode": "paper-literal"})
    learner.export(tmp_path / "a")
    assert [p.name for p in (tmp_path / "a" / "blocks").iterdir()] == ["d0"]
    assert torch.allclose(loaded_by_peft(tmp_path / "a"), logits(learner.model), atol=1e-5)
