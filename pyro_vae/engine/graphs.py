"""Functions of tensors as flat graphs of operations: traced, compiled, replayed as CUDA graphs."""

from __future__ import annotations

import contextlib
import functools
import shutil
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from pyro_vae.engine.precision import rounded, rounds_to_bf16
from pyro_vae.engine.random_state import forked_rng, host_state
from pyro_vae.errors import RequestError, check_choice, first_line

logger = getLogger("pyro_vae")
aten = torch.ops.aten

Engine = Literal["eager", "traced", "compiled"]
AnyEngine = Literal["auto", "eager", "traced", "compiled"]

# Minimum numbers of steps for which tracing (0.5 s) and, on the CPU, compiling (about 10 s) save
# more time than they take.
TRACED_STEPS = 500
COMPILED_STEPS = 8_000

# Calls in a row without a graph after which a warning is logged.
MISSES = 100
# Calls before a CUDA graph is captured, as torch's documentation recommends.
WARM_UPS = 3


class Graph:
    """A function of tensors, traced into a graph on its second call.

    The graph reads and updates in place the tensors that the function uses: parameters, buffers,
    running sums. Tracing calls the function, without side effects on tensors or on random states;
    Python's own counters advance. Python control flow is fixed by that call. Arguments of other
    shapes run eagerly unless they occur twice in a row, so that the smaller last batch of an epoch
    does not cost a graph. On CUDA, shapes that occur again are traced, so that they can be
    replayed.

    All engines draw the same random numbers; on CUDA, Inductor may draw them in another order
    (torch 2.11 does).

    The precision is that of the `products` block around the call.

    If the function cannot be traced or compiled, or if a graph differs from it, a warning is logged
    and a simpler engine is used from then on.

    Arguments:
        function: Returns a list of tensors without gradients. Arguments that are not tensors are
            constants of the graph.
        engine: "eager" calls the function; "traced" runs its operations one by one; "compiled"
            fuses them with Inductor.
        eager: Is called instead of `function` where there is no graph; the same by default.
        differs: Says what differs between the results of `function` and of a graph, or returns
            None; by default they are not compared. It is called for each new graph and by `check`.
        mode: Says in which mode the function is, such as training or evaluation; each mode has
            graphs of its own.

    Attributes:
        engine: The engine in use.
        capturable: Whether a CUDA graph can replay the calls: False after a warning, if an
            operation waits for the host.

    Raises:
        ValueError: If the engine is unknown.

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
        self,
        function: Callable[..., list[Any]],
        engine: Engine = "compiled",
        eager: Callable[..., list[Any]] | None = None,
        differs: Callable[[list[Any], list[Any]], str | None] | None = None,
        mode: Callable[[], Hashable] | None = None,
    ) -> None:
        check_choice("engine", engine, Engine)
        self.function = rounded(function)
        self.engine = engine
        self.eager = rounded(eager or function)
        self.differs = differs
        self.mode = mode or (lambda: None)
        self.capturable = True
        self._traces: dict[Any, Traced] = {}
        self._graphs: dict[Any, Callable[..., list[Any]]] = {}
        self._last: Any = None
        self._missed: set[Any] = set()
        self._misses = 0

    def __call__(self, *args: Any, **kwargs: Any) -> list[Any]:
        if self.engine == "eager":
            return self.eager(*args, **kwargs)
        kind = self._kind(args, kwargs)
        if kind is None:
            return self.eager(*args, **kwargs)
        if kind not in self._graphs:
            if kind == self._last:
                self._make(kind, args, kwargs, self.engine)
            elif kind in self._missed and any(tensor.is_cuda for tensor in _tensors(args, kwargs)):
                # Compiling costs more than it saves once per epoch.
                self._make(kind, args, kwargs, "traced")
        results = self._graphs.get(kind, self.eager)(*args, **kwargs)
        self._count(kind)  # not of calls that fail
        return results

    def expect(self, *args: Any, **kwargs: Any) -> None:
        """Make the graph at the next call with such arguments, with which the function has run."""
        if self.engine != "eager":
            self._last = self._kind(args, kwargs)

    def check(self, *args: Any, **kwargs: Any) -> bool:
        """Compare the graph for such arguments with the function.

        Has no side effects on tensors or on random states. If they differ, a warning is logged, and
        the calls run eagerly from then on.

        Returns:
            Whether there is such a graph.
        """
        traced = self._traces.get(self._kind(args, kwargs))
        if traced is None:
            return False
        if self.differs is None:
            return True
        results = []
        for function in (self.function, traced):
            with traced.without_effect():
                results.append(function(*args, **kwargs))
        problem = self.differs(*results)
        if problem is not None:
            self.use_eager(
                f"the graph differs from the programs: {problem}; pass what changes between steps"
                " as a tensor argument"
            )
        return True

    def _kind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The key of a graph; None, after a warning, if there can be none."""
        try:
            kind = (rounds_to_bf16(), self.mode(), *kind_of(args, kwargs))
            hash(kind)
        except TypeError as error:
            self.use_eager(
                f"the arguments must be tensors or hashable values ({error}); pass tensors"
            )
            return None
        return kind

    def _count(self, kind: Any) -> None:
        """Note the kind of a call, and warn if too many in a row had no graph."""
        self._last = kind
        if kind in self._graphs:
            self._misses = 0
            return
        self._misses += 1
        if self._misses < MISSES:
            self._missed.add(kind)
        if self._misses == MISSES:
            logger.warning(
                "calls run eagerly, because their arguments keep changing; pass numbers that change"
                " as tensors"
            )

    def _make(
        self, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any], engine: Engine
    ) -> None:
        """Make the graph of one kind of arguments, if that is possible."""
        try:
            traced = trace(self.function, args, kwargs)
        except Exception as error:
            self.use_eager(f"the programs cannot be traced ({_reason(error)})")
            return
        fixed = [False for _ in _tensors(args, kwargs)]
        fixed += [traced.is_constant(tensor) for tensor in traced.captured]
        shapes = shapes_that_vary(traced.graph, fixed)
        if shapes:
            self.use_eager(f"the values of tensors decide about shapes ({', '.join(shapes)})")
            return
        self._traces[kind] = traced
        self._graphs[kind] = traced
        self.check(*args, **kwargs)
        if self.engine == "eager":
            return
        inputs = [*_tensors(args, kwargs), *traced.captured]
        self._look_for_waits(traced.graph, inputs)
        if engine == "compiled":
            try:
                compiled = _compiled(traced.graph, inputs)
            except Exception as error:
                self.engine = "traced"
                logger.warning(
                    "using the traced engine: the graph cannot be compiled (%s)", _reason(error)
                )
                return
            self._graphs[kind] = Traced(compiled, traced.captured, traced.written)

    def _look_for_waits(self, graph: Any, inputs: Sequence[Tensor]) -> None:
        """Refuse the replay of a graph on CUDA that would wait for the host."""
        if not self.capturable or not any(tensor.is_cuda for tensor in inputs):
            return
        waits = operations_that_wait(graph)
        placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        if any(
            node.users and not tensor.is_cuda
            for node, tensor in zip(placeholders, inputs, strict=True)
        ):
            waits.append("a CPU tensor")
        if waits:
            self.refuse_replay(f"the programs use {', '.join(waits)}")

    def refuse_replay(self, reason: str) -> None:
        """Warn that the calls run without a CUDA graph."""
        self.capturable = False
        logger.warning("steps run without a CUDA graph, which is slower: %s", reason)

    def use_eager(self, reason: str) -> None:
        """Run eagerly, for good, after a warning."""
        self.engine = "eager"
        self._traces.clear()
        self._graphs.clear()
        logger.warning("using the eager engine: %s", reason)


