"""How many rows of data to take in one pass: by what they are measured to need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vae.errors import RequestError

MEGABYTES = 32
"""For one pass, unless more is asked for: enough to keep the processor busy, few enough to stay in its cache."""


def rows_at_once(function: Callable[[Tensor], Any], x: Tensor, megabytes: float | None = None) -> int:
    """How many rows of `x` a function may be given at once, so that what it computes takes up so much at most.

    It is run on two rows to see, without effect on the random state.

    Arguments:
        function: Takes some rows of `x`.
        x: At least one row of data.
        megabytes: What one pass may take, in units of 2**20 bytes; None takes what is fast.

    Raises:
        RequestError: If there is not enough for one row.
    """
    with torch.random.fork_rng(), torch.no_grad(), Counter() as counter:
        function(x[:1].repeat(2, *[1] * (x.ndim - 1)))
    return counter.rows_at_once(2, megabytes)


class Counter(TorchDispatchMode):
    """Adds up the sizes of all tensors that are made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        new = {_storage(leaf): leaf.untyped_storage().nbytes() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)}
        self.bytes += sum(size for storage, size in new.items() if storage not in given)
        return made

    def rows_at_once(self, rows: int, megabytes: float | None = None) -> int:
        """How many rows may be taken at once, given that what was counted was of so many rows.

        Arguments:
            rows: The rows that were counted.
            megabytes: What one pass may take, in units of 2**20 bytes; None takes what is fast.

        Raises:
            RequestError: If there is not enough for one row.
        """
        each = max(1, self.bytes) / rows / 2**20
        if megabytes is not None and megabytes < each:
            raise RequestError(f"memory_mb is {megabytes:g}, but the smallest pass takes {each:.3g}: allow more")
        return max(1, int((megabytes or MEGABYTES) / each))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
