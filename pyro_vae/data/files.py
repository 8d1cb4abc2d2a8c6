"""Read images from NumPy arrays, MNIST's IDX files and folders; sizes are checked before the files are read."""

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
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from pyro_vae.errors import RequestError

logger = logging.getLogger("pyro_vae")
logging.getLogger("PIL").addHandler(
    logging.NullHandler()
)  # Pillow both logs and raises on damaged files

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
# The formats that Pillow may try. By default it also tries EPS, which runs Ghostscript, whatever the file's suffix.
FORMATS = ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"]
GREY_MODES, COLOUR_MODES = ("1", "L", "LA"), ("P", "RGB", "RGBA")
# Maximum size of one image file, because a small file may decode to any size.
IMAGE_PIXELS = 50_000_000
# Minimum height and width for a last dimension of 1, 3 or 4 to count as channels in images that are not square.
MIN_SIZE = 8


def _memory() -> int:
    """Bytes of physical memory, or of the container if it is limited to less; 16 GiB on systems that do not tell."""
    if not hasattr(os, "sysconf"):
        return 2**34
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(physical, int(text)) if text.isdecimal() else physical


# Maximum size of a data set: reading it, splitting it and drawing its noise hold about four copies.
BYTES = _memory() // 4


def check_bytes(what: object, count: int) -> None:
    if count > BYTES:
        raise RequestError(
            f"{what} needs {count / 2**30:,.1f} GiB, over {BYTES / 2**30:,.1f}: use fewer or smaller images"
        )


@contextmanager
def refusing(what: str, advice: str) -> Iterator[None]:
    """Turn any exception into a RequestError: on damaged files, parsers raise almost every class."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:
        lines = str(getattr(error, "strerror", None) or error).strip().splitlines() or [
            type(error).__name__
        ]
        raise RequestError(f"{what} ({lines[-1]}): {advice}") from error


def read_array(path: Path) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Read the images, the labels and the covariates, the last two if there are any, of an `.npy` or `.npz` file.

    Raises:
        RequestError: If the file is damaged, too large, or holds no images.
    """
    with (
        refusing(f"{path} cannot be read as arrays", "save it with numpy.save or numpy.savez"),
        path.open("rb") as file,
    ):
        check_bytes(path, path.stat().st_size)
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return checked_images(loaded, path), None, None
        check_bytes(path, sum(member.file_size for member in loaded.zip.infolist()))
        if loaded.files.count("images") != 1:
            names = ", ".join(loaded.files) or "none"
            raise RequestError(
                f"{path} needs one array named images, but has {names}: use savez(path, images=...)"
            )
        images = checked_images(loaded["images"], path)
        labels = (
            _checked_labels(loaded["labels"], len(images), path)
            if "labels" in loaded.files
            else None
        )
        covariates = (
            _checked_covariates(loaded["covariates"], len(images), path)
            if "covariates" in loaded.files
            else None
        )
        return images, labels, covariates


def checked_images(array: np.ndarray, path: Path) -> Tensor:
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise RequestError(
            f"{path} has shape {array.shape}: images need (N, height, width) or (N, channels, height, width)"
        )
    if array.ndim == 4 and channels_are_last(*array.shape[1:]):
        logger.info(
            "%r has shape %s: moved the channels from last to first", str(path), array.shape
        )
        array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    images = torch.from_numpy(_checked_values(array, path))
    return images.unsqueeze(1) if images.ndim == 3 else images


def channels_are_last(first: int, second: int, last: int) -> bool:
    return (
        last in (1, 3, 4)
        and first not in (1, 3, 4)
        and (first == second or min(first, second) >= MIN_SIZE)
    )


def _checked_values(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype == np.uint8:
        if array.max() == 1:
            logger.warning(
                "%r has bytes 0 and 1 of 255, nearly black: for black and white save bools, or 0 and 255",
                str(path),
            )
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(array.dtype, np.floating):
        raise RequestError(f"{path} holds {array.dtype}: save uint8 (0 to 255) or floats in [0, 1]")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):  # also if they are NaN
        raise RequestError(
            f"{path} holds floats from {low:g} to {high:g}: save floats in [0, 1], or uint8"
        )
    return array.astype(np.float32, copy=False)


