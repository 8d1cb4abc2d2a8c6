"""A recipe: what a run was asked for, as plain values; from it the parts, the model and the training.

`PARTS` says what the constructors of the parts are supplied with.
"""

from __future__ import annotations

import math
import os
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from functools import cache, partial
from inspect import Parameter, isabstract, signature
from itertools import accumulate
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pyro
import torch
import yaml
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
)
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from pyro_vae import objectives
from pyro_vae.data.datasets import NAMED, Binarization, load_data
from pyro_vae.data.split import Data
from pyro_vae.engine import distributed
from pyro_vae.engine.graphs import AnyEngine
from pyro_vae.engine.precision import Precision
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError, check_choice
from pyro_vae.likelihoods import Likelihood, Pixels
from pyro_vae.networks import Network, Shape
from pyro_vae.posteriors import Posterior
from pyro_vae.priors import Prior
from pyro_vae.runs.store import parse_yaml, read_yaml
from pyro_vae.schedules import Schedule
from pyro_vae.training.fit import OnNaN, Training, fit
from pyro_vae.vae import Model

Device = Literal["auto", "cpu", "cuda"]
Logger = Literal["tensorboard"]


@dataclass(frozen=True)
class Choice:
    """A class and its options.

    Attributes:
        class_path: Its import path, or the name of a known class.
        options: Arguments of its constructor as plain values: numbers, text, lists, and for a nested class
            `{"class_path": ..., "init_args": {...}}` or its import path.
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
            raise RequestError(f"{name} must be a class with a class_path and init_args")
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
        supplied: Constructor parameters that the run fills in, if the constructor has them; they are not options.
        home: The module of the known classes.
        others: Known classes of other modules.
        unsupported: Classes of the module that training does not support.
        types: Types of options that have no annotation.
    """

    base: type
    default: Choice | None
    supplied: frozenset[str]
    home: ModuleType
    others: Collection[type] = ()
    unsupported: Collection[type] = ()
    types: Mapping[str, Any] = field(default_factory=dict)

    def known(self) -> list[type]:
        """The classes that `--help` lists and that a run folder may name: the concrete ones of the module, and others."""
        concrete = set(self.others)
        for name, cls in vars(self.home).items():
            is_own = isinstance(cls, type) and self.base in cls.__mro__[1:]
            if is_own and not isabstract(cls) and not name.startswith("_"):
                concrete.add(cls)
        return sorted(concrete - {*self.unsupported}, key=lambda cls: cls.__name__)

    @property
    def choices(self) -> str:
        """The known classes, for messages."""
        names = ", ".join(cls.__name__ for cls in self.known())
        return f"{names}, or an import path such as my_module.MyClass"


def _home(base: type) -> ModuleType:
    return sys.modules[base.__module__]


