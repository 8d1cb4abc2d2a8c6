"""One step of stochastic variational inference: an objective of Pyro, one torch optimizer, one graph."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from pyro.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.errors import RequestError
from pyro_vae.inference import distributed
from pyro_vae.inference.graphs import Engine, Graph, Replay, dry_run, logger
from pyro_vae.inference.importance import Program

MakeOptimizer = Callable[[Sequence[Tensor]], Optimizer]


class SVI:
    r"""Minimizes the loss of an ELBO, like `pyro.infer.SVI`, with one torch optimizer for all parameters.

    A dry run before the first step validates the programs and finds their parameters. The steps run without Pyro's validation.
    The engines "traced" and "compiled" trace the objective and its gradient into one graph of tensor operations at the
    first step: see `Graph`. They require an objective with a tensor loss (`differentiable_loss`); others run eagerly.
    Several processes sum their gradients, in one operation per step.

    Arguments:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        optimizer: Makes a torch optimizer from a list of parameters, such as `torch.optim.Adam`.
        objective: The loss, such as `pyro.infer.Trace_ELBO()`.
        mean: Divide the loss by the number of rows of the first argument of `step`: nats per image.
        prepare: Computes the programs' arguments from those of `step`, in the same graph; None passes them on.
        engine: "eager", "traced" or "compiled". The last two require tensors as the arguments of `step`.

    Raises:
        ValueError: If `optimizer` is one of `pyro.optim`.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> def sgd(params):
        ...     return torch.optim.SGD(params, lr=0.5)
        >>> svi = SVI(model, lambda x: None, sgd, Trace_ELBO(), mean=True, engine="traced")
        >>> losses = [svi.step(torch.tensor([1.0, 2.0, 3.0])) for _ in range(20)]
        >>> round(pyro.param("loc").item(), 4)
        2.0
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        optimizer: MakeOptimizer,
        objective: Any,
        mean: bool = False,
        prepare: Callable[..., tuple[Any, ...]] | None = None,
        engine: Engine = "eager",
    ) -> None:
        if isinstance(optimizer, PyroOptim):
            raise RequestError("pyro.optim is not supported; pass a function such as lambda params: torch.optim.Adam(params)")
        self.model, self.guide, self.objective, self.mean = model, guide, objective, mean
        self.make_optimizer, self.prepare = optimizer, prepare or (lambda *args: args)
        self.optimizer: Optimizer | None = None
        self.loss, self.total = torch.zeros(2, dtype=torch.float64)
        self._params: dict[int, Tensor] = {}
        if engine != "eager" and getattr(objective, "differentiable_loss", None) is None:
            logger.warning("using the eager engine: %s has no differentiable_loss", type(objective).__name__)
            engine = "eager"
        self._graph = Graph(self._gradients if engine == "eager" else self._tensor_gradients, engine)
        self._options: list[dict[str, Any]] | None = None

    @property
    def engine(self) -> Engine:
        """The engine that runs the steps, which is simpler than the requested one if that failed."""
        return self._graph.engine

    def dry_run(self, *args: Any, check: Callable[..., None] | None = None) -> None:
        """Validate the programs and make the optimizer, without side effects. The first step calls it if necessary.

        Arguments:
            *args: Arguments of `step`.
            check: A function that is called before with the arguments of the programs.
        """
        with _Params() as seen:
            dry_run(self._validate, check, *args)
        self._adopt(seen.params)
        device = next(iter(seen.params.values()), self.total).device
        self.loss, self.total = self.loss.to(device), self.total.to(device)

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Load a `state_dict` into the optimizer, which `dry_run` has made."""
        if self.optimizer is None:
            raise ValueError("the optimizer does not exist yet; call dry_run first")
        replays = self._replays()
        where = {"capturable": replays} if any("capturable" in group for group in state["param_groups"]) else {}
        groups = [{**group, **where, "lr": float(group["lr"])} for group in state["param_groups"]]
        self.optimizer.load_state_dict({**state, "param_groups": groups})
        self._options = None

    def update(self, *args: Any) -> None:
        """Take one step, asynchronously: `loss` is set to the loss before it, and its sum over rows is added to `total`."""
        if self.optimizer is None:
            self.dry_run(*args)
        with pyro.validation_enabled(False):
            if self._replays():
                self._refresh()
                self._replay(*args)
            else:
                self._take_step(*args)

    def step(self, *args: Any) -> float:
        """Take one step and return the loss before it, in nats, or in nats per row with `mean`."""
        self.update(*args)
        return self.loss.item()

    @torch.no_grad()
    def evaluate_loss(self, *args: Any) -> float:
        """The loss, in nats, without a step; the arguments are those of the programs."""
        with pyro.validation_enabled(is_validation_enabled() and self.optimizer is None), tensor_losses(self.objective):
            return float(self.objective.loss(self.model, self.guide, *args)) / self._rows(args)

    def _validate(self, check: Callable[..., None] | None, *args: Any) -> None:
        args = self.prepare(*args)
        if check is not None:
            check(*args)
        with tensor_losses(self.objective):
            self.objective.loss(self.model, self.guide, *args)

    def _take_step(self, *args: Any) -> None:
        loss, rows, *grads = self._graph(*args)
        total = iter(distributed.all_reduce([grad for grad in grads if grad is not None]))
        for param, grad in zip(self._params.values(), grads, strict=True):
            param.grad = None if grad is None else next(total)
        if self.optimizer is not None:
            self.optimizer.step()
        self.loss.fill_(loss / rows)
        self.total += loss

    def _gradients(self, *args: Any) -> list[Any]:
        """The loss, the number of rows and the gradients, as the objective computes them; parameters may appear later."""
        rows = self._rows(args)
        with _Params() as seen, tensor_losses(self.objective):
            loss = self.objective.loss_and_grads(self.model, self.guide, *self.prepare(*args))
        self._adopt(seen.params)
        grads = [param.grad if key in seen.params else None for key, param in self._params.items()]
        return [loss, rows, *(grad if grad is None else grad / rows for grad in grads)]

    def _tensor_gradients(self, *args: Any) -> list[Any]:
        """The same from the objective's tensor loss, in tensor operations only."""
        rows = self._rows(args)
        with tensor_losses(self.objective):
            loss = self.objective.differentiable_loss(self.model, self.guide, *self.prepare(*args))
        return [loss.detach(), rows, *torch.autograd.grad(loss / rows, list(self._params.values()), allow_unused=True)]

    def _replays(self) -> bool:
        """Whether whole steps run as a CUDA graph."""
        capturable = self._graph.capturable and all("capturable" in group for group in self._groups)
        return self.total.is_cuda and self.engine != "eager" and capturable and distributed.world_size() == 1

    def _refresh(self) -> None:
        """Keep replays valid: update learning rates in place, and capture anew if the optimizer's other options changed."""
        baked = [{key: group[key] for key in group.keys() - {"params", "lr", "capturable"}} for group in self._groups]
        if baked != self._options:
            self._options, self._replay = baked, Replay(self._take_step)
            for group in self._groups:
                group |= {"capturable": True, "lr": torch.as_tensor(group["lr"], device=self.total.device)}
            self._rates = [group["lr"] for group in self._groups]
        for group, rate in zip(self._groups, self._rates, strict=True):
            if group["lr"] is not rate:
                group["lr"] = rate.fill_(group["lr"])

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return [] if self.optimizer is None else self.optimizer.param_groups

    def _rows(self, args: Sequence[Any]) -> int:
        return len(args[0]) if self.mean else 1

    def _adopt(self, params: dict[int, Tensor]) -> None:
        """Pass new parameters to the optimizer."""
        new = [param for key, param in params.items() if key not in self._params]
        self._params |= params
        if self.optimizer is not None and new:
            self.optimizer.add_param_group({"params": new})
        elif new:
            self.optimizer = self.make_optimizer(new)


@contextmanager
def tensor_losses(objective: Any) -> Iterator[None]:
    """Patch Pyro so that losses stay tensors, and NaN raises no warnings; both wait for the device."""
    names = {cls.__module__ for cls in type(objective).__mro__ if cls.__module__.startswith("pyro.infer")}
    modules = [sys.modules[name] for name in (*names, "pyro.poutine.trace_struct")]
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
    "warn_if_inf": lambda value, *args, **kwargs: value,
}


class _Params(Messenger):
    """Collects the parameters of programs and clears gradients that they have from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.params: dict[int, Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        param = msg["value"].unconstrained()
        if id(param) not in self.params:
            param.grad = None
            self.params[id(param)] = param
