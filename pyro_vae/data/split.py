"""Data as models see them: splits of images with labels, and the values that likelihoods score."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, Self

import torch
from torch import Tensor

from pyro_vae.data.missing import check_fraction, hide_at_random, like_values, split_missing
from pyro_vae.data.values import (
    UNKNOWN,
    Classes,
    as_covariates,
    as_labels,
    as_values,
    check_kind,
)
from pyro_vae.errors import RequestError, check_choice
from pyro_vae.likelihoods import Pixels, noun

logger = logging.getLogger("pyro_vae")

# Seed of splits, noise and static binarization, independent of the run's seed.
SEED = 0
# The tensors of a split that a model does not need.
EXTRAS = ("labels", "noise", "covariates", "observed")
MAX_CLASSES = 10_000
# Classes that a message names.
NAMED_CLASSES = 10


@dataclass(frozen=True)
class Split:
    """Images or vectors with their labels, covariates and noise.

    Supports `len`, `to`, and indexing by a slice or a tensor. Values are converted or refused, see
    `as_images` and `as_rows` in `pyro_vae.data.values`.

    Attributes:
        x: Images, uint8, or float32 in [0, 1], shape `(N, channels, height, width)`; or vectors,
            shape `(N, D)`: bool, counts (uint8 or int32), or float32.
        labels: Classes, int64, shape `(N,)`, or None. The label -1 is unknown.
        noise: Fixed uniform noise, shape of `x`, or None to draw it anew each time.
        covariates: Real numbers, shape `(N, C)`, or None.
        classes: The names of classes 0, 1, ..., or None if the numbers are their names.
        observed: Bools, shape of `x`, False where a value is missing; None if none is. NaN in `x`
            is missing, too. `x` holds zeros there, and `scored` gives NaN.

    Example:
        >>> split = Split(torch.rand(5, 8, 8) < 0.5, torch.arange(5), classes=tuple("abcde"))
        >>> split[1:3]
        Split(2 images of shape (1, 8, 8), torch.uint8, labels)
    """

    x: Tensor
    labels: Tensor | None = None
    noise: Tensor | None = None
    covariates: Tensor | None = None
    classes: Classes | None = None
    observed: Tensor | None = None

    def __post_init__(self) -> None:
        values, observed = split_missing(self.x, self.observed, "x")
        x = as_values(values, "x")
        self._set("x", x)
        self._set("observed", like_values(observed, x, "observed"))
        if self.labels is not None:
            labels, classes = as_labels(self.labels, len(x), "labels")
            self._set("labels", labels)
            self._set("classes", self.classes or classes)
            _check_classes(labels, self.classes)
        if self.covariates is not None:
            self._set("covariates", as_covariates(self.covariates, len(x), "covariates"))
        if self.noise is not None and self.noise.shape != x.shape:
            raise RequestError(
                f"noise has shape {tuple(self.noise.shape)}, but needs the shape of x,"
                f" {tuple(x.shape)}"
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def y(self) -> Tensor | None:
        """What conditional models are conditioned on.

        The covariates if there are any, otherwise the labels, or None.
        """
        return self.labels if self.covariates is None else self.covariates

    @property
    def noun(self) -> str:
        """What messages call an element, "image" or "row"."""
        return noun(self.x.ndim - 1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice | Tensor) -> Split:
        return self._changed(self._mapped(lambda tensor: tensor[index]))

    def __repr__(self) -> str:
        extras = "".join(f", {name}" for name in EXTRAS if getattr(self, name) is not None)
        shape = tuple(self.x.shape[1:])
        return f"Split({len(self)} {self.noun}s of shape {shape}, {self.x.dtype}{extras})"

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device."""
        return self._changed(self._mapped(lambda tensor: tensor.to(device)))

    def scored(self, pixels: Pixels, largest: int | None = None) -> Tensor:
        """The values that a likelihood scores: `to_pixels` with the split's noise.

        Arguments:
            pixels: The kind of data that it scores.
            largest: The largest count that it scores, if there is one.

        Raises:
            RequestError: If it does not score these values.
        """
        check_kind(self.x, pixels, largest)
        return to_pixels(self.x, pixels, self.noise, self.observed)

    def with_fixed_noise(self, stream: int = 0) -> Split:
        """The same split with fixed noise, so that every call scores the same pixels.

        Noise that there is already is kept. The noise depends on the position of an image in the
        split: fix it before taking a subset.

        Arguments:
            stream: Splits of one data set have different streams.
        """
        if self.noise is not None:
            return self
        noise = torch.rand(self.x.shape, generator=generator(stream))
        return self._changed({"noise": noise.to(self.x.device)})

    def with_missing(self, fraction: float, seed: int = 0) -> Split:
        """The same split without some values, each missing with probability `fraction`.

        At least one value of each row stays observed.

        Arguments:
            fraction: From 0 to less than 1.
            seed: Of the choice; it depends on the position of a row in the split.
        """
        check_fraction(fraction)
        if fraction == 0:
            return self
        kept = hide_at_random(self.x, fraction, seed)
        if self.observed is not None:
            kept = kept & self.observed
        values, observed = split_missing(self.x, kept, "x")
        return self._changed({"x": values, "observed": observed})

    def completed(self, values: Tensor, pixels: Pixels) -> Split:
        """The same split with values in place of those that are missing, such as `impute` gives.

        Arguments:
            values: As the likelihood scores them, shape of `x`; converted to the dtype and the
                units of `x`.
            pixels: The kind of data that the likelihood scores.
        """
        if self.observed is None:
            return self
        x = torch.where(
            self.observed, self.x, from_pixels(values.to(self.x.device), pixels, self.x)
        )
        return self._changed({"x": x, "observed": None})

    def with_x(self, x: Tensor) -> Self:
        """The same split with other images, whose values are not checked.

        Raises:
            RequestError: If they have another shape, and there are missing values.
        """
        noise = self.noise
        if x.shape != self.x.shape:
            noise = None
            if self.observed is not None:
                raise RequestError(
                    "images with missing values cannot be resized; use them as they are"
                )
        return self._changed({"x": x, "noise": noise})

    def without_covariates(self) -> Self:
        """The same split, whose `y` is the labels."""
        return self._changed({"covariates": None})

    def with_labels(self, count: int, seed: int = 0) -> Self:
        """The same split with all but `count` labels hidden: the label of the others is -1.

        The same number of labels of each class is kept, a random choice.

        Arguments:
            count: Number of labels to keep, a multiple of the number of classes.
            seed: Seed of the choice.

        Raises:
            RequestError: If a class has fewer labels, or there are none.

        Example:
            >>> split = Split(torch.rand(6, 8, 8) < 0.5, torch.tensor([0, 1, 0, 1, 1, 0]))
            >>> sorted(split.with_labels(2).labels.tolist())
            [-1, -1, -1, -1, 0, 1]
        """
        labels = self.labels
        if labels is None or not (labels >= 0).any():
            raise RequestError(
                f"labels={count} hides all other labels, but the data have none; leave it out"
            )
        numbers, sizes = labels[labels >= 0].unique(return_counts=True)
        share = count // len(numbers)
        if share < 1 or count % len(numbers):
            raise RequestError(
                f"labels={count} is not a positive multiple of the {len(numbers)} classes; keep the"
                f" same number of each, such as labels={max(1, share) * len(numbers)}"
            )
        if share > sizes.min():
            raise RequestError(
                f"labels={count} asks for {share} of each class, but one has {sizes.min()}; use"
                f" labels={sizes.min() * len(numbers)} or fewer"
            )
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        order = order.to(labels.device)
        hidden = torch.full_like(labels, UNKNOWN)
        for number in numbers:
            chosen = order[labels[order] == number][:share]
            hidden[chosen] = number
        return self._changed({"labels": hidden})

    def labelled(self) -> Split:
        """The images whose label is known, if there are labels; otherwise all."""
        if self.labels is None or bool((self.labels >= 0).all()):
            return self
        return self[(self.labels >= 0).nonzero()[:, 0]]

    def with_classes(self, classes: Classes) -> Split:
        """The same split with labels that are the positions of their classes in `classes`.

        Raises:
            RequestError: If there is a label of another class.
        """
        if self.labels is None:
            return self
        known = self.labels >= 0
        _, positions = self.labels[known].unique(return_inverse=True)
        names = self.class_names()
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise RequestError(
                f"labels of unknown classes: {_listed(unknown)}; known are"
                f" {_listed(list(classes))}; remove the images"
            )
        number = {name: position for position, name in enumerate(classes)}
        numbers = torch.tensor(
            [number[name] for name in names], dtype=torch.int64, device=positions.device
        )
        labels = torch.full_like(self.labels, UNKNOWN)
        labels[known] = numbers[positions]
        return self._changed({"labels": labels, "classes": tuple(classes)})

    def class_names(self) -> list[str]:
        """The names of the classes that have images, in the order of their numbers."""
        if self.labels is None:
            return []
        numbers = self.labels[self.labels >= 0].unique().tolist()
        if self.classes is None:
            return [str(number) for number in numbers]
        return [self.classes[number] for number in numbers]

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
                f"{count} {self.noun}s requested, but the split has {len(self)}; request 1 to"
                f" {len(self)}"
            )
        if count == len(self):
            return torch.arange(count, device=self.x.device)
        return shuffled(len(self))[:count].to(self.x.device)

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The results of a function for each tensor that there is."""
        tensors = {name: getattr(self, name) for name in ("x", *EXTRAS)}
        return {name: function(tensor) for name, tensor in tensors.items() if tensor is not None}

    def _changed(self, fields: dict[str, Any]) -> Self:
        """A copy with other fields, whose values are not checked again."""
        copy = object.__new__(type(self))
        copy.__dict__.update(vars(self) | fields)
        return copy


@dataclass(frozen=True)
class Data:
    """A data set in three splits: for training, model selection and reporting.

    Validation and test images without noise get fixed noise. Classes are numbered from 0 as they
    occur in the training images; those that only other images have come last. A message says so if
    the numbers change.
    """

    name: str
    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            split = getattr(self, part)
            if not isinstance(split, Split):
                raise RequestError(
                    f"{part} must be a Split, but is of type {type(split).__name__}; use"
                    " Split(x), or Split(x, labels)"
                )
        for part in ("validation", "test"):
            shape = tuple(getattr(self, part).x.shape[1:])
            if shape != self.shape:
                raise RequestError(
                    f"the training {self.train.noun}s have shape {self.shape}, but those of {part}"
                    f" {shape}; use data of one shape"
                )
        object.__setattr__(self, "validation", self.validation.with_fixed_noise(1))
        object.__setattr__(self, "test", self.test.with_fixed_noise(0))
        self._number_classes()

    def _number_classes(self) -> None:
        if self.train.labels is None:
            return
        classes = self.train.class_names()
        for split in (self.validation, self.test):
            known = set(classes)
            classes += [name for name in split.class_names() if name not in known]
        if len(classes) > MAX_CLASSES or all(_is_numbered(split, classes) for split in self.splits):
            return
        logger.info("%s: %s", self.name, class_message(classes))
        for part in ("train", "validation", "test"):
            object.__setattr__(self, part, getattr(self, part).with_classes(tuple(classes)))

    def __repr__(self) -> str:
        counts = (
            f"train={len(self.train)}, validation={len(self.validation)}, test={len(self.test)}"
        )
        return f"Data({self.name!r}, {counts}, shape={self.shape})"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image, (channels, height, width), or of a vector, (D,)."""
        return tuple(self.train.x.shape[1:])

    @property
    def classes(self) -> Classes | None:
        """The names of classes 0, 1, ..., or None if the numbers are their names."""
        return self.train.classes

    @property
    def label_dim(self) -> int:
        """Number of covariates, or of classes of the training images if there are none.

        Raises:
            RequestError: If there are no labels, or a class has names or images in other splits,
                but no known label in training.
        """
        y = self.train.y
        if y is None:
            raise RequestError(f"{self.name} has no labels; use data with labels or covariates")
        if y.is_floating_point():
            return y.shape[1]
        high = int(y.max())
        if high < 0:
            raise RequestError(
                f"all training labels of {self.name} are unknown; give at least one of each class"
            )
        if high >= MAX_CLASSES:
            raise RequestError(
                f"labels are up to {high}; number the classes from 0, up to {MAX_CLASSES - 1}"
            )
        if (y < 0).any():
            self._check_every_class_is_labelled()
        for split in (self.validation, self.test):
            check_known_classes(self.train, split)
        return high + 1

    def _check_every_class_is_labelled(self) -> None:
        names = list(self.classes or ())
        for split in (self.validation, self.test):
            names += unknown_classes(self.train, split)
        labelled = set(self.train.class_names())
        missing = [name for name in dict.fromkeys(names) if name not in labelled]
        if missing:
            raise RequestError(
                f"all training labels of the classes {_listed(missing)} are unknown; give at least"
                " one of each class"
            )

    def with_labels(self, count: int, seed: int = 0) -> Data:
        """The same data with all but `count` training labels hidden, see `Split.with_labels`.

        Validation and test images keep their labels.

        Example:
            >>> import pyro_vae as pv
            >>> data = pv.load_data("digits").with_labels(100)
            >>> data.train.labelled()
            Split(100 images of shape (1, 8, 8), torch.uint8, labels)
        """
        train = self.train.with_labels(count, seed)
        return Data(self.name, train, self.validation, self.test)

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        """The three splits."""
        return self.train, self.validation, self.test

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all images, equal for equal data."""
        masks = [split.observed for split in self.splits if split.observed is not None]
        return _digest([*(split.x for split in self.splits), *masks])

    @cached_property
    def label_fingerprint(self) -> str:
        """SHA-256 of what models are conditioned on."""
        return _digest(split.y for split in self.splits if split.y is not None)

    def to(self, device: torch.device | str) -> Data:
        """The same data on another device.

        Training images that need over half of its free memory stay on the host.
        """
        from pyro_vae.data.host import fits, on_host  # a HostSplit is a Split

        train = self.train
        if not fits(train.x, torch.device(device)):
            train = on_host(train)
        return Data(self.name, train.to(device), self.validation.to(device), self.test.to(device))

    def map(self, function: Callable[[Split], Split]) -> Data:
        """Apply a function to each split."""
        return Data(self.name, *map(function, self.splits))

    def with_missing(self, fraction: float, seed: int = 0) -> Data:
        """The same data without some values of each split, see `Split.with_missing`.

        Example:
            >>> data = Data("noise", *3 * [Split(torch.rand(50, 1, 8, 8))])
            >>> x = data.with_missing(0.5).train.scored("unit")
            >>> round(x.isnan().float().mean().item(), 1)
            0.5
        """
        check_fraction(fraction)
        parts = []
        for position, split in enumerate(self.splits):
            parts.append(split.with_missing(fraction, seed=3 * seed + position))
        return Data(self.name, *parts)


def unknown_classes(train: Split, other: Split) -> list[str]:
    """The names of classes that have images in `other`, but none in `train`."""
    known = set(train.class_names())
    return [name for name in other.class_names() if name not in known]


def check_known_classes(train: Split, other: Split) -> None:
    """Raise `RequestError` if `other` has classes that the training images lack."""
    if unknown := unknown_classes(train, other):
        raise RequestError(
            f"there are no training images of the classes {_listed(unknown)}; use images of the"
            " same classes for training and test, or a model without labels"
        )


def class_message(classes: Iterable[str]) -> str:
    """Which number stands for which class."""
    return f"classes {_listed([f'{number} = {name}' for number, name in enumerate(classes)])}"


def _listed(names: list[str]) -> str:
    if len(names) <= NAMED_CLASSES:
        return ", ".join(names)
    return f"{', '.join(names[:NAMED_CLASSES])} and {len(names) - NAMED_CLASSES} more"


def _check_classes(labels: Tensor, classes: Classes | None) -> None:
    if classes is None or len(labels) == 0:
        return
    if labels.max() >= len(classes):
        raise RequestError(
            f"labels are up to {labels.max()}, but there are names of {len(classes)} classes; give"
            " one name for each class"
        )


def _is_numbered(split: Split, classes: list[str]) -> bool:
    """Whether the labels of a split are the positions of their classes."""
    if split.labels is None:
        return True
    numbers = split.labels[split.labels >= 0].unique().tolist()
    if numbers and numbers[-1] >= len(classes):
        return False
    return [classes[number] for number in numbers] == split.class_names()


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = sha256()
    for tensor in tensors:
        array = tensor.cpu().contiguous().numpy()
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def to_pixels(
    images: Tensor,
    pixels: Pixels,
    noise: Tensor | None = None,
    observed: Tensor | None = None,
) -> Tensor:
    """Convert data to the values that a likelihood scores, float32; NaN where one is missing.

    Arguments:
        images: Images, uint8, bool, or float32 in [0, 1]; or vectors, see `check_kind`.
        pixels: "binary" (1 with probability grey / 255), "unit" (grey / 255), "dequantized"
            ((byte + u) / 256), "byte", "count" or "real".
        noise: Uniform noise of the images' shape, for "binary" and "dequantized"; drawn if None.
        observed: Which pixels are observed; None is all.

    Raises:
        RequestError: If `pixels` is none of these, or is "byte" for float images.
    """
    values = _complete_pixels(images, pixels, noise)
    if observed is None:
        return values
    return values.masked_fill(~observed, torch.nan)


def _complete_pixels(images: Tensor, pixels: Pixels, noise: Tensor | None) -> Tensor:
    check_choice("pixels", pixels, Pixels)
    if pixels in ("count", "real"):
        return images.float()
    if images.dtype == torch.bool:
        images = images.to(torch.uint8) * 255
    if pixels == "byte":
        if images.is_floating_point():
            raise RequestError(
                "a likelihood on bytes needs uint8 images, but these are floats: save them as"
                " uint8, 0 to 255"
            )
        return images.float()
    unit = images if images.is_floating_point() else images / 255
    if pixels == "unit":
        return unit
    if noise is None:
        noise = torch.rand_like(unit)
    if pixels == "binary":
        return (noise < unit).to(unit.dtype)
    # float32 rounds some to 0 or 1, where densities are infinite
    return ((255 * unit + noise) / 256).clamp(2**-33, 1 - 2**-24)


def from_pixels(values: Tensor, pixels: Pixels, like: Tensor) -> Tensor:
    """Convert values that a likelihood scores to the dtype and the units of data.

    Arguments:
        values: The values, such as means, which may lie between those of the data.
        pixels: The kind of data that the likelihood scores.
        like: The data.
    """
    if pixels == "dequantized":
        values = ((256 * values - 0.5) / 255).clamp(0, 1)
    if like.dtype == torch.uint8 and pixels in ("binary", "unit", "dequantized"):
        values = 255 * values
    if like.is_floating_point():
        return values.to(like.dtype)
    largest = 1 if like.dtype == torch.bool else torch.iinfo(like.dtype).max
    return values.round().clamp(0, largest).to(like.dtype)


def shuffled(count: int) -> Tensor:
    """The seeded random order of `count` images."""
    return torch.randperm(count, generator=generator(0))


def generator(stream: int) -> torch.Generator:
    """A random number generator that does not depend on the run's seed."""
    return torch.Generator().manual_seed(SEED + stream)
