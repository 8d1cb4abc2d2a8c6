"""Data-parallel processes: each computes its shard of every batch, with its own noise."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from pyro_vae.engine.programs import Batch
from pyro_vae.engine.random_state import random_state, set_random_state
from pyro_vae.errors import LostWorkerError, RequestError


def world_size() -> int:
    """Number of processes; 1 without `torchrun`."""
    if dist.is_initialized():
        return dist.get_world_size()
    return 1


def rank() -> int:
    """Index of this process; 0 without `torchrun`."""
    if dist.is_initialized():
        return dist.get_rank()
    return 0


def is_main_process() -> bool:
    """Whether this process writes files and prints. It is known before the processes join."""
    return int(os.environ.get("WORLD_SIZE", 1)) == 1 or int(os.environ.get("RANK", 0)) == 0


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Initialize `torch.distributed` for the `with` block; does nothing without `torchrun`.

    Raises:
        ValueError: If WORLD_SIZE is set, but other variables that torchrun sets are missing.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    backend = "gloo"
    device_id: torch.device | None = None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
        device_id = device
    # Python's handler would not run while torch waits for processes that may be lost.
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        store, rank, size = next(rendezvous("env://"))
    except ValueError as error:
        raise RequestError(
            f"the processes cannot join ({error}); start them with torchrun"
        ) from error
    # `torchrun` keeps the store when it restarts the processes, with the addresses of those that
    # were lost.
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, device_id=device_id)
    signal.signal(signal.SIGTERM, handler)
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


@contextmanager
def own_noise(device: torch.device) -> Iterator[None]:
    """Draw other random numbers in each process; afterwards, the random state is that before it.

    The main process draws a seed, to which each process adds its rank. A single process keeps its
    random state.
    """
    if world_size() == 1:
        yield
        return
    before = random_state(device)
    pyro.set_rng_seed(int(broadcast(torch.randint(2**31, ()))) + rank())
    try:
        yield
    finally:
        set_random_state(before, device)


def shard(rows: int) -> slice:
    """This process's part of `rows`; the parts differ by at most one row."""
    return slice(rows * rank() // world_size(), rows * (rank() + 1) // world_size())


def map_rows(function: Callable[[Batch], Sequence[Tensor]], batch: Batch) -> list[Tensor]:
    """The results of a function of rows, which the processes share.

    Arguments:
        function: Returns tensors with one row for each row of its batch.
        batch: The rows. With fewer rows than processes, each computes all.
    """
    rows = len(batch)
    if not 1 < world_size() <= rows:
        return list(function(batch))
    own = shard(rows)
    with own_noise(batch.x.device):
        results = function(batch[own])
    torch.rand(())  # or the next call would draw the same numbers
    wholes = [result.new_zeros(rows, *result.shape[1:]) for result in results]
    for whole, result in zip(wholes, results, strict=True):
        whole[own] = result
    return all_reduce(wholes)


def all_reduce(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each tensor over the processes, by one operation.

    Raises:
        LostWorkerError: If a worker process exited.
    """
    if world_size() == 1 or not tensors:
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    _collective(dist.all_reduce, flat)
    sums = []
    for tensor, part in zip(tensors, flat.split([item.numel() for item in tensors]), strict=True):
        sums.append(part.view_as(tensor).to(tensor.dtype))
    return sums


def mean_over_processes(means: list[Tensor], rows: int) -> list[Tensor]:
    """The means over the rows of all processes, with gradients as of this process's means.

    If the loss of each process is f(mean) * rows, the sum of their gradients is then the gradient
    of the sum of their losses.

    Arguments:
        means: Means over this process's rows, each of shape `(D,)`.
        rows: Their number.
    """
    if world_size() == 1:
        return means
    own = torch.cat(means)
    sums = _sum_in_graph(torch.cat([own.detach(), torch.ones_like(own[:1])]) * rows)
    whole = own + (sums[:-1] / sums[-1] - own).detach()
    return list(whole.split([len(mean) for mean in means]))


@torch.library.custom_op(
    "pyro_vae::sum_over_processes", mutates_args=(), schema="(Tensor x) -> Tensor"
)
def _sum_in_graph(x: Tensor) -> Tensor:
    return all_reduce([x])[0]


@_sum_in_graph.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def barrier() -> None:
    """Wait for all processes."""
    _collective(dist.barrier)


def broadcast(tensor: Tensor) -> Tensor:
    """Copy the main process's tensor to all processes, in place."""
    _collective(dist.broadcast, tensor.detach(), src=0)
    return tensor


def _collective(function: Any, *args: Any, **kwargs: Any) -> None:
    try:
        if world_size() > 1:
            function(*args, **kwargs)
    except RuntimeError as error:
        raise LostWorkerError("a worker process exited") from error
