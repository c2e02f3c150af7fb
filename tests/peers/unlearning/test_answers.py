"""Answers of a saved adapter through plain PEFT: with it, without it, and without some devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coordinator_free.identifiers import BlockKey
from peers.config import DeviceConfig, ModelConfig
from peers.errors import InputError
from peers.lora.bases import Bases, Recipe
from peers.lora.blocks import BlockSet
from peers.models.loader import load_model
from peers.storage.adapter_folder import saved_blocks, write_adapter
from peers.tasks import encode, make_task, question, texts
from peers.tasks.chat import turn_end
from peers.unlearning.answers import BASE, Answer, _encoded, _ends, compare
from tests.support.command_line import unweft
from tests.support.tiny_models import chat_tokenizer

PROMPT = texts(make_task(DeviceConfig()).train_examples("d0"))[0].prompt
TOKENS = 3


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Random blocks of d0 and d3 on the shipped model, large enough to change its answers."""
    torch.manual_seed(0)
    recipe = Recipe.make(load_model(ModelConfig()), DeviceConfig())
    union = BlockSet(Bases(recipe))
    for slot, device in enumerate(["d0", "d3"]):
        for values in union.add(BlockKey(device, 0), slot).data.values():
            values.copy_(torch.randn_like(values))
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    write_adapter(folder, recipe, saved_blocks(union, union.keys()))
    yield folder


def base_answer() -> Answer:
    """Greedy continuation up to the end of the text, without PEFT and without `generate`."""
    loaded = load_model(ModelConfig())
    ids = loaded.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    length, first = ids.shape[1], 0.0
    for step in range(TOKENS):
        logits = loaded.model(ids).logits[0, -1]
        first = first if step else float(logits.softmax(-1).max())
        ids = torch.cat([ids, logits.argmax().reshape(1, 1)], dim=1)
        if ids[0, -1] == loaded.tokenizer.eos_token_id:
            break
    return Answer(loaded.tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip(), first)


def test_the_columns_are_the_models(adapter: Path) -> None:
    found = compare(adapter, [PROMPT], ["d3"], None, TOKENS)
    assert list(found) == [BASE, "with d0, d3", "without d3"]
    expected, answer = base_answer(), found[BASE][0]
    assert answer.text == expected.text and answer.first == pytest.approx(expected.first, rel=1e-3)
    assert len({column[0] for column in found.values()}) == 3  # the blocks change the answers


def test_without_all_devices_the_base_model_answers(adapter: Path) -> None:
    found = compare(adapter, [PROMPT], ["d0", "d3"], None, TOKENS)
    (base,), (reduced,) = found[BASE], found["without d0, d3"]
    assert reduced.text == base.text and reduced.first == pytest.approx(base.first, rel=1e-3)


def test_without_devices_there_are_two_columns(adapter: Path) -> None:
    before = (adapter / "unweft.json").read_bytes()
    assert list(compare(adapter, [PROMPT, PROMPT], (), None, TOKENS)) == [BASE, "with d0, d3"]
    assert (adapter / "unweft.json").read_bytes() == before


def test_a_model_with_a_chat_template_gets_a_question() -> None:
    tokenizer = chat_tokenizer()
    loaded: Any = SimpleNamespace(tokenizer=tokenizer, model=SimpleNamespace(device="cpu"))
    asked = _encoded(loaded, "alpha lives", plain=False)[0].tolist()
    row = encode([question("alpha lives", "one")], tokenizer, 32)
    assert asked == row.input_ids[row.labels < 0].tolist()
    assert _encoded(loaded, "alpha lives", plain=True)[0].tolist() == tokenizer("alpha lives")["input_ids"]
    assert turn_end(tokenizer) in (_ends(loaded) or [])


def test_wrong_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"--device: 'd9' has no block"):
        compare(adapter, [PROMPT], ["d9"], None, TOKENS)
    with pytest.raises(InputError, match="PROMPT: '' has no token"):
        compare(adapter, [""], (), None, TOKENS)
    assert unweft(monkeypatch, "ask", tmp_path, "a") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_another_base_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    loaded = load_model(ModelConfig())
    loaded.model.get_input_embeddings().weight.data += 1
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"--model: the weights of .* are not those"):
        compare(adapter, [PROMPT], (), str(tmp_path), TOKENS)


def test_the_command_shows_the_answers_side_by_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], adapter: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert unweft(monkeypatch, "ask", adapter, PROMPT, "--without", "d3", "--tokens", TOKENS) == 0
    out = capsys.readouterr().out
    assert all(head in out for head in (BASE, "with d0, d3", "without d3", base_answer().text))
