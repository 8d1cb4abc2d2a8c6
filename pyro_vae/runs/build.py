"""From a recipe to objects: the parts, the model, the data and the training."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import signature
from logging import getLogger
from typing import Any

import pyro
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.data.datasets import Binarization, load_data, stored_name
from pyro_vae.data.files import absolute
from pyro_vae.data.split import Data
from pyro_vae.engine import distributed
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError, check_choice, first_line
from pyro_vae.likelihoods import Pixels
from pyro_vae.networks import Shape
from pyro_vae.runs.annotations import (
    converted,
    hints,
    is_callable,
    items,
    known_for,
    lists_code,
    members,
    names_code,
    union,
)
from pyro_vae.runs.parts import PARTS, Choice, import_path, known_classes, resolve
from pyro_vae.runs.recipe import Recipe
from pyro_vae.training.fit import Training, fit
from pyro_vae.vae import Model

logger = getLogger("pyro_vae")

# Elements that a tensor may have however small the checkpoint is: masks, say, are not stored.
SMALL = 2**24


def make(recipe: Recipe, name: str, **supplied: Any) -> Any:
    """Construct a part of a checked recipe, with the supplied arguments that it accepts.

    Raises:
        ValueError: If the constructor rejects its arguments. Other errors in the user's own class
            keep their traceback.
    """
    cls = class_of(recipe, name)
    accepted = signature(cls).parameters.keys() & PARTS[name].supplied.keys()
    given = {key: value for key, value in supplied.items() if key in accepted}
    options = _arguments(name, cls, getattr(recipe, name).options)
    return _construct(name, cls, {**options, **given})


def class_of(recipe: Recipe, name: str) -> Any:
    """The class of a part."""
    path = getattr(recipe, name).class_path
    return known_classes(name).get(path) or resolve(name, path)


def _arguments(name: str, cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    annotated = hints(cls)
    return {
        key: _argument(f"{name}.{key}", value, annotated.get(key, Any))
        for key, value in options.items()
    }


def _argument(name: str, value: Any, hint: Any) -> Any:
    """The argument for a parameter with this annotation, from its plain value."""
    kinds = members(hint)
    if lists_code(value, kinds):
        return [_argument(name, each, union(items(kinds))) for each in value]
    if not names_code(value, kinds):
        return converted(value, kinds)
    choice = Choice.read(name, value)
    target = known_for(kinds).get(choice.class_path) or resolve(name, choice.class_path)
    if not isinstance(target, type):
        if _is_torchs(target):
            return partial(_call, name, target)
        return target
    options = _arguments(name, target, choice.options)
    if any(is_callable(kind) for kind in kinds):
        return partial(_construct, name, target, options)
    return _construct(name, target, options)


def _call(name: str, function: Callable[..., Any], *args: Any) -> Any:
    with _blaming(name, function):
        return function(*args)


def _construct(name: str, cls: type, options: Mapping[str, Any]) -> Any:
    with _blaming(name, cls):
        return cls(**options)


@contextmanager
def _blaming(name: str, called: Any) -> Iterator[None]:
    """Turn what torch's and Pyro's own classes raise, of almost any class, into one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, RequestError):
            message = str(error)
            if not message.startswith(name):
                message = f"{name}: {message}"
            raise RequestError(message) from error
        if _is_torchs(called):
            raise RequestError(f"{name}: {called.__name__}: {first_line(error)}") from error
        raise


def _is_torchs(called: Any) -> bool:
    """Whether a class or function is of torch or Pyro."""
    return str(called.__module__).startswith(("torch.", "pyro."))


class _Limit(TorchDispatchMode):
    """Refuses to allocate a tensor that is larger than the checkpoint file."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        size: Any = None
        if args:
            size = args[0]
        is_size = isinstance(size, list | tuple) and all(isinstance(each, int) for each in size)
        if is_size and math.prod(size) > self.elements:
            raise RequestError(
                f"the model has a tensor of shape {tuple(size)}, which is larger than its"
                " checkpoint; the config.yaml does not fit"
            )
        return func(*args, **(kwargs or {}))


def build_stored_model(
    recipe: Recipe, shape: Shape, label_dim: int | None, file_bytes: int
) -> Model:
    """Build the model of a stored recipe whose checkpoint has `file_bytes` bytes.

    Raises:
        ValueError: If it needs more memory than the checkpoint, or as `build_model`.
    """
    with _Limit(file_bytes + SMALL):
        return build_model(recipe, shape, label_dim)


def build_model(recipe: Recipe, shape: Shape, label_dim: int | None = None) -> Model:
    """The model of a recipe for images of `shape` and labels of `label_dim`, if it uses labels.

    The parts draw their initial values in the order of VAE's parameters; a prior that needs the
    encoder follows the posterior. A posterior or likelihood that learns `num_params` from its
    options is constructed before them all.

    Raises:
        ValueError: If a constructor rejects its arguments, or the parts do not fit together.
    """
    if needs_labels(recipe) and label_dim is None:
        raise RequestError(
            f"model: {recipe.model.class_path} needs labels, which the run was not trained with;"
            " use VAE"
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
    supplied |= _classifier(recipe, shape, label_dim)
    vae: Model = make(recipe, "model", label_dim=label_dim, **supplied)
    if recipe.is_known():
        _check_fit(vae, shape)
    return vae


def _classifier(recipe: Recipe, shape: Shape, label_dim: int | None) -> dict[str, Any]:
    """The classifier, if the model has one, by the name of its parameter."""
    if "classifier" not in signature(class_of(recipe, "model")).parameters:
        if recipe.classifier is not None:
            raise RequestError(
                f"model: {recipe.model.class_path} has no classifier; leave out classifier, or use"
                " SemiSupervisedVAE"
            )
        return {}
    if recipe.classifier is None:
        recipe.classifier = Choice("pyro_vae.MLP")
    return {"classifier": make(recipe, "classifier", in_shape=shape, out_shape=(label_dim,))}


def build_model_for(recipe: Recipe, data: Data) -> Model:
    """The model of a recipe for these data; raises as `build_model`."""
    label_dim = None
    if needs_labels(recipe):
        label_dim = data.label_dim
    return build_model(recipe, data.shape, label_dim)


@torch.no_grad()
def _check_fit(vae: Model, shape: Shape) -> None:
    """Run the programs once; errors of a user's own class would need their traceback."""
    x = torch.zeros(1, *shape)
    y = None
    if vae.needs_labels:
        y = torch.zeros(1, dtype=torch.int64)
    try:
        with forked_rng():
            vae.eval()
            vae.guide(x, y)
            vae.sample(1, y)
    except Exception as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"the model cannot be run ({first_line(error)}); check activations and sizes"
        ) from error
    finally:
        vae.train()