PARTS = {
    # `latent_dim`: of the site z. `label_dim`: the number of classes or covariates, or None. A model may have an option
    # `prior_dim`: its prior then has as many dimensions, instead of `latent_dim` (see `HierarchicalVAE`).
    "model": Part(
        Model,
        Choice("pyro_vae.VAE"),
        frozenset(
            ("prior", "encoder", "posterior", "decoder", "likelihood")
            + ("latent_dim", "data_shape", "label_dim")
        ),
        _home(Model),
    ),
    # `latent_dim`: of the prior. `encoder`, `posterior`: those of the guide, for a prior that shares them.
    "prior": Part(
        Prior,
        Choice("pyro_vae.StandardNormal"),
        frozenset({"latent_dim", "data_shape", "encoder", "posterior"}),
        _home(Prior),
    ),
    "posterior": Part(
        Posterior, Choice("pyro_vae.DiagonalNormal"), frozenset({"latent_dim"}), _home(Posterior)
    ),
    "likelihood": Part(
        Likelihood, Choice("pyro_vae.Bernoulli"), frozenset({"data_shape"}), _home(Likelihood)
    ),
    # From `data_shape` to `(posterior.num_params, latent_dim)`.
    "encoder": Part(
        Network, Choice("pyro_vae.MLP"), frozenset({"in_shape", "out_shape"}), _home(Network)
    ),
    # From `(latent_dim,)`, with the label's code `(latent_dim + label_dim,)` if the model `decodes_labels`, to
    # `(likelihood.num_params, *data_shape)`.
    "decoder": Part(
        Network, Choice("pyro_vae.MLP"), frozenset({"in_shape", "out_shape"}), _home(Network)
    ),
    # Not supplied, but left at Pyro's defaults: they are not useful for a VAE.
    "objective": Part(
        ELBO,
        Choice("pyro.infer.Trace_ELBO"),
        frozenset(
            ("max_plate_nesting", "max_iarange_nesting", "retain_graph", "jit_options")
            + ("strict_enumeration_warning", "ignore_jit_warnings", "tail_adaptive_beta")
        ),
        objectives,
        others=(Trace_ELBO, TraceMeanField_ELBO, RenyiELBO),
        unsupported=objectives.OTHER_LOOPS,
        types={"num_particles": int, "vectorize_particles": bool, "alpha": float},
    ),
    "optimizer": Part(
        Optimizer,
        Choice("torch.optim.Adam", {"fused": True}),
        frozenset({"params"}),
        torch.optim,
        unsupported=(Optimizer, LBFGS, SparseAdam),
    ),
    "lr_scheduler": Part(
        LRScheduler,
        None,
        frozenset({"optimizer", "last_epoch"}),
        _home(LRScheduler),
        unsupported=(ChainedScheduler, SequentialLR),
    ),
    "beta": Part(Schedule, Choice("pyro_vae.Constant"), frozenset(), _home(Schedule)),
}


def _default(name: str) -> Any:
    return field(default_factory=lambda: PARTS[name].default)


