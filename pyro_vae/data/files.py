"""Read the user's files: NumPy arrays, MNIST's IDX files and folders of images.

Sizes are checked before the files are read.
"""

from __future__ import annotations

import gzip
import logging
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from pyro_vae.data.split import Split
from pyro_vae.data.values import as_covariates, as_images, as_labels
from pyro_vae.errors import RequestError

# Pillow both logs and raises on damaged files.
logging.getLogger("PIL").addHandler(logging.NullHandler())

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
# The formats that Pillow may try. By default it also tries EPS, which runs Ghostscript, whatever
# the file's suffix.
FORMATS = ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"]
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "RGB", "RGBA", "CMYK", "YCbCr")
# Formats in which cameras write how they were held. Pillow decodes a PNG to find it.
ORIENTED = ("JPEG", "WEBP")
ORIENTATION = 0x0112
# Maximum size of one image file, because a small file may decode to any size.
IMAGE_PIXELS = 50_000_000
# The splits of a file, and their names in the names of arrays: x_train, y_train (Keras), or
# train_images, train_labels (MedMNIST).
PARTS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
LAYOUTS = (
    "images (and labels or covariates), or x_train, y_train, x_test and y_test (and x_val, y_val)"
    " if it has a test set of its own"
)


class Parts(NamedTuple):
    """The images of a data set: all, or the training images and the sets that are separate."""

    train: Split
    validation: Split | None = None
    test: Split | None = None


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


def read_array(path: Path) -> Parts:
    """Read an `.npy` file of images, or an `.npz` file, with its own test set if it has one.

    Raises:
        RequestError: If the file is damaged, too large, or holds no images.
    """
    with (
        refusing(f"{path} cannot be read as arrays", "save it with numpy.save or numpy.savez"),
        path.open("rb") as file,
    ):
        check_bytes(path, path.stat().st_size)
        with _refusing_objects(str(path), "np.stack(x) for images"):
            loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return Parts(Split(_images(loaded, str(path))))
        check_bytes(path, sum(member.file_size for member in loaded.zip.infolist()))
        layout = _layout(loaded.files, path)
        return Parts(**{part: _arrays(loaded, path, **names) for part, names in layout.items()})


@contextmanager
def _refusing_objects(name: str, advice: str) -> Iterator[None]:
    """Refuse arrays of Python objects, which are pickles."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Object arrays cannot be loaded"):
            raise
        raise RequestError(f"{name} holds Python objects: save {advice}") from error


def _layout(arrays: list[str], path: Path) -> dict[str, dict[str, str]]:
    """For each split of a file, the names of its arrays of images, labels and covariates."""
    names = {name.lower(): name for name in arrays}
    layout = {}
    for part, aliases in PARTS.items():
        for alias in aliases:
            for x, y in ((f"x_{alias}", f"y_{alias}"), (f"{alias}_images", f"{alias}_labels")):
                if x in names and part not in layout:
                    layout[part] = {"images": x, "labels": y}
    if not layout and "images" in names:
        layout["train"] = {"images": "images", "labels": "labels", "covariates": "covariates"}
    used = {name for fields in layout.values() for name in fields.values()}
    left = [name for name in names if name not in used]
    is_lost = any("test" in name or "val" in name.split("_") for name in left)
    is_ambiguous = len(names) < len(arrays) or (layout and "images" in left)
    if "train" not in layout or is_lost or is_ambiguous:
        raise RequestError(
            f"{path} holds arrays named {', '.join(arrays) or 'nothing'}: a file needs {LAYOUTS}"
        )
    return {
        part: {field: names[name] for field, name in fields.items() if name in names}
        for part, fields in layout.items()
    }


def _arrays(
    loaded: Any, path: Path, images: str, labels: str | None = None, covariates: str | None = None
) -> Split:
    """A split from the arrays of an `.npz` file with these names."""
    with _refusing_objects(f"{path}: {images}", f"np.stack({images})"):
        x = _images(loaded[images], f"{path}: {images}")
    numbers, classes, real = None, None, None
    if labels is not None:
        advice = f"{labels}.astype(str), or np.unique({labels}, return_inverse=True)[1]"
        with _refusing_objects(f"{path}: {labels}", advice):
            numbers, classes = as_labels(loaded[labels], len(x), f"{path}: {labels}")
    if covariates is not None:
        with _refusing_objects(f"{path}: {covariates}", f"{covariates}.astype(float)"):
            real = as_covariates(loaded[covariates], len(x), f"{path}: {covariates}")
    return Split(x, numbers, covariates=real, classes=classes)


def _images(array: np.ndarray, name: str) -> Tensor:
    images = as_images(array, name)
    if len(images) == 0:
        raise RequestError(f"{name} has shape {array.shape}, which is no image")
    return images


def read_idx(image_file: Path, label_file: Path) -> Split:
    """Read images and labels from the files of MNIST, packed by gzip if they end in `.gz`.

    Raises:
        RequestError: If a file is damaged or too large, or the numbers of images and labels differ.
    """
    images = _idx_array(image_file, 3).unsqueeze(1)
    labels = _idx_array(label_file, 1).long()
    if len(labels) != len(images):
        raise RequestError(
            f"{label_file} has {len(labels)} labels for {len(images)} images: remove or replace it"
        )
    return Split(images, labels)


def _idx_array(file: Path, ndim: int) -> Tensor:
    opener = gzip.open if file.suffix == ".gz" else open
    with (
        refusing(f"{file} cannot be read as an IDX file", "remove or replace it"),
        opener(file, "rb") as stream,
    ):
        magic, *shape = struct.unpack(f">{ndim + 1}I", stream.read(4 * (ndim + 1)))
        if magic != 0x800 + ndim or 0 in shape:  # 8 is the code of uint8
            raise ValueError(f"its header is {magic:#x}, {shape}")
        check_bytes(file, prod(shape))
        content = bytearray(stream.read(prod(shape) + 1))
        if len(content) != prod(shape):
            raise ValueError(f"its length does not fit its shape {shape}")
    return torch.frombuffer(content, dtype=torch.uint8).reshape(shape)


def read_folder(path: Path, size: int | None, depth: int = 1) -> Split:
    """Read the images of a folder and its subfolders. Hidden files and folders are skipped.

    Arguments:
        path: The folder.
        size: Height and width to resize the images to.
        depth: Number of nested folders that make a class. Images that lie higher up have no labels.

    Raises:
        RequestError: If an image is damaged or of another size, or all together are too large.
    """
    files = _image_files(path)
    if not files:
        raise RequestError(
            f"{path} holds no images: it needs files ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    headers = [_header(file, path) for file in files]
    channels = max(header.channels for header in headers)
    sizes = sorted({(header.height, header.width) for header in headers})
    height, width = sizes[0]
    if len(sizes) > 1 and size is None:
        raise RequestError(
            f"{path} mixes images of {width}x{height} and {sizes[1][1]}x{sizes[1][0]} pixels: give"
            " image_size to resize them all"
        )
    pixels = height * width if size is None else size**2
    check_bytes(path, len(files) * channels * pixels)
    images = [resized(_decoded(file), size).expand(-1, channels, -1, -1) for file in files]
    labels, classes = _folder_labels(path, files, depth)
    return Split(torch.cat(images), labels, classes=classes)


def _image_files(folder: Path) -> list[Path]:
    """The image files below a folder, sorted.

    Not recursive: folders may be nested more deeply than calls.
    """
    files, folders = [], [folder]
    advice = "change its permissions or its layout"
    while folders:
        with refusing(f"{folder} cannot be read as a folder", advice):
            for path in folders.pop().iterdir():
                if path.name.startswith("."):
                    continue
                if path.is_dir() and not path.is_symlink():
                    folders.append(path)
                elif path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
                    files.append(path)  # links to folders are refused with the images
    return sorted(files)


def _folder_labels(
    path: Path, files: list[Path], depth: int
) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """The number of each file's class, and the names of the classes: their folders."""
    folders = [file.relative_to(path).parts[:-1][:depth] for file in files]
    if any(len(folder) < depth for folder in folders):
        return None, None
    classes = sorted(set(folders))
    for folder in classes:
        check_utf8(path.joinpath(*folder))
    numbers = {folder: number for number, folder in enumerate(classes)}
    names = tuple("/".join(folder) for folder in classes)
    return torch.tensor([numbers[folder] for folder in folders]), names


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


