"""A saved adapter of any kind in a base model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

from peers.errors import InputError
from peers.lora.adapted_model import needs_hooks, shape_lora
from peers.lora.bases import Recipe
from peers.storage.adapter_folder import WEIGHTS, peft_config
from peers.unlearning.forget import read_about

FIRST = "default"  # PEFT's name for the first adapter


def load_adapter(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """The base model with a saved adapter in it, whatever its kind; changes `model` in place.

    For LoRA this is `PeftModel.from_pretrained`. A bottleneck can be neither merged nor saved by PEFT: both
    raise InputError. Raises InputError if unweft did not write the adapter.
    """
    recipe, _ = read_about(adapter)
    config = None if recipe.layout.kind.dense else _config(recipe, adapter)  # None: PEFT reads the file
    found = PeftModel.from_pretrained(model, adapter, config=config)
    _shape(found, recipe, FIRST)
    return found


def add_adapter(model: PeftModel, adapter: Path, name: str) -> None:
    """Load another saved adapter of the same base model under a name, and use it alone from now on."""
    recipe, _ = read_about(adapter)
    if not recipe.layout.kind.dense:
        model.add_adapter(name, _config(recipe, adapter))
    model.load_adapter(adapter, adapter_name=name)
    _shape(model, recipe, name)
    model.set_adapter(name)


def _config(recipe: Recipe, adapter: Path) -> LoraConfig:
    return peft_config(recipe, load_file(adapter / WEIGHTS))


def _shape(model: PeftModel, recipe: Recipe, name: str) -> None:
    """Let PEFT's modules compute the kind of the adapter. A dense kind is LoRA in its files."""
    kind = recipe.layout.kind
    if kind.dense:
        return
    for shape in recipe.modules:
        shape_lora(model.base_model.model.get_submodule(shape.name), name, kind)
    # setattr: mypy allows no other method in the place of one
    setattr(model, "save_pretrained", partial(_save, model.save_pretrained, name, kind.name))  # noqa: B010


def _save(
    save: Callable[..., None],
    name: str,
    kind: str,
    save_directory: str,
    safe_serialization: bool = True,
    selected_adapters: list[str] | None = None,
    **options: Any,
) -> None:
    """In the place of `save_pretrained`: PEFT would write LoRA's configuration beside the factors."""
    if selected_adapters is None or name in selected_adapters:
        raise InputError(
            f"save_pretrained: {needs_hooks(name, kind)}; allowed: a copy of the folder that unweft wrote"
        )
    save(save_directory, safe_serialization, selected_adapters, **options)
