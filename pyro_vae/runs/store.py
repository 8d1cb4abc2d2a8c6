"""Reading and writing files: whole or not at all, with limits on their size."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from pyro_vae.errors import RequestError, StorageError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `StorageError` if a file or folder cannot be written in a `with` block."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror or error})") from error


def write(path: Path, content: bytes) -> Path:
    """Replace a file atomically and return its path. Does not follow links.

    Raises:
        StorageError: If it cannot be written; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # left by a process that was killed
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def read(path: Path, limit: int | None = None) -> bytes:
    """The content of a regular file.

    Raises:
        ValueError: If it is missing, no regular file, over `limit` bytes, or cannot be read.
    """
    if not os.path.lexists(path):
        raise RequestError(f"{path} does not exist")
    if not os.path.isfile(path):
        raise RequestError(f"{path} is not a regular file")
    try:
        if limit is not None and path.stat().st_size > limit:
            raise RequestError(f"{path} has more than {limit:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror or error})") from error


def unused(path: Path) -> Path:
    """A path at which nothing exists: this one, or one with a number added to its name."""
    numbered = path
    number = 1
    while os.path.lexists(numbered):
        number += 1
        numbered = path.with_name(f"{path.name}-{number}")
    return numbered


def npz(arrays: Mapping[str, Tensor | np.ndarray | None]) -> bytes:
    """The content of an `.npz` file of arrays, without those that are None."""
    buffer = io.BytesIO()
    given = {}
    for name, array in arrays.items():
        if isinstance(array, Tensor):
            array = array.cpu().numpy()
        if array is not None:
            given[name] = array
    np.savez_compressed(buffer, allow_pickle=False, **given)
    return buffer.getvalue()
