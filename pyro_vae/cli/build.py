"""From a configuration to objects: the parts, the model, the data and the training."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args

import pyro
import torch
from jsonargparse import ArgumentParser, Namespace
from pyro.infer import ELBO

from pyro_vae.cli.options import PARTS
from pyro_vae.data import NAMED, Binarization, Data, load_data
from pyro_vae.errors import RequestError
from pyro_vae.inference import distributed
from pyro_vae.inference.fit import Training, fit
from pyro_vae.likelihoods import Likelihood, Pixels
from pyro_vae.networks import Shape
from pyro_vae.vae import Model

Maker = Callable[..., Any]


def makers(config: Namespace) -> dict[str, Maker | None]:
    """For each part, its constructor with the options of the configuration, to be called with what the run supplies."""
    return {name: _maker(name, config[name]) if config.get(name) else None for name in PARTS}


def _maker(name: str, options: Namespace) -> Maker:
    cls = resolve_name(options.class_path)
    if not isinstance(cls, type) or cls in PARTS[name].unsupported:
        raise RequestError(f"{name}: {options.class_path} is not supported; see --help for the known classes")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, skip=set(PARTS[name].supplied), instantiate=False)
    given = partial(_call, name, parser.instantiate, options.get("init_args", Namespace()))
    return partial(_call, name, partial(cls, **given().as_dict()))


def _call(name: str, function: Callable[..., Any], *args: Any, **supplied: Any) -> Any:
    """Call a constructor with those of the supplied arguments that it accepts.

    Errors of the library, torch and Pyro are one line; those of the user's own class keep their traceback.
    """
    accepted = signature(function).parameters
    try:
        return function(*args, **{key: value for key, value in supplied.items() if key in accepted})
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from error
    except (TypeError, ValueError) as error:
        if _home(function) in ("torch", "pyro"):
            raise RequestError(f"{name}: {' '.join(str(error).split())}") from error
        error.add_note(f"raised while making the {name}")
        raise


def _home(function: Any) -> str:
    return str(getattr(getattr(function, "func", function), "__module__", "")).split(".")[0]


def build_model(config: Namespace, shape: Shape) -> Model:
    """The model of a configuration for images of `shape`.

    The parts draw their initial values in the order of VAE's parameters; a prior that needs the encoder follows the posterior.

    Raises:
        ValueError: If a constructor rejects its arguments.
    """
    make, dim = makers(config), config.latent_dim
    supplied: dict[str, Any] = {"latent_dim": dim, "data_shape": shape}
    with torch.random.fork_rng():
        codes = (_make(make["posterior"], **supplied).num_params, dim)
        images = (_make(make["likelihood"], **supplied).num_params, *shape)
    prior = partial(_make, make["prior"], **{**supplied, "latent_dim": _prior_dim(config)})
    early = not {"encoder", "posterior"} & signature(resolve_name(config.prior.class_path)).parameters.keys()
    supplied |= {"prior": prior()} if early else {}
    supplied["encoder"] = _make(make["encoder"], in_shape=shape, out_shape=codes)
    supplied["posterior"] = _make(make["posterior"], **supplied)
    supplied |= {} if early else {"prior": prior(encoder=supplied["encoder"], posterior=supplied["posterior"])}
    supplied["decoder"] = _make(make["decoder"], in_shape=(dim,), out_shape=images)
    supplied["likelihood"] = _make(make["likelihood"], **supplied)
    return _make(make["model"], **supplied)


def _make(maker: Maker | None, **supplied: Any) -> Any:
    assert maker is not None
    return maker(**supplied)


def _prior_dim(config: Namespace) -> int:
    """A hierarchical model has a prior over `prior_dim` dimensions."""
    return config.model.get("init_args", Namespace()).get("prior_dim", config.latent_dim)


def build_training(config: Namespace, download: bool = True) -> tuple[Model, Data, Training]:
    """The model, the data and the training of a configuration; fills in what it leaves open.

    Arguments:
        config: What `train_parser` parsed.
        download: Whether the data may be downloaded to `config.data_dir`.

    Raises:
        ValueError: If the configuration cannot be carried out.
    """
    where, make = pick_device(config.device), makers(config)
    config.binarization = _binarization(config.binarization, _make(make["likelihood"]))
    with distributed.main_process_first():
        data = load_data(config.data, config.data_dir, config.image_size, config.binarization, download)
    config.data, config.data_dir = _found(config.data, data), str(Path(config.data_dir).resolve())
    pyro.clear_param_store()
    pyro.set_rng_seed(config.seed)
    vae = build_model(config, data.shape).to(where)
    data = data.to(where)
    training = fit(
        vae,
        data,
        optimizer=lambda params: _make(make["optimizer"], params=params),
        objective=_objective(_make(make["objective"])),
        beta=_make(make["beta"]),
        lr_scheduler=make["lr_scheduler"] and (lambda optimizer: _make(make["lr_scheduler"], optimizer=optimizer)),
        **{name: config[name] for name in FIT_OPTIONS},
    )
    config.epochs, config.batch_size, config.engine = training.epochs, training.loop.batch_size, training.engine
    return vae, data, training


# Flags that are parameters of `fit`.
FIT_OPTIONS = ("epochs", "batch_size", "seed", "clip_grad_norm", "patience", "engine", "precision", "on_nan")


def _objective(objective: ELBO) -> ELBO:
    """Pyro does not check its own option, and its classes have no type annotations."""
    if not isinstance(objective.num_particles, int) or objective.num_particles < 1:
        raise RequestError(f"objective: num_particles must be a positive integer, but is {objective.num_particles!r}")
    return objective


def _binarization(asked: Binarization | None, likelihood: Likelihood) -> Binarization:
    name, pixels = type(likelihood).__name__, getattr(likelihood, "pixels", None)
    if pixels not in get_args(Pixels):
        raise RequestError(f"likelihood: {name}.pixels must be one of {', '.join(get_args(Pixels))}, but is {pixels!r}")
    if pixels == "binary" and asked == "none":
        raise RequestError(
            f"binarization=none keeps grey pixels, but {name} scores binary pixels; use dynamic or static, or a likelihood for"
            " grey pixels (likelihood.relaxed=true for the cross-entropy of the classic examples)"
        )
    if pixels != "binary" and asked in ("dynamic", "static"):
        raise RequestError(f"binarization={asked} makes binary pixels, but {name} scores {pixels} pixels; leave it out")
    return asked or ("dynamic" if pixels == "binary" else "none")


def _found(asked: str, data: Data) -> str:
    return data.name if asked in ("auto", *NAMED) else str(Path(asked).resolve())


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
