"""One step of stochastic variational inference: a loss of Pyro, one torch optimizer, one graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from logging import getLogger
from math import isfinite
from typing import Any, NoReturn

import pyro
import torch
from pyro import infer
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.infer.util import is_validation_enabled
from pyro.optim import PyroOptim
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_vae.engine import distributed
from pyro_vae.engine.agreement import difference
from pyro_vae.engine.graphs import (
    COMPILED_STEPS,
    MISSES,
    TRACED_STEPS,
    AnyEngine,
    Engine,
    Graph,
    Replay,
    dry_run,
    kind_of,
    pick_engine,
)
from pyro_vae.engine.losses import FunctionLoss, as_numbers, as_tensor, has_tensor_loss
from pyro_vae.engine.optimizers import Joint, check_steps
from pyro_vae.engine.parameters import Parameters, first_call
from pyro_vae.engine.patches import tensor_losses, without_validation
from pyro_vae.engine.programs import Program
from pyro_vae.errors import RequestError, check_choice

logger = getLogger("pyro_vae")

MakeOptimizer = Callable[[Sequence[Tensor]], Optimizer]

# Objectives that torch.jit compiles.
JIT = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO)
# Attributes of Pyro's SVI that a step does not look at again.
FIXED = ("loss", "loss_and_grads", "optim")
# Steps between checks of the losses on CUDA, each of which waits for the device.
CHECK_STEPS = 100
# Steps between comparisons of a graph with the programs. One takes as long as 3 steps that are
# traced, or 10 to 30 that are compiled. The first ones are after 1, 2, 4, ... steps.
COMPARED_STEPS: dict[Engine, int] = {"traced": 256, "compiled": 4096}


class SVI(infer.SVI):
    r"""Minimizes a loss, in the place of `pyro.infer.SVI`, with one torch optimizer.

    A step draws the random numbers that Pyro's draws, validates the first call with each kind of
    arguments, and then runs without Pyro's validation. A loss that becomes NaN or infinite is
    reported in a warning, once.

    The engines "traced" and "compiled" run the loss and its gradient as one graph of tensor
    operations: see `Graph`. They require a tensor loss (`differentiable_loss`); other losses run
    eagerly. The graph does not see what Python does in later steps: all that changes, such as the
    data or an annealing factor, must be a tensor argument of `step`. Therefore its loss and
    gradient are compared with those of the programs when it is made, after 1, 2, 4, ... steps, and
    at least every 256 steps, or 4,096 if it is compiled. If they differ, a warning names the
    difference and the remaining steps run eagerly. Making and comparing graphs calls the programs,
    and so advances counters of Python; tensors, such as counters in buffers, and random states are
    restored. Several processes sum their gradients, in one operation per step.

    Arguments:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        optim: One of `pyro.optim`, or a function that makes a torch optimizer from a list of
            parameters, such as `torch.optim.Adam`.
        loss: The objective, such as `pyro.infer.Trace_ELBO()`, or a function of model, guide and
            their arguments.
        loss_and_grads: A function that computes the loss and its gradients, if `loss` is one.
        num_samples: Deprecated by Pyro; the number of samples of `run`.
        num_steps: Deprecated by Pyro; the number of steps of `run`.
        mean: Divide the loss by the number of rows of the first argument of `step`: nats per image.
        prepare: Computes the programs' arguments from those of `step`, in the same graph; None
            passes them on.
        engine: "eager", "traced", "compiled", or "auto": eager at first, traced after 500 steps,
            and compiled after 8,000 if there is a C++ compiler, so that a start-up pays. A graph is
            made for each shape of the tensors, each value of the other arguments of `step`, and
            each mode (training or evaluation) of programs that are modules or their methods.
        check_losses: Warn if a loss is not finite. On CUDA, `update` checks every 100 steps. False
            is for callers that do so themselves: then only the first call is validated, because
            parameters that are NaN would be its error.

    Attributes:
        objective: What `loss` was, with the methods of `pyro.infer.ELBO`.
        optimizer: The torch optimizer, made by the first step. One of `pyro.optim` shares its
            state and options, so that its schedulers and `get_state` work as usual.
        last_loss: The loss before the last step, as `step` returns it: a tensor of shape `()`, or
            with an element for each of several losses.
        total: The sum of the losses of all steps, without `mean`, a tensor of shape `()`.

    Raises:
        ValueError: If `optim` is neither.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> sgd = pyro.optim.SGD({"lr": 0.1})
        >>> svi = SVI(model, lambda x: None, sgd, loss=Trace_ELBO(), engine="traced")
        >>> losses = [svi.step(torch.tensor([1.0, 2.0, 3.0])) for _ in range(30)]
        >>> round(pyro.param("loc").item(), 4)
        2.0
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        optim: MakeOptimizer | PyroOptim,
        loss: Any,
        loss_and_grads: Callable[..., Any] | None = None,
        num_samples: int = 0,
        num_steps: int = 0,
        *,
        mean: bool = False,
        prepare: Callable[..., tuple[Any, ...]] | None = None,
        engine: AnyEngine = "auto",
        check_losses: bool = True,
    ) -> None:
        check_choice("engine", engine, AnyEngine)
        if isinstance(optim, ELBO | Optimizer) or not callable(optim):
            raise RequestError(
                "optim must be a function that makes a torch optimizer, or one of pyro.optim, but"
                f" is {optim!r}"
            )
        self._joint: Joint | None = None
        self.make_optimizer: MakeOptimizer
        if isinstance(optim, PyroOptim):
            check_steps(optim)
            self._joint = Joint(optim)
            self.make_optimizer = self._joint
        else:
            self.make_optimizer = optim
            optim = PyroOptim(optim, {})
        super().__init__(model, guide, optim, loss, loss_and_grads, num_samples, num_steps)
        self.mean = mean
        self.objective = loss
        self._loss = loss
        if not hasattr(loss, "loss_and_grads"):
            self.objective = FunctionLoss(loss, self.loss_and_grads, loss_and_grads is None)
        self.prepare = prepare or (lambda *args: args)
        self._validates = check_losses
        # It has no loss, only a gradient: Pyro returns inf.
        self.check_losses = check_losses and not isinstance(loss, TraceTailAdaptive_ELBO)
        self.optimizer: Optimizer | None = None
        self.last_loss = torch.zeros((), dtype=torch.float64)
        self.total = torch.zeros((), dtype=torch.float64)
        self._params: dict[int, Tensor] = {}
        self._names: dict[int, str] = {}
        # Those in Pyro's parameter store, by name.
        self._stored: dict[str, Tensor] = {}
        # The parameters that had a gradient.
        self._trained: set[int] = set()
        # The modules of the programs, as far as the programs are modules or methods of them.
        self._modules = self._find_modules()
        # The kinds of arguments that were validated.
        self._validated: set[Any] = set()
        self._options: list[Any] | None = None
        self._asked = engine
        self._steps = 0
        self._use(pick_engine(engine, self.total.device, 0))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FIXED and name in self.__dict__:
            raise RequestError(
                f"{name} of an SVI cannot be replaced; make another SVI, which continues with the"
                " values in Pyro's parameter store"
            )
        super().__setattr__(name, value)

    def __reduce__(self) -> NoReturn:
        # Its optimizer would hold copies of the parameters, which are not in Pyro's store.
        raise RequestError(
            "an SVI cannot be copied or pickled; make another one, which continues with the values"
            " in Pyro's parameter store"
        )

    @property
    def engine(self) -> Engine:
        """What runs the steps, which is simpler than the requested engine if that failed."""
        return self._graph.engine

    def dry_run(self, *args: Any, check: Callable[..., None] | None = None, **kwargs: Any) -> None:
        """Validate the programs and make the optimizer, without side effects.

        Without it, the first step does so.

        Arguments:
            *args: Arguments of `step`.
            check: A function that is called before with the arguments of the programs.
            **kwargs: Keyword arguments of `step`.
        """

        def validate() -> None:
            if check is not None:
                check(*self.prepare(*args))
            self._validate(*args, **kwargs)

        dry_run(validate)
        for param in self._params.values():
            param.grad = None
        self._validated.add(_kind_to_validate(args, kwargs))
        self._graph.expect(*args, **kwargs)

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Load a `state_dict` into the optimizer, which `dry_run` has made."""
        if self.optimizer is None:
            raise ValueError("the optimizer does not exist yet; call dry_run first")
        groups = [dict(group) for group in state["param_groups"]]
        can_be_captured = any("capturable" in group for group in groups)
        replays = self._replays()
        for group in groups:
            if can_be_captured:
                group["capturable"] = replays
            group["lr"] = float(group["lr"])
        self.optimizer.load_state_dict({**state, "param_groups": groups})
        if self._joint is not None:
            self._joint.take_state(self.optimizer)
        self._options = None

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take one step, asynchronously.

        `last_loss` is set to the loss before it, and its sum over rows is added to `total`.
        """
        self._advance()
        self._follow_the_store()
        self._sync()
        if self.engine != "eager" and am_i_wrapped():
            self._graph.use_eager(
                "effect handlers are around the step, which a graph does not see; put them around"
                " the model and the guide"
            )
        if self.engine != "eager" and self._steps == self._next_comparison:
            self._compare(*args, **kwargs)
        if self._replays():
            self._refresh()
            self._replay(*args, **kwargs)
        else:
            self._take_step(*args, **kwargs)
        self._sync()
        self._steps += 1
        if self.check_losses and (not self.total.is_cuda or self._steps % CHECK_STEPS == 0):
            self._check_finite(self.total.item())

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one step and return the loss before it, in nats, or in nats per row with `mean`.

        A number, or a tuple of numbers for objectives with several losses.
        """
        self.update(*args, **kwargs)
        if self.check_losses and self.total.is_cuda:  # on a CPU `update` has checked it
            self._check_finite(self.last_loss.sum().item())
        return as_numbers(self.last_loss)

    @torch.no_grad()
    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss, in nats, without a step; the arguments are those of the programs."""
        validated = is_validation_enabled() and not self._validated
        with pyro.validation_enabled(validated), tensor_losses(type(self._loss)):
            loss = as_tensor(self.objective.loss(self.model, self.guide, *args, **kwargs))
        return as_numbers(loss / self._rows(args))

    def _check_finite(self, loss: float) -> None:
        """Warn, once, unless the loss is finite."""
        if isfinite(loss):
            return
        self.check_losses = False
        logger.warning(
            "the loss became NaN or infinite at or before step %d; look for such values in the"
            " data, lower the learning rate or clip the gradients",
            self._steps,
        )

    def _validate(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The loss and the gradients as Pyro computes them, with its validation and warnings."""
        if self._validated:
            return self._pyros_gradients(*args, **kwargs)
        with first_call(self.model, self.guide):
            return self._pyros_gradients(*args, **kwargs)

    def _use(self, engine: Engine) -> None:
        """Run the steps with an engine, if graphs are possible."""
        reason = self._without_graphs()
        if engine != "eager" and reason is not None:
            logger.warning("using the eager engine: %s", reason)
            engine = "eager"
        self._graph = Graph(
            self._tensor_gradients, engine, self._gradients, self._differs, self._mode
        )
        self._trainable = {key: param.requires_grad for key, param in self._params.items()}
        self._picked = engine
        self._options = None
        self._compared = self._steps
        self._comparison_gap = 1
        self._next_comparison = self._steps + 1

    def _without_graphs(self) -> str | None:
        """Why the steps cannot run as graphs, or None if they can."""
        name = type(self._loss).__name__
        if isinstance(self._loss, JIT):
            return f"{name} is compiled by torch.jit; use {name.removeprefix('Jit')}"
        if not has_tensor_loss(self.objective):
            return f"{name} has no differentiable_loss"
        if any(group.get("subsample_aware") for group in self._groups):
            return (
                f"{type(self.optimizer).__name__} asks which rows a step used, which a graph does"
                " not say"
            )
        return None

    def _advance(self) -> None:
        """With "auto": use the engine that suits as many steps as were taken.

        Not if the last one that was picked failed.
        """
        if self._asked != "auto" or self._steps not in (TRACED_STEPS, COMPILED_STEPS):
            return
        if self._graph.engine != self._picked or self._without_graphs() is not None:
            return
        engine = pick_engine("auto", self.total.device, self._steps)
        if engine != self._picked:
            logger.info("using the %s engine from step %d", engine, self._steps)
            self._use(engine)

    def _follow_the_store(self) -> None:
        """Make new graphs if parameters were frozen, or replaced, as by loading a store."""
        if self.engine == "eager":
            return
        stored = pyro.get_param_store()._params
        for name, param in self._stored.items():
            if stored.get(name) is not param:
                self._stored.clear()
                self._use(self._picked)
                return
        for key, trainable in self._trainable.items():
            if self._params[key].requires_grad != trainable:
                self._use(self._picked)
                return

    def _compare(self, *args: Any, **kwargs: Any) -> None:
        """Compare the graph with the programs, and plan the next comparison."""
        if not self._graph.check(*args, **kwargs):
            self._next_comparison += 1
            return
        self._compared = self._steps
        self._next_comparison += self._comparison_gap
        self._comparison_gap = min(2 * self._comparison_gap, COMPARED_STEPS[self._picked])

    def _differs(self, expected: list[Any], found: list[Any]) -> str | None:
        names = [self._names[key] for key in self._params]
        without_rows = [*expected[:1], *expected[2:]], [*found[:1], *found[2:]]
        problem = difference(names, *without_rows)
        if problem is None:
            return None
        return f"{problem}, at step {self._steps}; they agreed at step {self._compared}"

    def _take_step(self, *args: Any, **kwargs: Any) -> None:
        loss, rows, *grads = self._graph(*args, **kwargs)
        # A graph has no gradients for parameters that appeared later, with other arguments.
        grads += [None] * (len(self._params) - len(grads))
        params = []
        parts = []
        for (key, param), grad in zip(self._params.items(), grads, strict=True):
            param.grad = None
            if grad is not None:
                params.append(param)
                parts.append(grad)
                self._trained.add(key)
        for param, total in zip(params, distributed.all_reduce(parts), strict=True):
            param.grad = total
        if self.optimizer is not None:
            self.optimizer.step()
        if loss.shape != self.last_loss.shape:
            self.last_loss = self.last_loss.new_zeros(loss.shape)
        self.last_loss.copy_(loss / rows)
        self.total += loss.sum()

    def _gradients(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The loss, the number of rows and the gradients, as the objective computes them."""
        kind = _kind_to_validate(args, kwargs)
        if not self._validated or (self._validates and kind not in self._validated):
            results = self._validate(*args, **kwargs)
            self._validated.add(kind)
            self._validates = self._validates and len(self._validated) < MISSES
            return results
        with without_validation(), tensor_losses(type(self._loss)):
            return self._pyros_gradients(*args, **kwargs)

    def _pyros_gradients(self, *args: Any, **kwargs: Any) -> list[Any]:
        rows = self._rows(args)
        with Parameters() as seen:
            loss = self.objective.loss_and_grads(
                self.model, self.guide, *self.prepare(*args), **kwargs
            )
        self._adopt(seen)
        used = seen.params
        grads: list[Tensor | None] = []
        for key, param in self._params.items():
            if key in used and param.grad is not None:
                grads.append(param.grad / rows)
            else:
                grads.append(None)
        return [as_tensor(loss), rows, *self._with_zeros(grads, seen)]

    def _tensor_gradients(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The same from the objective's tensor loss, in tensor operations only."""
        rows = self._rows(args)
        with Parameters() as seen, without_validation(), tensor_losses(type(self._loss)):
            loss = self.objective.differentiable_loss(
                self.model, self.guide, *self.prepare(*args), **kwargs
            )
        self._adopt(seen)
        if not isinstance(loss, Tensor):
            loss = as_tensor(loss)
        params = [param for param in self._params.values() if param.requires_grad]
        found: dict[int, Tensor | None] = {}
        if params and loss.requires_grad:
            with_respect_to = torch.autograd.grad(loss / rows, params, allow_unused=True)
            found = {id(param): grad for param, grad in zip(params, with_respect_to, strict=True)}
        grads = [found.get(key) for key in self._params]
        return [loss.detach(), rows, *self._with_zeros(grads, seen)]

    def _with_zeros(self, grads: list[Tensor | None], seen: Parameters) -> list[Tensor | None]:
        """Gradients with zeros where a program asks for a parameter that it does not use.

        Pyro keeps a gradient of zeros after the first step, so that momentum moves it further.
        """
        used = seen.params
        for position, (key, param) in enumerate(self._params.items()):
            if grads[position] is None and key in used and key in self._trained:
                grads[position] = torch.zeros_like(param)
        return grads

    def _replays(self) -> bool:
        """Whether whole steps run as a CUDA graph."""
        if not self.total.is_cuda or self.engine == "eager" or distributed.world_size() > 1:
            return False
        if self._graph.capturable and not all("capturable" in group for group in self._groups):
            self._graph.refuse_replay(
                f"{type(self.optimizer).__name__} has no option capturable, which Adam, AdamW and"
                " RMSprop have"
            )
        return self._graph.capturable

    def _refresh(self) -> None:
        """Keep replays valid.

        Learning rates are updated in place. If other options of the optimizer changed, the steps
        are captured again.
        """
        options: list[Any] = [self._mode()]
        for group in self._groups:
            baked = group.keys() - {"params", "lr", "capturable"}
            options.append({key: group[key] for key in baked})
        if options != self._options:
            self._options = options
            self._replay = Replay(self._take_step)
            for group in self._groups:
                group["capturable"] = True
                group["lr"] = torch.as_tensor(group["lr"], device=self.total.device)
            self._rates = [group["lr"] for group in self._groups]
        for group, rate in zip(self._groups, self._rates, strict=True):
            if group["lr"] is not rate:
                group["lr"] = rate.fill_(group["lr"])

    def _sync(self) -> None:
        """Keep the options of one of `pyro.optim` and of its joint optimizer the same."""
        if self._joint is not None and self.optimizer is not None:
            self._joint.sync(self.optimizer)

    @property
    def _groups(self) -> list[dict[str, Any]]:
        if self.optimizer is None:
            return []
        return self.optimizer.param_groups

    def _find_modules(self) -> list[nn.Module]:
        return [*_modules(self.model), *_modules(self.guide)]

    def _mode(self) -> Hashable:
        """The programs, which may be replaced, and which modules are in training mode."""
        modes = [module.training for module in self._modules]
        return (id(self.model), id(self.guide), *modes)

    def _rows(self, args: Sequence[Any]) -> int:
        if self.mean:
            return len(args[0])
        return 1

    def _adopt(self, seen: Parameters) -> None:
        """Pass new parameters to the optimizer."""
        params = seen.params
        new = [param for key, param in params.items() if key not in self._params]
        self._params |= params
        self._names |= seen.names
        for param in new:
            self._trainable[id(param)] = param.requires_grad
        stored = pyro.get_param_store()._params
        for key, name in seen.names.items():
            if stored.get(name) is params[key]:
                self._stored[name] = params[key]
        if not new:
            return
        self._modules = self._find_modules()  # automatic guides make theirs in the first call
        made = self.make_optimizer(new)
        if self.optimizer is None:
            self.optimizer = made
            self.last_loss = self.last_loss.to(new[0].device)
            self.total = self.total.to(new[0].device)
            if self.engine != "eager" and self._without_graphs() is not None:
                self._use(self._picked)
            return
        for group in made.param_groups:
            self.optimizer.add_param_group(group)
        self.optimizer.state.update(made.state)


def _modules(program: Program) -> list[nn.Module]:
    """The modules of a program that is one, or that is a method of one."""
    owner = getattr(program, "__self__", program)
    if not isinstance(owner, nn.Module):
        return []
    return list(owner.modules())


def _kind_to_validate(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The kind of the arguments, in which numbers that vary are all the same."""
    structure, *leaves = kind_of(args, kwargs)
    kinds: list[Any] = [structure]
    for leaf in leaves:
        if isinstance(leaf, bool | int | str | tuple):
            kinds.append(leaf)
        else:
            kinds.append(type(leaf))
    return tuple(kinds)
