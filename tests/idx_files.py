"""IDX files of random values, laid out as torchvision does."""

from __future__ import annotations

import gzip
import struct

import numpy as np


def idx(*shape, magic=None, fill=None):
    """The bytes of an IDX file of random values."""
    header = struct.pack(
        f">{len(shape) + 1}I", 0x800 + len(shape) if magic is None else magic, *shape
    )
    values = np.random.default_rng(len(shape)).integers(0, 10, shape, dtype=np.uint8)
    return header + (values if fill is None else np.full_like(values, fill)).tobytes()


IMAGES, LABELS, TEST = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
)


FILES = {
    IMAGES: idx(24, 6, 5),
    LABELS: idx(24),
    TEST: idx(12, 6, 5),
    "t10k-labels-idx1-ubyte": idx(12),
}


def idx_folder(path, packed=True, name="MNIST", **other):
    """A folder of IDX files as torchvision lays them out, with some of them replaced."""
    raw = path / name / "raw"
    raw.mkdir(parents=True)
    for file, content in {**FILES, **other}.items():
        (raw / f"{file}.gz").write_bytes(gzip.compress(content)) if packed else (
            raw / file
        ).write_bytes(content)
    return path