@dataclass(kw_only=True)
class Recipe:
    """Everything that a run was asked for, as the plain values of its config.yaml.

    Attributes:
        data: auto, the name of a data set, a path to your own images (.npy, .npz or a folder), or the import path of
            a function that returns `pv.Data`.
        data_dir: Folder of the downloaded data sets.
        image_size: Height and width to resize every image to, up to 1024.
        binarization: How grey pixels become binary: drawn at each presentation, drawn once, or not at all.
        validation_size: Training images held out for validation; by default a twelfth.
        latent_dim: Number of latent dimensions.
        epochs: As in `fit`, like the next seven.
        seed: Seed of the random number generators.
        device: Where to compute.
        checkpoint_every: Epochs between checkpoints.
        keep_every: Epochs between checkpoints that are all kept, in epochs/ of the run folder.
        logger: Also write curves and images for a logger.
        report: Write report.html at the end.
        test_samples: Importance samples per test image at the end; 0 skips the test set.
        test_images: Test images to score with so many samples.
        model: The parts, see `PARTS`.
    """

    data: str = "auto"
    data_dir: str = "data"
    image_size: int | None = None
    binarization: Binarization | None = None
    validation_size: int | None = None
    latent_dim: int = 20
    epochs: int | None = None
    batch_size: int | None = None
    clip_grad_norm: float | None = None
    normalize_gradients: bool = False
    patience: int | None = None
    engine: AnyEngine = "auto"
    precision: Precision = "float32"
    on_nan: OnNaN = "stop"
    seed: int = 0
    device: Device = "auto"
    checkpoint_every: int = 1
    keep_every: int | None = None
    logger: Logger | None = None
    report: bool = True
    test_samples: int = 1000
    test_images: int = 1000
    model: Choice = _default("model")
    prior: Choice = _default("prior")
    posterior: Choice = _default("posterior")
    likelihood: Choice = _default("likelihood")
    encoder: Choice = _default("encoder")
    decoder: Choice = _default("decoder")
    objective: Choice = _default("objective")
    optimizer: Choice = _default("optimizer")
    lr_scheduler: Choice | None = None
    beta: Choice = _default("beta")

    @classmethod
    def from_plain(cls, plain: Mapping[Any, Any]) -> Recipe:
        """From the mapping that a YAML file holds; what it leaves out has its default. Nothing is checked but the names.

        Raises:
            ValueError: If it has other keys.
        """
        names = {item.name for item in fields(cls)}
        for key in plain:
            if key not in names:
                raise RequestError(f"{key} is not an option of a run")
        values = dict(plain)
        for name in PARTS:
            if values.get(name) is not None:
                values[name] = Choice.read(name, values[name])
        return cls(**values)

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """From YAML; raises as `from_plain`."""
        plain = parse_yaml(text)
        if not isinstance(plain, dict):
            raise RequestError("the YAML does not hold options")
        return cls.from_plain(plain)

    @classmethod
    def load(cls, file: Path, trust: bool = False, allowed: Collection[str] = ()) -> Recipe:
        """From the config.yaml of a run folder, checked.

        Raises:
            ValueError: If it cannot be read, or as `check`.
        """
        plain = read_yaml(file)
        try:
            recipe = cls.from_plain(plain)
            recipe.check(trust, allowed)
        except RequestError as error:
            raise RequestError(f"{file}: {error}") from error
        return recipe

    def plain(self) -> dict[str, Any]:
        """The mapping that `from_plain` reads, without what is None."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in PARTS:
            if isinstance(values[name], Choice):
                values[name] = values[name].plain()
        return {name: value for name, value in values.items() if value is not None}

    def to_yaml(self) -> str:
        """As YAML, which `from_yaml` reads."""
        return yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True)

    def paths(self) -> set[str]:
        """The import paths that it names: naming one imports its module, which runs code."""
        return {text for name in PARTS for text in _strings(self.plain().get(name))} | {self.data}

    def is_known(self) -> bool:
        """Whether it names only known classes and data, so that run folders with it need no trust."""
        try:
            self.check()
        except UntrustedError:
            return False
        return True

    def check(self, trust: bool = False, allowed: Collection[str] = ()) -> None:
        """Check names, types and ranges, before anything is built, loaded or imported that is not known.

        Arguments:
            trust: Accept every import path; this imports its module, which runs code.
            allowed: Further import paths to accept.

        Raises:
            ValueError: If a value is wrong, or names a class that is neither known nor trusted.
        """
        _Check(trust, frozenset(allowed)).recipe(self)


class UntrustedError(RequestError):
    """A recipe from a stranger names code that is not of the known classes."""


# Largest integers, far above useful values: they bound memory and time before anything is built.
LIMITS = {
    "image_size": 1024,
    "latent_dim": 2**14,
    "prior_dim": 2**14,
    "hidden": 2**16,
    "channels": 2**14,
    "kernel_sizes": 2**8,
    "strides": 2**8,
    "components": 2**16,
    "transforms": 2**6,
    "rank": 2**14,
    "num_particles": 2**14,
    "cycles": 2**20,
    "seed": 2**32 - 1,
}
LARGEST = 10**12
LONGEST_LIST = 1000
# The least value of these integers of a recipe itself; it is 1 for the others, and for the options above.
LEAST = {"seed": 0, "test_samples": 0}


@dataclass(frozen=True)
class _Check:
    """The checks of a recipe, which may name known classes, and if trusted all others."""

    trust: bool
    allowed: frozenset[str]

    def recipe(self, recipe: Recipe) -> None:
        for name, hint in get_type_hints(Recipe).items():
            value = getattr(recipe, name)
            if name not in PARTS:
                self.value(name, value, hint)
            elif value is not None:
                self.part(name, value)
            elif PARTS[name].default is not None:
                raise RequestError(
                    f"{name} must be a class, but is null; choose from {PARTS[name].choices}"
                )
        named = recipe.data in ("auto", *NAMED) or os.path.isabs(recipe.data)
        if not named and not self.trusts(recipe.data):
            raise UntrustedError(_distrust("data", recipe.data))

    def part(self, name: str, choice: Choice) -> None:
        part = PARTS[name]
        cls = self.target(name, choice.class_path, known_classes(name))
        if not isinstance(cls, type) or not issubclass(cls, part.base) or isabstract(cls):
            raise RequestError(
                f"{name}: {choice.class_path} is not a {part.base.__name__}; choose from {part.choices}"
            )
        if cls in part.unsupported:
            raise RequestError(
                f"{name}: {choice.class_path} is not supported; choose from {part.choices}"
            )
        self.options(name, cls, choice.options, part.supplied, part.types)

    def target(self, name: str, path: str, known: Mapping[str, Any]) -> Any:
        """The class or function of an import path."""
        if path in known:
            return known[path]
        if "." not in path:
            raise RequestError(
                f"{name}: there is no class {path}; choose from {', '.join(_bare(known))}"
            )
        if not self.trusts(path):
            raise UntrustedError(_distrust(name, path))
        return resolve(name, path)

    def trusts(self, path: str) -> bool:
        return self.trust or path in self.allowed

    def options(
        self,
        name: str,
        cls: type,
        options: Mapping[str, Any],
        supplied: Collection[str] = (),
        types: Mapping[str, Any] | None = None,
    ) -> None:
        """The options of a constructor against its signature."""
        accepted = parameters(cls, supplied)
        others = any(param.kind is Parameter.VAR_KEYWORD for param in accepted.values())
        hints = {**_hints(cls), **(types or {})}
        for key, value in options.items():
            if key in accepted:
                self.value(f"{name}.{key}", value, hints.get(key, Any))
            elif not others:
                listed = ", ".join(accepted) or "none"
                raise RequestError(
                    f"{name}.{key} is not an option of {cls.__name__}, whose options are: {listed}"
                )
        for key, param in accepted.items():
            if param.default is Parameter.empty and _is_named(param) and key not in options:
                raise RequestError(f"{name}: {cls.__name__} needs the option {key}")

    def value(self, name: str, value: Any, hint: Any) -> None:
        """A plain value against the annotation of its parameter."""
        members = _members(hint)
        _check_size(name, value)
        if isinstance(value, list) and any(
            names_code(each, item_members(members)) for each in value
        ):
            for number, each in enumerate(value):
                self.value(f"{name}[{number}]", each, Union[item_members(members)])  # noqa: UP007
            return
        if names_code(value, members):
            self.nested(name, Choice.read(name, value), members)
            return
        is_wrong_bool = isinstance(value, bool) and not {bool, Any} & {*members}
        try:
            if is_wrong_bool:
                raise TypeCheckError("a bool is no number")
            strategy = CollectionCheckStrategy.ALL_ITEMS
            check_type(as_sequence(value, members), hint, collection_check_strategy=strategy)
        except TypeCheckError as error:
            wanted = " or ".join(_describe(member) for member in members)
            raise RequestError(f"{name} must be {wanted}, but is {_short(value)}") from error

    def nested(self, name: str, choice: Choice, members: tuple[Any, ...]) -> None:
        """A class or function as the value of an option."""
        target = self.target(name, choice.class_path, nested_names(members))
        if not isinstance(target, type):
            self.function(name, choice, target, members)
            return
        bases = tuple(base for base in map(_result, members) if isinstance(base, type))
        if not issubclass(target, bases) or isabstract(target):
            wanted = " or ".join(base.__name__ for base in bases if base is not NoneType)
            raise RequestError(f"{name}: {choice.class_path} is not a {wanted}")
        self.options(name, target, choice.options)

    def function(self, name: str, choice: Choice, target: Any, members: tuple[Any, ...]) -> None:
        try:
            for member in filter(_is_callable, members):
                check_type(target, member)
        except TypeCheckError as error:
            raise RequestError(f"{name}: {choice.class_path} {error}") from error
        if choice.options or not any(map(_is_callable, members)):
            raise RequestError(f"{name}: {choice.class_path} is not a class")


def _distrust(name: str, path: str) -> str:
    return f"{name} names {path}; to run its module's code, add --trust, or trust=True in Python"


def _check_size(name: str, value: Any) -> None:
    """Refuse numbers and lists that would cost unbounded memory or time."""
    if isinstance(value, list):
        if len(value) > LONGEST_LIST:
            raise RequestError(f"{name} has {len(value):,} entries; use at most {LONGEST_LIST:,}")
        for item in value:
            _check_size(name, item)
    elif isinstance(value, float) and math.isnan(value):
        raise RequestError(f"{name} must be a number, but is NaN")
    elif isinstance(value, int) and not isinstance(value, bool):
        option = name.rpartition(".")[2]
        is_count = option in LIMITS or option == name
        least = LEAST.get(option, 1) if is_count else -LARGEST
        limit = LIMITS.get(option, LARGEST)
        if not least <= value <= limit:
            wanted = f"an integer from {least} to {limit}"
            if (least, limit) == (1, LARGEST):
                wanted = "a positive integer"
            raise RequestError(f"{name} must be {wanted}, but is {_short(value)}")


def _short(value: Any) -> str:
    """A value for a message; Python does not print integers of more than 4,300 digits."""
    if isinstance(value, int) and abs(value) > 10**30:
        return f"an integer of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) < 100 else f"{text[:100]}..."


_DESCRIPTIONS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
}


def _describe(hint: Any) -> str:
    """A type, for messages."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if _is_callable(hint):
        return "an import path, such as torch.nn.Tanh for an activation"
    if get_origin(hint) is not None:
        return "a list such as [2, 3]"
    return _DESCRIPTIONS.get(hint, getattr(hint, "__name__", str(hint)))


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; the type itself if it is none."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_callable(hint: Any) -> bool:
    return hint is Callable or get_origin(hint) is get_origin(Callable[[], Any])


