"""Tasks: examples from files, tensors, batches and scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from peers.config import DataConfig, ModelConfig
from peers.errors import InputError
from peers.models.loader import LoadedModel, load_model
from peers.tasks import (
    Encoded,
    Example,
    HasFiles,
    Task,
    batch_generator,
    encode,
    evaluate,
    pad_id,
    sample_batch,
    tasks,
)
from peers.tasks.encode import IGNORED
from peers.tasks.facts import Facts
from tests.support.tiny_models import save_small_model, small_tokenizer

LINE = '{"prompt": "alpha lives in", "response": " one"}'


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load_model(ModelConfig())


def jsonl(folder: Path, seed: int = 0, **settings: str | float | None) -> Task:
    config = DataConfig.model_validate({"kind": "jsonl", "path": str(folder), **settings})
    return tasks.get("jsonl")(config, seed)


# jsonl


def test_each_device_has_its_file(tmp_path: Path) -> None:
    (tmp_path / "d0.jsonl").write_text(f"{LINE}\n{LINE}\n", encoding="utf-8")
    task = jsonl(tmp_path)
    assert task.train_examples("d0") == [Example("alpha lives in", " one", ends=True)] * 2
    assert task.other_wording("d0") == task.control_examples() == []
    with pytest.raises(InputError, match=r"data\.path: .*d1\.jsonl is missing"):
        task.train_examples("d1")
    with pytest.raises(InputError, match="is no file name"):
        task.train_examples("../d0")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is no JSON object"),
        ('{"prompt": "a"}', "missing key 'response'"),
        ('{"prompt": "a", "response": "b", "topic": 1}', "unknown key 'topic'"),
        ('{"prompt": "a", "response": "b", "label": 1.5}', "'label' is float; allowed: a string"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "is no chat with an answer"),
        ('{"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}', "a message is not of"),
        ('{"messages": [], "prompt": "a"}', "is no chat with an answer"),
        ('{"prompt": 3, "response": "b"}', "'prompt' is int, not a string"),
        ('{"prompt": "a", "response": null}', "'response' is NoneType"),
        ('{"prompt": "a", "response": " "}', "'response' is empty"),
        ('{"prompt": "a", "response": "\\ud800"}', "is not UTF-8"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_the_error_names_the_wrong_line(tmp_path: Path, line: str | bytes, said: str) -> None:
    wrong = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "d0.jsonl").write_bytes(LINE.encode() + b"\n" + wrong + b"\n")
    with pytest.raises(InputError, match=rf"d0\.jsonl:2: {said}.*allowed: |d0\.jsonl:2: {said}"):
        jsonl(tmp_path).train_examples("d0")


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "d0.jsonl").touch()
    with pytest.raises(InputError, match=r"d0\.jsonl is empty"):
        jsonl(tmp_path).train_examples("d0")
    (tmp_path / "d0.jsonl").write_bytes(b"\xef\xbb\xbf\r\n  \n")
    with pytest.raises(InputError, match=r"d0\.jsonl is empty"):
        jsonl(tmp_path).train_examples("d0")


def test_a_byte_order_mark_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    text = f"\n{LINE}\r\n \t\r\n{LINE}\n\n"
    (tmp_path / "d0.jsonl").write_text(text, encoding="utf-8-sig")
    assert jsonl(tmp_path).train_examples("d0") == [Example("alpha lives in", " one", ends=True)] * 2
    (tmp_path / "d0.jsonl").write_text(f"{text}{{\n", encoding="utf-8-sig")
    with pytest.raises(InputError, match=r"d0\.jsonl:6: is not JSON"):
        jsonl(tmp_path).train_examples("d0")


def write_numbered(folder: Path, **counts: int) -> None:
    for name, count in counts.items():
        rows = (f'{{"prompt": "{name} {i}", "response": "x"}}\n' for i in range(count))
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")


def test_iid_deals_the_lines_of_the_named_devices_only(tmp_path: Path) -> None:
    write_numbered(tmp_path, d0=1, d1=3, d7=20, edge=4, test=4)
    config = DataConfig(kind="jsonl", path=str(tmp_path), partition="iid", devices=("d0", "edge", "d1"))
    task = tasks.get("jsonl")(config, 0)
    shares = {device: task.train_examples(device) for device in config.devices}
    assert sorted(len(share) for share in shares.values()) == [2, 3, 3]
    dealt = sorted(e.prompt for share in shares.values() for e in share if isinstance(e, Example))
    assert dealt == ["d0 0", "d1 0", "d1 1", "d1 2", "edge 0", "edge 1", "edge 2", "edge 3"]
    assert isinstance(task, HasFiles) and task.unused(config.devices) == ["d7.jsonl", "test.jsonl"]
    with pytest.raises(InputError, match=r"device 'd7'.*deals the examples to d0, edge, d1; allowed"):
        task.train_examples("d7")


def test_iid_without_named_devices_deals_the_files_numbered_from_0(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_numbered(tmp_path, d0=4, d1=4, d7=20, test=4)
    task = jsonl(tmp_path, partition="iid")
    dealt = [task.train_examples(device) for device in ("d0", "d1")]
    assert [len(share) for share in dealt] == [4, 4]
    assert {e.prompt[:2] for share in dealt for e in share if isinstance(e, Example)} == {"d0", "d1"}
    assert "files of no device: d7.jsonl, test.jsonl" in caplog.text


def test_own_names_the_files_of_no_device(tmp_path: Path) -> None:
    write_numbered(tmp_path, d0=1, d7=1)
    task = jsonl(tmp_path)
    assert isinstance(task, HasFiles) and task.unused(["d0", "d1"]) == ["d7.jsonl"]


def test_iid_distributes_the_examples_of_all_devices(tmp_path: Path) -> None:
    for device, count in (("d0", 1), ("d1", 5), ("d2", 4)):
        rows = (f'{{"prompt": "{device} {i}", "response": "x"}}\n' for i in range(count))
        (tmp_path / f"{device}.jsonl").write_text("".join(rows), encoding="utf-8")
    shares = [jsonl(tmp_path, partition="iid").train_examples(d) for d in ("d0", "d1", "d2")]
    own = [e for d in ("d0", "d1", "d2") for e in jsonl(tmp_path).train_examples(d)]
    assert sorted(len(share) for share in shares) == [3, 3, 4]
    assert {e for share in shares for e in share} == set(own)
    assert jsonl(tmp_path, partition="iid").train_examples("d1") == shares[1]
    assert jsonl(tmp_path, seed=1, partition="iid").train_examples("d1") != shares[1]
    with pytest.raises(InputError, match=r"d3\.jsonl is missing"):
        jsonl(tmp_path, partition="iid").train_examples("d3")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"partition": "by-label"}, r"data\.partition: 'by-label' needs labelled data.*allowed: own, iid"),
        ({"partition": "dirichlet:1"}, r"data\.partition: 'dirichlet:1' needs labelled data"),
        ({"overlap": 0.5}, r"data\.overlap: does not apply"),
        ({"path": None}, r"data\.path: is not set"),
        ({"path": "nowhere"}, r"data\.path: nowhere is not a folder"),
    ],
)
def test_settings_that_do_not_apply_to_jsonl(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    (tmp_path / "d0.jsonl").write_text(LINE, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        jsonl(tmp_path, **settings).train_examples("d0")


def test_an_unknown_task_lists_the_known_ones() -> None:
    known = "authors, dataset, facts, images, jsonl, (listed-images, )?tofu"  # an experiment may add one
    with pytest.raises(InputError, match=rf"data\.kind: 'fact' is not known; known are: {known}"):
        tasks.get("fact")


# encode


def test_labels_are_the_response_only_and_padding_is_masked() -> None:
    tokenizer = small_tokenizer()
    encoded = encode([Example("alpha lives in", " one"), Example("the", " red two")], tokenizer, 16)
    ids = tokenizer.convert_tokens_to_ids(["alpha", "lives", "in", "one", "the", "red", "two"])
    assert encoded.input_ids.tolist() == [ids[:4], [*ids[4:], tokenizer.pad_token_id]]
    assert encoded.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert encoded.labels.tolist() == [[IGNORED] * 3 + [ids[3]], [IGNORED, ids[5], ids[6], IGNORED]]
    assert encoded.input_ids.dtype == encoded.attention_mask.dtype == encoded.labels.dtype == torch.int64


def test_an_answer_of_the_facts_is_one_token(tiny: LoadedModel) -> None:
    encoded = encode(Facts(DataConfig(), 0).train_examples("d0"), tiny.tokenizer, 128)
    assert ((encoded.labels != IGNORED).sum(dim=1) == 1).all()


def test_an_example_that_ends_learns_to_end() -> None:
    with_eos, without = small_tokenizer(), small_tokenizer(eos=False)
    example = [Example("alpha", "one", ends=True)]
    assert encode(example, with_eos, 16).labels[0, -1] == with_eos.eos_token_id
    assert encode(example, without, 16).input_ids.shape == (1, 2)


def test_truncation_cuts_the_prompt_from_the_left() -> None:
    tokenizer = small_tokenizer()
    encoded = encode([Example("alpha beta gamma delta", " one two")], tokenizer, 4)
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids[0]) == ["gamma", "delta", "one", "two"]
    with pytest.raises(InputError, match=r"data\.max_length: 2 has no room.*allowed: 3 or more"):
        encode([Example("alpha", " one two")], tokenizer, 2)


def test_the_first_answer_has_a_token_before_it() -> None:
    tokenizer = small_tokenizer()
    encoded = encode([Example("", "one")], tokenizer, 4)
    assert encoded.input_ids.tolist() == [[tokenizer.pad_token_id, tokenizer.get_vocab()["one"]]]


def test_an_answer_with_unknown_words_is_refused() -> None:
    with pytest.raises(InputError, match="'zebra' has words that the vocabulary"):
        encode([Example("alpha", "zebra")], small_tokenizer(), 8)


def test_padding_without_a_pad_token() -> None:
    assert pad_id(small_tokenizer()) == 1
    assert pad_id(small_tokenizer(pad=False)) == 2
    assert pad_id(small_tokenizer(pad=False, eos=False)) == 0
    encoded = encode([Example("alpha", "one"), Example("a red", "one")], small_tokenizer(pad=False), 8)
    assert encoded.input_ids[0, -1] == 2


def test_no_examples_give_no_rows(tiny: LoadedModel) -> None:
    encoded = encode([], tiny.tokenizer, 8)
    assert len(encoded) == 0
    score = evaluate(tiny.model, encoded)
    assert (score.n, math.isnan(score.accuracy), math.isnan(score.loss)) == (0, True, True)


# batches


def test_a_batch_is_without_replacement_and_depends_on_its_key_only() -> None:
    encoded = _numbered(40)

    def draw(*key: int) -> list[int]:
        seed, shard, round_number, step = key
        indices: list[int] = sample_batch(
            encoded, 32, batch_generator(seed, f"d{shard}", round_number, step)
        ).tolist()
        return indices

    first = draw(0, 1, 2, 3)
    torch.manual_seed(99)
    assert draw(0, 1, 2, 3) == first
    assert len(set(first)) == 32
    others = [draw(1, 1, 2, 3), draw(0, 2, 2, 3), draw(0, 1, 3, 3), draw(0, 1, 2, 4)]
    assert first not in others


def test_a_batch_has_all_examples_if_there_are_too_few() -> None:
    assert sample_batch(_numbered(5), 8, batch_generator(0, "d0", 0, 0)).tolist() == [0, 1, 2, 3, 4]


def test_rows_are_cut_to_the_longest() -> None:
    encoded = encode(
        [Example("alpha", "one"), Example("alpha beta gamma", "two"), Example("beta", "one")],
        small_tokenizer(),
        8,
    )
    taken = encoded.rows(torch.tensor([2, 0]))
    assert taken.input_ids.shape == taken.labels.shape == taken.attention_mask.shape == (2, 2)
    assert taken.input_ids.tolist() == [encoded.input_ids[2, :2].tolist(), encoded.input_ids[0, :2].tolist()]


def _numbered(n: int) -> Encoded:
    ids = torch.arange(n).reshape(n, 1)
    return Encoded(ids, torch.ones_like(ids), ids)


# evaluate


def test_scores_do_not_depend_on_the_batch_or_the_padding(tmp_path: Path) -> None:
    loaded = load_model(ModelConfig(name=str(save_small_model(tmp_path, "gpt2", pad=False))))
    examples = [
        Example("alpha lives in", "one two"),
        Example("the", "red"),
        Example("a a a a", "blue green is"),
    ]
    encoded = encode(examples, loaded.tokenizer, 16)
    whole = evaluate(loaded.model, encoded)
    alone = [evaluate(loaded.model, encode([e], loaded.tokenizer, 16)) for e in examples]
    tokens = [2, 1, 3]
    assert whole.n == 3
    assert evaluate(loaded.model, encoded, batch=1).loss == pytest.approx(whole.loss, rel=1e-5)
    assert whole.loss == pytest.approx(
        sum(s.loss * n for s, n in zip(alone, tokens, strict=True)) / 6, rel=1e-5
    )


def test_every_token_of_the_response_must_be_right(tmp_path: Path) -> None:
    loaded = load_model(ModelConfig(name=str(save_small_model(tmp_path, "llama"))))
    start = encode([Example("alpha lives in", "one")], loaded.tokenizer, 16).input_ids[:, :3]
    known = _continued(loaded, start, 2)
    half = known.clone()
    half[0, 4] = (half[0, 4] + 1) % 10
    ids = torch.cat([known, half])
    labels = ids.clone()
    labels[:, :3] = IGNORED
    score = evaluate(loaded.model, Encoded(ids, torch.ones_like(ids), labels))
    assert (score.accuracy, score.n) == (0.5, 2)


def _continued(loaded: LoadedModel, ids: torch.Tensor, count: int) -> torch.Tensor:
    for _ in range(count):
        best = loaded.model(input_ids=ids).logits[:, -1].argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, best], dim=1)
    return ids


def test_evaluation_has_no_dropout_and_keeps_the_mode(tmp_path: Path) -> None:
    loaded = load_model(ModelConfig(name=str(save_small_model(tmp_path, "gpt2"))))
    encoded = encode([Example("alpha lives in", "one")], loaded.tokenizer, 16)
    loaded.model.train()
    assert evaluate(loaded.model, encoded) == evaluate(loaded.model, encoded)
    assert loaded.model.training
    loaded.model.eval()
    evaluate(loaded.model, encoded)
    assert not loaded.model.training


def test_tiny_knows_the_language_but_no_fact(tiny: LoadedModel) -> None:
    task = Facts(DataConfig(), 0)
    known = [e for k in range(16) for e in task.train_examples(f"d{k}")]
    other = [e for k in range(16) for e in task.other_wording(f"d{k}")]
    for examples in (known, other, task.control_examples()):
        score = evaluate(tiny.model, encode(examples, tiny.tokenizer, 128))
        assert score.accuracy < 0.08  # chance is 1/24
        assert score.loss == pytest.approx(math.log(24), abs=0.15)  # all 24 answers alike, nothing else
