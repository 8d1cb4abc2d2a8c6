"""What the readers of files share: limits, refusals, and the arrays that a file holds.

Sizes are checked before the files are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt, prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pyro_vae.data.missing import like_values, split_missing
from pyro_vae.data.split import Split
from pyro_vae.data.values import (
    Classes,
    as_covariates,
    as_labels,
    as_values,
    channels_are_last,
)
from pyro_vae.errors import RequestError
from pyro_vae.likelihoods import IMAGE_DIMS

Shape = tuple[int, ...]
# Columns of a table that have the labels.
LABELS = ("label", "labels", "class", "cell_type")


class Parts(NamedTuple):
    """The images of a data set: all, or the training images and the sets that are separate."""

    train: Split
    validation: Split | None = None
    test: Split | None = None


@dataclass(frozen=True)
class Arrays:
    """The arrays of one split, as a file holds them.

    Attributes:
        x: Images, or rows of values.
        name: What messages call them.
        labels: Labels of any kind that `as_labels` converts.
        covariates: Covariates, shape `(N, C)`.
        classes: The names of classes 0, 1, ..., if the file has them.
        observed: Bools of the shape of `x`, False where a value is missing.
    """

    x: np.ndarray
    name: str
    labels: np.ndarray | None = None
    covariates: np.ndarray | None = None
    classes: Classes | None = None
    observed: np.ndarray | None = None

    def split(self, image_shape: Shape | None) -> Split:
        """As a split; rows of values become images of `image_shape`, or stay vectors if it is None.

        Raises:
            RequestError: If they are no data, or their values cannot be converted.
        """
        if self.x.size == 0 or self.x.ndim == 0:
            raise RequestError(f"{self.name} has shape {self.x.shape}, which holds no data")
        values, observed = split_missing(self.x, self.observed, self.name)
        x = as_values(rows_as_images(values, self.name, image_shape), self.name)
        labels = None
        classes = self.classes
        if self.labels is not None:
            labels, names = as_labels(self.labels, len(x), f"{self.name}: labels")
            classes = classes or names
        covariates = None
        if self.covariates is not None:
            covariates = as_covariates(self.covariates, len(x), f"{self.name}: covariates")
        return Split(
            x,
            labels,
            covariates=covariates,
            classes=classes,
            observed=like_values(observed, x, self.name),
        )

    def completed(self, split: Split) -> np.ndarray:
        """The values of the file, with those of a complete split where they are missing.

        The dtype, the shape and the units are those of the file.
        """
        known = ~np.isnan(self.x)
        if self.observed is not None:
            known &= self.observed.astype(bool)
        values = split.x.cpu().numpy()
        if values.dtype == np.uint8 and self.x[known].max() <= 1:
            values = values / max(1, values.max())
        if self.x.ndim == 1 + IMAGE_DIMS and channels_are_last(*self.x.shape[1:]):
            values = np.moveaxis(values, 1, -1)
        return np.where(known, self.x, values.reshape(self.x.shape)).astype(self.x.dtype)


class Contents(NamedTuple):
    """What a reader understood of a file.

    Attributes:
        layout: The layout in words.
        parts: The arrays by split: train, validation, test; train alone if it has no splits.
    """

    layout: str
    parts: dict[str, Arrays]


def rows_as_images(x: np.ndarray, name: str, image_shape: Shape | None) -> np.ndarray:
    """Rows of values as images of `image_shape`; a view. Other arrays stay as they are.

    Without a shape they are vectors.

    Raises:
        RequestError: If the shape does not fit.

    Example:
        >>> rows_as_images(np.zeros((5, 6)), "x.npy", (2, 3)).shape
        (5, 2, 3)
        >>> rows_as_images(np.zeros((5, 6)), "x.npy", None).shape
        (5, 6)
    """
    if x.ndim != 2:
        return x
    count, width = x.shape
    if image_shape is None:
        return x
    if prod(image_shape) != width:
        hint = ""
        if shape := square(width):
            hint = f"; {width:,} values make images of shape {shape}"
        raise RequestError(
            f"{name} holds rows of {width:,} values, but images of shape {image_shape} have"
            f" {prod(image_shape):,}{hint}"
        )
    return x.reshape(count, *image_shape)


def binary(x: np.ndarray) -> np.ndarray:
    """Bytes of 0 and 1 as bools, for layouts that are known to be black and white."""
    if x.size > 0 and x.min() >= 0 and x.max() == 1 and x.dtype.kind in "iu":
        return x.astype(bool)
    return x


def whole(x: np.ndarray) -> np.ndarray:
    """Numbers as integers if all are whole, for layouts that do not tell their type."""
    is_whole = bool((np.abs(x) < 2**24).all() and (x == x.round()).all())
    return x.astype(np.int32) if is_whole else x


def square(width: int) -> Shape | None:
    """The shape of square images of `width` values, grey or RGB; None if there is none."""
    side = isqrt(width)
    if side > 1 and side**2 == width:
        return side, side
    side = isqrt(width // 3)
    if side > 1 and 3 * side**2 == width:
        return 3, side, side
    return None


def _memory() -> int:
    """Bytes of physical memory, or of the container; 16 GiB on systems that do not tell."""
    if not hasattr(os, "sysconf"):
        return 2**34
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if not limit.is_file():
        return physical
    text = limit.read_text().strip()
    return min(physical, int(text)) if text.isdecimal() else physical


# Maximum size of a data set: reading it, splitting it and drawing its noise hold about four copies.
BYTES = _memory() // 4


def check_bytes(what: object, count: int) -> None:
    """Raise `RequestError` if a data set of `count` bytes is too large."""
    if count > BYTES:
        raise RequestError(
            f"{what} needs {count / 2**30:,.1f} GiB, over {BYTES / 2**30:,.1f}: use fewer or"
            " smaller images"
        )


@contextmanager
def refusing(what: str, advice: str) -> Iterator[None]:
    """Turn any exception into a RequestError: on damaged files, parsers raise almost any class."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:
        text = str(getattr(error, "strerror", None) or error).strip()
        reason = text.splitlines()[-1] if text else type(error).__name__
        raise RequestError(f"{what} ({reason}): {advice}") from error


def check_utf8(path: Path) -> None:
    """Raise `RequestError` if a path is not UTF-8: config.yaml and tables cannot hold it."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{path} is not valid UTF-8: rename the file or folder") from error


def absolute(path: str | Path) -> str:
    """The absolute path, as config.yaml holds it.

    Raises:
        RequestError: If it is not UTF-8.
    """
    full = os.path.abspath(path)
    check_utf8(Path(full))
    return full


def resized(images: Tensor, size: int | None) -> Tensor:
    """Images, as bytes or as floats in [0, 1], at another height and width; None leaves them.

    Raises:
        RequestError: If they do not fit into memory.
    """
    if size is None or tuple(images.shape[2:]) == (size, size):
        return images
    if images.ndim != 1 + IMAGE_DIMS:
        raise RequestError(
            f"image_size={size} resizes images, but these are vectors of shape"
            f" {tuple(images.shape[1:])}: leave it out, or store them as images"
        )
    check_bytes(
        f"{len(images):,} times {size}x{size} pixels",
        images.shape[:2].numel() * size**2 * images.element_size(),
    )
    # In parts, because as floats bytes need four times the memory.
    return torch.cat([_interpolated(part, size) for part in images.split(64)])


def _interpolated(images: Tensor, size: int) -> Tensor:
    unit = images if images.is_floating_point() else images / 255
    unit = interpolate(unit, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    return unit if images.is_floating_point() else (unit * 255).round().to(torch.uint8)
