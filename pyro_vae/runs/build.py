"""From a configuration to objects: the parts, the model, the data and the training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pkgutil import resolve_name
from traceback import walk_tb
from typing import Any

import pyro
import torch
from jsonargparse import ArgumentParser, Namespace
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyro_vae.cli.options import FIT_OPTIONS, PARTS, one_line
from pyro_vae.data.datasets import Binarization, load_data, stored_name
from pyro_vae.data.files import absolute
from pyro_vae.data.split import Data
from pyro_vae.engine import distributed
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError, check_choice, check_count
from pyro_vae.likelihoods import Pixels
from pyro_vae.networks import Shape
from pyro_vae.training.fit import Training, fit
from pyro_vae.vae import Model

# The classes in these packages are not the user's own.
LIBRARIES = ("torch.", "pyro.", "pyro_vae.")


def make(config: Namespace, name: str, **supplied: Any) -> Any:
    """A part of a configuration, constructed with its options and those of the supplied arguments that it accepts.

    Raises:
        ValueError: If the constructor rejects its arguments. Other errors in the user's own class keep their traceback.
    """
    path = config[name].class_path
    cls = resolve_name(path)
    if not isinstance(cls, type) or cls in PARTS[name].unsupported:
        raise RequestError(f"{name}: {path} is not supported; see --help for the classes that are")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, skip=PARTS[name].supplied, instantiate=False)
    given, accepted = (
        config[name].get("init_args", Namespace()),
        signature(cls).parameters.keys() & PARTS[name].supplied,
    )
    try:
        parser.validate(given, skip_unset=False)  # parsing accepts null for any type
    except TypeError as error:
        raise RequestError(f"{name}.{one_line(str(error), parser)}") from error
    with _blaming(name, path):
        options = parser.instantiate(given).as_dict()
        return cls(**options, **{key: value for key, value in supplied.items() if key in accepted})


@contextmanager
def _blaming(name: str, path: str) -> Iterator[None]:
    """Turn what torch's and Pyro's own classes raise, of almost any class, into a message about a part."""
    try:
        yield
    except Exception as error:
        if isinstance(error, RequestError) or path.startswith(("torch.", "pyro.")):
            raise RequestError(f"{name}: {str(error) or type(error).__name__}") from error
        raise


@contextmanager
def naming_the_part(config: Namespace) -> Iterator[None]:
    """Add to an exception of the user's own class a note that says which part of the run it is."""
    try:
        yield
    except Exception as error:
        paths = {name: config[name].class_path for name in PARTS if config.get(name)}
        own = {name: path for name, path in paths.items() if not path.startswith(LIBRARIES)}
        classes = [
            type(frame.f_locals.get("self")).__name__ for frame, _ in walk_tb(error.__traceback__)
        ]
        called = [cls for cls in classes if cls in {path.split(".")[-1] for path in own.values()}]
        for name, path in own.items():
            if called and path.split(".")[-1] == called[-1]:
                error.add_note(f"raised by the {name}, {path}")
        raise


def build_model(config: Namespace, shape: Shape, label_dim: int | None = None) -> Model:
    """The model of a configuration for images of `shape` and labels of `label_dim`, if it uses labels.

    The parts draw their initial values in the order of VAE's parameters; a prior that needs the encoder follows the posterior.

    Raises:
        ValueError: If a constructor rejects its arguments.
    """
    if needs_labels(config) and label_dim is None:
        raise RequestError(
            f"model: {config.model.class_path} needs labels, which the run was not trained with; use VAE"
        )
    dim = config.latent_dim
    supplied: dict[str, Any] = {"latent_dim": dim, "data_shape": shape}
    with forked_rng():
        codes = (make(config, "posterior", **supplied).num_params, dim)
        images = (make(config, "likelihood", **supplied).num_params, *shape)
    over_codes = {
        **supplied,
        "latent_dim": config.model.get("init_args", Namespace()).get("prior_dim", dim),
    }
    early = (
        not {"encoder", "posterior"}
        & signature(resolve_name(config.prior.class_path)).parameters.keys()
    )
    if early:
        supplied["prior"] = make(config, "prior", **over_codes)
    supplied["encoder"] = make(config, "encoder", in_shape=shape, out_shape=codes)
    supplied["posterior"] = make(config, "posterior", **supplied)
    if not early:
        supplied["prior"] = make(config, "prior", **{**supplied, **over_codes})
    joined = (
        label_dim
        if label_dim and getattr(resolve_name(config.model.class_path), "decodes_labels", False)
        else 0
    )
    supplied["decoder"] = make(config, "decoder", in_shape=(dim + joined,), out_shape=images)
    supplied["likelihood"] = make(config, "likelihood", **supplied)
    return make(config, "model", label_dim=label_dim, **supplied)