def _result(hint: Any) -> Any:
    """What a callable returns; another type itself."""
    return get_args(hint)[1] if _is_callable(hint) and get_args(hint) else hint


def names_code(value: Any, members: tuple[Any, ...]) -> bool:
    """Whether the plain value of a parameter with an annotation stands for a class or a function."""
    if is_choice(value):
        return True
    if not isinstance(value, str) or {str, Any} & {*members}:
        return False
    literals = {text for member in members for text in get_args(member) if _is_literal(member)}
    nested = any(_is_callable(member) or _parts_of(member) for member in members)
    return value not in literals and nested


def item_members(members: tuple[Any, ...]) -> tuple[Any, ...]:
    """The types of the items of those members that are lists."""
    lists = (list, tuple, Sequence, Iterable)
    return tuple(get_args(hint)[0] for hint in members if get_origin(hint) in lists) or (Any,)


def _is_literal(hint: Any) -> bool:
    return get_origin(hint) is Literal


def as_sequence(value: Any, members: tuple[Any, ...]) -> Any:
    """YAML has lists only: a tuple if the annotation wants one."""
    wants_tuple = any(get_origin(member) is tuple for member in members)
    return tuple(value) if isinstance(value, list) and wants_tuple else value


def _hints(cls: type) -> dict[str, Any]:
    """The annotations of a constructor; empty if they cannot be read."""
    for names in (
        None,
        vars(typing),
    ):  # torch imports names of its annotations for type checkers only
        with suppress(NameError, TypeError, AttributeError):
            return get_type_hints(cls.__init__, localns=names)
    return {}


