"""A saved adapter of any kind in a base model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from peers.errors import InputError
from peers.lora.adapted_model import needs_hooks, shape_lora
from peers.lora.bases import Recipe
from peers.lora.layout import ModelLayout, ModuleShape
from peers.storage.adapter_folder import WEIGHTS, peft_config
from peers.unlearning.forget import check_scaling, read_about, read_factors

FIRST = "default"  # PEFT's name for the first adapter


def load_adapter(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """The base model with a saved adapter in it, whatever its kind; changes `model` in place.

    For LoRA this is `PeftModel.from_pretrained`. A bottleneck can be neither merged nor saved by PEFT: both
    raise InputError. Raises InputError if unweft did not write the adapter, if a file is missing or damaged,
    or if the base model has other modules; `model` is then unchanged.
    """
    recipe = _checked(adapter, model)
    found = PeftModel.from_pretrained(model, adapter, config=_config(recipe, adapter))
    _shape(found, recipe, FIRST)
    return found


def add_adapter(model: PeftModel, adapter: Path, name: str) -> None:
    """Load another saved adapter of the same base model under a name, and use it alone from now on.

    Raises InputError if unweft did not write the adapter, or if a file is missing or damaged.
    """
    recipe = _checked(adapter)
    model.add_adapter(name, _config(recipe, adapter))
    model.load_adapter(adapter, adapter_name=name)
    _shape(model, recipe, name)
    model.set_adapter(name)


def _checked(adapter: Path, base: nn.Module | None = None) -> Recipe:
    """The recipe of an adapter whose files are whole and fit the base model. Raises InputError."""
    recipe, _ = read_about(adapter)
    check_scaling(adapter, recipe)
    read_factors(adapter, recipe)
    if base is not None:
        _check_base(base, recipe, adapter)
    return recipe


def _check_base(base: nn.Module, recipe: Recipe, adapter: Path) -> None:
    """By shapes alone: the weights may be in another precision than those of the training."""
    try:
        found = ModelLayout.from_model(base, [m.name for m in recipe.modules], rank=1).by_name
    except InputError:  # no such module, or one of another type
        found = {}
    for wanted in recipe.modules:
        if wanted.name not in found or _size(found[wanted.name]) != _size(wanted):
            raise InputError(
                f"{adapter}: module {wanted.name!r} ({wanted.in_features} -> {wanted.out_features}) is not "
                f"in the given model, or of another size; allowed: the base model {recipe.model_name!r}"
            )


def _size(shape: ModuleShape) -> tuple[object, ...]:
    return shape.in_features, shape.out_features, shape.conv1d, shape.kernel


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
