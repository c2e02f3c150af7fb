"""Classifiers of images: loading them from a folder or the hub, and checks that they are ones."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForImageClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import cached_file

from peers.errors import InputError
from peers.models.checks import called_modules, finite_logits
from peers.tasks import ImageFormat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREPROCESSOR = "preprocessor_config.json"
PROBE_SIDE = 32  # pixels, of a model that reads images of any size


def is_classifier(config: Any) -> bool:
    """Whether the configuration is of a type that transformers has as a classifier of images only."""
    images, text = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return config.model_type in images and config.model_type not in text


def load_classifier(
    name: str, source: str, offline: bool, config: Any
) -> tuple[PreTrainedModel, None, None, ImageFormat]:
    """The fields of `Pretrained` for a classifier. Raises InputError if weights are missing."""
    model, info = AutoModelForImageClassification.from_pretrained(
        source,
        dtype=torch.float32,
        local_files_only=offline,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise InputError(f"model.name: {name!r} lacks the weights {missing}; allowed: trained classifiers")
    return model, None, None, read_format(source, offline, config)


def read_format(source: str, offline: bool, config: Any) -> ImageFormat:
    """The format of a classifier's images, from its configuration and that of its preprocessor, if any."""
    said: dict[str, Any] = {}
    with suppress(OSError):
        found = cached_file(source, PREPROCESSOR, local_files_only=offline)
        said = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
    channels = int(getattr(config, "num_channels", 3))
    height, width = _size(said.get("size", getattr(config, "image_size", None)))
    mean, std = (_by_channel(said.get(key), 0.5, channels) for key in ("image_mean", "image_std"))
    return ImageFormat(channels, height, width, mean, std, int(config.num_labels))


def write_format(folder: Path, form: ImageFormat) -> None:
    """Write the format as `read_format` and transformers' image processors read it."""
    said = {"image_mean": list(form.mean), "image_std": list(form.std), "do_normalize": True}
    if form.height is not None:
        said |= {"do_resize": True, "size": {"height": form.height, "width": form.width}}
    (folder / PREPROCESSOR).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def _size(said: Any) -> tuple[int | None, int | None]:
    if isinstance(said, dict):
        if "height" in said and "width" in said:
            return int(said["height"]), int(said["width"])
        said = said.get("shortest_edge")
    if isinstance(said, list | tuple):
        return int(said[0]), int(said[1])
    return (None, None) if said is None else (int(said), int(said))


def _by_channel(said: Any, default: float, channels: int) -> tuple[float, ...]:
    values = said if isinstance(said, list | tuple) else [default if said is None else said]
    return tuple(float(values[c % len(values)]) for c in range(channels))


def adaptable(model: nn.Module, used: set[str]) -> list[str]:
    """All linear modules and convolutions that compute something: the default targets."""
    kinds = (nn.Linear, nn.Conv2d)
    return [name for name, module in model.named_modules() if isinstance(module, kinds) and name in used]


@torch.no_grad()
def modules_in_use(model: PreTrainedModel, form: ImageFormat, name: str) -> set[str]:
    """The names of the modules that compute something for an image.

    Raises InputError if the model gives no finite [n, classes] logits, or lets one image change another's.
    """
    draw = torch.Generator().manual_seed(0)
    shape = (2, form.channels, form.height or PROBE_SIDE, form.width or PROBE_SIDE)
    images = torch.rand(shape, generator=draw)
    with called_modules(model) as used:
        logits = compute_logits(model, images, name)
    if logits.shape != (2, form.classes):
        raise InputError(
            f"model.name: {name!r} gives logits of the shape {tuple(logits.shape)} for 2 images; "
            f"allowed: classifiers, here with ({2}, {form.classes})"
        )
    return used


@torch.no_grad()
def compute_logits(model: PreTrainedModel, images: torch.Tensor, name: str) -> torch.Tensor:
    """Logits of images, [n, C, H, W]. Raises InputError if the model cannot compute them, or not finitely."""
    images = images.to(next(model.parameters()).device)
    return finite_logits(
        lambda: model(pixel_values=images).logits,
        name,
        f"images of {images.shape[1]} x {images.shape[2]} x {images.shape[3]}",
        "a model for images of this size",
    )
