"""The state of the global random number generators."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def forked_rng() -> Iterator[None]:
    """Restore the random states at the end of a `with` block: torch's, Python's and NumPy's."""
    pythons = random.getstate()
    numpys = np.random.get_state()  # noqa: NPY002
    # torch warns about several devices unless they are given.
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)  # noqa: NPY002


def host_state() -> tuple[Any, ...]:
    """The states of Python's and NumPy's generators, to be compared."""
    _, keys, *numbers = np.random.get_state()  # noqa: NPY002
    return random.getstate(), np.asarray(keys).tobytes(), *numbers


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of torch's, Python's and NumPy's generators, as tensors and plain values."""
    cuda = None
    if device.type == "cuda":
        cuda = torch.cuda.get_rng_state(device)
    _, keys, *numbers = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), *numbers],
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore the states that `random_state` returned; CUDA's only if it was saved."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, *numbers = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *numbers))  # noqa: NPY002
