"""Models by name: the loaded model, its state, and the errors."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_DEFAULTS

from emulation.launch import preload_base_model
from peers.config import ModelConfig
from peers.errors import InputError
from peers.models import loader, pretrain_tiny
from peers.models.loader import (
    LoadedModel,
    Pretrained,
    keep_model,
    load_model,
    pick_device,
    weights_sha256,
)
from peers.registry import Registry
from peers.tasks import Example, encode, evaluate
from tests.support.tiny_models import Family, save_small_model, small_tokenizer

ROOT = Path(__file__).parents[3]
DEFAULTS: dict[Family, tuple[str, ...]] = {
    "llama": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "gpt2": ("c_attn",),
}


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load_model(ModelConfig())


def test_tiny_is_frozen_in_float32_and_eval_mode(tiny: LoadedModel) -> None:
    parameters = list(tiny.model.parameters())
    assert not any(p.requires_grad for p in parameters)
    assert {p.dtype for p in parameters} == {torch.float32}
    assert not tiny.model.training
    assert tiny.name == "tiny"


@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # PEFT 0.21, transformers 5.23
def test_tiny_adapts_all_its_linear_modules(tiny: LoadedModel) -> None:
    adapted = get_peft_model(
        load_model(ModelConfig()).model, LoraConfig(r=2, target_modules=list(tiny.target_modules))
    )
    assert sum(name.endswith(".lora_A.default") for name, _ in adapted.named_modules()) == 4 * 7


def test_tiny_is_the_small_model_of_the_docs(tiny: LoadedModel) -> None:
    weights = (loader.TINY_FOLDER / "model.safetensors").read_bytes()
    described = (ROOT / "docs" / "tiny.md").read_text(encoding="utf-8")
    assert len(weights) <= 3_000_000
    assert hashlib.sha256(weights).hexdigest() in described
    assert tiny.sha256 in described


def test_tiny_has_the_vocabulary_and_shape_of_its_recipe(tiny: LoadedModel) -> None:
    tokenizer = pretrain_tiny.build_tokenizer()
    assert tiny.tokenizer.get_vocab() == tokenizer.get_vocab()
    built = pretrain_tiny.build_model(tokenizer).state_dict()
    assert {k: v.shape for k, v in built.items()} == {k: v.shape for k, v in tiny.model.state_dict().items()}


def test_pretraining_is_deterministic_and_learns() -> None:
    def run(steps: int) -> tuple[float, str]:
        torch.manual_seed(pretrain_tiny.SEED)
        tokenizer = pretrain_tiny.build_tokenizer()
        model = pretrain_tiny.build_model(tokenizer)
        return pretrain_tiny.pretrain(model, tokenizer, steps), weights_sha256(model)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run(4) == run(4)
        assert run(25)[0] < run(1)[0] - 0.5
    finally:
        torch.set_num_threads(threads)


def test_a_kept_model_is_used_once() -> None:
    config, threads = ModelConfig(), torch.get_num_threads()
    keep_model(config)
    assert torch.get_num_threads() == threads
    kept = load_model(config.model_copy(update={"threads": 3}))  # another process computes as it likes
    again = load_model(config)
    assert kept.model is not again.model and kept.sha256 == again.sha256
    keep_model(config)
    other = load_model(config.model_copy(update={"target_modules": ("q_proj",)}))
    assert other.target_modules == ("q_proj",)
    assert load_model(config).target_modules == again.target_modules


def test_the_launcher_ignores_a_model_that_cannot_be_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(preload_base_model.NAME, ModelConfig(name="no/such-folder/anywhere").model_dump_json())
    importlib.reload(preload_base_model)
    with pytest.raises(InputError):
        load_model(ModelConfig(name="no/such-folder/anywhere"))


def test_the_launcher_preloads_the_model_of_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("from peers.models import loader", "loader.models.add('own-tiny')(loader.load_tiny)")
    (tmp_path / "unweft_test_plugin.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(loader.models, "_known", dict(loader.models._known))
    config = ModelConfig(name="own-tiny")
    monkeypatch.setenv(preload_base_model.NAME, config.model_dump_json())
    monkeypatch.setenv(preload_base_model.PLUGINS, "unweft_test_plugin")
    importlib.reload(preload_base_model)
    assert loader._kept.pop(loader._key(config)).name == "own-tiny"


@pytest.mark.parametrize("family", DEFAULTS)
def test_a_local_folder_gets_pefts_default_modules(tmp_path: Path, family: Family) -> None:
    loaded = load_model(ModelConfig(name=str(save_small_model(tmp_path, family))))
    assert loaded.target_modules == DEFAULTS[family]
    score = evaluate(loaded.model, encode([Example("alpha lives in", " one")], loaded.tokenizer, 16))
    assert score.n == 1
    assert score.loss > 0


@pytest.mark.parametrize("family", DEFAULTS)
def test_the_tokenizer_of_a_folder_loads_as_saved(tmp_path: Path, family: Family) -> None:
    loaded = load_model(ModelConfig(name=str(save_small_model(tmp_path, family))))
    saved = small_tokenizer()
    assert loaded.tokenizer.get_vocab() == saved.get_vocab()
    assert loaded.tokenizer.encode("alpha lives in") == saved.encode("alpha lives in")


def test_the_hash_depends_only_on_the_weights(tmp_path: Path) -> None:
    def hash_of(name: str, seed: int) -> str:
        folder = save_small_model(tmp_path / name, "llama", seed)
        return load_model(ModelConfig(name=str(folder))).sha256

    assert hash_of("a", seed=0) == hash_of("b", seed=0)
    assert hash_of("a", seed=0) != hash_of("c", seed=1)


def test_the_scenario_chooses_the_modules(tmp_path: Path) -> None:
    folder = str(save_small_model(tmp_path, "gpt2"))
    assert load_model(ModelConfig(name=folder, target_modules=("mlp.c_fc",))).target_modules == ("mlp.c_fc",)
    with pytest.raises(InputError, match=r"model\.target_modules.*'q_proj'.*allowed: c_attn, c_fc, c_proj"):
        load_model(ModelConfig(name=folder, target_modules=("q_proj",)))


def test_a_type_without_a_default_needs_target_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(PEFT_DEFAULTS, "gpt2")
    with pytest.raises(InputError, match=r"model\.target_modules.*no default for 'gpt2'.*allowed: c_attn"):
        load_model(ModelConfig(name=str(save_small_model(tmp_path, "gpt2"))))


def test_a_default_that_is_a_pattern_becomes_full_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PEFT_DEFAULTS, "llama", r".*layers\.[01]\..*\.q_proj")
    loaded = load_model(ModelConfig(name=str(save_small_model(tmp_path, "llama"))))
    assert loaded.target_modules == ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "../no-such-folder"])
def test_a_folder_that_does_not_exist(name: str) -> None:
    with pytest.raises(
        InputError, match=r"model\.name.*does not exist; allowed: small-resnet, smollm2, tiny, a local folder"
    ):
        load_model(ModelConfig(name=name))


def test_a_name_that_is_neither_in_the_cache_nor_in_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_hub_obstacle", lambda: "no network")
    with pytest.raises(
        InputError, match=r"model\.name: 'tinyy'.*no network.*allowed: small-resnet, smollm2, tiny"
    ):
        load_model(ModelConfig(name="tinyy"))


def test_a_hub_that_cannot_be_reached_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    assert loader._hub_obstacle()


def test_a_download_in_the_cache_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_small_model(tmp_path, "llama")
    monkeypatch.setattr(loader, "_hub_obstacle", lambda: "no network")
    monkeypatch.setattr(loader, "try_to_load_from_cache", lambda repo, file: str(folder / file))
    assert load_model(ModelConfig(name="org/some-model")).name == "org/some-model"


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "no config", "bad tokenizer"])
def test_a_damaged_folder(tmp_path: Path, damage: str) -> None:
    folder = save_small_model(tmp_path, "llama")
    weights = folder / "model.safetensors"
    if damage == "no weights":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no config":
        (folder / "config.json").write_text("{}", encoding="utf-8")
    else:
        (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"model\.name: cannot load"):
        load_model(ModelConfig(name=str(folder)))


def test_weights_that_would_be_filled_at_random_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = save_small_model(tmp_path, "llama") / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks the weights model\.layers\.1\.mlp\.up_proj"):
        load_model(ModelConfig(name=str(tmp_path)))


def test_a_plugin_can_add_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "models", Registry[loader.ModelFactory]("model.name"))
    folder = str(save_small_model(tmp_path, "llama"))

    @loader.models.add("mine")
    def make(config: ModelConfig) -> Pretrained:
        made = loader.load_pretrained(folder)
        return Pretrained(made.model, made.tokenizer, ("up_proj",))

    assert load_model(ModelConfig(name="mine")).target_modules == ("up_proj",)


def test_a_registry_lists_its_names_and_refuses_duplicates() -> None:
    registry: Registry[int] = Registry("some.key")
    registry.add("one")(1)
    assert registry.get("one") == 1
    assert "one" in registry
    with pytest.raises(InputError, match=r"some\.key: 'two' is not known; known are: one"):
        registry.get("two")
    with pytest.raises(InputError, match=r"some\.key: 'one' is registered already"):
        registry.add("one")(2)


@pytest.mark.parametrize(("count", "expected"), [(0, "cpu"), (2, "cuda:0")])
def test_auto_is_the_first_gpu_or_the_cpu(monkeypatch: pytest.MonkeyPatch, count: int, expected: str) -> None:
    _pretend_gpus(monkeypatch, count)
    assert pick_device("auto") == torch.device(expected)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("count", "found"), [(0, "no CUDA device"), (1, "cuda:0")])
def test_a_missing_gpu_is_refused(monkeypatch: pytest.MonkeyPatch, count: int, found: str) -> None:
    _pretend_gpus(monkeypatch, count)
    with pytest.raises(InputError, match=rf"model\.device: 'cuda:1'.*this machine has {found}"):
        pick_device("cuda:1")


def _pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