def parameters(cls: type, supplied: Collection[str]) -> dict[str, Parameter]:
    """The parameters of a constructor that are options."""
    every = signature(cls).parameters
    return {key: param for key, param in every.items() if key not in supplied}


def _is_named(param: Parameter) -> bool:
    return param.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@cache
def known_classes(name: str) -> dict[str, type]:
    """The known classes of a part, by their names and import paths."""
    return _by_name(PARTS[name].known())


@cache
def known_callables() -> dict[str, Any]:
    """torch's activations and initializations, by their names and import paths."""
    activations = [
        cls
        for cls in vars(nn.modules.activation).values()
        if isinstance(cls, type) and issubclass(cls, nn.Module) and cls is not nn.Module
    ]
    names = [name for name in vars(nn.init) if re.fullmatch(r"[a-z]\w*[a-z]_", name)]
    return _by_name(activations) | {
        f"torch.nn.init.{name}": getattr(nn.init, name) for name in names
    }


def nested_names(members: tuple[Any, ...]) -> dict[str, Any]:
    """The known classes and functions for an option with this annotation."""
    known: dict[str, Any] = {}
    for member in members:
        if _is_callable(member):
            known |= known_callables()
        for name in _parts_of(member):
            known |= known_classes(name)
    return known


def _parts_of(hint: Any) -> list[str]:
    return [name for name, part in PARTS.items() if hint is part.base]