def needs_labels(config: Namespace) -> bool:
    """Whether the model of a configuration uses labels."""
    return getattr(resolve_name(config.model.class_path), "needs_labels", False)


def build_training(config: Namespace, download: bool = True) -> tuple[Model, Data, Training]:
    """The model, the data and the training of a configuration; fills in what it leaves open.

    Arguments:
        config: What `parse_training` returned.
        download: Whether the data may be downloaded to `config.data_dir`.

    Raises:
        ValueError: If the configuration cannot be carried out.
    """
    device = pick_device(config.device)
    config.binarization = _binarization(config)
    with distributed.main_process_first():
        options = (config.image_size, config.binarization, download, config.validation_size)
        data = load_data(config.data, config.data_dir, *options)
    config.data = data.name if config.data == "auto" else stored_name(config.data)
    config.data_dir = absolute(config.data_dir)
    pyro.clear_param_store()
    pyro.set_rng_seed(config.seed)
    vae = build_model(config, data.shape, data.label_dim if needs_labels(config) else None).to(
        device
    )
    data = data.to(device)
    training = fit(
        vae,
        data,
        optimizer=lambda params: make(config, "optimizer", params=params),
        objective=_objective(config),
        beta=make(config, "beta"),
        lr_scheduler=config.lr_scheduler
        and (lambda optimizer: make(config, "lr_scheduler", optimizer=optimizer)),
        seed=config.seed,
        **{name: config[name] for name in FIT_OPTIONS},
    )
    config.epochs, config.batch_size, config.engine = (
        training.epochs,
        training.loop.batch_size,
        training.engine,
    )
    if config.lr_scheduler:
        _rehearse_schedule(config)
    return vae, data, training


def _objective(config: Namespace) -> Any:
    """Pyro does not check its own options, and its classes have no type annotations."""
    objective = make(config, "objective")
    check_count(**{"objective.num_particles": objective.num_particles})
    if not isinstance(getattr(objective, "alpha", 0), int | float):
        raise RequestError(f"objective.alpha must be a number, but is {objective.alpha!r}")
    return objective


def _rehearse_schedule(config: Namespace) -> None:
    """Step the scheduler in advance: some of torch's fail at the first step, and OneCycleLR after `total_steps`."""
    optimizer = make(config, "optimizer", params=[torch.zeros(1, 1, requires_grad=True)])
    scheduler = make(config, "lr_scheduler", optimizer=optimizer)
    optimizer.step()  # or the scheduler warns
    with _blaming("lr_scheduler", config.lr_scheduler.class_path):
        for _ in range(
            0 if isinstance(scheduler, ReduceLROnPlateau) else min(config.epochs, 10_000)
        ):
            scheduler.step()


def _binarization(config: Namespace) -> Binarization:
    """What the likelihood needs, unless it is given."""
    asked, likelihood = (
        config.binarization,
        make(config, "likelihood", data_shape=(1, 1, 1)),
    )  # the data are not loaded yet
    name, pixels = type(likelihood).__name__, getattr(likelihood, "pixels", None)
    check_choice(f"{name}.pixels", pixels, Pixels)
    if pixels == "binary" and asked == "none":
        raise RequestError(
            f"binarization=none keeps grey pixels, but {name} scores binary pixels; use dynamic or static, or a likelihood for"
            " grey pixels (likelihood.relaxed=true for the cross-entropy of the classic examples)"
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