class _Counted:
    """A posterior or likelihood whose `num_params` is needed before its turn to draw values.

    If its class declares `num_params`, it is constructed in its turn, otherwise at once.
    """

    def __init__(self, recipe: Recipe, name: str, supplied: Mapping[str, Any]) -> None:
        self.name = name
        self.make = partial(make, recipe, name, **supplied)
        declared = vars(class_of(recipe, name)).get("num_params")
        self.early: Any = None
        if isinstance(declared, int):
            self.num_params = declared
        else:
            self.early = self.make()
            self.num_params = self.early.num_params

    def made(self) -> Any:
        part = self.early
        if part is None:
            part = self.make()
        if part.num_params != self.num_params:
            kind = type(part).__name__
            raise RequestError(
                f"{self.name}: the class {kind} declares num_params = {self.num_params}, but its"
                f" constructor sets {part.num_params}; leave out one of them"
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
    """The model, the data and the training of a recipe; fills in what the recipe leaves open.

    Arguments:
        recipe: Any class that it names is imported.
        download: Whether the data may be downloaded to `recipe.data_dir`.

    Raises:
        ValueError: If the recipe cannot be carried out.
    """
    recipe.check(trust=True)
    device = pick_device(recipe.device)
    if recipe.objective is None:
        recipe.objective = Choice(import_path(class_of(recipe, "model").default_objective))
    recipe.binarization = pick_binarization(recipe)
    with distributed.main_process_first():
        data = load_data_for(recipe, recipe.data_dir, download)
    recipe.data = stored_data(recipe.data, data)
    recipe.data_dir = absolute(recipe.data_dir)
    pyro.clear_param_store()
    pyro.set_rng_seed(recipe.seed)
    vae = build_model_for(recipe, data).to(device)
    if vae.needs_labels and None not in (data.train.labels, data.train.covariates):
        logger.info("y is the covariates, not the labels; condition_on=labels takes the labels")
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
        average=recipe.average,
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


def load_data_for(recipe: Recipe, data_dir: str, download: bool, hidden: bool = True) -> Data:
    """The data of a recipe.

    Arguments:
        recipe: The recipe.
        data_dir: Folder of the downloaded data sets, which may have moved.
        download: Whether the data may be downloaded to it.
        hidden: Without the labels and the values that the recipe hides; its seed chooses them.
    """
    data = load_data(
        recipe.data,
        data_dir,
        image_size=recipe.image_size,
        binarization=pick_binarization(recipe),
        download=download,
        validation_size=recipe.validation_size,
        image_shape=recipe.image_shape,
        condition_on=recipe.condition_on,
    )
    if hidden and recipe.labels is not None:
        data = data.with_labels(recipe.labels, recipe.seed)
    if hidden and recipe.missing is not None:
        data = data.with_missing(recipe.missing, recipe.seed)
    return data


def stored_data(asked: str, data: Data) -> str:
    """How config.yaml names the data: a path to files is made absolute."""
    if asked == "auto":
        return data.name
    return stored_name(asked)


def _scheduler(recipe: Recipe) -> Callable[[Optimizer], LRScheduler] | None:
    if recipe.lr_scheduler is None:
        return None
    return lambda optimizer: make(recipe, "lr_scheduler", optimizer=optimizer)


def _rehearse_schedule(recipe: Recipe) -> None:
    """Step the scheduler in advance: some of torch's fail at the first step or after the last."""
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
    name = type(likelihood).__name__
    pixels = getattr(likelihood, "pixels", None)
    check_choice(f"{name}.pixels", pixels, Pixels)
    if pixels == "binary" and asked == "none":
        raise RequestError(
            f"binarization=none keeps grey pixels, but {name} scores binary pixels; use dynamic or"
            " static, or a likelihood for grey pixels (likelihood.relaxed=true for the"
            " cross-entropy of the classic examples)"
        )
    if pixels != "binary" and asked in ("dynamic", "static"):
        raise RequestError(
            f"binarization={asked} makes binary pixels, but {name} scores {pixels} pixels;"
            " leave it out"
        )
    if asked is not None:
        return asked
    if pixels == "binary":
        return "dynamic"
    return "none"


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
