"""CUDA pretended on the CPU, with real values: a pytest plugin for test_cuda.py.

    PYTHONPATH=tests python -m pytest -p pretended_cuda tests/test_cuda.py

A tensor is on the pretended device if its storage is marked. As on a GPU, an operation on tensors
of two devices raises; one that waits for the host raises while a CUDA graph is captured and in the
sync debug mode "error"; and a captured graph repeats its operations with the numbers that they had.
Kernels, streams, memory and Inductor's code for GPUs are not covered: the compiled engine runs the
traced graph. The pretence ends at the thread that runs the test.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental import proxy_tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MEMORY = 2**34
WAITING = {
    "_assert_scalar",
    "_linalg_check_errors",
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# Python's functions that make a tensor. Other tensors without inputs are made by autograd, on
# the device of what they meet.
FACTORIES = [
    torch.zeros,
    torch.ones,
    torch.full,
    torch.empty,
    torch.arange,
    torch.linspace,
    torch.eye,
    torch.from_numpy,
]
FACTORIES += [torch.rand, torch.randn, torch.randint, torch.randperm]


class Storages:
    """A set of tensors' storages, without owning them."""

    def __init__(self) -> None:
        self._known: dict[int, StorageWeakRef] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        known = self._known.get(_key(tensor))
        return known is not None and not known.expired()

    def add(self, tensors: Any) -> None:
        self._known |= {
            _key(tensor): StorageWeakRef(tensor.untyped_storage()) for tensor in _tensors(tensors)
        }


on_cuda, anywhere = Storages(), Storages()


class State:
    """What `torch.cuda` would know."""

    capturing: CUDAGraph | None = None
    sync_debug_mode: int | str = 0
    making = False
    raw = 0


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _name(func: Any) -> str:
    return func._schema.name.split("::")[1]


def _mutates(func: Any) -> bool:
    return (
        func._schema.is_mutable or "batch_norm" in func._schema.name
    )  # whose schema hides that it updates its buffers


@contextlib.contextmanager
def raw() -> Iterator[None]:
    """Compute on the CPU, without pretence."""
    State.raw += 1
    try:
        with torch.no_grad(), _disable_current_modes(), torch._C.DisableTorchFunction():
            yield
    finally:
        State.raw -= 1


def wait(what: str) -> None:
    """The host waits for the device here."""
    if State.capturing is not None:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {what}")
    if State.sync_debug_mode in (2, "error"):
        raise RuntimeError(f"called a synchronizing CUDA operation: {what}")


class Operations(TorchDispatchMode):
    """Gives each result a device, and records what a graph captures."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if State.raw:
            return func(*args, **kwargs)
        asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if asked is not None:
            kwargs["device"] = CPU
        inputs = _tensors((args, kwargs))
        gpu = any(tensor in on_cuda for tensor in inputs)
        on_cuda.add([tensor for tensor in inputs if gpu and tensor in anywhere])
        _check(func, args, inputs, asked)
        return _run(func, args, kwargs, asked, gpu)


def _run(func: Any, args: Any, kwargs: Any, asked: torch.device | None, gpu: bool) -> Any:
    moves = _moves(func, args, asked)
    to_cuda = gpu or asked == CUDA if moves is None else moves[1]
    graph = State.capturing if gpu or to_cuda else None
    if graph is not None:
        graph.save(func, args, kwargs)
    out = func(*args, **kwargs)
    if asked is not None and asked.type == "cuda":
        _restore_device(out)
    if to_cuda and _name(func) != "_local_scalar_dense":
        on_cuda.add(out)
    elif not _tensors((args, kwargs)) and not State.making:
        anywhere.add(out)
    if graph is not None:
        graph.record(func, args, kwargs, out)
    return out


def _moves(func: Any, args: Any, asked: torch.device | None) -> tuple[bool, bool] | None:
    """Whether source and destination of a copy, or the result of a factory, are on the device.

    None for other operations.
    """
    if _name(func) == "copy_":
        return args[1] in on_cuda, args[0] in on_cuda
    if asked is not None and (_name(func) == "_to_copy" or not _tensors(args)):
        to_cuda = asked.type == "cuda"
        return (args[0] in on_cuda, to_cuda) if _name(func) == "_to_copy" else (to_cuda, to_cuda)
    return None


def _check(func: Any, args: Any, inputs: list[Tensor], asked: torch.device | None) -> None:
    """Raise what CUDA raises for tensors of two devices and for operations that wait."""
    op, moves = _name(func), _moves(func, args, asked)
    if moves is not None:
        if moves[0] != moves[1]:
            wait(f"copy between host and device ({op})")
        return
    here = [tensor for tensor in inputs if tensor not in on_cuda]
    if len(here) == len(inputs) or op in ("set_", "resize_"):
        return
    if op in INDEXING and args[0] in on_cuda:
        if here and all(tensor is not args[0] for tensor in here):
            wait("copy of an index")
        if any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in args[1]
        ):
            wait("index by a mask")
    elif any(tensor.dim() > 0 for tensor in here) or (
        func._schema.is_mutable and inputs[0] not in on_cuda
    ):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cuda:0 and cpu: {op}"
        )
    if op in WAITING:
        wait(op)


def _restore_device(out: Any) -> None:
    """Put the device back into the node that `make_fx` made: its modes have seen the CPU."""
    mode = proxy_tensor.get_proxy_mode()
    slot = None if mode is None else proxy_tensor.get_proxy_slot(out, mode.tracer, None)
    if slot is not None:
        slot.proxy.node.kwargs = {**slot.proxy.node.kwargs, "device": CUDA}


class Functions(TorchFunctionMode):
    """What Python sees of a tensor's device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if State.raw or func not in HANDLERS:
            return func(*args, **(kwargs or {}))
        return HANDLERS[func](func, *args, **(kwargs or {}))


