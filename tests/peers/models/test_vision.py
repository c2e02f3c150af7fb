"""Classifiers of images as base models: loading, and what is refused before a device starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulation.scenario.preflight import check_against_model
from emulation.scenario.schema import Scenario
from peers.config import ModelConfig
from peers.errors import InputError
from peers.models.loader import load_model
from peers.models.vision import read_format, write_format
from peers.tasks import ImageFormat
from tests.support.small_images import FORMATS, save_small_classifier, small_classifier

TARGETS = ("convolution",)


def scenario(model: str, **sections: object) -> Scenario:
    return Scenario.model_validate(
        {
            "devices": {"count": 2},
            "model": {"name": model},
            "data": {"kind": "images", "images": 16},
            "adapter": {"rank": 2, "max_devices": 4},
            **sections,
        }
    )


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_all_modules_that_compute_are_the_default_targets(tmp_path: Path, kind: str) -> None:
    loaded = small_classifier(tmp_path, kind)  # type: ignore[arg-type]
    assert loaded.tokenizer is None and loaded.image_format == FORMATS[kind]
    head = "classifier.1" if kind == "resnet" else "classifier"
    assert head in loaded.target_modules and len(loaded.target_modules) > 5
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_a_chosen_target_is_kept(tmp_path: Path) -> None:
    name = str(save_small_classifier(tmp_path))
    assert load_model(ModelConfig(name=name, target_modules=TARGETS)).target_modules == TARGETS
    with pytest.raises(InputError, match="has no module 'q_proj'; allowed: 1, convolution"):
        load_model(ModelConfig(name=name, target_modules=("q_proj",)))


def test_the_format_is_read_as_it_was_written(tmp_path: Path) -> None:
    form = ImageFormat(3, 20, 24, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 7)
    write_format(tmp_path, form)
    config = type("Config", (), {"num_channels": 3, "num_labels": 7})
    assert read_format(str(tmp_path), True, config) == form


def test_narrow_convolutions_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = {"rank": 2, "max_devices": 8}
    check_against_model(scenario(str(save_small_classifier(tmp_path)), adapter=adapter))
    said = capsys.readouterr().err
    assert "too narrow for 8 slots, these convolutions stay frozen: " in said and "shortcut" in said


def test_labels_beyond_the_head_are_refused(tmp_path: Path) -> None:
    name = str(save_small_classifier(tmp_path, classes=5))
    with pytest.raises(InputError, match=r"data of d0 have the label \d, and the head of .* has 5 classes"):
        check_against_model(scenario(name))


def test_images_and_a_language_model_are_refused_and_the_reverse(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the data are images, and model.name = 'tiny' is a language model"):
        check_against_model(scenario("tiny"))
    name = str(save_small_classifier(tmp_path))
    with pytest.raises(InputError, match=r"the data are text, and model.name = .* is a classifier of images"):
        check_against_model(scenario(name, data={"kind": "facts", "persons": 2}))


def test_images_of_a_size_that_the_model_cannot_compute_are_refused(tmp_path: Path) -> None:
    folder = save_small_classifier(tmp_path, "vit")
    write_format(folder, ImageFormat(1, 6, 6, (0.5,), (0.5,), 10))
    with pytest.raises(InputError, match=r"cannot compute images of 1 x 6 x 6 .*; allowed: a model for"):
        check_against_model(scenario(str(folder)))


def test_a_classifier_in_bf16_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"model\.dtype: 'bf16' with a classifier of images; allowed: 'fp32'"
    ):
        load_model(ModelConfig(name="small-resnet", dtype="bf16"))
