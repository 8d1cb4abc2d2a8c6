"""The IDX files of MNIST and its relatives, packed by gzip or not."""

from __future__ import annotations

import gzip
import struct
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from pyro_vae.data.files import Arrays, Contents, check_bytes, refusing
from pyro_vae.data.split import Split
from pyro_vae.errors import RequestError

# The first bytes of a file of uint8 are 0, 0, 8, and the number of dimensions.
UINT8 = 0x800
MAX_NDIM = 4


def read_idx(image_file: Path, label_file: Path) -> Split:
    """Read images and labels from two files.

    Raises:
        RequestError: If a file is damaged or too large, or the numbers of images and labels differ.
    """
    images = idx_array(image_file, 3).unsqueeze(1)
    labels = idx_array(label_file, 1).long()
    if len(labels) != len(images):
        raise RequestError(
            f"{label_file} has {len(labels)} labels for {len(images)} images: remove or replace it"
        )
    return Split(images, labels)


def read_idx_file(file: Path) -> Contents:
    """Read one file of images or labels. The images of EMNIST are stored transposed.

    Raises:
        RequestError: If the file is damaged or too large.
    """
    array = idx_array(file).numpy()
    layout = "an IDX file"
    if array.ndim == 3 and file.name.startswith("emnist"):
        array = array.transpose(0, 2, 1)
        layout = "an IDX file of EMNIST, transposed"
    return Contents(layout, {"train": Arrays(array, str(file))})


def is_idx(file: Path) -> bool:
    """Whether the name is that of an IDX file: `train-images-idx3-ubyte`, also with `.gz`."""
    return file.name.removesuffix(".gz").endswith("ubyte")


def idx_array(file: Path, ndim: int | None = None) -> Tensor:
    """The array of an IDX file of bytes, packed if its name ends in `.gz`.

    Arguments:
        file: The file.
        ndim: The number of dimensions that it must have; None accepts 1 to 4.

    Raises:
        RequestError: If the file is damaged or too large.
    """
    opener = gzip.open if file.suffix == ".gz" else open
    with (
        refusing(f"{file} cannot be read as an IDX file", "remove or replace it"),
        opener(file, "rb") as stream,
    ):
        (magic,) = struct.unpack(">I", stream.read(4))
        dimensions = magic - UINT8
        if not 1 <= dimensions <= MAX_NDIM or ndim not in (None, dimensions):
            raise ValueError(f"its header is {magic:#x}")
        shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
        if 0 in shape:
            raise ValueError(f"its shape is {shape}")
        check_bytes(file, prod(shape))
        content = bytearray(stream.read(prod(shape) + 1))
        if len(content) != prod(shape):
            raise ValueError(f"its length does not fit its shape {shape}")
    return torch.frombuffer(content, dtype=torch.uint8).reshape(shape)