def _checked_labels(labels: np.ndarray, count: int, path: Path) -> Tensor:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise RequestError(
            f"{path} has labels of shape {labels.shape} and type {labels.dtype}: save one integer per image"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _checked_covariates(covariates: np.ndarray, count: int, path: Path) -> Tensor:
    is_matrix = covariates.ndim == 2 and len(covariates) == count and covariates.shape[1] > 0
    if not is_matrix or covariates.dtype.kind not in "fiu":
        problem = f"covariates of shape {covariates.shape} and type {covariates.dtype}"
        raise RequestError(
            f"{path} has {problem}: save numbers, shape ({count}, number of covariates)"
        )
    if not np.isfinite(covariates).all():
        raise RequestError(f"{path} has covariates that are NaN or infinite: save finite numbers")
    return torch.from_numpy(covariates.astype(np.float32))


def read_idx(image_file: Path, label_file: Path) -> tuple[Tensor, Tensor]:
    """Read images and labels from the files of MNIST, packed by gzip if they end in `.gz`.

    Raises:
        RequestError: If a file is damaged or too large, or the numbers of images and labels differ.
    """
    images, labels = _idx_array(image_file, 3).unsqueeze(1), _idx_array(label_file, 1).long()
    if len(labels) != len(images):
        raise RequestError(
            f"{label_file} has {len(labels)} labels for {len(images)} images: remove or replace it"
        )
    return images, labels


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


def read_folder(path: Path, size: int | None, depth: int = 1) -> tuple[Tensor, Tensor | None]:
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
    channels = max(header[0] for header in headers)
    (h1, w1), *others = sorted({header[1:] for header in headers})
    if others and size is None:
        (h2, w2), *_ = others
        raise RequestError(
            f"{path} mixes images of {w1}x{h1} and {w2}x{h2} pixels: give image_size to resize them all"
        )
    check_bytes(path, len(files) * channels * (size**2 if size else h1 * w1))
    images = [resized(_decoded(file), size).expand(-1, channels, -1, -1) for file in files]
    return torch.cat(images), _folder_labels(path, files, depth)


def _image_files(folder: Path) -> list[Path]:
    """The image files below a folder, sorted. Not recursive: folders may be nested more deeply than calls."""
    files, folders = [], [folder]
    while folders:
        with refusing(
            f"{folder} cannot be read as a folder", "change its permissions or its layout"
        ):
            for path in folders.pop().iterdir():
                if path.name.startswith("."):
                    continue
                if path.is_dir() and not path.is_symlink():
                    folders.append(path)
                elif (
                    path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES
                ):  # links to folders are refused with the images
                    files.append(path)
    return sorted(files)


def _folder_labels(path: Path, files: list[Path], depth: int) -> Tensor | None:
    names = [file.relative_to(path).parts[:-1][:depth] for file in files]
    if any(len(name) < depth for name in names):
        return None
    classes = {name: index for index, name in enumerate(sorted(set(names)))}
    return torch.tensor([classes[name] for name in names])


def _header(file: Path, folder: Path) -> tuple[int, int, int]:
    """Channels, height and width of an image file, which is not decoded."""
    target = os.path.realpath(file)  # unlike Path.resolve, it does not raise on loops of links
    if not (os.path.isfile(target) and Path(target).is_relative_to(os.path.realpath(folder))):
        raise RequestError(
            f"{file} is not a regular file inside {folder}: copy the image there, or remove it"
        )
    with _opened(file) as image:
        if image.width * image.height > IMAGE_PIXELS:
            raise RequestError(
                f"{file} has {image.width:,}x{image.height:,} pixels: make it smaller, or remove it"
            )
        if image.mode not in GREY_MODES + COLOUR_MODES:
            raise RequestError(
                f"{file} is of mode {image.mode}: save it with 8 bits per channel, grey or in colours"
            )
        return 1 if image.mode in GREY_MODES else 3, image.height, image.width


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """An image of Pillow's, which decodes it when its pixels are asked for."""
    with (
        refusing(f"{file} cannot be read as an image", "remove or replace it"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter(
            "ignore"
        )  # sizes are checked here, and what Pillow cannot decode is an exception
        with Image.open(file, formats=FORMATS) as image:
            yield image


def _decoded(file: Path) -> Tensor:
    """The bytes of an image file, shape (1, channels, height, width), with transparent parts on white."""
    with _opened(file) as image:
        grey = image.mode in GREY_MODES
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba)
        array = torch.from_numpy(np.array(image.convert("L" if grey else "RGB")))
    return array[None, None] if grey else array.permute(2, 0, 1)[None]


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
    return torch.cat(
        [_interpolated(part, size) for part in images.split(64)]
    )  # as floats, bytes need four times the memory


def _interpolated(images: Tensor, size: int) -> Tensor:
    unit = images if images.is_floating_point() else images / 255
    unit = interpolate(unit, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    return unit if images.is_floating_point() else (unit * 255).round().to(torch.uint8)