class Traced:
    """A function of tensors as a graph.

    Arguments:
        graph: Computes the results from the tensors among the arguments and the captured ones.
        captured: Tensors that the function uses besides its arguments, or makes and keeps in this
            call, such as parameters at their first use.
        written: The storages among them that the function writes to, each as one tensor.
    """

    def __init__(self, graph: Any, captured: list[Tensor], written: list[Tensor]) -> None:
        self.graph = graph
        self.captured = captured
        self.written = written

    def is_constant(self, captured: Tensor) -> bool:
        """Whether a captured tensor is neither trained nor written to."""
        written = {_storage(tensor) for tensor in self.written}
        return not captured.requires_grad and _storage(captured) not in written

    def __call__(self, *args: Any, **kwargs: Any) -> list[Any]:
        with torch.no_grad():
            return list(self.graph(*_tensors(args, kwargs), *self.captured))

    @contextmanager
    def without_effect(self) -> Iterator[None]:
        """Restore, at the end, what the function writes to and the random state."""
        before = [tensor.clone() for tensor in self.written]
        with forked_rng():
            try:
                yield
            finally:
                for tensor, value in zip(self.written, before, strict=True):
                    tensor.copy_(value)


class Replay:
    """A function on CUDA tensors, without results, that is captured into CUDA graphs.

    The tensors that it updates must keep their addresses. There is one graph for each shape of the
    tensors and each value of the other arguments, made after the first calls with them, which run
    eagerly.

    Inductor's own CUDA graphs (`triton.cudagraphs`) do not replace it: they hold the operations of
    a compiled graph alone, whereas a step is also the engine "traced", the optimizer and the sums.

    Arguments:
        function: Updates CUDA tensors in place.

    Attributes:
        graphs: A function for each kind of arguments that was captured.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.graphs: dict[Any, Callable[..., None]] = {}
        self._warm_ups: Counter[Any] = Counter()
        self._stream = torch.cuda.Stream()
        # The graphs share their memory: none reads what another has left there.
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        kind = kind_of(args, kwargs)
        if kind not in self.graphs and self._warm_ups[kind] == WARM_UPS:
            self.graphs[kind] = self._capture(args, kwargs)
        if kind in self.graphs:
            self.graphs[kind](*args, **kwargs)
        else:
            self._warm_up(kind, args, kwargs)

    def _warm_up(self, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self.function(*args, **kwargs)
        torch.cuda.current_stream().wait_stream(self._stream)
        if kind in self._warm_ups or len(self._warm_ups) < MISSES:
            self._warm_ups[kind] += 1

    def _capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., None]:
        own_args, own_kwargs = tree_map(_copied, (args, kwargs))
        graph = torch.cuda.CUDAGraph()
        # By default, other threads could not use CUDA meanwhile, such as the one that reads the
        # next batch.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self.function(*own_args, **own_kwargs)
        inputs = _tensors(own_args, own_kwargs)

        def replay(*args: Any, **kwargs: Any) -> None:
            for tensor, given in zip(inputs, _tensors(args, kwargs), strict=True):
                tensor.copy_(given)
            graph.replay()

        return replay


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.clone()
    return leaf


def pick_engine(asked: AnyEngine, device: torch.device, steps: int) -> Engine:
    """The engine that is asked for; "auto" is the fastest one, start-up included.

    Arguments:
        asked: The engine, or "auto".
        device: Where the tensors are.
        steps: The number of steps to take.
    """
    if asked != "auto":
        return asked
    if steps < TRACED_STEPS:
        return "eager"
    if device.type == "cuda":
        return "compiled"
    if steps >= COMPILED_STEPS and has_compiler():
        return "compiled"
    return "traced"


def has_compiler() -> bool:
    """Whether a C++ compiler is on the path; Inductor needs one on the CPU."""
    return any(shutil.which(name) for name in ("g++", "c++", "clang++", "cl"))


def trace(
    function: Callable[..., list[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Traced:
    """The graph of a function at its arguments, made without side effects."""
    census = _Census()
    with census.without_effect(), census:
        before = host_state()
        function(*args, **kwargs)
        if host_state() != before:
            raise RequestError("they draw random numbers of Python or NumPy, not of torch")
    tensors = _tensors(args, kwargs)
    captured = []
    for tensor in [*census.captured, *census.kept()]:
        if not any(tensor is arg for arg in tensors):
            captured.append(tensor)
    # Without a context, make_fx makes a mode for the metadata of each operation, which takes up to
    # half of its time.
    with (
        census.without_effect(),
        tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))),
    ):
        graph = make_fx(lambda *_: function(*args, **kwargs), tracing_mode="real")(
            *tensors, *captured
        )
    return Traced(graph, captured, census.written())


def dry_run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Call a function without side effects on existing tensors or on the random state."""
    census = _Census()
    try:
        with census.without_effect(), census:
            function(*args, **kwargs)
    except RequestError:
        raise
    except Exception as error:
        error.add_note("raised in the dry run before the first step")
        raise


