"""Reading and writing files: atomic writes, arrays, and YAML in a strict subset."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from pyro_vae.errors import RequestError, StorageError

# Limits of a configuration, far above those that runs write.
YAML_BYTES = 2**17
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
    """Replace a file so that at any time the old or the new content is there, whole; the path.

    Follows no links.

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
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} does not hold options")
    return content


def parse_yaml(text: str) -> Any:
    """The content of YAML's core schema, without tags and anchors, bounded in size and depth.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> parse_yaml("[1e-3, 2, 2020-01-01]")
        [0.001, 2, '2020-01-01']
    """
    if len(text) > YAML_BYTES:
        raise ValueError(f"longer than {YAML_BYTES:,} characters")
    try:
        _check_events(text)
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, TypeError) as error:  # a mapping as a key is a TypeError
        raise ValueError(" ".join(str(error).split())) from error


def _check_events(text: str) -> None:
    """Raise `ValueError` before anything is constructed that takes much memory or time."""
    depth = 0
    for event in yaml.parse(text, Loader=_Safe):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > YAML_DEPTH or len(getattr(event, "value", "")) > YAML_SCALAR:
            raise ValueError(
                f"nested deeper than {YAML_DEPTH} levels, or with a value of over {YAML_SCALAR}"
                " characters"
            )
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise ValueError("anchors, aliases and tags are not supported")


# libyaml's loader is ten times as fast.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):
    """Reads 1e-3 as a number, which YAML 1.1 takes for text, and dates as text."""


_Loader.yaml_implicit_resolvers = {}
for _first, _resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items():
    _Loader.yaml_implicit_resolvers[_first] = [
        (tag, pattern) for tag, pattern in _resolvers if not tag.endswith((":timestamp", ":float"))
    ]


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would read as a number."""


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(
            r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*([eE][-+]?\d+)?"
            r"|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
        ),
        list("-+0123456789."),
    )


def dump_yaml(plain: Any) -> str:
    """Plain values as YAML, which `parse_yaml` reads."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
