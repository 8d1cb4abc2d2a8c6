"""Folders of image files, flat or with one folder per class."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pyro_vae.data.files import check_bytes, check_utf8, refusing, resized
from pyro_vae.data.split import Split
from pyro_vae.errors import RequestError

logger = logging.getLogger("pyro_vae")
# Pillow both logs and raises on damaged files.
logging.getLogger("PIL").addHandler(logging.NullHandler())

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
# The formats that Pillow may try. By default it also tries EPS, which runs Ghostscript, whatever
# the file's suffix.
FORMATS = ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"]
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "RGB", "RGBA", "CMYK", "YCbCr")
# Modes of grey PNGs of 16 bits, whose white is 65535. Those of TIFF do not tell what is white.
DEEP_MODES = ("I;16", "I")
# Formats in which cameras write how they were held. Pillow decodes a PNG to find it.
ORIENTED = ("JPEG", "WEBP")
ORIENTATION = 0x0112
# Maximum size of one image file, because a small file may decode to any size.
IMAGE_PIXELS = 50_000_000


def read_folder(path: Path, size: int | None, depth: int = 1) -> Split:
    """Read the images of a folder and its subfolders. Hidden files and folders are skipped.

    Arguments:
        path: The folder.
        size: Height and width to resize the images to.
        depth: Number of nested folders that make a class. Images that lie higher up have no labels.

    Raises:
        RequestError: If an image is damaged or of another size, or all together are too large.
    """
    files = image_files(path)
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
    if any(header.is_deep for header in headers):
        logger.info("%s: 16 bits per pixel are scaled to 8", path.name)
    images = [resized(_decoded(file), size).expand(-1, channels, -1, -1) for file in files]
    labels, classes = _folder_labels(path, files, depth)
    return Split(torch.cat(images), labels, classes=classes)


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, sorted."""
    with refusing(f"{folder} cannot be read as a folder", "change its permissions or its layout"):
        return sorted(_image_files(folder))


def _image_files(folder: Path) -> Iterator[Path]:
    """The image files, and links to folders, which are refused with the images.

    Not recursive: folders may be nested more deeply than calls.
    """
    folders = [folder]
    while folders:
        for path in folders.pop().iterdir():
            if path.name.startswith("."):
                continue
            if path.is_dir() and not path.is_symlink():
                folders.append(path)
            elif path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
                yield path


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


class _Header(NamedTuple):
    channels: int
    height: int
    width: int
    is_deep: bool


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
        is_deep = _is_deep(image)
        if image.mode not in GREY_MODES + COLOUR_MODES and not is_deep:
            raise RequestError(
                f"{file} is of mode {image.mode}: save it with 8 bits per channel, grey or in"
                " colours"
            )
        if _orientation(image) >= 5:  # turned by 90 degrees
            width, height = height, width
        channels = 3 if image.mode in COLOUR_MODES else 1
        return _Header(channels, height, width, is_deep)


def _is_deep(image: Image.Image) -> bool:
    """Whether pixels are grey values of 16 bits. Pillow decodes colours of 16 bits to 8."""
    return image.format == "PNG" and image.mode in DEEP_MODES


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
        if _is_deep(image):
            scaled = (np.array(image) / 257).round().astype(np.uint8)
            return torch.from_numpy(scaled)[None, None]
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
