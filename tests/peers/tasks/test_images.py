"""The task `images`: files, partitions, held-out images, and what is refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from peers.config import DataConfig
from peers.errors import InputError
from peers.tasks import ImageExample, ImageFormat, encode_images, images
from peers.tasks.image_files import read_images
from peers.tasks.images import LabelledImages, make_images

FORMAT = ImageFormat(3, 16, 16, (0.5, 0.5, 0.5), (0.25, 0.5, 0.5), 10)


def digits(**settings: object) -> LabelledImages:
    config = DataConfig.model_validate({"kind": "images", "images": 40, **settings})
    made = make_images(config, 0)
    assert isinstance(made, LabelledImages)
    return made


def labels(examples: list[ImageExample]) -> list[int]:
    return np.bincount([e.label for e in examples], minlength=10).tolist()


def write_idx(folder: Path, name: str, pixels: np.ndarray, marks: np.ndarray, zipped: bool) -> None:
    head = struct.pack(">4BIII", 0, 0, 8, 3, *pixels.shape)
    for kind, content in (
        (f"{name}-images-idx3-ubyte", head + pixels.tobytes()),
        (f"{name}-labels-idx1-ubyte", struct.pack(">4BI", 0, 0, 8, 1, len(marks)) + marks.tobytes()),
    ):
        path = folder / (f"{kind}.gz" if zipped else kind)
        path.write_bytes(gzip.compress(content) if zipped else content)


def test_the_digits_are_embedded() -> None:
    sets = read_images(None)
    assert sets.train.pixels.shape == (1438, 1, 8, 8) and len(sets.test) == 359 and sets.classes == 10
    assert sets.train.pixels.max() == 255 and sets.train.labels[:3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_read(tmp_path: Path, zipped: bool) -> None:
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    for name in ("train", "t10k"):
        write_idx(tmp_path, name, pixels, np.array([7, 1], dtype=np.uint8), zipped)
    train = read_images(str(tmp_path)).train
    assert train.pixels.tolist() == pixels[:, None].tolist() and train.labels.tolist() == [7, 1]


@pytest.mark.parametrize(("names", "head"), [(["data_batch_1.bin"], [3]), (["train.bin"], [9, 3])])
def test_cifar_files_are_read(tmp_path: Path, names: list[str], head: list[int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, 3072, dtype=np.uint8)
    record = bytes(head) + image.tobytes()
    others = (
        [f"data_batch_{i}.bin" for i in range(2, 6)] + ["test_batch.bin"] if len(head) == 1 else ["test.bin"]
    )
    for name in [*names, *others]:
        (tmp_path / name).write_bytes(record * 2)
    train = read_images(str(tmp_path)).train
    assert train.labels.tolist() == [3] * len(train) and len(train) == (10 if len(head) == 1 else 2)
    assert train.pixels[0].tolist() == image.reshape(3, 32, 32).tolist()


def test_damaged_or_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.path: .* has no images that unweft reads; allowed: a folder"):
        read_images(str(tmp_path))
    with pytest.raises(InputError, match="is not a folder"):
        read_images(str(tmp_path / "none"))
    pixels = np.zeros((2, 3, 4), dtype=np.uint8)
    write_idx(tmp_path, "train", pixels, np.array([0, 1], dtype=np.uint8), zipped=False)
    with pytest.raises(InputError, match="t10k-images-idx3-ubyte is missing"):
        read_images(str(tmp_path))
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="has 23 bytes of data where its header says 24"):
        read_images(str(tmp_path))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    path.unlink()
    with pytest.raises(InputError, match=r"cannot be read \(Not a gzipped file"):
        read_images(str(tmp_path))


def test_shards_are_disjoint_and_do_not_depend_on_each_other() -> None:
    task = digits(partition="dirichlet:0.5")
    shards = {f"d{i}": task.train_examples(f"d{i}") for i in range(6)}
    every = [e for shard in shards.values() for e in shard]
    assert len(every) == 240
    assert len(set(every)) >= 239  # the set has one image twice
    assert digits(partition="dirichlet:0.5").train_examples("d5") == shards["d5"]


def test_partitions_skew_the_labels() -> None:
    assert max(labels(digits(partition="iid").train_examples("d1"))) <= 5
    assert labels(digits(partition="by-label").train_examples("d1")) == [0, 0, 20, 20, 0, 0, 0, 0, 0, 0]
    skewed = [max(labels(digits(partition="dirichlet:0.1").train_examples(f"d{i}"))) for i in range(6)]
    even = [max(labels(digits(partition="dirichlet:100").train_examples(f"d{i}"))) for i in range(6)]
    assert min(skewed) > max(even)


@pytest.mark.parametrize("a", [0.3, 3.0])
def test_dirichlet_draws_the_shares_of_the_classes_from_a_times_their_number_times_the_whole(
    a: float,
) -> None:
    """So alpha of Hsu et al. (2019), who write Dir(alpha p), is a C: the sum of the parameters."""
    sets = read_images(None)
    drawn = images._shares(sets, DataConfig(kind="images", partition=f"dirichlet:{a}"), 0)
    shares = np.array([drawn(k) for k in range(1500)])
    p = np.bincount(sets.train.labels) / len(sets.train)
    assert shares.mean(axis=0) == pytest.approx(p, abs=0.02)
    assert shares.var(axis=0).sum() == pytest.approx((p * (1 - p)).sum() / (a * sets.classes + 1), rel=0.1)


def test_dirichlet_needs_a_number_above_0() -> None:
    with pytest.raises(InputError, match=r"data\.partition: 'dirichlet:0'; allowed: a number above 0"):
        digits(partition="dirichlet:0")


def test_held_out_images_have_the_labels_of_the_shard_and_no_device_trains_on_them() -> None:
    task = digits(partition="by-label")
    held_out = task.other_wording("d1")
    assert labels(held_out) == [0, 0, 5, 5, 0, 0, 0, 0, 0, 0]
    trained = {e for i in range(5) for e in task.train_examples(f"d{i}")}
    fresh = set(task.control_examples())
    assert not trained & {*held_out, *fresh} and not set(held_out) & fresh


def test_overlap_gives_all_shards_the_same_images() -> None:
    task = digits(overlap=0.25)
    common = set(task.train_examples("d0")) & set(task.train_examples("d1"))
    assert len(common) == 10 and len(task.train_examples("d0")) == 40


def test_a_shard_without_enough_images_is_refused() -> None:
    with pytest.raises(InputError, match=r"device 'd35': .* has no shard 35 with data.images = 40; allowed"):
        digits().train_examples("d35")
    with pytest.raises(InputError, match=r"device 'd5': class 0 has too few images left"):
        digits(partition="by-label", images=200).train_examples("d5")
    with pytest.raises(InputError, match=r"data.images: 2000 is too many for 1438 training images"):
        digits(images=2000)


def test_images_are_resized_normalised_and_grey_fills_the_channels() -> None:
    example = ImageExample(bytes([255] * 64), (1, 8, 8), 3)
    found = encode_images([example, example], FORMAT)
    assert found.pixel_values.shape == (2, 3, 16, 16) and found.wanted().tolist() == [[3], [3]]
    assert torch.allclose(found.pixel_values[0].amax((1, 2)), torch.tensor([2.0, 1.0, 1.0]))
    with pytest.raises(InputError, match="the images have 3 channels, and the model reads 1"):
        grey = ImageFormat(1, None, None, (0.5,), (0.5,), 10)
        encode_images([ImageExample(bytes(12), (3, 2, 2), 0)], grey)
