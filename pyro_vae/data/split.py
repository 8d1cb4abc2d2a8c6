"""Data as models see them: splits of images with labels, and the values that likelihoods score."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import torch
from torch import Tensor

from pyro_vae.errors import RequestError, check_choice
from pyro_vae.likelihoods import Pixels

# Seed of splits, noise and static binarization, independent of the run's seed.
SEED = 0
# Optional fields of a split.
EXTRAS = ("labels", "noise", "covariates")
MAX_CLASSES = 10_000


@dataclass(frozen=True)
class Split:
    """Images with their labels, covariates and noise. Supports `len`, `to`, and indexing by a slice or a tensor.

    Attributes:
        x: Images, uint8, or float32 in [0, 1], shape `(N, channels, height, width)`.
        labels: Classes, shape `(N,)`, or None.
        noise: Fixed uniform noise, shape of `x`, or None to draw it anew each time.
        covariates: Real numbers, shape `(N, C)`, or None.
    """

    x: Tensor
    labels: Tensor | None = None
    noise: Tensor | None = None
    covariates: Tensor | None = None

    @property
    def y(self) -> Tensor | None:
        """What conditional models are conditioned on: the covariates if there are any, otherwise the labels, or None."""
        return self.labels if self.covariates is None else self.covariates

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice | Tensor) -> Split:
        return self._map(lambda tensor: tensor[index])

    def __repr__(self) -> str:
        extras = "".join(f", {name}" for name in EXTRAS if getattr(self, name) is not None)
        return (
            f"Split({len(self)} images of shape {tuple(self.x.shape[1:])}, {self.x.dtype}{extras})"
        )

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def scored(self, pixels: Pixels) -> Tensor:
        """The images as the pixels that a likelihood scores: `to_pixels` with the split's noise."""
        return to_pixels(self.x, pixels, self.noise)

    def only(self, index: Tensor) -> Split:
        """The split of the images at `index`, which are not read yet if they are on disk."""
        return self[index]

    def subset(self, count: int) -> Split:
        """A random subset of `count` images, the same at every call.

        Raises:
            ValueError: If there are fewer images.
        """
        return self[self.subset_index(count)]

    def subset_index(self, count: int) -> Tensor:
        """The positions of the images of `subset`, shape `(count,)`."""
        if not 1 <= count <= len(self):
            raise RequestError(
                f"{count} images requested, but the split has {len(self)}; request 1 to {len(self)}"
            )
        index = torch.arange(count) if count == len(self) else shuffled(len(self))[:count]
        return index.to(self.x.device)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Split:
        extras = {
            name: function(tensor) for name in EXTRAS if (tensor := getattr(self, name)) is not None
        }
        return Split(function(self.x), **extras)


@dataclass(frozen=True)
class Data:
    """A data set in three splits: for training, model selection and reporting."""

    name: str
    train: Split
    validation: Split
    test: Split

    def __repr__(self) -> str:
        counts = (
            f"train={len(self.train)}, validation={len(self.validation)}, test={len(self.test)}"
        )
        return f"Data({self.name!r}, {counts}, shape={self.shape})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image: (channels, height, width)."""
        return tuple(self.train.x.shape[1:])

    @property
    def label_dim(self) -> int:
        """Number of covariates, or of classes if there are none.

        Raises:
            ValueError: If there are no labels, or they do not number classes from 0.
        """
        y = [split.y for split in self.splits if split.y is not None]
        if not y:
            raise RequestError(f"{self.name} has no labels; use data with labels or covariates")
        if y[0].is_floating_point():
            return y[0].shape[1]
        low, high = min(int(part.min()) for part in y), max(int(part.max()) for part in y)
        if low < 0 or high >= MAX_CLASSES:
            raise RequestError(
                f"labels are from {low} to {high}; number the classes from 0, up to {MAX_CLASSES - 1}"
            )
        return high + 1

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        """The three splits."""
        return self.train, self.validation, self.test

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all images: equal for equal data."""
        return _digest(split.x for split in self.splits)

    @cached_property
    def label_fingerprint(self) -> str:
        """SHA-256 of what models are conditioned on."""
        return _digest(split.y for split in self.splits if split.y is not None)

    def to(self, device: torch.device | str) -> Data:
        """The same data on another device; training images that need over half of its free memory stay on the host."""
        from pyro_vae.data.host import fits, on_host  # a HostSplit is a Split

        train = self.train if fits(self.train.x, torch.device(device)) else on_host(self.train)
        return Data(self.name, train.to(device), self.validation.to(device), self.test.to(device))

    def map(self, function: Callable[[Split], Split]) -> Data:
        """Apply a function to each split."""
        return Data(self.name, *map(function, self.splits))


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = sha256()
    for tensor in tensors:
        array = tensor.cpu().contiguous().numpy()
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def to_pixels(images: Tensor, pixels: Pixels, noise: Tensor | None = None) -> Tensor:
    """Convert images to the pixels that a likelihood scores, float32.

    Arguments:
        images: uint8, or float32 in [0, 1].
        pixels: "binary" (1 with probability grey / 255), "unit" (grey / 255), "dequantized" ((byte + u) / 256) or "byte".
        noise: Uniform noise of the images' shape, for "binary" and "dequantized"; drawn if None.

    Raises:
        RequestError: If `pixels` is none of these, or is "byte" for float images.
    """
    check_choice("pixels", pixels, Pixels)
    if pixels == "byte":
        if images.is_floating_point():
            raise RequestError(
                "a likelihood on bytes needs uint8 images, but these are floats: save them as uint8, 0 to 255"
            )
        return images.float()
    unit = images if images.is_floating_point() else images / 255
    if pixels == "unit":
        return unit
    noise = torch.rand_like(unit) if noise is None else noise
    if pixels == "binary":
        return (noise < unit).to(unit.dtype)
    return ((255 * unit + noise) / 256).clamp(
        2**-33, 1 - 2**-24
    )  # float32 rounds some to 0 or 1, where densities are infinite


def shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=generator(0))


def generator(stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + stream)
