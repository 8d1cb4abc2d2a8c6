"""The parameters of Pyro programs: which ones a call uses, and what is odd about the first call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import getLogger
from typing import Any

import pyro
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.errors import RequestError, first_line

logger = getLogger("pyro_vae")


class Parameters(Messenger):
    """Collects the parameters of programs and clears gradients that they have from elsewhere.

    Example:
        >>> import torch
        >>> with Parameters() as seen:
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        >>> list(seen.names.values())
        ['loc']
    """

    def __init__(self) -> None:
        super().__init__()
        # By name, as in Pyro: automatic guides make theirs twice in their first call.
        self._last: dict[str, Tensor] = {}

    @property
    def params(self) -> dict[int, Tensor]:
        """The unconstrained parameters, by their identities."""
        return {id(param): param for param in self._last.values()}

    @property
    def names(self) -> dict[int, str]:
        return {id(param): name for name, param in self._last.items()}

    def _pyro_post_param(self, msg: Any) -> None:
        param = msg["value"].unconstrained()
        if self._last.get(msg["name"]) is not param:
            param.grad = None
            self._last[msg["name"]] = param


@contextmanager
def first_call(*programs: Any) -> Iterator[None]:
    """Report parameters that do not start or stay as their programs say, in their first call.

    A warning names those of modules that start at values of Pyro's parameter store from earlier
    programs, and those that do not require a gradient. If the call fails, the error names values
    from earlier programs.

    Arguments:
        *programs: The model and the guide.
    """
    # Those that keep their parameters themselves, such as automatic guides.
    modules = [program for program in programs if isinstance(program, PyroModule)]
    stored = set(pyro.get_param_store().keys())
    own: set[int] = set()
    frozen: dict[str, Tensor] = {}
    for module in modules:
        own.update(id(param) for param in module.parameters())
        for name, param in module.named_parameters():
            if not param.requires_grad:
                frozen[name] = param
    with Parameters() as seen:
        try:
            yield
        except (ValueError, RuntimeError) as error:
            _blame_the_store(error, _earlier(seen, stored, own), modules)
            raise
    names = _earlier(seen, stored, own)
    if modules and names:
        logger.warning(
            "%s start at the values that Pyro's parameter store holds from earlier programs;"
            " if that is not intended, call pyro.clear_param_store() before you make new ones",
            ", ".join(names),
        )
    # https://github.com/pyro-ppl/pyro/issues/3438
    thawed = [name for name, param in frozen.items() if param.requires_grad]
    if thawed:
        logger.warning(
            "Pyro trains all parameters of a PyroModule, also those that do not require a"
            " gradient: %s; to keep them constant, make them buffers",
            ", ".join(thawed),
        )


def _earlier(seen: Parameters, stored: set[str], own: set[int]) -> list[str]:
    """The names of parameters that were stored before, other than a program's own."""
    return [name for key, name in seen.names.items() if name in stored and key not in own]


def _blame_the_store(error: Exception, names: list[str], modules: Sequence[PyroModule]) -> None:
    """Say that an error may come from values that earlier programs left in the store."""
    if not names or isinstance(error, RequestError):
        return
    reason = (
        f"Pyro's parameter store holds {', '.join(names)} from earlier programs; call"
        " pyro.clear_param_store() before you make new ones"
    )
    if modules:
        raise RequestError(f"{first_line(error)}: {reason}") from error
    error.add_note(reason)