def _to(
    func: Any,
    tensor: Tensor,
    *args: Any,
    copy: bool = False,
    memory_format: Any = None,
    **kwargs: Any,
) -> Tensor:
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    if args and isinstance(args[0], Tensor):
        device = _device(None, args[0])
    if device is not None and device.type != _device(None, tensor).type:
        return torch.ops.aten._to_copy(tensor, device=device, dtype=dtype)
    return tensor.to(tensor.dtype if dtype is None else dtype, copy=copy)


def _device(func: Any, tensor: Tensor) -> torch.device:
    return CUDA if tensor in on_cuda else CPU


def _numpy(func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    if tensor in on_cuda:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    return func(tensor, *args, **kwargs)


def _tolist(func: Any, tensor: Tensor) -> Any:
    if tensor in on_cuda:
        wait("tolist")
    return func(tensor)


def _new(func: Any, tensor: Tensor, *shape: Any) -> Tensor:
    return torch.empty(
        shape[0] if isinstance(shape[0], tuple | list) else shape,
        dtype=tensor.dtype,
        device=_device(None, tensor),
    )


def _deepcopy(func: Any, tensor: Tensor, memo: Any) -> Tensor:
    if tensor not in on_cuda or isinstance(tensor, torch.nn.Parameter):
        return func(tensor, memo)
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _make(func: Any, *args: Any, **kwargs: Any) -> Any:
    before, State.making = State.making, True
    try:
        return func(*args, **kwargs)
    finally:
        State.making = before


def _convert(
    func: Any, data: Any, *, device: Any = None, requires_grad: bool = False, **kwargs: Any
) -> Tensor:
    """`torch.tensor` and `torch.as_tensor`, which copy from the host."""
    if isinstance(data, Tensor) and device is not None:
        return data.to(device, **kwargs)
    if device is None or torch.device(device).type == "cpu":
        return _make(func, data, **kwargs).requires_grad_(requires_grad)
    wait("copy from the host")
    with raw():
        made = func(data, **kwargs)
    on_cuda.add(made)
    return torch.ops.aten.lift_fresh(made).requires_grad_(requires_grad)


HANDLERS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(FACTORIES, _make),
    torch.tensor: _convert,
    torch.as_tensor: _convert,
    Tensor.device.__get__: _device,
    Tensor.is_cuda.__get__: lambda func, tensor: tensor in on_cuda,
    Tensor.is_cpu.__get__: lambda func, tensor: tensor not in on_cuda,
    Tensor.to: _to,
    Tensor.cpu: lambda func, tensor: _to(func, tensor, CPU),
    Tensor.cuda: lambda func, tensor, *device: _to(func, tensor, CUDA),
    Tensor.numpy: _numpy,
    Tensor.__array__: _numpy,
    Tensor.tolist: _tolist,
    Tensor.new: _new,
    Tensor.__deepcopy__: _deepcopy,
}


