"""Several processes as one: each works on its share of the rows of every batch, with the noise that one process would draw."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.errors import LostWorkerError, RequestError


def size() -> int:
    """Number of processes that work together: 1 outside of `torchrun`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_lead() -> bool:
    """Whether this process is the one that writes and prints."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Work together with the other processes that `torchrun` has started, if it has."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def lead_first() -> Iterator[None]:
    """Have the lead run this before the others do, such as a download."""
    if not is_lead():
        wait_for_all()
    yield
    if is_lead():
        wait_for_all()


def share(rows: int) -> slice:
    """This process's rows among `rows`, which are spread as evenly as can be."""
    return slice(rows * rank() // size(), rows * (rank() + 1) // size())


def sum_over_all(*tensors: Tensor) -> None:
    """Sum each tensor over the processes, in place.

    Raises:
        LostWorkerError: If one of them has ended.
    """
    if size() > 1 and tensors:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        _collective(dist.all_reduce, flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def gathered(values: Tensor, rows: int) -> Tensor:
    """The values of all `rows`, in order, given those of this process's share."""
    whole = values.new_zeros(rows, *values.shape[1:])
    whole[share(rows)] = values
    sum_over_all(whole)
    return whole


def wait_for_all() -> None:
    """Go on when every process is here."""
    if size() > 1:
        _collective(dist.barrier)


def from_lead(tensor: Tensor) -> Tensor:
    """The lead's tensor, in place."""
    if size() > 1:
        _collective(dist.broadcast, tensor, src=0)
    return tensor


def _collective(function: Any, *args: Any, **kwargs: Any) -> None:
    try:
        function(*args, **kwargs)
    except RuntimeError as error:
        raise LostWorkerError("another of the processes that train together has ended") from error


aten = torch.ops.aten
FILLERS = {aten.normal_, aten.uniform_, aten.bernoulli_, aten.exponential_, aten.cauchy_, aten.log_normal_, aten.geometric_}
MAKERS = {aten.rand, aten.randn, aten.rand_like, aten.randn_like}


class WholeNoise(TorchDispatchMode):
    """Draws what one process would draw for a whole batch, and keeps the rows of this process's share.

    The rows are the first dimension, or, under a plate of particles, the second.

    Arguments:
        rows: Number of rows in the whole batch.
        particles: Number of particles that are drawn at once.

    Raises:
        RequestError: If there is a draw of another kind, such as one whose parameters are tensors.
    """

    def __init__(self, rows: int, particles: int = 1) -> None:
        super().__init__()
        self.rows, self.particles, own = rows, particles, share(rows)
        self.start, self.own_rows = own.start, own.stop - own.start

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, kind = kwargs or {}, func.overloadpacket
        if torch.Tag.nondeterministic_seeded not in func.tags or "attention" in str(kind):
            return func(*args, **kwargs)
        if kind not in FILLERS | MAKERS or any(isinstance(arg, Tensor) for arg in args[1:]):
            raise RequestError(f"several processes cannot share the draws of {kind}: use one process")
        shape = list(args[0].shape if isinstance(args[0], Tensor) else args[0])
        dim = int(shape[:2] == [self.particles, self.own_rows] != [1, 1])
        if shape[dim : dim + 1] != [self.own_rows]:
            return func(*args, **kwargs)
        shape[dim] = self.rows
        whole = args[0].new_empty(shape) if isinstance(args[0], Tensor) else shape
        own = func(whole, *args[1:], **kwargs).narrow(dim, self.start, self.own_rows)
        return args[0].copy_(own) if kind in FILLERS else own.clone()
