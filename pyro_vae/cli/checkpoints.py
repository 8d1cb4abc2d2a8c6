"""A checkpoint on disk: tensors and plain values, written whole or not at all, and known to be what was written."""

from __future__ import annotations

import io
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.errors import RequestError, StorageError

FORMAT = 2


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, with its format, its checksum and the versions of the libraries.

    Raises:
        StorageError: If it cannot be written; what was there before is whole.
    """
    versions = {"python": platform.python_version(), "torch": torch.__version__, "pyro": pyro.__version__}
    whole = {"format": FORMAT, "versions": {name: str(version) for name, version in versions.items()}, **content}
    buffer = io.BytesIO()
    torch.save({**whole, "checksum": checksum(whole)}, buffer)
    write(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote; as tensors and plain values only, so that no file can run code.

    A checkpoint of format 1 is read as one of format 2 that training cannot go on from.

    Raises:
        RequestError: If it is damaged, no checkpoint, or of a format that this version does not know.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        known = content["format"]
        damaged = known != 1 and content.pop("checksum") != checksum(content)
    except Exception as error:
        raise _damaged(path) from error
    if known == 1:
        return {"format": 1, "shape": content["shape"], "training": {"epoch": content["epoch"], "vae": content["vae"]}}
    if damaged:
        raise _damaged(path)
    if known != FORMAT:
        raise RequestError(f"{path} has format {known}, but this version of pyro_vae reads 1 to {FORMAT}: install a newer one")
    return content


def _damaged(path: Path) -> RequestError:
    return RequestError(f"{path} is damaged or no checkpoint of pyro_vae: use the other --checkpoint, or train again")


def checksum(content: Any) -> str:
    """A digest of tensors and plain values, nested in any way; that of what is loaded equals that of what was saved."""
    digest = sha256()
    for part in _parts(content):
        digest.update(part)
    return digest.hexdigest()


def _parts(content: Any) -> Iterator[bytes]:
    if isinstance(content, Tensor):
        yield f"{content.dtype} {tuple(content.shape)}".encode()
        yield content.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield f"{key!r}:".encode()
            yield from _parts(value)
    elif isinstance(content, list | tuple):
        yield f"{len(content)} values".encode()
        for value in content:
            yield from _parts(value)
    else:
        yield repr(content).encode()


def write(path: Path, content: bytes) -> None:
    """Write a file so that at any moment the old or the new one is there, whole, even if the machine stops.

    Raises:
        StorageError: If it cannot be written; the old one is still there.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with storing(path):
        try:
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Say in a line what could not be written, and why."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror or error})") from error