class _Census(TorchDispatchMode):
    """Records the existing tensors that a function uses, and saves those that it writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.captured: list[Tensor] = []
        self._known = WeakIdKeyDictionary()
        self._made = WeakIdKeyDictionary()
        self._storages: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            self._note(tensor)
        # The schema of batch normalization hides that it updates its buffers.
        if func._schema.is_mutable or "batch_norm" in func._schema.name:
            for tensor in tensors:
                self._keep(tensor)
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf not in self._known:
                self._made[leaf] = True
        return made

    def kept(self) -> list[Tensor]:
        """Trainable tensors that the function made and that still exist."""
        return [tensor for tensor in self._made if tensor.is_leaf and tensor.requires_grad]

    def written(self) -> list[Tensor]:
        """The storages that the function has written to, each as one tensor."""
        return [whole for whole, _ in self._before.values()]

    def _note(self, tensor: Tensor) -> None:
        if tensor not in self._made and tensor not in self._known:
            self._known[tensor] = True
            self._storages.add(_storage(tensor))
            self.captured.append(tensor)

    def _keep(self, tensor: Tensor) -> None:
        """Save the whole storage of a tensor that existed before: it may be a view."""
        key = _storage(tensor)
        if key in self._storages and key not in self._before:
            size = tensor.untyped_storage().nbytes() // tensor.element_size()
            whole = tensor.detach().as_strided((size,), (1,), 0)
            self._before[key] = (whole, whole.clone())

    @contextmanager
    def without_effect(self) -> Iterator[None]:
        """Restore, at the end, the tensors that existed before and the random state."""
        with forked_rng():
            try:
                yield
            finally:
                for whole, before in self._before.values():
                    whole.copy_(before)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def kind_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The key of a graph.

    Shapes, dtypes and devices of tensors, and the structure and values of other arguments.
    """
    leaves, structure = _flatten(args, kwargs)
    return (structure, *map(_kind_of_leaf, leaves))


