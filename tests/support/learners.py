"""Learners on small random models, with blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coordinator_free.identifiers import BlockKey
from peers.config import DeviceConfig
from peers.learning.learner import Learner
from peers.models.loader import LoadedModel, weights_sha256
from peers.tasks import Encoded, Example, encode
from tests.support.tiny_models import BUILDERS, Family, small_tokenizer

TARGETS: dict[Family, tuple[str, ...]] = {
    "llama": ("q_proj", "o_proj", "down_proj"),
    "qwen2": ("q_proj", "v_proj", "up_proj"),
    "gpt2": ("c_attn", "c_proj", "lm_head"),  # Conv1D and Linear
    "bart": ("self_attn.q_proj", "self_attn.v_proj"),
    "bert": ("query", "value"),
    "gemma3-vision": ("q_proj", "v_proj"),
}
torch.set_num_threads(1)  # more threads only wait for each other on small matrices

OWN = BlockKey("d0", 0)
OTHERS = [BlockKey("d1", 0), BlockKey("d2", 0)]
EXAMPLES = [Example("alpha lives in", "red"), Example("beta gamma is a", "green"), Example("delta", "blue")]


def small_loaded(family: Family = "llama", seed: int = 0) -> LoadedModel:
    """Hidden 32, 3 layers, random weights."""
    tokenizer = small_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BUILDERS[family](len(tokenizer)).eval().requires_grad_(False)
    model.config.use_cache = False
    return LoadedModel(model, tokenizer, "small", weights_sha256(model), TARGETS[family])


def small_config(**sections: Any) -> DeviceConfig:
    adapter = {"rank": 2, "max_devices": 8, **sections.pop("adapter", {})}
    return DeviceConfig.model_validate({"data": {"batch": 2}, "adapter": adapter, **sections})


def small_data(loaded: LoadedModel) -> Encoded:
    return encode(EXAMPLES, loaded.tokenizer, 16)


def small_learner(family: Family = "llama", device: str = "d0", **sections: Any) -> Learner:
    loaded = small_loaded(family)
    return Learner(loaded, small_config(**sections), small_data(loaded), device)


def joined(family: Family = "llama", **sections: Any) -> Learner:
    """A learner with the own block on slot 0 and two others, all with random values."""
    learner = small_learner(family, **sections)
    learner.set_own(OWN, 0)
    for slot, key in enumerate(OTHERS, start=1):
        learner.add_block(key, slot)
    for i, key in enumerate([OWN, *OTHERS]):
        fill(learner, key, seed=i)
    return learner


def fill(learner: Learner, key: BlockKey, seed: int, size: float = 0.05) -> None:
    draw = torch.Generator().manual_seed(seed)
    for group in learner.groups:
        shape = learner.layout.rows(group), learner.layout.rank(group)
        learner.write(key, group, size * torch.randn(shape, generator=draw))


def block(learner: Learner, key: BlockKey) -> dict[str, Tensor]:
    return {group: learner.read(key, group) for group in learner.groups}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two blocks are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    ids = torch.arange(24).reshape(2, 12) % 15
    return model(input_ids=ids).logits.clone()
