"""Data-parallel processes: each works on its shard of every batch, with the noise that a single process would draw."""

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


def world_size() -> int:
    """Number of processes; 1 without `torchrun`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Index of this process; 0 without `torchrun`."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this process writes files and prints."""
    return int(os.environ.get("WORLD_SIZE", 1)) == 1 or int(os.environ.get("RANK", 0)) == 0


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` started, if any, for the `with` block."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the `with` block in the main process before the others, for example for a download."""
    if not is_main_process():
        barrier()
    yield
    if is_main_process():
        barrier()


def shard(rows: int) -> slice:
    """This process's part of `rows`; the parts differ by at most one row."""
    return slice(rows * rank() // world_size(), rows * (rank() + 1) // world_size())


def all_reduce(*tensors: Tensor) -> None:
    """Sum each tensor over the processes, in place.

    Raises:
        LostWorkerError: If a worker process exited.
    """
    if world_size() > 1 and tensors:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        _collective(dist.all_reduce, flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def all_gather(values: Tensor, rows: int) -> Tensor:
    """The values of all `rows`, in order, from those of each process's shard."""
    whole = values.new_zeros(rows, *values.shape[1:])
    whole[shard(rows)] = values
    all_reduce(whole)
    return whole


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        _collective(dist.barrier)


def broadcast(tensor: Tensor) -> Tensor:
    """Copy the main process's tensor to all processes, in place."""
    if world_size() > 1:
        _collective(dist.broadcast, tensor, src=0)
    return tensor


def _collective(function: Any, *args: Any, **kwargs: Any) -> None:
    try:
        function(*args, **kwargs)
    except RuntimeError as error:
        raise LostWorkerError("a worker process exited") from error


aten = torch.ops.aten
FILLERS = {aten.normal_, aten.uniform_, aten.bernoulli_, aten.exponential_, aten.cauchy_, aten.log_normal_, aten.geometric_}
MAKERS = {aten.rand, aten.randn, aten.rand_like, aten.randn_like}


class WholeNoise(TorchDispatchMode):
    """Draws the noise of the whole batch and keeps the rows of this process's shard.

    Rows are the first dimension or, under a plate of particles, the second.

    Arguments:
        rows: Number of rows of the whole batch.
        particles: Number of particles drawn at once.

    Raises:
        ValueError: If the programs draw from another kind of operation, such as one with tensor parameters.
    """

    def __init__(self, rows: int, particles: int = 1) -> None:
        super().__init__()
        self.rows, self.particles, own = rows, particles, shard(rows)
        self.start, self.own_rows = own.start, own.stop - own.start

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, kind = kwargs or {}, func.overloadpacket
        if torch.Tag.nondeterministic_seeded not in func.tags or "attention" in str(kind):
            return func(*args, **kwargs)
        if kind not in FILLERS | MAKERS or any(isinstance(arg, Tensor) for arg in args[1:]):
            raise RequestError(f"{kind} is not supported with several processes; use one process")
        shape = list(args[0].shape if isinstance(args[0], Tensor) else args[0])
        dim = int(shape[:2] == [self.particles, self.own_rows] != [1, 1])
        if shape[dim : dim + 1] != [self.own_rows]:
            return func(*args, **kwargs)
        shape[dim] = self.rows
        whole = args[0].new_empty(shape) if isinstance(args[0], Tensor) else shape
        own = func(whole, *args[1:], **kwargs).narrow(dim, self.start, self.own_rows)
        return args[0].copy_(own) if kind in FILLERS else own.clone()
