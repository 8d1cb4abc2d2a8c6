"""A function of tensors as one flat graph of tensor operations: traced once, then run without the Python that wrote it."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from pyro_vae.errors import RequestError

Engine = Literal["eager", "traced", "compiled"]

TRACED_STEPS = 500
COMPILED_STEPS = 8_000
"""From so many steps on, tracing, and on the CPU compiling too, take less time than they save."""

WARM_UPS = 3
"""Calls before a CUDA graph is captured, as torch asks for."""


class Graph:
    """A function of tensors, traced into a graph for the shapes that it is called with first.

    The graph reads and changes, in place, the same tensors that the function does: parameters, buffers, running sums. Tracing
    runs the function, but leaves no trace in them or in the random state. Other shapes run as they are written, until they
    come twice in succession: the odd last batch of an epoch is not worth a graph. Python's own control flow is fixed by the
    first call.

    Arguments:
        function: Returns a list of tensors without gradients. Arguments that are no tensors are fixed in the graph.
        engine: "eager" runs it as it is written; "traced" runs its operations one by one; "compiled" has Inductor fuse them.
        say: Called once with the reason, if the function cannot be traced or compiled and a plainer engine takes over.

    Raises:
        RequestError: If there is no such engine.

    Example:
        >>> total = torch.zeros(())
        >>> def add(x):
        ...     total.add_(x.square().sum())
        ...     return [2 * total]
        >>> graph = Graph(add, "traced")
        >>> [graph(torch.ones(3))[0].item() for _ in range(3)], total
        ([6.0, 12.0, 18.0], tensor(9.))
    """

    def __init__(
        self, function: Callable[..., list[Any]], engine: Engine = "compiled", say: Callable[[str], object] = lambda line: None
    ) -> None:
        if engine not in get_args(Engine):
            raise RequestError(f"engine must be one of {', '.join(get_args(Engine))}, but is {engine}")
        self.function, self.engine, self.say = function, engine, say
        self._graphs: dict[Any, Callable[..., list[Any]]] = {}
        self._last: Any = None

    def __call__(self, *args: Any) -> list[Any]:
        if self.engine == "eager":
            return self.function(*args)
        kind = _kind(args)
        if kind not in self._graphs and (not self._graphs or kind == self._last):
            self._graphs[kind] = self._make(args)
        self._last = kind
        return self._graphs.get(kind, self.function)(*args)

    def _make(self, args: Sequence[Any]) -> Callable[..., list[Any]]:
        try:
            graph, captured = trace(self.function, args)
        except Exception as error:
            return self._fall_back("eager", "the programs cannot be traced", error)
        if self.engine == "compiled":
            try:
                graph = _compiled(graph, [*_tensors(args), *captured])
            except Exception as error:
                self._fall_back("traced", "the graph cannot be compiled", error)

        def run(*args: Any) -> list[Any]:
            with torch.no_grad():
                return list(graph(*_tensors(args), *captured))

        return run

    def _fall_back(self, engine: Engine, problem: str, error: Exception) -> Callable[..., list[Any]]:
        self.engine = engine
        self.say(f"engine: {engine}, because {problem}: {_reason(error)}")
        return self.function


class Replay:
    """A function without results on CUDA tensors, captured into a CUDA graph: replayed without Python, launches or waiting.

    Every tensor that it changes must stay where it is. The first calls, and those of other shapes, run as they are written.

    Arguments:
        function: Takes tensors on CUDA, and works only on tensors there.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self._warm_ups: list[Any] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._args: list[Tensor] = []

    def __call__(self, *args: Tensor) -> None:
        if self._graph is None and self._warm_ups.count(_kind(args)) == WARM_UPS:
            self._capture(args)
        if self._graph is not None and _kind(args) == _kind(self._args):
            for own, given in zip(self._args, args, strict=True):
                own.copy_(given)
            self._graph.replay()
        else:
            self._warm_up(args)

    def _warm_up(self, args: Sequence[Tensor]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.function(*args)
        torch.cuda.current_stream().wait_stream(stream)
        if self._graph is None:
            self._warm_ups.append(_kind(args))

    def _capture(self, args: Sequence[Tensor]) -> None:
        self._args = [arg.clone() for arg in args]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.function(*self._args)


def pick_engine(device: torch.device, steps: int) -> Engine:
    """The engine that is worth starting up for so many steps on a device."""
    if steps < TRACED_STEPS:
        return "eager"
    if device.type == "cuda":
        return "compiled"
    return "compiled" if steps >= COMPILED_STEPS and has_compiler() else "traced"


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which Inductor needs on the CPU."""
    return any(shutil.which(name) for name in ("g++", "c++", "clang++", "cl"))


def trace(function: Callable[..., list[Any]], args: Sequence[Any]) -> tuple[Callable[..., Any], list[Tensor]]:
    """The graph of a function at its arguments, and the tensors beyond them that it captures.

    The graph is called with the arguments and then the captured tensors.
    """
    census = _Census()
    with census.without_effect(), census:
        function(*args)
    tensors = _tensors(args)
    captured = [tensor for tensor in census.captured if not any(tensor is arg for arg in tensors)]
    with census.without_effect():
        graph = make_fx(lambda *_: function(*args), tracing_mode="real")(*tensors, *captured)
    return graph, captured


def rehearse(function: Callable[..., Any], *args: Any) -> None:
    """Run a function without effect on any tensor that it has not made, or on the random state."""
    census = _Census()
    with census.without_effect(), census:
        function(*args)


class _Census(TorchDispatchMode):
    """Notes each tensor that was not made meanwhile, and keeps what was in those that are written to."""

    def __init__(self) -> None:
        super().__init__()
        self.captured: list[Tensor] = []
        self._known, self._made = WeakIdKeyDictionary(), WeakIdKeyDictionary()
        self._storages: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            self._note(tensor)
        if func._schema.is_mutable or "batch_norm" in func._schema.name:
            for tensor in tensors:
                self._keep(tensor)
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf not in self._known:
                self._made[leaf] = True
        return made

    def _note(self, tensor: Tensor) -> None:
        if tensor not in self._made and tensor not in self._known:
            self._known[tensor] = True
            self._storages.add(_storage(tensor))
            self.captured.append(tensor)

    def _keep(self, tensor: Tensor) -> None:
        """Keep the whole storage of a tensor that lies in one that was not made meanwhile: it may be a view."""
        key = _storage(tensor)
        if key in self._storages and key not in self._before:
            whole = tensor.detach().as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
            self._before[key] = (whole, whole.clone())

    @contextmanager
    def without_effect(self) -> Iterator[None]:
        """Undo, at the end, every change to tensors that were not made meanwhile, and to the random state."""
        with torch.random.fork_rng():
            try:
                yield
            finally:
                for whole, before in self._before.values():
                    whole.copy_(before)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _kind(args: Sequence[Any]) -> tuple[Any, ...]:
    """What a graph is made for: shapes and types of tensors, and the other arguments themselves.

    Raises:
        RequestError: If one of these cannot be told from others.
    """
    kind = tuple((arg.shape, arg.dtype, arg.device) if isinstance(arg, Tensor) else arg for arg in args)
    try:
        hash(kind)
    except TypeError as error:
        raise RequestError(f"a graph takes tensors and plain values, but there is an {error}: pass tensors") from error
    return kind


def _tensors(args: Sequence[Any]) -> list[Tensor]:
    return [arg for arg in args if isinstance(arg, Tensor)]


def _reason(error: Exception) -> str:
    if "get value out of a tracing tensor" in str(error):
        return "the value of a tensor steers what they do"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _compiled(graph: Any, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Through Inductor, with torch's own random numbers, so that every engine draws the same."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of CUDA's compiler without a GPU
    import torch._inductor

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about itself
        return torch._inductor.compile(graph, list(inputs), options={"fallback_random": True})
