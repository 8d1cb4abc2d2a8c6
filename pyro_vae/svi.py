"""One step of stochastic variational inference: a Pyro objective, one torch optimizer over all parameters, one flat graph."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from pyro.optim import PyroLRScheduler, PyroOptim
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.errors import RequestError
from pyro_vae.graphs import Engine, Graph, Replay, rehearse
from pyro_vae.importance import Program

MakeOptimizer = Callable[[Sequence[Tensor]], Optimizer]


class SVI:
    r"""Minimizes an ELBO's loss, as `pyro.infer.SVI` does, with one torch optimizer for all parameters instead of one each.

    The programs run once, without effect, to be validated and to find their parameters; then Pyro's validation is off inside
    the steps, and the user's setting is restored after each. The engines "traced" and "compiled" trace the objective and its
    gradient into one flat graph of tensor operations at the first step, and run only that from then on: see `Graph` for
    what that fixes. They need an objective with a tensor loss (`differentiable_loss`); any other runs eagerly.

    Arguments:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        optimizer: Makes a torch optimizer from a list of parameters, such as `torch.optim.Adam`; or one of `pyro.optim`'s.
        objective: The loss, such as `pyro.infer.Trace_ELBO()`.
        mean: Divide the loss and its gradient by the number of rows of the programs' first argument: nats per image.
        prepare: Makes the programs' arguments from those of `step`, in the same graph; None passes them on.
        engine: "eager", "traced" or "compiled". The last two take tensors as the arguments of `step`.
        say: Called once with the reason, if another engine has to take over.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> svi = SVI(
        ...     model, lambda x: None, lambda params: torch.optim.SGD(params, lr=0.5), Trace_ELBO(), mean=True, engine="traced"
        ... )
        >>> losses = [svi.step(torch.tensor([1.0, 2.0, 3.0])) for _ in range(20)]
        >>> round(pyro.param("loc").item(), 4)
        2.0
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        optimizer: MakeOptimizer | PyroOptim,
        objective: Any,
        mean: bool = False,
        prepare: Callable[..., tuple[Any, ...]] | None = None,
        engine: Engine = "eager",
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.model, self.guide, self.objective, self.mean = model, guide, objective, mean
        self.make_optimizer, self.prepare = for_all(optimizer), prepare or _as_they_are
        self.optimizer: Optimizer | None = None
        self.loss, self.total = torch.zeros(2, dtype=torch.float64)
        self._params: dict[int, Tensor] = {}
        if engine != "eager" and getattr(objective, "differentiable_loss", None) is None:
            say(f"engine: eager, because {type(objective).__name__} has no tensor loss (differentiable_loss)")
            engine = "eager"
        function = self._gradients if engine == "eager" else self._tensor_gradients
        self._graph, self._replay = Graph(function, engine, say), Replay(self._take_step)

    @property
    def engine(self) -> Engine:
        """What runs the steps: the engine asked for, or the one that had to take over."""
        return self._graph.engine

    def start(self, *args: Any) -> None:
        """Validate the programs and make the optimizer, without effect on anything else; the first step does it otherwise."""
        with _Params() as seen:
            rehearse(self._validate, *args)
        self._adopt(seen.params)
        device = next(iter(seen.params.values()), self.total).device
        self.loss, self.total = self.loss.to(device), self.total.to(device)
        self._make_capturable()

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Put the optimizer, which `start` made, into a state that its `state_dict` gave."""
        if self.optimizer is None:
            raise ValueError("there is no optimizer yet: call start first")
        replays = self._replays()
        where = {"capturable": replays} if any("capturable" in group for group in state["param_groups"]) else {}
        groups = [{**group, **where, "lr": float(group["lr"])} for group in state["param_groups"]]
        self.optimizer.load_state_dict({**state, "param_groups": groups})
        self._make_capturable()
        self._replay = Replay(self._take_step)

    def update(self, *args: Any) -> None:
        """Take one step of the optimizer, without waiting for it: `loss` and `total` are where the loss before it will be."""
        if self.optimizer is None:
            self.start(*args)
        with pyro.validation_enabled(False):
            (self._replay if self._replays() else self._take_step)(*args)

    def step(self, *args: Any) -> float:
        """Take one step of the optimizer; the loss before it, in nats."""
        self.update(*args)
        return self.loss.item()

    def read_total(self) -> float:
        """The losses of all updates since this was last read, in nats, summed over the rows even where `mean` divides."""
        total = self.total.item()
        self.total.zero_()
        return total

    @torch.no_grad()
    def evaluate_loss(self, *args: Any) -> float:
        """The loss, in nats, without a step; the arguments are those of the programs."""
        with pyro.validation_enabled(is_validation_enabled() and self.optimizer is None), tensor_losses(self.objective):
            return float(self.objective.loss(self.model, self.guide, *args)) / self._rows(args)

    def _validate(self, *args: Any) -> None:
        self.objective.loss(self.model, self.guide, *self.prepare(*args))

    def _take_step(self, *args: Any) -> None:
        loss, rows, *grads = self._graph(*args)
        for param, grad in zip(self._params.values(), grads, strict=True):
            param.grad = grad
        if self.optimizer is not None:
            self.optimizer.step()
        self.loss.fill_(loss / rows)
        self.total += loss

    def _gradients(self, *args: Any) -> list[Any]:
        """The loss and its gradients, as the objective itself finds them; parameters may appear at any step."""
        args = self.prepare(*args)
        with _Params() as seen, tensor_losses(self.objective):
            loss = self.objective.loss_and_grads(self.model, self.guide, *args)
        self._adopt(seen.params)
        rows = self._rows(args)
        grads = [param.grad if key in seen.params else None for key, param in self._params.items()]
        return [loss, rows, *(grad if grad is None else grad / rows for grad in grads)]

    def _tensor_gradients(self, *args: Any) -> list[Any]:
        """The same from the objective's tensor loss, in tensor operations alone."""
        args = self.prepare(*args)
        with tensor_losses(self.objective):
            loss = self.objective.differentiable_loss(self.model, self.guide, *args)
        rows = self._rows(args)
        return [loss.detach(), rows, *torch.autograd.grad(loss / rows, list(self._params.values()), allow_unused=True)]

    def _replays(self) -> bool:
        """Whether whole steps run as a CUDA graph."""
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        return self.total.is_cuda and self.engine != "eager" and all("capturable" in group for group in groups)

    def _make_capturable(self) -> None:
        """Have the optimizer read its learning rate and count its steps on the device."""
        if self._replays() and self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group |= {"capturable": True, "lr": torch.as_tensor(group["lr"], device=self.total.device)}

    def _rows(self, args: Sequence[Any]) -> int:
        return len(args[0]) if self.mean else 1

    def _adopt(self, params: dict[int, Tensor]) -> None:
        """Hand parameters that are seen for the first time to the optimizer."""
        new = [param for key, param in params.items() if key not in self._params]
        self._params |= params
        if self.optimizer is not None and new:
            self.optimizer.add_param_group({"params": new})
        elif new:
            self.optimizer = self.make_optimizer(new)


