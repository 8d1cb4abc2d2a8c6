"""One of `pyro.optim` as one torch optimizer for all parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.optim.optim import _load_state_dict, is_scheduler
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.errors import RequestError

Options = dict[str, Any]

# Options of the joint optimizer that belong to it alone: `SVI` sets `capturable` on CUDA.
OWN = {"params", "capturable"}


def check_steps(optim: PyroOptim) -> None:
    """Raise `RequestError` if an optimizer overrides `__call__`, which `Joint` does not call."""
    if type(optim).__call__ not in (PyroOptim.__call__, PyroLRScheduler.__call__):
        raise RequestError(
            f"{type(optim).__name__} takes its steps in a __call__ of its own; pass a function that"
            " makes a torch optimizer, or use pyro.infer.SVI"
        )


class Joint:
    """Makes one torch optimizer for all parameters of one of `pyro.optim`.

    Pyro has an optimizer, and perhaps a scheduler, for each parameter. They are made here as Pyro
    makes them, but take no steps: they share their states and options with the joint optimizer.
    Pyro's schedulers, `get_state`, `set_state`, `save` and `load` therefore work as usual.

    Arguments:
        optim: The optimizer of Pyro, with its options and clipping for each parameter.

    Example:
        >>> import torch
        >>> optim = pyro.optim.ExponentialLR(
        ...     {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "gamma": 0.5}
        ... )
        >>> joint = Joint(optim)
        >>> optimizer = joint([torch.ones(1, requires_grad=True)])
        >>> optim.step()
        >>> joint.sync(optimizer)
        >>> optimizer.param_groups[0]["lr"]
        0.05
    """

    def __init__(self, optim: PyroOptim) -> None:
        self.optim = optim
        # The options of each parameter, as both optimizers had them at the last call of `sync`.
        self._before: dict[Tensor, Options] = {}

    def __call__(self, params: Sequence[Tensor]) -> Optimizer:
        alike: dict[str, list[Tensor]] = {}
        for param in params:
            self._register(param)
            options = dict(self._options(param))
            self._before[param] = options
            alike.setdefault(repr({**options, "params": None}), []).append(param)
        constructor: Any = self.optim.pt_optim_constructor
        optimizer = constructor([params[0]], **self.optim._get_optim_args(params[0]))
        optimizer.param_groups.clear()
        for group in alike.values():
            optimizer.add_param_group({**self._before[group[0]], "params": group})
        for param in params:
            optimizer.state[param] = self._optimizer(param).state[param]
        if self.optim.pt_clip_args:
            optimizer.register_step_pre_hook(self._clip)
        return optimizer

    def sync(self, optimizer: Optimizer) -> None:
        """Pass on what changed since the last call.

        From Pyro's optimizers, whose options schedulers change, to the joint one, and back, because
        some optimizers change their learning rates.
        """
        groups = []
        for group in optimizer.param_groups:
            changes = [self._changes(param) for param in group["params"]]
            if all(change == changes[0] for change in changes):
                group.update(changes[0])
                groups.append(group)
                continue
            for param, change in zip(group["params"], changes, strict=True):
                groups.append({**group, **change, "params": [param]})
        optimizer.param_groups[:] = groups
        for group in groups:
            self._return(group)

    def take_state(self, optimizer: Optimizer) -> None:
        """Share the states again, after some were loaded into the joint optimizer."""
        for param in self._before:
            self._optimizer(param).state[param] = optimizer.state[param]

    def _register(self, param: Tensor) -> None:
        """Make Pyro's optimizer of a parameter, unless it has one, as `PyroOptim.__call__` does."""
        if param in self.optim.optim_objs:
            return
        optim: Any = self.optim
        own = optim._get_optim(param)
        optim.optim_objs[param] = own
        optim.grad_clip[param] = optim._get_grad_clip(param)
        name = pyro.get_param_store().param_name(param)
        state = optim._state_waiting_to_be_consumed.pop(name, None)
        if state is not None:
            _load_state_dict(own, state)
        if is_scheduler(own):
            # Otherwise torch warns that the scheduler steps before the optimizer.
            own.optimizer._opt_called = True

    def _optimizer(self, param: Tensor) -> Any:
        own = self.optim.optim_objs[param]
        if is_scheduler(own):
            return own.optimizer
        return own

    def _options(self, param: Tensor) -> Options:
        return self._optimizer(param).param_groups[0]

    def _changes(self, param: Tensor) -> Options:
        """The options that changed in Pyro's optimizer of a parameter."""
        before = self._before[param]
        options = self._options(param)
        if options == before:
            return {}
        return {key: value for key, value in options.items() if value is not before.get(key)}

    def _return(self, group: Options) -> None:
        """Pass the options of a group on to Pyro's optimizers of its parameters."""
        options = {}
        for key, value in group.items():
            if key not in OWN and not isinstance(value, Tensor):
                options[key] = value
        for param in group["params"]:
            before = self._before[param]
            if any(before[key] != value for key, value in options.items()):
                own = self._options(param)
                own.update(options)
                self._before[param] = dict(own)

    def _clip(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for param in group["params"]:
                clip = self.optim.grad_clip[param]
                if clip is not None and param.grad is not None:
                    clip(param)
