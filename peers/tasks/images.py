"""The task `images`: labelled images, dealt to shards with equal or skewed labels.

A shard depends on its own number alone, so the other shards stay the same when a device is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from coordinator_free.seeded_random import generator
from peers.config import DataConfig
from peers.errors import InputError
from peers.tasks.base import ImageExample, shard_index, tasks
from peers.tasks.image_files import Images, ImageSets, read_images
from peers.tasks.partition import DIRICHLET, dirichlet_alpha
from peers.tasks.unused_keys import OF_NAMED, OF_TABLES, check_unused

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES_EACH = 2  # of `by-label`, as in McMahan et al. (2017), section 3
HELD_OUT = 4  # a shard has this many training images for one held-out image
Shares = Callable[[int], "NDArray[np.float64]"]  # of the classes in shard k


class LabelledImages:
    """`data.images` training images for each shard. Shards are disjoint, but for `data.overlap`.

    own, iid: labels as in the whole set. by-label: two classes a shard. dirichlet:a: each shard draws its
    shares of the C classes from Dir(a C p), p the shares in the whole set. In Hsu et al. (2019) alpha is a C.
    The held-out images of a shard are test images with the same shares.
    """

    def __init__(self, sets: ImageSets, config: DataConfig, seed: int) -> None:
        check_unused(config, *OF_NAMED, *OF_TABLES)
        self._seed, self._size = seed, config.images
        self._common = round(config.overlap * config.images)
        self._shares = _shares(sets, config, seed)
        self._held_out = max(1, config.images // HELD_OUT)
        self._train = _Pool(sets.train, "train", self._common, seed)
        self.shard_count = len(sets.train) // config.images
        self._test = _Pool(sets.test, "test", min(config.images, len(sets.test) // 3), seed)

    def train_examples(self, shard: str) -> list[ImageExample]:
        """The shard's images, then those that all shards have. Raises InputError if too few are left."""
        own = self._own(self._train, shard, self._size - self._common)
        return own + self._train.reserved()[: self._common]

    def other_wording(self, shard: str) -> list[ImageExample]:
        """Test images with the labels of the shard, a quarter as many. They may be other shards' too."""
        wanted = _rounded(self._shares(self._index(shard)), self._held_out)
        return self._test.draw(wanted, f"held-out/{shard}")

    def control_examples(self) -> list[ImageExample]:
        """Test images that are in no shard, with labels as in the whole set."""
        return self._test.reserved()

    def _index(self, shard: str) -> int:
        index = shard_index(shard, self.shard_count)
        if index >= self.shard_count:
            raise InputError(
                f"device {shard!r}: data.kind 'images' has no shard {index} with data.images = {self._size}; "
                f"allowed: ids that end in 0 to {self.shard_count - 1}"
            )
        return index

    def _own(self, pool: _Pool, shard: str, size: int) -> list[ImageExample]:
        index = self._index(shard)
        wanted = _rounded(self._shares(index), size)
        start = sum((_rounded(self._shares(k), size) for k in range(index)), np.zeros_like(wanted))
        lacks = pool.room() - start < wanted
        if lacks.any():
            raise InputError(
                f"device {shard!r}: class {int(lacks.argmax())} has too few images left for shard {index} "
                f"with data.images = {self._size}; allowed: fewer images, fewer devices or a larger data set"
            )
        return pool.take(start, wanted)


class _Pool:
    """Images in a seeded order by class. The first `reserved` ones of the whole set are in no shard."""

    def __init__(self, images: Images, name: str, reserved: int, seed: int) -> None:
        self.images = images
        order = generator(seed, "images", name).permutation(len(images))
        self._reserved, rest = order[:reserved], order[reserved:]
        self._seed = seed
        classes = 1 + int(images.labels.max())
        self._by_class = [rest[images.labels[rest] == c] for c in range(classes)]

    def room(self) -> NDArray[np.int64]:
        """The number of images by class."""
        return np.array([len(members) for members in self._by_class])

    def take(self, start: NDArray[np.int64], count: NDArray[np.int64]) -> list[ImageExample]:
        """By class, `count` images from the place `start` on."""
        chosen = [self._by_class[c][start[c] : start[c] + n] for c, n in enumerate(count)]
        return self._examples(np.concatenate(chosen))

    def draw(self, count: NDArray[np.int64], stream: str) -> list[ImageExample]:
        """By class, `count` drawn images, or all of a class that has fewer."""
        draw = generator(self._seed, "images", stream)
        chosen = [draw.permutation(m)[:n] for m, n in zip(self._by_class, count, strict=False)]
        return self._examples(np.concatenate(chosen))

    def reserved(self) -> list[ImageExample]:
        """The images of no shard."""
        return self._examples(self._reserved)

    def _examples(self, indices: NDArray[np.int64]) -> list[ImageExample]:
        pixels, labels = self.images.pixels, self.images.labels
        _, channels, height, width = pixels.shape
        shape = (channels, height, width)
        return [ImageExample(pixels[i].tobytes(), shape, int(labels[i])) for i in indices]


def _shares(sets: ImageSets, config: DataConfig, seed: int) -> Shares:
    """The shares of the classes in a shard, by its number."""
    classes = sets.classes
    whole = np.bincount(sets.train.labels, minlength=classes) / len(sets.train)
    if config.partition == "by-label":
        return lambda k: _two_classes(k, classes)
    if config.partition.startswith(DIRICHLET):
        prior = np.maximum(dirichlet_alpha(config.partition) * classes * whole, 1e-6)
        return lambda k: generator(seed, "images", "dirichlet", k).dirichlet(prior)
    return lambda k: whole


def _two_classes(k: int, classes: int) -> NDArray[np.float64]:
    chosen = [(CLASSES_EACH * k + i) % classes for i in range(CLASSES_EACH)]
    return np.bincount(chosen, minlength=classes) / CLASSES_EACH


def _rounded(shares: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Whole numbers near `shares` * size that add up to `size`: the largest remainders are rounded up."""
    exact = shares * size
    found: NDArray[np.int64] = np.floor(exact + 1e-9).astype(np.int64)
    missing = size - int(found.sum())
    found[np.argsort(found - exact, kind="stable")[:missing]] += 1
    return found


@tasks.add("images")
def make_images(config: DataConfig, seed: int) -> LabelledImages:
    """The task `images`. Raises InputError for files that cannot be read, or settings that do not apply."""
    sets = read_images(config.path)
    if config.images + 1 > len(sets.train):
        raise InputError(
            f"data.images: {config.images} is too many for {len(sets.train)} training images; allowed: fewer"
        )
    return LabelledImages(sets, config, seed)
