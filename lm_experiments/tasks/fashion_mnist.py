"""Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28 x 28, 10 classes (Xiao et al. 2017, 1708.07747).

Read from the Debian package that ./run assets fetches, or from a folder of the user's own with the same four files,
gzipped or not; every data set that was published in this form (MNIST, KMNIST, ...) will do. Never committed.
"""

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from lm_experiments.assets import fetch

CLASSES = 10
UNSIGNED_BYTES = 8
"""The IDX code of the only element type that these data sets use."""


@dataclass(frozen=True, eq=False)
class Images:
    """Image k is `pixels[k]`, from 0 (background) to 255, of class `labels[k]`."""

    pixels: UInt8[np.ndarray, "images rows cols"]
    labels: UInt8[np.ndarray, " images"]


def read_images(part: Literal["train", "t10k"], folder: Path | None = None, most: int | None = None) -> Images:
    """The training or the test images, the first `most` of them, from a folder or, without one, as fetched.

    Raises FileNotFoundError, or ValueError with the file and what is wrong with it.
    """
    where = fetch("fashion-mnist") if folder is None else folder
    images, labels = (_found(where, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    (count, *_), pixels = read_idx(images, 3, most)
    (labelled,), classes = read_idx(labels, 1, most)
    if count != labelled:
        raise ValueError(f"{images} has {count} images and {labels} has {labelled} labels: they do not belong together")
    if not count:
        raise ValueError(f"{images} holds no images: get it again")
    if classes.max() >= CLASSES:
        raise ValueError(f"{labels} has a label {classes.max()}: there are {CLASSES} classes, 0 to {CLASSES - 1}")
    return Images(pixels, classes)


def fingerprint(folder: Path | None) -> str:
    """SHA-256 over the four files in a folder; empty for the fetched ones, whose hashes are known."""
    if folder is None:
        return ""
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return hashlib.sha256(b"".join(_found(folder, name).read_bytes() for name in names)).hexdigest()


def read_idx(path: Path, dimensions: int, most: int | None = None) -> tuple[tuple[int, ...], UInt8[np.ndarray, "..."]]:
    """The shape that an IDX file of bytes states, and the array, cut to its first `most` items if given.

    IDX: two zero bytes, the element type, the number of dimensions; each size as 4 bytes, big-endian; the elements.
    Raises ValueError if the file is of another form, broken, shorter than it states or, read to its end, longer.
    """
    expected = f"an IDX file of bytes with {dimensions} dimension(s)"
    with _opened(path, expected) as file:
        magic = file.read(4)
        if magic != bytes((0, 0, UNSIGNED_BYTES, dimensions)):
            raise ValueError(f"{path} starts with {magic.hex(' ') or 'nothing'}: expected {expected}")
        sizes = file.read(4 * dimensions)
        if len(sizes) < 4 * dimensions:
            raise ValueError(f"{path} ends within its header: get it again")
        shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
        kept = (shape[0] if most is None else min(most, shape[0]), *shape[1:])
        content = file.read(math.prod(kept))
        if len(content) < math.prod(kept):
            raise ValueError(
                f"{path} is cut short: {len(content)} of the {math.prod(kept)} bytes of {kept}; get it again"
            )
        if kept == shape and file.read(1):
            raise ValueError(f"{path} goes on after the {math.prod(shape)} bytes of {shape} that it states")
    return shape, np.frombuffer(content, np.uint8).reshape(kept)


def _found(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"neither {name}.gz nor {name} is in {folder.absolute()}: give the folder of the four files of Fashion-MNIST, "
        "{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz, or none to use the fetched ones"
    )


@contextmanager
def _opened(path: Path, expected: str) -> Iterator[gzip.GzipFile | BufferedReader]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is not whole gzip ({error}): expected {expected}, gzipped; get it again") from error
