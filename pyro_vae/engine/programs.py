"""The data of a pair of Pyro programs: `Batch`, rows that are sliced and passed on together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Program = Callable[..., Any]


class Batch:
    """Rows of data: `x`, and the further arguments of the programs, such as labels `y`.

    A program is called as `model(*batch)`. Supports `len`, and indexing by a slice or by a tensor
    of positions, which selects rows of every tensor; numbers and None stay as they are.

    Arguments:
        x: The data, one row for each element of the programs' plate.
        *more: Tensors with as many rows, numbers, scalar tensors, or None.

    Example:
        >>> batch = Batch(torch.zeros(5, 2), torch.arange(5))
        >>> batch[1:3].y
        tensor([1, 2])
        >>> [len(part) for part in batch.split(2)]
        [2, 2, 1]
    """

    def __init__(self, x: Tensor, *more: Any) -> None:
        self.x = x
        self.more = more

    @property
    def y(self) -> Tensor | None:
        """The first of the further arguments: the labels; None if there are none."""
        return self.more[0] if self.more else None

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.x, *self.more))

    def __getitem__(self, index: slice | Tensor) -> Batch:
        return self.map(lambda tensor: tensor[index])

    def __repr__(self) -> str:
        shapes = [tuple(item.shape) if isinstance(item, Tensor) else item for item in self]
        return f"Batch({', '.join(map(str, shapes))})"

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply a function to each tensor that has rows."""
        more = list(self.more)
        for position, item in enumerate(more):
            if isinstance(item, Tensor) and item.ndim > 0:
                more[position] = function(item)
        return Batch(function(self.x), *more)

    def with_x(self, x: Tensor) -> Batch:
        """The same further arguments with other data."""
        return Batch(x, *self.more)

    def split(self, size: int) -> Iterator[Batch]:
        """`size` rows at a time; the last part may be smaller."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def repeat_interleave(self, times: int) -> Batch:
        """Each row `times` times in a row."""
        return self.map(lambda tensor: torch.repeat_interleave(tensor, times, 0))