def _kind_of_leaf(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return (leaf.shape, leaf.dtype, leaf.device)
    return leaf


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    return [leaf for leaf in _flatten(args, kwargs)[0] if isinstance(leaf, Tensor)]


def _flatten(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Sequence[Any], Any]:
    """The leaves of the arguments, and their structure."""
    if kwargs or any(isinstance(arg, list | tuple | dict) for arg in args):
        return tree_flatten((args, kwargs))
    return args, None  # what `tree_flatten` does is slow, compared with a small compiled step


def operations_that_wait(graph: Any) -> list[str]:
    """The operations of a graph that wait for the host; no CUDA graph can contain them."""
    return sorted({str(node.target) for node in graph.graph.nodes if _waits(node)})


def _waits(node: torch.fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    if torch.Tag.data_dependent_output in tags:
        return True
    if node.target is aten._linalg_check_errors.default:
        return True
    # Indexing has this tag for masks; integers, which index as well, do not wait.
    return torch.Tag.dynamic_output_shape in tags and node.target is not aten.index.Tensor


# Operations whose results do not depend on the values of their inputs.
FILLS = {
    aten.new_empty.default,
    aten.new_full.default,
    aten.new_ones.default,
    aten.new_zeros.default,
    aten.full_like.default,
    aten.ones_like.default,
    aten.zeros_like.default,
}


def shapes_that_vary(graph: Any, fixed: Sequence[bool]) -> list[str]:
    """The operations of a graph whose shapes depend on values that may change between calls.

    A graph keeps the shapes of the call in which it was made, for example the number of rows that a
    mask selects.

    Arguments:
        graph: The graph.
        fixed: Whether the values of each of its inputs stay the same.
    """
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    varying = {node for node, stays in zip(inputs, fixed, strict=True) if not stays}
    found: set[str] = set()
    for node in graph.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if varying.intersection(_decide_shape(node)) and torch.Tag.dynamic_output_shape in tags:
            found.add(str(node.target))
        is_random = torch.Tag.nondeterministic_seeded in tags
        if is_random or (varying.intersection(node.all_input_nodes) and node.target not in FILLS):
            varying.add(node)
    return sorted(found)


def _decide_shape(node: torch.fx.Node) -> Sequence[torch.fx.Node]:
    """The inputs of an operation whose values may decide about its shape: of indices, masks."""
    if node.target is not aten.index.Tensor:
        return node.all_input_nodes
    indices = node.args[1]
    assert isinstance(indices, Sequence)
    masks = []
    for index in indices:
        if isinstance(index, torch.fx.Node) and index.meta["val"].dtype in (
            torch.bool,
            torch.uint8,
        ):
            masks.append(index)
    return masks


def _reason(error: Exception) -> str:
    """What went wrong, and the line where it did.

    This is the last one of the user's programs, or else of Pyro.
    """
    what = first_line(error)
    if "get value out of a tracing tensor" in what:
        what = "their control flow depends on the value of a tensor"
    frames = traceback.extract_tb(error.__traceback__)
    for libraries in (LIBRARIES, LIBRARIES[1:]):
        for frame in reversed(frames):
            if not frame.filename.startswith(("<", *libraries)):
                return f"{what}, at {frame.filename}:{frame.lineno}: {frame.line}"
    return what


# Where no program of a user is: Pyro first, then what it and this module call.
LIBRARIES = [str(Path(module.__file__ or "").parent) for module in (pyro, torch)]
LIBRARIES += [
    str(Path(__file__).parent),
    *(str(module.__file__) for module in (contextlib, functools)),
]


def _compiled(graph: Any, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Compile with Inductor, with torch's own random numbers, so that all engines draw the same."""
    # It warns about nvcc on machines without a GPU.
    getLogger("torch.utils.cpp_extension").setLevel(ERROR)
    import torch._inductor

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's deprecation warnings about its own code
        return torch._inductor.compile(graph, list(inputs), options={"fallback_random": True})