class _Header(NamedTuple):
    channels: int
    height: int
    width: int


def _header(file: Path, folder: Path) -> _Header:
    """What the header of an image file says; the image is not decoded."""
    target = os.path.realpath(file)  # unlike Path.resolve, it does not raise on loops of links
    if not (os.path.isfile(target) and Path(target).is_relative_to(os.path.realpath(folder))):
        raise RequestError(
            f"{file} is not a regular file inside {folder}: copy the image there, or remove it"
        )
    with _opened(file) as image:
        width, height = image.size
        if width * height > IMAGE_PIXELS:
            raise RequestError(
                f"{file} has {width:,}x{height:,} pixels: make it smaller, or remove it"
            )
        if image.mode not in GREY_MODES + COLOUR_MODES:
            raise RequestError(
                f"{file} is of mode {image.mode}: save it with 8 bits per channel, grey or in"
                " colours"
            )
        if _orientation(image) >= 5:  # turned by 90 degrees
            width, height = height, width
        return _Header(1 if image.mode in GREY_MODES else 3, height, width)


def _orientation(image: Image.Image) -> int:
    """How a camera was held, as EXIF numbers it; 1 is upright."""
    if image.format not in ORIENTED:
        return 1
    try:
        orientation = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata raise almost any class
        return 1
    return orientation if 1 <= orientation <= 8 else 1


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """An image of Pillow's, which decodes it when its pixels are asked for."""
    with (
        refusing(f"{file} cannot be read as an image", "remove or replace it"),
        warnings.catch_warnings(),
    ):
        # Sizes are checked here, and what Pillow cannot decode is an exception.
        warnings.simplefilter("ignore")
        with Image.open(file, formats=FORMATS) as image:
            yield image


def _decoded(file: Path) -> Tensor:
    """The bytes of an image file, shape (1, channels, height, width); transparent is white."""
    with _opened(file) as image:
        is_grey = image.mode in GREY_MODES
        if _orientation(image) > 1:
            image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba)
        array = torch.from_numpy(np.array(image.convert("L" if is_grey else "RGB")))
    if is_grey:
        return array[None, None]
    return array.permute(2, 0, 1)[None]


def resized(images: Tensor, size: int | None) -> Tensor:
    """Images, as bytes or as floats in [0, 1], at another height and width; None leaves them.

    Raises:
        RequestError: If they do not fit into memory.
    """
    if size is None or tuple(images.shape[2:]) == (size, size):
        return images
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
