"""Images as tensors for a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from peers.errors import InputError
from peers.tasks.base import ImageExample


@dataclass(frozen=True)
class ImageFormat:
    """The images that a classifier reads. height, width: None: as the images are.

    mean, std: by channel, of values from 0 to 1. classes: the width of the head.
    """

    channels: int
    height: int | None
    width: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int


@dataclass(frozen=True)
class EncodedImages:
    """n images. pixel_values: [n, C, H, W] float32. labels: [n] int64. It is a `Batch` with L = 1.

    logit_shift: [classes], of `adjusted`.
    """

    pixel_values: Tensor
    labels: Tensor
    truncated: int = 0
    logit_shift: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    def rows(self, indices: Tensor) -> EncodedImages:
        """As `Batch.rows`."""
        return EncodedImages(self.pixel_values[indices], self.labels[indices], logit_shift=self.logit_shift)

    def to(self, device: torch.device | str) -> EncodedImages:
        """As `Batch.to`."""
        shift = None if self.logit_shift is None else self.logit_shift.to(device)
        return EncodedImages(self.pixel_values.to(device), self.labels.to(device), logit_shift=shift)

    def inputs(self) -> dict[str, Tensor]:
        """As `Batch.inputs`."""
        return {"pixel_values": self.pixel_values}

    def wanted(self) -> Tensor:
        """The label of each image, [n, 1]."""
        return self.labels[:, None]

    def lengths(self) -> Tensor:
        """1 for each image."""
        return torch.ones(len(self), dtype=torch.int64)

    def counted(self, positions: int) -> Tensor:
        """All positions: an image has no padding of its own."""
        return torch.ones(len(self), positions, dtype=torch.bool, device=self.labels.device)


def encode_images(examples: Sequence[ImageExample], form: ImageFormat) -> EncodedImages:
    """Images in the size, channels and normalisation that a model reads. Grey images fill all channels.

    Raises InputError for images of different shapes, and for colours that the model has no channels for.
    """
    shapes = {example.shape for example in examples}
    if len(shapes) > 1:
        raise InputError(f"data: the images have the shapes {sorted(shapes)}; allowed: one shape")
    shape = shapes.pop() if shapes else (form.channels, form.height or 1, form.width or 1)
    if shape[0] not in (1, form.channels):
        raise InputError(
            f"data: the images have {shape[0]} channels, and the model reads {form.channels}; "
            f"allowed: images with 1 or {form.channels} channels, or another model"
        )
    pixels = bytearray(b"".join(example.pixels for example in examples))
    found = torch.frombuffer(pixels, dtype=torch.uint8) if pixels else torch.empty(0, dtype=torch.uint8)
    values = _resized(found.view(len(examples), *shape).float() / 255, form)
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (form.mean, form.std))
    values = (values.expand(-1, form.channels, -1, -1) - mean) / std
    return EncodedImages(values.contiguous(), torch.tensor([e.label for e in examples], dtype=torch.int64))


def _resized(values: Tensor, form: ImageFormat) -> Tensor:
    size = (form.height or values.shape[2], form.width or values.shape[3])
    if not len(values) or size == tuple(values.shape[2:]):
        return values
    return functional.interpolate(values, size, mode="bilinear", antialias=True, align_corners=False)
