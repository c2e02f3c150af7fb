"""Which modules of a base model get a block."""

from __future__ import annotations

from collections.abc import Container, Iterable
from re import fullmatch
from typing import TYPE_CHECKING

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_DEFAULTS
from torch import nn
from transformers.pytorch_utils import Conv1D

from peers.config import ModelConfig
from peers.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTABLE = (nn.Linear, nn.Conv2d, Conv1D)
ALL_LINEAR = "all-linear"  # as in PEFT: all linear modules but the output head


def target_modules(
    model: PreTrainedModel, config: ModelConfig, default: tuple[str, ...] | None, used: Container[str]
) -> tuple[str, ...]:
    """The scenario's choice, else the model's default, else PEFT's for the type. Raises InputError.

    used: the modules that compute something for a text. Others are no target: their blocks would stay 0.
    """
    every = [name for name, module in model.named_modules() if isinstance(module, ADAPTABLE)]
    adaptable = [name for name in every if name in used]
    if config.target_modules == ALL_LINEAR:
        return _all_linear(model, adaptable)
    chosen = config.target_modules or default or _peft_default(model, adaptable)
    allowed = f"allowed: {', '.join(sorted({name.rpartition('.')[2] for name in adaptable}))}"
    if not chosen:
        raise InputError(
            f"model.target_modules: PEFT has no default for {model.config.model_type!r}: name them; {allowed}"
        )
    for target in chosen:
        if not any(is_target(name, (target,)) for name in adaptable):
            unused = any(is_target(name, (target,)) for name in every)
            lacks = f"uses no module {target!r} for text" if unused else f"has no module {target!r}"
            raise InputError(f"model.target_modules: {config.name!r} {lacks}; {allowed}")
    if all(name in used for name in every if is_target(name, chosen)):
        return tuple(chosen)
    return tuple(name for name in adaptable if is_target(name, chosen))


def _all_linear(model: PreTrainedModel, adaptable: list[str]) -> tuple[str, ...]:
    """The full names of all linear modules but the output head."""
    head = model.get_output_embeddings()
    modules = dict(model.named_modules())
    return tuple(
        n for n in adaptable if isinstance(modules[n], nn.Linear | Conv1D) and modules[n] is not head
    )


def is_target(name: str, targets: Iterable[str]) -> bool:
    """Is this module a target: by its full name, or by its end after a dot?"""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _peft_default(model: PreTrainedModel, adaptable: list[str]) -> tuple[str, ...]:
    default: list[str] | str = PEFT_DEFAULTS.get(model.config.model_type, [])
    if isinstance(default, str):  # a pattern on full names
        return tuple(name for name in adaptable if fullmatch(default, name))
    return tuple(default)
