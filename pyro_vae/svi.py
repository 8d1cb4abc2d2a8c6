"""One step of stochastic variational inference: a Pyro objective, one torch optimizer over all parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.importance import Program

MakeOptimizer = Callable[[Sequence[Tensor]], Optimizer]


class SVI:
    r"""Minimizes an ELBO's loss, as `pyro.infer.SVI` does, with one torch optimizer for all parameters instead of one each.

    Pyro's validation runs on the first step and is off from then on; the user's setting is restored after every step.

    Arguments:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        optimizer: Makes a torch optimizer from a list of parameters, such as `torch.optim.Adam`.
        objective: The loss, such as `pyro.infer.Trace_ELBO()`.
        mean: Divide the loss and its gradient by the number of rows of the first argument: nats per image, not per batch.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> svi = SVI(model, lambda x: None, lambda params: torch.optim.SGD(params, lr=0.5), Trace_ELBO(), mean=True)
        >>> losses = [svi.step(torch.tensor([1.0, 2.0, 3.0])) for _ in range(20)]
        >>> round(pyro.param("loc").item(), 4)
        2.0
    """

    def __init__(self, model: Program, guide: Program, optimizer: MakeOptimizer, objective: Any, mean: bool = False) -> None:
        self.model, self.guide, self.objective, self.mean = model, guide, objective, mean
        self.make_optimizer = optimizer
        self.optimizer: Optimizer | None = None
        self._known: dict[int, Tensor] = {}

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Take one step of the optimizer; the loss before it, in nats."""
        with self._validation(), _Params() as seen:
            loss = self.objective.loss_and_grads(self.model, self.guide, *args, **kwargs)
        self._adopt(seen.params)
        rows = len(args[0]) if self.mean else 1
        for param in seen.params.values():
            if param.grad is not None:
                param.grad /= rows
        if self.optimizer is not None:
            self.optimizer.step()
        return float(loss) / rows

    @torch.no_grad()
    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The loss, in nats, without a step."""
        with self._validation():
            loss = self.objective.loss(self.model, self.guide, *args, **kwargs)
        return float(loss) / (len(args[0]) if self.mean else 1)

    def _validation(self) -> AbstractContextManager[None]:
        return pyro.validation_enabled(is_validation_enabled() and self.optimizer is None)

    def _adopt(self, params: dict[int, Tensor]) -> None:
        """Hand parameters that are seen for the first time to the optimizer."""
        new = [param for key, param in params.items() if key not in self._known]
        self._known |= params
        if self.optimizer is not None and new:
            self.optimizer.add_param_group({"params": new})
        elif new:
            self.optimizer = self.make_optimizer(new)


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