def for_all(optimizer: MakeOptimizer | PyroOptim) -> MakeOptimizer:
    """Of Pyro's optimizers, which hold one for each parameter, one for all.

    Raises:
        RequestError: If it has options that differ from one parameter to another.
    """
    if not isinstance(optimizer, PyroOptim):
        return optimizer
    if isinstance(optimizer, PyroLRScheduler) or callable(optimizer.pt_optim_args) or optimizer.pt_clip_args:
        raise RequestError(
            "of Pyro's optimizers only those with the same options for all parameters go: give a torch optimizer"
        )
    constructor: Any = optimizer.pt_optim_constructor
    return partial(constructor, **optimizer.pt_optim_args)


def _as_they_are(*args: Any) -> tuple[Any, ...]:
    return args


@contextmanager
def tensor_losses(objective: Any) -> Iterator[None]:
    """Keep the losses of Pyro's own ELBOs tensors on the way, where they would read them as numbers and look for NaN."""
    modules = {sys.modules[cls.__module__] for cls in type(objective).__mro__ if cls.__module__.startswith("pyro.infer")}
    before = [(module, name, vars(module)[name]) for module in modules for name in _TENSORS if name in vars(module)]
    try:
        for module, name, _ in before:
            setattr(module, name, _TENSORS[name])
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch_item": lambda x: x.detach() if isinstance(x, Tensor) else x,
    "warn_if_nan": lambda value, *args, **kwargs: value,
}


class _Params(Messenger):
    """Collects the parameters of programs, and clears the gradient that each still has from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.params: dict[int, Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        param = msg["value"].unconstrained()
        if id(param) not in self.params:
            param.grad = None
            self.params[id(param)] = param