def _by_name(classes: Collection[type]) -> dict[str, type]:
    return {path: cls for cls in classes for path in (cls.__name__, *_paths(cls))}


def _bare(known: Mapping[str, Any]) -> list[str]:
    return [name for name in known if "." not in name]


def _paths(cls: type) -> list[str]:
    """The import paths of a class: from its module, and from the packages around it that export it."""
    modules = accumulate(cls.__module__.split("."), "{}.{}".format)
    return [
        f"{name}.{cls.__name__}"
        for name in modules
        if getattr(sys.modules[name], cls.__name__, None) is cls
    ]


def _strings(plain: Any) -> Iterator[str]:
    if isinstance(plain, str):
        yield plain
    children = plain.values() if isinstance(plain, dict) else plain
    if isinstance(children, Collection) and not isinstance(children, str):
        for child in children:
            yield from _strings(child)


def resolve(name: str, path: str) -> Any:
    """Import what a path names. Exceptions of its module keep their traceback.

    Raises:
        ValueError: If there is no such module or class.
    """
    try:
        return resolve_name(path)
    except (AttributeError, ValueError, ModuleNotFoundError) as error:
        module = getattr(error, "name", None) or path
        if isinstance(error, ModuleNotFoundError) and not f"{path}.".startswith(f"{module}."):
            raise  # the module itself imports a module that is missing
        raise RequestError(f"{name}: there is no class {path}") from error


# Constructing


def make(recipe: Recipe, name: str, **supplied: Any) -> Any:
    """A part of a recipe that was checked, with those of the supplied arguments that its constructor accepts.

    Raises:
        ValueError: If the constructor rejects its arguments. Other errors in the user's own class keep their traceback.
    """
    choice: Choice = getattr(recipe, name)
    cls = class_of(recipe, name)
    accepted = signature(cls).parameters.keys() & PARTS[name].supplied
    given = {key: value for key, value in supplied.items() if key in accepted}
    with _blaming(name, cls):
        return cls(**_arguments(name, cls, choice.options), **given)


def class_of(recipe: Recipe, name: str) -> Any:
    """The class of a part."""
    path = getattr(recipe, name).class_path
    return known_classes(name).get(path) or resolve(name, path)


