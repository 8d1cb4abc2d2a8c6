"""The user's own images: an array or a folder of image files, checked before they are believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from pyro_vae.errors import RequestError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}

IMAGE_PIXELS = 50_000_000
"""Of one image file: a small file may unpack to any size."""

BYTES = 16 * 2**30
"""Of a whole data set in memory."""

LEAST_SIZE = 8
"""The least height and width at which a last dimension of 1, 3 or 4 is taken for channels, if they differ."""


def read_array(path: Path) -> tuple[Tensor, Tensor | None]:
    """Images and labels, if it has any, of an `.npy` or `.npz` file.

    Raises:
        RequestError: If it cannot be used; the message says what to do instead.
    """
    _check_size(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {"images": loaded}
    except Exception as error:
        raise RequestError(f"{path} cannot be read as arrays ({error}): save it with numpy.save or numpy.savez") from error
    if "images" not in arrays:
        raise RequestError(
            f"{path} has no array named images, but {', '.join(arrays) or 'none'}: use numpy.savez(path, images=...)"
        )
    images = _checked_images(arrays["images"], path)
    return images, _checked_labels(arrays.get("labels"), len(images), path)


def _check_size(path: Path) -> None:
    """Refuse an archive that would unpack to more than there is room for."""
    if is_zipfile(path):
        with ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    else:
        unpacked = path.stat().st_size
    if unpacked > BYTES:
        raise RequestError(f"{path} holds {unpacked / 2**30:,.0f} GiB, over {BYTES >> 30}: use fewer or smaller images")


def _checked_images(array: np.ndarray, path: Path) -> Tensor:
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise RequestError(f"{path} has shape {array.shape}: images need (N, height, width) or (N, channels, height, width)")
    if array.ndim == 4 and _channels_are_last(*array.shape[1:]):
        raise RequestError(f"{path} has its channels last, {array.shape}: save images.transpose(0, 3, 1, 2)")
    images = torch.from_numpy(_checked_values(array, path))
    return images.unsqueeze(1) if images.ndim == 3 else images


def _channels_are_last(first: int, second: int, last: int) -> bool:
    """Whether a shape is that of images with their channels last: of some size, or square."""
    return last in (1, 3, 4) and first not in (1, 3, 4) and (first == second or min(first, second) >= LEAST_SIZE)


def _checked_values(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(array.dtype, np.floating):
        raise RequestError(f"{path} holds {array.dtype}: save uint8 (0 to 255) or floats in [0, 1]")
    if not np.isfinite(array).all():
        raise RequestError(f"{path} holds NaN or infinite values: clean it first")
    if array.min() < 0 or array.max() > 1:
        raise RequestError(f"{path} holds floats from {array.min():g} to {array.max():g}: scale them to [0, 1], or save uint8")
    return array.astype(np.float32)


def _checked_labels(labels: np.ndarray | None, count: int, path: Path) -> Tensor | None:
    if labels is None:
        return None
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise RequestError(f"{path} has labels of shape {labels.shape} and type {labels.dtype}: they need one integer an image")
    return torch.from_numpy(labels.astype(np.int64))


def read_folder(path: Path, image_size: int | None) -> tuple[Tensor, Tensor | None]:
    """Images of a folder, resized if a size is given, and labels if it has one folder a class.

    Raises:
        RequestError: If they cannot be used; the message says what to do instead.
    """
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != ".")
    if not files:
        raise RequestError(f"{path} holds no images: it needs files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    images = [resized(_read_image(file, path)[None], image_size) for file in files]
    channels = max(len(image[0]) for image in images)
    images = [image.expand(-1, channels, -1, -1) for image in images]
    sizes = {tuple(image.shape[2:]) for image in images}
    if len(sizes) > 1:
        (h1, w1), (h2, w2), *_ = sorted(sizes)
        raise RequestError(f"{path} mixes images of {w1}x{h1} and {w2}x{h2} pixels: give --image_size to resize them all")
    return torch.cat(images), _folder_labels(path, files)


def _folder_labels(path: Path, files: list[Path]) -> Tensor | None:
    names = [file.relative_to(path).parts[0] for file in files]
    if any(file.parent == path for file in files):
        return None
    classes = sorted(set(names))
    return torch.tensor([classes.index(name) for name in names])


def _read_image(file: Path, folder: Path) -> Tensor:
    if not file.resolve().is_relative_to(folder.resolve()):
        raise RequestError(f"{file} is a link that leads out of {folder}: copy the image there")
    try:
        with Image.open(file) as image:
            if image.width * image.height > IMAGE_PIXELS:
                raise RequestError(f"{file} has {image.width:,}x{image.height:,} pixels: make it smaller, or remove it")
            return from_pil(_flattened(image))
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"{file} cannot be read as an image ({error}): remove or mend it") from error


def _flattened(image: Any) -> Any:
    """The image in eight bits, grey or in colours, with what is transparent laid on white."""
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise RequestError(f"{image.filename} is of mode {image.mode}: save it with 8 bits a channel, grey or in colours")
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("L" if grey else "RGB")


def from_pil(image: Any) -> Tensor:
    """The bytes of an image of Pillow's, shape (channels, height, width)."""
    array = torch.from_numpy(np.array(image))
    return array.unsqueeze(0) if array.ndim == 2 else array.permute(2, 0, 1)


def resized(images: Tensor, size: int | None) -> Tensor:
    """Images, as bytes or as floats in [0, 1], at another height and width; None leaves them."""
    if size is None or tuple(images.shape[2:]) == (size, size):
        return images
    if 4 * images.shape[:2].numel() * size**2 > BYTES:
        raise RequestError(
            f"{len(images):,} images of {size}x{size} pixels take over {BYTES >> 30} GiB: use a smaller image_size"
        )
    scaled = images if images.is_floating_point() else images / 255
    scaled = interpolate(scaled, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    return scaled if images.is_floating_point() else (scaled * 255).round().to(torch.uint8)
