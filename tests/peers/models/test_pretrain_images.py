"""The script that trains base classifiers, and the shipped one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peers.config import ModelConfig
from peers.models.loader import load_model
from peers.models.pretrain_images import LAYOUTS, first_classes, format_of, train_and_save
from peers.tasks import ImageFormat
from peers.tasks.image_files import read_images


def test_resnet_18_has_the_parameters_of_resnet_18() -> None:
    with torch.device("meta"):
        model = LAYOUTS["resnet-18"](ImageFormat(3, 224, 224, (0.5,) * 3, (0.5,) * 3, 1000))
    assert sum(p.numel() for p in model.parameters()) == 11_689_512  # as torchvision's


@pytest.mark.parametrize("layout", ["small-resnet", "small-vit"])
def test_a_trained_base_is_a_folder_that_model_name_takes(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.random.fork_rng(devices=[]):
        train_and_save(layout, read_images(None), 5, 2, tmp_path)
    assert "accuracy on test images of the 5 classes" in capsys.readouterr().out
    loaded = load_model(ModelConfig(name=str(tmp_path)))
    assert loaded.image_format is not None and loaded.image_format.classes == 10
    assert (loaded.image_format.height, loaded.image_format.channels) == (32, 1)


def test_half_of_the_classes_and_the_format_come_from_the_data() -> None:
    sets = read_images(None)
    assert set(first_classes(sets.train, 5).labels.tolist()) == {0, 1, 2, 3, 4}
    form = format_of(sets)
    assert form.classes == 10 and 0.2 < form.mean[0] < 0.4 and 0.3 < form.std[0] < 0.5


def test_the_shipped_classifier_reads_fashion_mnist() -> None:
    loaded = load_model(ModelConfig(name="small-resnet"))
    assert loaded.image_format is not None
    assert (loaded.image_format.channels, loaded.image_format.height, loaded.image_format.classes) == (
        1,
        28,
        10,
    )
    assert "classifier.1" in loaded.target_modules
