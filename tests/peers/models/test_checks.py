"""A model that is no causal language model, or whose limits the data exceed, is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peers.config import ModelConfig
from peers.errors import InputError
from peers.models.checks import max_positions
from peers.models.data_limits import check_data
from peers.models.loader import LoadedModel, load_model
from peers.tasks import Example, encode, evaluate
from tests.support.tiny_models import Family, save_small_model


def small(
    folder: Path, family: Family = "llama", target_modules: tuple[str, ...] | None = None
) -> LoadedModel:
    name = str(save_small_model(folder, family))
    return load_model(ModelConfig(name=name, target_modules=target_modules))


def change(file: Path, **values: object) -> None:
    found = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(found | values), encoding="utf-8")


def test_an_encoder_is_refused_and_its_decoder_is_not(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path, "bert")
    config = ModelConfig(name=str(folder), target_modules=("query",))
    with pytest.raises(InputError, match=r"is no causal language model: a later token.*allowed"):
        load_model(config)
    change(folder / "config.json", is_decoder=True)
    assert load_model(config).target_modules == ("query",)


def test_a_model_of_two_positions_is_probed_and_one_of_one_position_is_refused(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path, "bert")
    config = ModelConfig(name=str(folder), target_modules=("query",))
    change(folder / "config.json", max_position_embeddings=2)
    shorten(folder / "model.safetensors", "position_embeddings", 2)
    with pytest.raises(InputError, match="is no causal language model: a later token"):
        load_model(config)
    change(folder / "config.json", max_position_embeddings=1, is_decoder=True)
    shorten(folder / "model.safetensors", "position_embeddings", 1)
    with pytest.raises(InputError, match=r"reads texts of 1 token; allowed: a model of 2 positions"):
        load_model(config)


def shorten(file: Path, name: str, rows: int) -> None:
    """Keep the first rows of the weight whose name contains `name`."""
    weights = load_file(file)
    changed = {key: w[:rows].clone() if name in key else w for key, w in weights.items()}
    save_file(changed, file, metadata={"format": "pt"})


def test_an_encoder_decoder_model_is_refused(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path, "bart")
    change(folder / "config.json", is_encoder_decoder=True)
    with pytest.raises(InputError, match="is no causal language model: it is an encoder-decoder model"):
        load_model(ModelConfig(name=str(folder)))


def test_modules_that_no_text_reaches_are_no_targets(tmp_path: Path) -> None:
    bart = small(tmp_path / "bart", "bart").target_modules
    assert len(bart) == 6 and all("self_attn" in name for name in bart)
    folder = str(save_small_model(tmp_path / "gemma", "gemma3-vision"))
    gemma = load_model(ModelConfig(name=folder, target_modules=("q_proj", "v_proj")))
    assert len(gemma.target_modules) == 6
    assert all("language_model" in name for name in gemma.target_modules)
    with pytest.raises(InputError, match=r"uses no module 'out_proj' for text; allowed: .*q_proj"):
        load_model(ModelConfig(name=folder, target_modules=("out_proj",)))


def test_a_model_whose_vocabulary_is_in_text_config_is_scored(tmp_path: Path) -> None:
    loaded = small(tmp_path, "gemma3-vision", target_modules=("q_proj",))
    encoded = encode([Example("alpha lives in", "one")], loaded.tokenizer, 16)
    assert evaluate(loaded.model, encoded).loss > 0
    assert max_positions(loaded.model) == 64


def test_logits_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weights = save_small_model(tmp_path, "llama") / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"the logits of .* are not finite"):
        load_model(ModelConfig(name=str(tmp_path)))


@pytest.mark.parametrize("prompt", ["alpha <|user|>", "alpha"])
def test_a_token_beyond_the_embeddings_is_refused(tmp_path: Path, prompt: str) -> None:
    loaded = small(tmp_path)
    loaded.tokenizer.add_tokens(["<|user|>", "<|end|>"])
    response = "one" if "<" in prompt else "one <|end|>"
    encoded = encode([Example(prompt, response)], loaded.tokenizer, 16)
    with pytest.raises(InputError, match=r"data of d3 contain the token '<\|(user|end)\|>' with id 2\d"):
        check_data(loaded, [("d3", encoded)])


def test_a_padding_token_beyond_the_embeddings_is_refused(tmp_path: Path) -> None:
    loaded = small(tmp_path)
    loaded.tokenizer.add_special_tokens({"pad_token": "<new pad>"})
    encoded = encode([Example("alpha", "one"), Example("alpha beta", "one")], loaded.tokenizer, 16)
    with pytest.raises(InputError, match="contain the token '<new pad>'"):
        check_data(loaded, [("d0", encoded)])


def test_an_output_head_with_fewer_rows_is_refused(tmp_path: Path) -> None:
    loaded = small(tmp_path)
    encoded = encode([Example("alpha", "blue")], loaded.tokenizer, 16)
    rows = int(encoded.labels.max())
    loaded.model.set_output_embeddings(torch.nn.Linear(32, rows, bias=False))
    with pytest.raises(InputError, match=rf"the output head of .* have {rows} rows"):
        check_data(loaded, [("d0", encoded)])


@pytest.mark.parametrize("family", ["llama", "gpt2", "bart", "gemma3-vision"])
def test_an_example_longer_than_the_positions_is_refused(tmp_path: Path, family: Family) -> None:
    loaded = small(tmp_path, family, target_modules=("c_attn",) if family == "gpt2" else ("q_proj",))
    fits, exceeds = (encode([Example("a " * n, "one")], loaded.tokenizer, 128) for n in (63, 64))
    check_data(loaded, [("d0", fits)])
    with pytest.raises(
        InputError, match=r"an example of d1 has 65 tokens.*allowed: data\.max_length = 64 or"
    ):
        check_data(loaded, [("d0", fits), ("d1", exceeds)])


def test_positions_that_no_configuration_declares_are_found_by_computing(tmp_path: Path) -> None:
    loaded = small(tmp_path, "gpt2", target_modules=("c_attn",))
    loaded.model.config.n_positions = 1000  # the table has 64
    with pytest.raises(InputError, match="cannot compute a text of 65 tokens"):
        check_data(loaded, [("d0", encode([Example("a " * 64, "one")], loaded.tokenizer, 128))])


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "own.Own"}}),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "someone/repo--own.Own"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Own", None]}}),
        ("tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": ["own.Own", None]}),
    ],
)
def test_code_of_the_model_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, values: dict[str, object]
) -> None:
    folder = save_small_model(tmp_path, "llama")
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({os.fspath(ran)!r}, 'w')\nclass Own: pass\n", encoding="utf-8")
    change(folder / file, **values)

    def asked(*_: object) -> str:
        raise AssertionError("a question on the terminal")

    monkeypatch.setattr("builtins.input", asked)
    with pytest.raises(InputError, match=r"brings code of its own.*own\.Own.*allowed: a plugin"):
        load_model(ModelConfig(name=str(folder)))
    assert not ran.exists()


def test_code_that_transformers_has_under_the_same_name_is_not_needed(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path, "llama")
    named = {"AutoConfig": "code.LlamaConfig", "AutoModelForCausalLM": "code.LlamaForCausalLM"}
    change(folder / "config.json", auto_map=named)
    assert load_model(ModelConfig(name=str(folder))).model.config.model_type == "llama"


def test_a_local_model_is_named_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_small_model(tmp_path / "model", "llama")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("model", "./model", "~/model", "../" + tmp_path.name + "/model"):
        assert load_model(ModelConfig(name=name)).name == str(folder.resolve())
    assert load_model(ModelConfig()).name == "tiny"
