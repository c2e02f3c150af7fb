"""The task `listed-images`: digits that a file lists for each device, for experiments that choose them.

`data.path` is a folder with DEVICE.json for each device: the numbers of its images in the training set of the
embedded digits (docs/vision.md). It is a plugin: only scenarios of experiments name it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from peers.config import DataConfig
from peers.errors import InputError
from peers.tasks.base import ImageExample, tasks
from peers.tasks.image_files import Images, read_images

KIND = "listed-images"


def examples(images: Images, numbers: Iterable[int]) -> list[ImageExample]:
    """The images with these numbers."""
    shape = images.pixels.shape
    of = (shape[1], shape[2], shape[3])
    return [ImageExample(images.pixels[n].tobytes(), of, int(images.labels[n])) for n in numbers]


class ListedImages:
    """Each device has the images that its file lists."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._sets = folder, read_images(None)

    def train_examples(self, shard: str) -> list[ImageExample]:
        """The images of a device. Raises InputError without its file."""
        path = self._folder / f"{shard}.json"
        if not path.is_file():
            raise InputError(f"data.path: {path} is missing; allowed: a folder with a list for each device")
        return examples(self._sets.train, json.loads(path.read_text(encoding="utf-8")))

    def other_wording(self, shard: str) -> Sequence[ImageExample]:
        """None: the test images are the same for all devices."""
        return []

    def control_examples(self) -> list[ImageExample]:
        """All test images."""
        return examples(self._sets.test, range(len(self._sets.test)))


@tasks.add(KIND)
def make_listed_images(config: DataConfig, seed: int) -> ListedImages:
    """The task `listed-images`. Raises InputError without a folder."""
    if config.path is None:
        raise InputError(f"data.path: is not set; data.kind {KIND!r} needs a folder")
    return ListedImages(Path(config.path).expanduser())
