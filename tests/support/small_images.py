"""Very small random classifiers of the digits, and learners with them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from coordinator_free.identifiers import BlockKey
from peers.config import DataConfig, DeviceConfig, ModelConfig
from peers.learning.learner import Learner
from peers.models.loader import LoadedModel, load_model
from peers.models.vision import write_format
from peers.tasks import ImageFormat
from peers.tasks.images import make_images
from tests.support.learners import fill

Kind = Literal["resnet", "vit"]
FORMATS = {
    "resnet": ImageFormat(1, 16, 16, (0.3,), (0.4,), 10),
    "vit": ImageFormat(1, 8, 8, (0.3,), (0.4,), 10),
}
KEYS = [BlockKey(f"d{i}", 0) for i in range(3)]


def save_small_classifier(folder: Path, kind: Kind = "resnet", classes: int = 10) -> Path:
    """Random weights from a constant seed, with statistics of batch normalisation that are not 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _resnet(classes) if kind == "resnet" else _vit(classes)
        for name, values in model.named_buffers():
            if name.endswith("running_var"):
                values.copy_(0.5 + torch.rand(values.shape))
            elif name.endswith("running_mean"):
                values.copy_(0.1 * torch.randn(values.shape))
        model.save_pretrained(folder)
    write_format(folder, FORMATS[kind])
    return folder


def _resnet(classes: int) -> ResNetForImageClassification:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    config = ResNetConfig(num_channels=1, layer_type="basic", num_labels=classes, **sizes)
    return ResNetForImageClassification(config)


def _vit(classes: int) -> ViTForImageClassification:
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=classes,
    )
    return ViTForImageClassification(config)


def small_classifier(folder: Path, kind: Kind = "resnet") -> LoadedModel:
    return load_model(ModelConfig(name=str(save_small_classifier(folder, kind))))


def images_config(**sections: object) -> DeviceConfig:
    made = {"data": {"kind": "images", "images": 16, "batch": 8}, "adapter": {"rank": 2, "max_devices": 4}}
    return DeviceConfig.model_validate({**made, **sections})


def images_learner(folder: Path, kind: Kind = "resnet", **sections: object) -> Learner:
    """A learner on digits with its own block and two others, all with random values."""
    loaded, config = small_classifier(folder, kind), images_config(**sections)
    examples = make_images(DataConfig(kind="images", images=16), 0).train_examples("d0")
    learner = Learner(loaded, config, loaded.encode(examples, 0), "d0")
    learner.set_own(KEYS[0], 0)
    for slot, key in enumerate(KEYS[1:], start=1):
        learner.add_block(key, slot)
    for seed, key in enumerate(KEYS):
        fill(learner, key, seed, size=0.05)
    return learner
