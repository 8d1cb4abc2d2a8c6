"""One step of stochastic variational inference: a loss of Pyro, one torch optimizer, one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import getLogger
from math import isfinite
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.nn import PyroModule
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.engine import distributed
from pyro_vae.engine.graphs import (
    COMPILED_STEPS,
    TRACED_STEPS,
    AnyEngine,
    Engine,
    Graph,
    Replay,
    dry_run,
    pick_engine,
)
from pyro_vae.engine.patches import tensor_losses, without_validation
from pyro_vae.engine.programs import Program
from pyro_vae.errors import RequestError, check_choice, first_line

logger = getLogger("pyro_vae")

MakeOptimizer = Callable[[Sequence[Tensor]], Optimizer]

# Steps between checks of the losses on CUDA, each of which waits for the device.
CHECK_STEPS = 100


class SVI:
    r"""Minimizes a loss, like `pyro.infer.SVI`, with one torch optimizer for all parameters.

    A dry run before the first step validates the programs and finds their parameters. The steps run
    without Pyro's validation. A loss that becomes NaN or infinite is reported in a warning, once.

    The engines "traced" and "compiled" trace the loss and its gradient into one graph of tensor
    operations: see `Graph`. They require a tensor loss (`differentiable_loss`); other losses run
    eagerly. The graph does not see what Python does in later steps: all that changes, such as the
    data or an annealing factor, must be an argument of `step`. Several processes sum their
    gradients, in one operation per step.

    Arguments:
        model: A Pyro program.
        guide: A Pyro program with the same arguments.
        optim: Makes a torch optimizer from a list of parameters, such as `torch.optim.Adam`; or one
            of `pyro.optim`, with its options and clipping of each parameter, whose state is then
            that of `self.optimizer`.
        loss: The objective, such as `pyro.infer.Trace_ELBO()`, or a function of model, guide and
            their arguments.
        mean: Divide the loss by the number of rows of the first argument of `step`: nats per image.
        prepare: Computes the programs' arguments from those of `step`, in the same graph; None
            passes them on.
        engine: "eager", "traced", "compiled", or "auto": eager at first, and a faster one after so
            many steps that its start-up pays. A graph is made for each shape of the tensors and
            each value of the other arguments of `step`.
        check_losses: Warn if a loss is not finite. On CUDA, `update` checks every 100 steps.

    Attributes:
        objective: What `loss` was, with the methods of `pyro.infer.ELBO`.
        optimizer: The torch optimizer, made by the first step.
        last_loss: The loss before the last step, a tensor of shape `()`, as `step` returns it.
        total: The sum of the losses of all steps, without `mean`, a tensor of shape `()`.

    Raises:
        ValueError: If `optim` is neither, or one of Pyro's learning-rate schedulers, or the loss
            returns several losses.

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
        mean: bool = False,
        prepare: Callable[..., tuple[Any, ...]] | None = None,
        engine: AnyEngine = "eager",
        check_losses: bool = True,
    ) -> None:
        check_choice("engine", engine, AnyEngine)
        if isinstance(optim, ELBO | Optimizer) or not callable(optim):
            raise RequestError(
                "optim must be a function that makes a torch optimizer, or one of pyro.optim, but"
                f" is {optim!r}"
            )
        if isinstance(optim, PyroOptim):
            optim = _joint(optim)
        if not hasattr(loss, "loss_and_grads"):
            loss = _Function(loss)
        self.model = model
        self.guide = guide
        self.mean = mean
        self.objective = loss
        self.make_optimizer = optim
        self.prepare = prepare or (lambda *args: args)
        self.check_losses = check_losses
        self.optimizer: Optimizer | None = None
        self.last_loss = torch.zeros((), dtype=torch.float64)
        self.total = torch.zeros((), dtype=torch.float64)
        self._params: dict[int, Tensor] = {}
        self._options: list[dict[str, Any]] | None = None
        self._asked = engine
        self._steps = 0
        self._use(pick_engine(engine, self.total.device, 0))

    @property
    def engine(self) -> Engine:
        """What runs the steps, which is simpler than the requested engine if that failed."""
        return self._graph.engine

    def dry_run(self, *args: Any, check: Callable[..., None] | None = None, **kwargs: Any) -> None:
        """Validate the programs and make the optimizer, without side effects.

        The first step calls it if necessary.

        Arguments:
            *args: Arguments of `step`.
            check: A function that is called before with the arguments of the programs.
            **kwargs: Keyword arguments of `step`.
        """
        stored = set(pyro.get_param_store().keys())
        own: set[int] = set()
        for module in self._modules():
            own.update(id(param) for param in module.parameters())
        with _Params() as seen:
            try:
                dry_run(self._validate, check, *args, **kwargs)
            except (ValueError, RuntimeError) as error:
                self._blame_the_store(error, seen.names(stored, own))
                raise
        if self._modules() and seen.names(stored, own):
            logger.warning(
                "%s start at the values that Pyro's parameter store holds from earlier programs;"
                " if that is not intended, call pyro.clear_param_store() before you make new ones",
                ", ".join(seen.names(stored, own)),
            )
        self._adopt(seen.params)
        device = next(iter(seen.params.values()), self.total).device
        self.last_loss = self.last_loss.to(device)
        self.total = self.total.to(device)

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
        self._options = None

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take one step, asynchronously.

        `last_loss` is set to the loss before it, and its sum over rows is added to `total`.
        """
        if self.optimizer is None:
            self.dry_run(*args, **kwargs)
        self._advance()
        with without_validation():
            if self._replays():
                self._refresh()
                self._replay(*args, **kwargs)
            else:
                self._take_step(*args, **kwargs)
        self._steps += 1
        if self.check_losses and (not self.total.is_cuda or self._steps % CHECK_STEPS == 0):
            self._check_finite(self.total.item())

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Take one step and return the loss before it, in nats, or in nats per row with `mean`."""
        self.update(*args, **kwargs)
        loss = self.last_loss.item()
        if self.check_losses:
            self._check_finite(loss)
        return loss

    @torch.no_grad()
    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The loss, in nats, without a step; the arguments are those of the programs."""
        validated = is_validation_enabled() and self.optimizer is None
        with pyro.validation_enabled(validated), tensor_losses(self.objective):
            loss = self.objective.loss(self.model, self.guide, *args, **kwargs)
        return float(loss) / self._rows(args)

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

    def _validate(self, check: Callable[..., None] | None, *args: Any, **kwargs: Any) -> None:
        args = self.prepare(*args)
        if check is not None:
            check(*args)
        with tensor_losses(self.objective):
            loss = self.objective.loss(self.model, self.guide, *args, **kwargs)
        if isinstance(loss, tuple):
            name = type(self.objective).__name__
            raise RequestError(f"{name} has several losses; use pyro.infer.SVI")

    def _modules(self) -> list[PyroModule]:
        """The programs that keep their parameters themselves, such as automatic guides."""
        return [one for one in (self.model, self.guide) if isinstance(one, PyroModule)]

    def _blame_the_store(self, error: Exception, names: list[str]) -> None:
        """Say that an error may come from values that earlier programs left in the store."""
        if not names or isinstance(error, RequestError):
            return
        reason = (
            f"Pyro's parameter store holds {', '.join(names)} from earlier programs; call"
            " pyro.clear_param_store() before you make new ones"
        )
        if self._modules():
            raise RequestError(f"{first_line(error)}: {reason}") from error
        error.add_note(reason)

    def _use(self, engine: Engine) -> None:
        """Run the steps with an engine, if the loss is a tensor."""
        if engine != "eager" and getattr(self.objective, "differentiable_loss", None) is None:
            name = type(self.objective).__name__
            logger.warning("using the eager engine: %s has no differentiable_loss", name)
            engine = "eager"
        if engine == "eager":
            self._graph = Graph(self._gradients, engine)
        else:
            self._graph = Graph(self._tensor_gradients, engine)
        self._picked = engine
        self._options = None

    def _advance(self) -> None:
        """With "auto": use the engine that suits as many steps as were taken.

        Not if the last one that was picked failed.
        """
        if self._asked != "auto" or self._steps not in (TRACED_STEPS, COMPILED_STEPS):
            return
        if self._graph.engine != self._picked:
            return
        engine = pick_engine("auto", self.total.device, self._steps)
        if engine != self._picked:
            logger.info("using the %s engine from step %d", engine, self._steps)
            self._use(engine)

    def _take_step(self, *args: Any, **kwargs: Any) -> None:
        loss, rows, *grads = self._graph(*args, **kwargs)
        # A graph has no gradients for parameters that appeared later, with other arguments.
        grads += [None] * (len(self._params) - len(grads))
        params = []
        parts = []
        for param, grad in zip(self._params.values(), grads, strict=True):
            param.grad = None
            if grad is not None:
                params.append(param)
                parts.append(grad)
        for param, total in zip(params, distributed.all_reduce(parts), strict=True):
            param.grad = total
        if self.optimizer is not None:
            self.optimizer.step()
        self.last_loss.fill_(loss / rows)
        self.total += loss

    def _gradients(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The loss, the number of rows and the gradients, as the objective computes them."""
        rows = self._rows(args)
        with _Params() as seen, tensor_losses(self.objective):
            loss = self.objective.loss_and_grads(
                self.model, self.guide, *self.prepare(*args), **kwargs
            )
        self._adopt(seen.params)
        results: list[Any] = [loss, rows]
        for key, param in self._params.items():
            if key in seen.params and param.grad is not None:
                results.append(param.grad / rows)
            else:
                results.append(None)
        return results

    def _tensor_gradients(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The same from the objective's tensor loss, in tensor operations only."""
        rows = self._rows(args)
        with _Params() as seen, tensor_losses(self.objective):
            loss = self.objective.differentiable_loss(
                self.model, self.guide, *self.prepare(*args), **kwargs
            )
        self._adopt(seen.params)
        params = list(self._params.values())
        return [
            loss.detach(),
            rows,
            *torch.autograd.grad(loss / rows, params, allow_unused=True),
        ]

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
        options = []
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

    @property
    def _groups(self) -> list[dict[str, Any]]:
        if self.optimizer is None:
            return []
        return self.optimizer.param_groups

    def _rows(self, args: Sequence[Any]) -> int:
        if self.mean:
            return len(args[0])
        return 1

    def _adopt(self, params: dict[int, Tensor]) -> None:
        """Pass new parameters to the optimizer."""
        new = [param for key, param in params.items() if key not in self._params]
        self._params |= params
        if not new:
            return
        if self.optimizer is None:
            self.optimizer = self.make_optimizer(new)
            return
        for group in self.make_optimizer(new).param_groups:
            self.optimizer.add_param_group(group)


def _joint(optim: PyroOptim) -> MakeOptimizer:
    """Makes one torch optimizer with the options and the clipping of one of Pyro's.

    They may differ between parameters.
    """
    if isinstance(optim, PyroLRScheduler):
        raise RequestError(
            "pyro.optim's learning-rate schedulers are not supported; pass the optimizer, and make"
            " one of torch's schedulers from svi.optimizer after the first step"
        )

    def clip(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for param in group["params"]:
                clip_one = optim._get_grad_clip(param)
                if clip_one is not None and param.grad is not None:
                    clip_one(param)

    def make(params: Sequence[Tensor]) -> Optimizer:
        groups: dict[str, tuple[list[Tensor], dict[str, Any]]] = {}
        for param in params:
            options = optim._get_optim_args(param)
            group, _ = groups.setdefault(repr(options), ([], options))
            group.append(param)
        constructor: Any = optim.pt_optim_constructor
        optimizer, *others = (constructor(group, **options) for group, options in groups.values())
        for other in others:
            for group in other.param_groups:
                optimizer.add_param_group(group)
        if optim.pt_clip_args:
            optimizer.register_step_pre_hook(clip)
        return optimizer

    return make


class _Function:
    """A loss function as an objective."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.loss = function
        self.differentiable_loss = function

    def loss_and_grads(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = self.loss(*args, **kwargs)
        loss.backward()
        return loss.detach()


class _Params(Messenger):
    """Collects the parameters of programs and clears gradients that they have from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.params: dict[int, Tensor] = {}
        self._names: dict[str, int] = {}

    def names(self, stored: set[str], own: set[int]) -> list[str]:
        """The names of parameters that were stored before, other than a program's own."""
        return [name for name, key in self._names.items() if name in stored and key not in own]

    def _pyro_post_param(self, msg: Any) -> None:
        param = msg["value"].unconstrained()
        self._names[msg["name"]] = id(param)
        if id(param) not in self.params:
            param.grad = None
            self.params[id(param)] = param
