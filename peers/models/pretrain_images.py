"""Training of a base classifier of images on some of the classes of a data set (docs/vision.md).

The head has all classes. What the base does not know is for the devices to learn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from peers.errors import InputError
from peers.models.loader import SMALL_RESNET_FOLDER, weights_sha256
from peers.models.vision import write_format
from peers.tasks import EncodedImages, ImageExample, ImageFormat, encode_images, mean_loss, predictions
from peers.tasks.image_files import Images, ImageSets, read_images

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEED = 0
BATCH = 128
LR = 3e-3
SMALLEST_SIDE = 28  # smaller images are enlarged to ENLARGED: a ResNet's stem divides the side by 4
ENLARGED = 32


def build_resnet(form: ImageFormat, widths: tuple[int, ...], depth: int) -> PreTrainedModel:
    """An untrained ResNet of basic layers. (64, 128, 256, 512) with depth 2 is the layout of ResNet-18."""
    config = ResNetConfig(
        num_channels=form.channels,
        embedding_size=widths[0],
        hidden_sizes=list(widths),
        depths=[depth] * len(widths),
        layer_type="basic",
        num_labels=form.classes,
    )
    return ResNetForImageClassification(config)


def build_vit(form: ImageFormat) -> PreTrainedModel:
    """An untrained vision transformer: hidden 64, 4 layers, 4 heads, patches of 4 x 4."""
    config = ViTConfig(
        image_size=(form.height, form.width),
        patch_size=4,
        num_channels=form.channels,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=form.classes,
    )
    return ViTForImageClassification(config)


LAYOUTS: dict[str, Callable[[ImageFormat], PreTrainedModel]] = {
    "small-resnet": lambda form: build_resnet(form, (16, 32, 64), 1),
    "resnet-18": lambda form: build_resnet(form, (64, 128, 256, 512), 2),
    "small-vit": build_vit,
}


def format_of(sets: ImageSets) -> ImageFormat:
    """The format of a model for these images: their size, mean and standard deviation by channel."""
    _, channels, height, width = sets.train.pixels.shape
    if min(height, width) < SMALLEST_SIDE:
        height = width = ENLARGED
    values = sets.train.pixels / np.float32(255)
    mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3))
    mean, std = (tuple(round(float(x), 4) for x in some) for some in (mean, std))
    return ImageFormat(channels, height, width, mean, std, sets.classes)


def pretrain(model: PreTrainedModel, data: Images, form: ImageFormat, steps: int) -> float:
    """Train in place with AdamW and one learning-rate cycle; returns the loss of the last batch in nats."""
    draw = np.random.default_rng(SEED)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=steps)
    loss = float("nan")
    model.train()
    for step in range(steps):
        found = mean_loss(*predictions(model, _encoded(data, draw.integers(len(data), size=BATCH), form)))
        optimiser.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        loss = float(found.detach())
        if step % 100 == 0:
            print(f"step {step}: loss {loss:.3f}", flush=True)
    model.eval()
    return loss


@torch.no_grad()
def accuracy(model: PreTrainedModel, data: Images, form: ImageFormat) -> float:
    """The share of images whose class has the largest logit."""
    right = 0
    for rows in np.array_split(np.arange(len(data)), -(-len(data) // 512)):
        batch = _encoded(data, rows, form)
        right += int((model(**batch.inputs()).logits.argmax(dim=1) == batch.labels).sum())
    return right / len(data)


def first_classes(data: Images, count: int) -> Images:
    """The images of the classes 0 to `count` - 1."""
    kept = data.labels < count
    return Images(data.pixels[kept], data.labels[kept])


def _encoded(data: Images, rows: np.ndarray, form: ImageFormat) -> EncodedImages:
    _, channels, height, width = data.pixels.shape
    shape = (channels, height, width)
    return encode_images(
        [ImageExample(data.pixels[i].tobytes(), shape, int(data.labels[i])) for i in rows], form
    )


def train_and_save(layout: str, sets: ImageSets, classes: int, steps: int, out: Path) -> None:
    """Train a base on the first `classes` classes and write it as a folder that `model.name` takes."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    form = format_of(sets)
    model = LAYOUTS[layout](form)
    loss = pretrain(model, first_classes(sets.train, classes), form, steps)
    found = accuracy(model, first_classes(sets.test, classes), form)
    model.half().save_pretrained(out)  # half precision on disk; loaded as float32
    write_format(out, form)
    print(f"loss {loss:.3f}, accuracy on test images of the {classes} classes {found:.3f}")
    print(f"{sum(p.numel() for p in model.parameters())} parameters, weights {weights_sha256(model.float())}")


def main() -> None:
    """Command line: see --help."""
    parser = argparse.ArgumentParser(prog="python -m peers.models.pretrain_images", description=__doc__)
    parser.add_argument("--layout", choices=LAYOUTS, default="small-resnet")
    parser.add_argument("--data", help="folder of images, as data.path; default: the digits")
    parser.add_argument("--classes", type=int, help="classes 0, 1, … to train; default: half of all")
    parser.add_argument("--steps", type=int, default=400, help=f"steps of batch {BATCH} (default 400)")
    parser.add_argument("--out", type=Path, default=SMALL_RESNET_FOLDER, help="default: the shipped folder")
    arguments = parser.parse_args()
    try:
        sets = read_images(arguments.data)
    except InputError as error:
        sys.exit(f"{parser.prog}: {error}")
    classes = arguments.classes or sets.classes // 2
    if not 1 <= classes <= sets.classes:
        sys.exit(f"{parser.prog}: --classes: {classes} is not allowed; allowed: 1 to {sets.classes}")
    train_and_save(arguments.layout, sets, classes, arguments.steps, arguments.out)


if __name__ == "__main__":
    main()
