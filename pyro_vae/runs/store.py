"""Reading and writing the files of a run: atomic writes, checkpoints with a digest, and YAML in a strict subset."""

from __future__ import annotations

import io
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
import yaml
from jsonargparse import get_loader
from torch import Tensor

from pyro_vae.errors import RequestError, StorageError

FORMAT = 3
DIGEST = 32
# Limits of a configuration, far above those that runs write.
YAML_BYTES = 2**20
YAML_DEPTH = 20
YAML_SCALAR = 4096


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `StorageError` if a file or folder cannot be written in a `with` block."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror or error})") from error


def write(path: Path, content: bytes) -> Path:
    """Replace a file so that at any time the old or the new content is there, whole; the path. Follows no links.

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
        ValueError: If it is missing, is not a regular file, exceeds `limit` bytes, or cannot be read.
    """
    if not os.path.isfile(path):
        raise RequestError(
            f"{path} {'is not a regular file' if os.path.lexists(path) else 'does not exist'}"
        )
    try:
        if limit is not None and path.stat().st_size > limit:
            raise RequestError(f"{path} has more than {limit:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror or error})") from error


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values, with the versions of the libraries and a digest of the file.

    Raises:
        StorageError: If it cannot be written; the old checkpoint is still there.
    """
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "pyro": str(pyro.__version__),
    }
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "versions": versions, **content}, buffer)
    # torch does not verify the CRC of each record. The digest becomes the comment of the zip archive, which ends with the
    # length of its comment, so that torch.load still reads the file.
    archive = buffer.getvalue()
    write(path, archive[:-2] + DIGEST.to_bytes(2, "little") + sha256(archive).digest())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, as tensors and plain values only: no file can run code.

    Raises:
        ValueError: If it cannot be read, is damaged, or was written by another version.
    """
    content = read(path)
    archive, comment = content[: -DIGEST - 2] + bytes(2), content[-DIGEST - 2 :]
    if comment != DIGEST.to_bytes(2, "little") + sha256(archive).digest():
        raise RequestError(
            f"{path} is damaged, or of another version of pyro_vae; use the other --checkpoint, or train again"
        )
    try:
        loaded = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except Exception as error:  # it raises almost any class
        raise RequestError(
            f"{path} is not a checkpoint: it holds more than tensors and plain values"
        ) from error
    if not isinstance(loaded, dict) or loaded.get("format") != FORMAT:
        raise RequestError(f"{path} was written by another version of pyro_vae; train again")
    return loaded


def npz(arrays: Mapping[str, Tensor | np.ndarray | None]) -> bytes:
    """The content of an `.npz` file of arrays, without those that are None."""
    buffer = io.BytesIO()
    given = {}
    for name, array in arrays.items():
        if array is not None:
            given[name] = array.cpu().numpy() if isinstance(array, Tensor) else array
    np.savez_compressed(buffer, allow_pickle=False, **given)
    return buffer.getvalue()


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ValueError: If it cannot be read, or holds anything else.
    """
    try:
        content = parse_yaml(read(path, YAML_BYTES).decode())
    except ValueError as error:
        raise RequestError(
            str(error) if isinstance(error, RequestError) else f"{path} cannot be read: {error}"
        ) from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} does not hold options")
    return content


def parse_yaml(text: str) -> Any:
    """The content of YAML's core schema, without tags and anchors, bounded in size and depth.

    Raises:
        ValueError: If it is anything else.
    """
    if len(text) > YAML_BYTES:
        raise ValueError(f"longer than {YAML_BYTES:,} characters")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
                event, yaml.CollectionEndEvent
            )
            if depth > YAML_DEPTH or len(getattr(event, "value", "")) > YAML_SCALAR:
                raise ValueError(
                    f"nested deeper than {YAML_DEPTH} levels, or with a value of over {YAML_SCALAR} characters"
                )
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                raise ValueError("anchors, aliases and tags are not supported")
        return get_loader("yaml")(text)
    except (yaml.YAMLError, TypeError) as error:  # a mapping as a key is a TypeError
        raise ValueError(" ".join(str(error).split())) from error