class CUDAGraph:
    """The operations of a capture, which computes nothing, with the numbers that they had."""

    def __init__(self) -> None:
        self.tape: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._made = Storages()

    def save(self, func: Any, args: Any, kwargs: Any) -> None:
        """Save what an operation may write to."""
        written = [
            tensor
            for tensor in _tensors((args, kwargs))
            if _mutates(func) and tensor not in self._made
        ]
        for tensor in written:
            if _key(tensor) not in self._before:
                with raw():
                    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                    self._before[_key(tensor)] = (whole, whole.clone())

    def record(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        given = {_key(tensor) for tensor in _tensors((args, kwargs))}
        new = [tensor for tensor in _tensors(out) if _key(tensor) not in given]
        self._made.add(new)
        with raw():
            args, kwargs = tree_map(self._bake, (args, kwargs))
        is_view = not new and not func._schema.is_mutable
        self.tape.append(
            (None if is_view else func, args, kwargs, out)
        )  # which keeps the memory of a view

    def _bake(self, leaf: Any) -> Any:
        return leaf.clone() if isinstance(leaf, Tensor) and leaf not in on_cuda else leaf

    def undo(self) -> None:
        with raw():
            for whole, before in self._before.values():
                whole.copy_(before)

    def replay(self) -> None:
        with raw():
            for func, args, kwargs, out in self.tape:
                results = [] if func is None else _tensors(func(*args, **kwargs))
                for tensor, result in zip(_tensors(out), results, strict=False):
                    if _key(tensor) != _key(result):
                        tensor.detach().copy_(result)


@contextlib.contextmanager
def capture(graph: CUDAGraph, **options: Any) -> Iterator[None]:
    """`torch.cuda.graph`."""
    State.capturing, state = graph, torch.get_rng_state()
    try:
        yield
    finally:
        State.capturing = None
        torch.set_rng_state(state)
    graph.undo()


class Stream:
    """A stream that is always up to date."""

    def wait_stream(self, other: Stream) -> None:
        pass

    def is_capturing(self) -> bool:
        return State.capturing is not None


def _random_state(*device: Any) -> Tensor:
    if State.capturing is not None:
        raise RuntimeError("Cannot call CUDAGeneratorImpl::current_seed during CUDA graph capture")
    return torch.get_rng_state()


_group = torch._C._group_tensors_by_device_and_dtype


def _grouped(lists: Any, with_indices: bool = False) -> Any:
    """What optimizers call, with the pretended device."""
    State.raw += 1
    try:
        found = _group(lists, with_indices)
    finally:
        State.raw -= 1
    return {(_device(None, lists[0][0]), dtype): group for (_, dtype), group in found.items()}


MAIN_STREAM = Stream()
PATCHES: dict[Any, dict[str, Any]] = {
    torch.cuda: {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "mem_get_info": lambda *device: (MEMORY, MEMORY),
        "synchronize": lambda *device: wait("synchronize"),
        "get_rng_state": _random_state,
        "set_rng_state": lambda state, *device: torch.set_rng_state(state),
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "CUDAGraph": CUDAGraph,
        "graph_pool_handle": lambda: (0, 0),
        "graph": capture,
        "Stream": Stream,
        "current_stream": lambda *device: MAIN_STREAM,
        "stream": lambda stream: contextlib.nullcontext(),
        "set_sync_debug_mode": lambda mode: setattr(State, "sync_debug_mode", mode),
        "is_current_stream_capturing": lambda: State.capturing is not None,
    },
    torch.accelerator: {
        "current_accelerator": lambda check_available=False: CUDA,
        "current_stream": lambda *device: MAIN_STREAM,
    },
    torch._C: {"_group_tensors_by_device_and_dtype": _grouped},
}


def pytest_configure(config: pytest.Config) -> None:
    """Replace parts of `torch.cuda`, for the rest of the process."""
    import pyro_vae.engine.graphs as graphs

    for module, patches in {**PATCHES, graphs: {"_compiled": lambda graph, inputs: graph}}.items():
        for name, value in patches.items():
            setattr(module, name, value)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with Functions(), Operations():
        return (yield)
