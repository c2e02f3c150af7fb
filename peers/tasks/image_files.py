"""Files of labelled images: IDX (MNIST, Fashion-MNIST), CIFAR-10 and CIFAR-100 in binary, and digits.

Sources of the layouts: yann.lecun.org/exdb/mnist (IDX) and cs.toronto.edu/~kriz/cifar.html (CIFAR).
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from peers.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIGITS = Path(__file__).parents[1] / "assets" / "digits" / "digits.csv.gz"
DIGITS_FOR_TESTS = 5  # every fifth digit is a test image: the file has no split of its own
IDX_NAMES = ("train", "t10k")
CIFAR10_BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR_SHAPE = (3, 32, 32)
ALLOWED = (
    "allowed: a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k (also "
    ".gz), with data_batch_1.bin … data_batch_5.bin and test_batch.bin, or with train.bin and test.bin"
)


@dataclass(frozen=True)
class Images:
    """pixels: [n, C, H, W] uint8. labels: [n] int64."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageSets:
    """The two parts of a data set."""

    train: Images
    test: Images

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return 1 + int(max(self.train.labels.max(), self.test.labels.max()))


def read_images(path: str | None) -> ImageSets:
    """The images of a folder; None: the digits. Raises InputError for a missing or damaged file."""
    if path is None:
        return _digits()
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"data.path: {path} is not a folder; {ALLOWED}. The Debian package dataset-fashion-mnist has "
            "such a folder, and without data.path the digits are taken"
        )
    if _found(folder / f"{IDX_NAMES[0]}-images-idx3-ubyte") is not None:
        return ImageSets(*(_read_idx(folder, name) for name in IDX_NAMES))
    if (folder / CIFAR10_BATCHES[0]).exists():
        return ImageSets(_read_cifar(folder, CIFAR10_BATCHES, 1), _read_cifar(folder, ("test_batch.bin",), 1))
    if (folder / "train.bin").exists():
        return ImageSets(_read_cifar(folder, ("train.bin",), 2), _read_cifar(folder, ("test.bin",), 2))
    raise InputError(f"data.path: {path} has no images that unweft reads; {ALLOWED}")


def _digits() -> ImageSets:
    """1797 digits of 8 x 8 pixels with values from 0 to 16 (docs/vision.md has the source)."""
    rows = np.loadtxt(DIGITS, delimiter=",", dtype=np.int64)
    pixels = (rows[:, :64] * 255 // 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    test = np.arange(len(rows)) % DIGITS_FOR_TESTS == DIGITS_FOR_TESTS - 1
    parts = [Images(pixels[chosen], rows[chosen, 64]) for chosen in (~test, test)]
    return ImageSets(*parts)


def _found(path: Path) -> Path | None:
    """The file, or the same with .gz."""
    return next((p for p in (path, path.with_name(f"{path.name}.gz")) if p.exists()), None)


def _read(path: Path) -> bytes:
    found = _found(path)
    if found is None:
        raise InputError(f"data.path: {path} is missing; {ALLOWED}")
    try:
        content = found.read_bytes()
        return gzip.decompress(content) if found.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"data.path: {found} cannot be read ({error}); allowed: an undamaged file") from None


def _read_idx(folder: Path, name: str) -> Images:
    pixels = _idx_array(folder / f"{name}-images-idx3-ubyte", 3)
    labels = _idx_array(folder / f"{name}-labels-idx1-ubyte", 1)
    if len(pixels) != len(labels):
        raise InputError(
            f"data.path: {folder}: {len(pixels)} images and {len(labels)} labels of {name}; "
            "allowed: as many labels as images"
        )
    return Images(pixels[:, None], labels.astype(np.int64))


def _idx_array(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Magic number 0, 0, 8 (unsigned bytes), dimensions; then each size in 4 bytes; then the bytes."""
    content = _read(path)
    head = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < head:
        raise InputError(f"data.path: {path} is no IDX file of {dimensions} dimensions; {ALLOWED}")
    sizes = np.frombuffer(content, ">u4", dimensions, offset=4).astype(int)
    if len(content) - head != sizes.prod() or not sizes.all():
        raise InputError(
            f"data.path: {path} has {len(content) - head} bytes of data where its header says "
            f"{sizes.prod()}; allowed: an undamaged file"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(sizes)


def _read_cifar(folder: Path, names: tuple[str, ...], labels: int) -> Images:
    """Records of `labels` bytes (the last one is the class) and 3072 bytes of red, green and blue."""
    size = labels + int(np.prod(CIFAR_SHAPE))
    parts = []
    for name in names:
        content = _read(folder / name)
        if not content or len(content) % size:
            raise InputError(
                f"data.path: {folder / name} has {len(content)} bytes, which is no whole number of records "
                f"of {size} bytes; allowed: an undamaged file"
            )
        parts.append(np.frombuffer(content, np.uint8).reshape(-1, size))
    records = np.concatenate(parts)
    return Images(records[:, labels:].reshape(-1, *CIFAR_SHAPE), records[:, labels - 1].astype(np.int64))
