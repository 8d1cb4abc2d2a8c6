"""Reading configurations: YAML without tags and anchors, bounded in size and depth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pyro_vae.errors import RequestError
from pyro_vae.runs.store import read

# Limits of a configuration, far above those that runs write.
BYTES = 2**17
DEPTH = 20
SCALAR = 4096


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ValueError: If it cannot be read, or holds anything else.
    """
    try:
        content = parse_yaml(read(path, BYTES).decode())
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
    if len(text) > BYTES:
        raise ValueError(f"longer than {BYTES:,} characters")
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
        if depth > DEPTH or len(getattr(event, "value", "")) > SCALAR:
            raise ValueError(
                f"nested deeper than {DEPTH} levels, or with a value of over {SCALAR} characters"
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
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*([eE][-+]?\d+)?"
        r"|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
