"""The parts of a run: their classes, what their constructors are supplied with, and known names."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from inspect import isabstract
from itertools import accumulate
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, SequentialLR

from pyro_vae import objectives
from pyro_vae.errors import RequestError
from pyro_vae.likelihoods import Likelihood
from pyro_vae.networks import Network
from pyro_vae.posteriors import Posterior
from pyro_vae.priors import Prior
from pyro_vae.schedules import Schedule
from pyro_vae.semi_supervised import SemiSupervisedVAE
from pyro_vae.vae import Model


@dataclass(frozen=True)
class Choice:
    """A class and its options.

    Attributes:
        class_path: Its import path, or the name of a known class.
        options: Arguments of its constructor as plain values: numbers, text, lists, and for a
            nested class `{"class_path": ..., "init_args": {...}}` or its import path.
    """

    class_path: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str, plain: Any) -> Choice:
        """From the plain form: `{"class_path": ..., "init_args": {...}}`, or the class alone.

        Raises:
            ValueError: If it is anything else.
        """
        if isinstance(plain, str):
            return cls(plain)
        if not is_choice(plain):
            raise RequestError(f"{name} must be a class, with its class_path and init_args")
        return cls(plain["class_path"], plain.get("init_args") or {})

    def plain(self) -> dict[str, Any]:
        """What `read` reads."""
        if not self.options:
            return {"class_path": self.class_path}
        return {"class_path": self.class_path, "init_args": dict(self.options)}


def is_choice(plain: Any) -> bool:
    """Whether a plain value names a class with its options."""
    return (
        isinstance(plain, dict)
        and isinstance(plain.get("class_path"), str)
        and plain.keys() <= {"class_path", "init_args"}
        and isinstance(plain.get("init_args", {}), dict | None)
    )


@dataclass(frozen=True)
class Part:
    """A part of a run that can be exchanged.

    Attributes:
        base: The base class.
        default: What is used by default.
        supplied: What the run passes to the constructor, by parameter name, if the constructor has
            the parameter; these parameters are not options.
        home: The module of the known classes.
        others: Known classes of other modules.
        unsupported: Classes of the module that training does not support.
        types: Types of options that have no annotation.
        otherwise: What the help shows if there is no default.
    """

    base: type
    default: Choice | None
    supplied: Mapping[str, str]
    home: ModuleType
    others: Collection[type] = ()
    unsupported: Collection[type] = ()
    types: Mapping[str, Any] = field(default_factory=dict)
    otherwise: str = "none"

    def known(self) -> list[type]:
        """The classes that `--help` lists and that a run folder may name, by name."""
        known = set(self.others)
        for name, cls in vars(self.home).items():
            is_own = isinstance(cls, type) and self.base in cls.__mro__[1:]
            if is_own and not isabstract(cls) and not name.startswith("_"):
                known.add(cls)
        return sorted(known - {*self.unsupported}, key=lambda cls: cls.__name__)

    @property
    def choices(self) -> str:
        """The known classes, for messages."""
        names = ", ".join(cls.__name__ for cls in self.known())
        return f"{names}, or an import path such as my_module.MyClass"


def _home(base: type) -> ModuleType:
    return sys.modules[base.__module__]


_NOT_OFFERED = "left at Pyro's default"

PARTS = {
    "model": Part(
        Model,
        Choice("pyro_vae.VAE"),
        {
            "prior": "the prior",
            "encoder": "the encoder",
            "posterior": "the posterior",
            "decoder": "the decoder",
            "likelihood": "the likelihood",
            "classifier": "the classifier",
            "latent_dim": "dimensions of the site z",
            "data_shape": "shape of one image",
            "label_dim": "number of classes or covariates of the data; None without labels",
        },
        _home(Model),
        others=(SemiSupervisedVAE,),
    ),
    "prior": Part(
        Prior,
        Choice("pyro_vae.StandardNormal"),
        {
            "latent_dim": "dimensions of the prior: the option `prior_dim` of a model that has it"
            " (HierarchicalVAE), otherwise latent_dim",
            "data_shape": "shape of one image",
            "encoder": "the encoder, which it shares with the guide",
            "posterior": "the posterior, which it shares with the guide",
        },
        _home(Prior),
    ),
    "posterior": Part(
        Posterior,
        Choice("pyro_vae.DiagonalNormal"),
        {"latent_dim": "dimensions of the site z"},
        _home(Posterior),
    ),
    "likelihood": Part(
        Likelihood,
        Choice("pyro_vae.Bernoulli"),
        {"data_shape": "shape of one image"},
        _home(Likelihood),
    ),
    "encoder": Part(
        Network,
        Choice("pyro_vae.MLP"),
        {"in_shape": "data_shape", "out_shape": "(posterior.num_params, latent_dim)"},
        _home(Network),
    ),
    "decoder": Part(
        Network,
        Choice("pyro_vae.MLP"),
        {
            "in_shape": "(latent_dim,), or (latent_dim + label_dim,) if the model decodes_labels",
            "out_shape": "(likelihood.num_params, *data_shape)",
        },
        _home(Network),
    ),
    "classifier": Part(
        Network,
        None,
        {"in_shape": "data_shape", "out_shape": "(label_dim,)"},
        _home(Network),
        otherwise="MLP, if the model has a classifier",
    ),
    "objective": Part(
        ELBO,
        None,
        {
            "max_plate_nesting": "the number of plates, which `fit` counts",
            "max_iarange_nesting": _NOT_OFFERED,
            "retain_graph": _NOT_OFFERED,
            "strict_enumeration_warning": _NOT_OFFERED,
            "ignore_jit_warnings": _NOT_OFFERED,
            "jit_options": _NOT_OFFERED,
            "tail_adaptive_beta": _NOT_OFFERED,
        },
        objectives,
        others=(Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, RenyiELBO),
        unsupported=objectives.OTHER_LOOPS,
        types={"num_particles": int, "vectorize_particles": bool, "alpha": float},
        otherwise="that of the model: TraceEnum_ELBO for SemiSupervisedVAE, otherwise Trace_ELBO",
    ),
    "optimizer": Part(
        Optimizer,
        Choice("torch.optim.Adam", {"fused": True}),
        {"params": "the parameters of the model"},
        torch.optim,
        unsupported=(LBFGS, SparseAdam),
    ),
    "lr_scheduler": Part(
        LRScheduler,
        None,
        {"optimizer": "the optimizer", "last_epoch": "-1, the start"},
        _home(LRScheduler),
        unsupported=(ChainedScheduler, SequentialLR),
    ),
    "beta": Part(Schedule, Choice("pyro_vae.Constant"), {}, _home(Schedule)),
}


@cache
def known_classes(name: str) -> dict[str, type]:
    """The known classes of a part, by their names and import paths."""
    return _by_name(PARTS[name].known())


@cache
def known_callables() -> dict[str, Any]:
    """torch's activations and initializations, by their names and import paths."""
    activations = [getattr(nn, name) for name in nn.modules.activation.__all__]
    known: dict[str, Any] = {**_by_name(activations)}
    for name, function in vars(nn.init).items():
        if re.fullmatch(r"[a-z]\w*[a-z]_", name):
            known[f"torch.nn.init.{name}"] = function
    return known


def import_path(cls: type) -> str:
    """The shortest import path of a class."""
    return _paths(cls)[0]


def _by_name(classes: Collection[type]) -> dict[str, type]:
    known = {}
    for cls in classes:
        for path in (cls.__name__, *_paths(cls)):
            known[path] = cls
    return known


def _paths(cls: type) -> list[str]:
    """The import paths of a class: from its module and the packages around it that export it."""
    modules = accumulate(cls.__module__.split("."), "{}.{}".format)
    return [
        f"{name}.{cls.__name__}"
        for name in modules
        if getattr(sys.modules[name], cls.__name__, None) is cls
    ]


def resolve(name: str, path: str) -> Any:
    """Import what a path names. Exceptions of its module keep their traceback.

    Raises:
        ValueError: If there is no such module or class.
    """
    try:
        return resolve_name(path)
    except (AttributeError, ValueError, ModuleNotFoundError) as error:
        missing = getattr(error, "name", None) or path
        if isinstance(error, ModuleNotFoundError) and not f"{path}.".startswith(f"{missing}."):
            raise  # the module itself imports one that is missing
        raise RequestError(f"{name}: there is no class {path}") from error