def _arguments(name: str, cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    hints = _hints(cls)
    return {
        key: _made(f"{name}.{key}", value, hints.get(key, Any)) for key, value in options.items()
    }


def _made(name: str, value: Any, hint: Any) -> Any:
    """The argument for a parameter with this annotation, from its plain value."""
    members = _members(hint)
    if isinstance(value, list) and any(names_code(each, item_members(members)) for each in value):
        return [_made(name, each, Union[item_members(members)]) for each in value]  # noqa: UP007
    if not names_code(value, members):
        return as_sequence(value, members)
    choice = Choice.read(name, value)
    target = nested_names(members).get(choice.class_path) or resolve(name, choice.class_path)
    if not isinstance(target, type):
        return target
    arguments = _arguments(name, target, choice.options)
    if any(map(_is_callable, members)):
        return partial(_construct, name, target, arguments)
    return _construct(name, target, arguments)


def _construct(name: str, cls: type, arguments: Mapping[str, Any]) -> Any:
    with _blaming(name, cls):
        return cls(**arguments)


@contextmanager
def _blaming(name: str, cls: type) -> Iterator[None]:
    """Turn what torch's and Pyro's own classes raise, of almost any class, into a message about a part."""
    try:
        yield
    except Exception as error:
        if isinstance(error, RequestError) or cls.__module__.startswith(("torch.", "pyro.")):
            raise RequestError(f"{name}: {str(error) or type(error).__name__}") from error
        raise


def build_model(recipe: Recipe, shape: Shape, label_dim: int | None = None) -> Model:
    """The model of a recipe for images of `shape` and labels of `label_dim`, if it uses labels.

    The parts draw their initial values in the order of VAE's parameters; a prior that needs the encoder follows the
    posterior. A posterior or likelihood that learns `num_params` from its options is constructed before them all.

    Raises:
        ValueError: If a constructor rejects its arguments.
    """
    if needs_labels(recipe) and label_dim is None:
        raise RequestError(
            f"model: {recipe.model.class_path} needs labels, which the run was not trained with; use VAE"
        )
    dim = recipe.latent_dim
    supplied: dict[str, Any] = {"latent_dim": dim, "data_shape": shape}
    posterior = _Counted(recipe, "posterior", supplied)
    likelihood = _Counted(recipe, "likelihood", supplied)
    prior_dim = _option(recipe, "model", "prior_dim", dim)
    prior_needs = signature(class_of(recipe, "prior")).parameters.keys()
    prior_is_first = not {"encoder", "posterior"} & prior_needs
    if prior_is_first:
        supplied["prior"] = make(recipe, "prior", **{**supplied, "latent_dim": prior_dim})
    codes = (posterior.num_params, dim)
    supplied["encoder"] = make(recipe, "encoder", in_shape=shape, out_shape=codes)
    supplied["posterior"] = posterior.made()
    if not prior_is_first:
        supplied["prior"] = make(recipe, "prior", **{**supplied, "latent_dim": prior_dim})
    joined = dim
    if label_dim and class_of(recipe, "model").decodes_labels:
        joined += label_dim
    images = (likelihood.num_params, *shape)
    supplied["decoder"] = make(recipe, "decoder", in_shape=(joined,), out_shape=images)
    supplied["likelihood"] = likelihood.made()
    return make(recipe, "model", label_dim=label_dim, **supplied)


class _Counted:
    """A posterior or likelihood whose number of parameters is needed before its turn to draw initial values.

    If its class declares `num_params`, it is constructed in its turn, otherwise at once.
    """

    def __init__(self, recipe: Recipe, name: str, supplied: Mapping[str, Any]) -> None:
        self.name = name
        self.make = partial(make, recipe, name, **supplied)
        declared = vars(class_of(recipe, name)).get("num_params")
        self.early = None if isinstance(declared, int) else self.make()
        self.num_params: int = declared if self.early is None else self.early.num_params

    def made(self) -> Any:
        part = self.make() if self.early is None else self.early
        if part.num_params != self.num_params:
            kind = type(part).__name__
            raise RequestError(
                f"{self.name}: the class {kind} declares num_params = {self.num_params}, but its constructor sets"
                f" {part.num_params}; leave out one of them"
            )
        return part


def _option(recipe: Recipe, name: str, key: str, otherwise: Any) -> Any:
    """The value of an option of a part, or its default, if the part's class has the option."""
    param = signature(class_of(recipe, name)).parameters.get(key)
    if param is None:
        return otherwise
    return getattr(recipe, name).options.get(key, param.default)


def needs_labels(recipe: Recipe) -> bool:
    """Whether the model of a recipe uses labels."""
    return class_of(recipe, "model").needs_labels


def build_training(recipe: Recipe, download: bool = True) -> tuple[Model, Data, Training]:
    """The model, the data and the training of a recipe. The recipe gets the values of what it left open.

    Arguments:
        recipe: Any class that it names is imported.
        download: Whether the data may be downloaded to `recipe.data_dir`.

    Raises:
        ValueError: If the recipe cannot be carried out.
    """
    recipe.check(trust=True)
    device = pick_device(recipe.device)
    recipe.binarization = pick_binarization(recipe)
    with distributed.main_process_first():
        options = (recipe.image_size, recipe.binarization, download, recipe.validation_size)
        data = load_data(recipe.data, recipe.data_dir, *options)
    recipe.data = stored_data(recipe.data, data)
    recipe.data_dir = os.path.abspath(recipe.data_dir)
    pyro.clear_param_store()
    pyro.set_rng_seed(recipe.seed)
    label_dim = data.label_dim if needs_labels(recipe) else None
    vae = build_model(recipe, data.shape, label_dim).to(device)
    data = data.to(device)
    training = fit(
        vae,
        data,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        optimizer=lambda params: make(recipe, "optimizer", params=params),
        objective=make(recipe, "objective"),
        beta=make(recipe, "beta"),
        lr_scheduler=_scheduler(recipe),
        clip_grad_norm=recipe.clip_grad_norm,
        normalize_gradients=recipe.normalize_gradients,
        patience=recipe.patience,
        engine=recipe.engine,
        precision=recipe.precision,
        on_nan=recipe.on_nan,
    )
    recipe.epochs = training.epochs
    recipe.batch_size = training.loop.batch_size
    recipe.engine = training.engine
    if recipe.lr_scheduler:
        _rehearse_schedule(recipe)
    return vae, data, training


def stored_data(asked: str, data: Data) -> str:
    """How config.yaml names the data: a path to files is made absolute."""
    return data.name if asked in ("auto", *NAMED) else os.path.abspath(asked)


def _scheduler(recipe: Recipe) -> Callable[[Optimizer], LRScheduler] | None:
    if recipe.lr_scheduler is None:
        return None
    return lambda optimizer: make(recipe, "lr_scheduler", optimizer=optimizer)


def _rehearse_schedule(recipe: Recipe) -> None:
    """Step the scheduler in advance: some of torch's fail at the first step, and OneCycleLR after `total_steps`."""
    optimizer = make(recipe, "optimizer", params=[torch.zeros(1, 1, requires_grad=True)])
    scheduler = make(recipe, "lr_scheduler", optimizer=optimizer)
    if isinstance(scheduler, ReduceLROnPlateau) or recipe.epochs is None:
        return
    optimizer.step()  # or the scheduler warns
    with _blaming("lr_scheduler", type(scheduler)):
        for _ in range(min(recipe.epochs, 10_000)):
            scheduler.step()


def pick_binarization(recipe: Recipe) -> Binarization:
    """What the likelihood needs, unless it is given."""
    asked = recipe.binarization
    with forked_rng():
        likelihood = make(recipe, "likelihood", data_shape=(1, 1, 1))  # before the data are loaded
    name, pixels = type(likelihood).__name__, getattr(likelihood, "pixels", None)
    check_choice(f"{name}.pixels", pixels, Pixels)
    if pixels == "binary" and asked == "none":
        raise RequestError(
            f"binarization=none keeps grey pixels, but {name} scores binary pixels; use dynamic or static, or a"
            " likelihood for grey pixels (likelihood.relaxed=true for the cross-entropy of the classic examples)"
        )
    if pixels != "binary" and asked in ("dynamic", "static"):
        raise RequestError(
            f"binarization={asked} makes binary pixels, but {name} scores {pixels} pixels; leave it out"
        )
    return asked or ("dynamic" if pixels == "binary" else "none")


def pick_device(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" stands for.

    Raises:
        ValueError: If CUDA is asked for but not available.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise RequestError("device=cuda, but CUDA is not available; use cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
