"""The command line: what can be asked for, and a VAE built from what was."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from pkgutil import resolve_name
from typing import Any, Literal, get_args

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt, restricted_number_type
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.inference import distributed
from pyro_vae.data import NAMED, Binarization
from pyro_vae.errors import LostWorkerError, NotFiniteError, RequestError, StorageError, TerminatedError
from pyro_vae.inference.fit import OnNaN
from pyro_vae.inference.graphs import Engine
from pyro_vae.vae import HierarchicalVAE
from pyro_vae.inference.importance import terms
from pyro_vae.likelihoods import Likelihood, Pixels
from pyro_vae.networks import Network, Shape
from pyro_vae.posteriors import Posterior
from pyro_vae.inference.precision import Precision
from pyro_vae.priors import Prior
from pyro_vae.schedules import Schedule
from pyro_vae.inference.svi import MakeOptimizer
from pyro_vae.vae import VAE, Model

MODELS = (VAE, HierarchicalVAE)
"""Imported so that their names are known."""

PARTS: dict[str, type] = {
    "model": Model,
    "prior": Prior,
    "posterior": Posterior,
    "likelihood": Likelihood,
    "encoder": Network,
    "decoder": Network,
    "objective": ELBO,
    "optimizer": Optimizer,
    "lr_scheduler": LRScheduler,
    "beta": Schedule,
}

Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)], docstring="A seed, from 0 to 2**32 - 1.")

SUPPLIED = {
    "latent_dim",
    "data_shape",
    "in_shape",
    "out_shape",
    "encoder",
    "decoder",
    "prior",
    "posterior",
    "likelihood",
    "params",
    "steps_per_epoch",
    *("optimizer", "last_epoch"),
    *("max_plate_nesting", "max_iarange_nesting", "retain_graph", "strict_enumeration_warning"),
    *("ignore_jit_warnings", "jit_options", "tail_adaptive_beta"),
}
"""Constructor parameters that the run fills in, or that its programs have no use for: none of them is a flag."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"class_path": "pyro_vae.VAE"},
    "prior": {"class_path": "pyro_vae.priors.StandardNormal"},
    "posterior": {"class_path": "pyro_vae.posteriors.DiagonalNormal"},
    "likelihood": {"class_path": "pyro_vae.likelihoods.Bernoulli"},
    "encoder": {"class_path": "pyro_vae.networks.MLP"},
    "decoder": {"class_path": "pyro_vae.networks.MLP"},
    "objective": {"class_path": "pyro.infer.Trace_ELBO"},
    "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"fused": True}},
    "beta": {"class_path": "pyro_vae.schedules.Constant"},
}


def new_parser(prog: str, description: str) -> ArgumentParser:
    """A parser that knows `--help` only."""
    return ArgumentParser(prog=f"python -m {prog}", description=description, allow_abbrev=False, exit_on_error=False)


def parse(parser: ArgumentParser, argv: list[str] | None) -> Namespace:
    """The options in `argv`, or in `sys.argv`; classes of the user's own are looked for in the current folder too.

    Raises:
        RequestError: If they cannot be understood; one line, however the parser puts it.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        config = parser.parse_args(argv)
        if _new_defaults(parser, config):
            config = parser.parse_args(argv)
        return config
    except (ArgumentError, OSError, UnicodeDecodeError) as error:
        raise RequestError(one_line(str(error))) from error


def _new_defaults(parser: ArgumentParser, config: Namespace) -> bool:
    """Take the defaults of the classes that were named: the parser keeps those of its default class where the names agree."""
    named = {name: config[name].class_path for name in DEFAULTS if config.get(name)}
    other = {name: _default(name, path) for name, path in named.items() if parser.get_default(name)["class_path"] != path}
    parser.set_defaults(other)
    return bool(other)


def _default(part: str, class_path: str) -> dict[str, Any]:
    accepted = signature(resolve_name(class_path)).parameters
    options = DEFAULTS[part].get("init_args", {})
    return {"class_path": class_path, "init_args": {key: value for key, value in options.items() if key in accepted}}


def train_parser() -> ArgumentParser:
    """The options of `python -m pyro_vae.train`, which are those of a run's config.yaml."""
    parser = new_parser("pyro_vae.train", "Train a variational autoencoder as a Pyro program, score it and draw it.")
    parser.add_argument("--config", action="config", help="Options as YAML; a run's own config.yaml repeats the run.")
    add_data(parser)
    parser.add_argument("--binarization", type=Binarization | None, help=_BINARIZATION)
    parser.add_argument("--latent_dim", type=PositiveInt, default=20, help="Number of latent dimensions.")
    parser.add_argument("--epochs", type=PositiveInt | None, help="Passes over the training images; default 20 or 3,000 steps.")
    parser.add_argument("--batch_size", type=PositiveInt, default=128, help="Images in a step.")
    parser.add_argument("--seed", type=Seed, default=0, help="Seed of everything random, but for the data's own.")
    add_device(parser)
    parser.add_argument("--run_dir", type=str | None, help="New folder for all that the run leaves; default runs/DATA-TIME.")
    parser.add_argument("--resume", action="store_true", help="Go on with the run in --run_dir from its last checkpoint.")
    parser.add_argument("--trust", action="store_true", help=_TRUST)
    parser.add_argument("--checkpoint_every", type=PositiveInt, default=1, help="Epochs between checkpoints.")
    parser.add_argument("--patience", type=PositiveInt | None, help=_PATIENCE)
    parser.add_argument("--clip_grad_norm", type=PositiveFloat | None, help="Longest gradient of a step; default any.")
    parser.add_argument("--on_nan", type=OnNaN, default="stop", help=_ON_NAN)
    parser.add_argument("--engine", type=Literal["auto", *get_args(Engine)], default="auto", help=_ENGINE)
    parser.add_argument("--precision", type=Precision, default="float32", help="Of the matrix products in training.")
    add_parts(parser)
    return parser


_PATIENCE = "Stop after so many epochs without a better ELBO, at beta = 1, on the validation images; default never."
_ON_NAN = "If the loss is not finite, stop; or rewind to the epoch before with half the learning rate, at most 3 times."
_ENGINE = (
    "What runs the steps: the programs as they are written, their tensor operations traced once, or these compiled by Inductor."
    " Default: by the device and the number of steps."
)
_TRUST = "Import the saved run's classes that pyro_vae, torch.nn, torch.optim and pyro do not define."
_BINARIZATION = (
    "How grey pixels become binary ones: drawn afresh at each presentation, drawn once, or not at all. Default: dynamic where"
    " the likelihood scores binary pixels, else none."
)


def add_data(parser: ArgumentParser) -> None:
    """Add the flags that name a data set."""
    parser.add_argument("--data", type=str, default="auto", help=f"auto, {', '.join(NAMED)}, or a path to your own images.")
    parser.add_argument("--data_dir", type=str, default="data", help="Folder of the downloaded data sets.")
    parser.add_argument("--image_size", type=PositiveInt | None, help="Height and width to resize every image to, up to 1024.")


def add_device(parser: ArgumentParser) -> None:
    """Add the flag that names a device."""
    parser.add_argument("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="Where to compute.")


def add_saved_run(parser: ArgumentParser) -> None:
    """Add the flags of a command on a saved run."""
    parser.add_argument("run_dir", help="Folder of a run of pyro_vae.train.")
    parser.add_argument("--checkpoint", type=Literal["last", "best"], default="last", help="Last epoch or best on validation.")
    parser.add_argument("--split", type=Literal["train", "validation", "test"], default="test", help="Images to take.")
    parser.add_argument("--data_dir", type=str | None, help="Folder of the downloaded data sets, if it has moved since.")
    parser.add_argument("--seed", type=Seed, default=0, help="Seed of everything random.")
    parser.add_argument("--trust", action="store_true", help=_TRUST)
    add_device(parser)


def resolve_binarization(asked: Binarization | None, likelihood: Likelihood) -> Binarization:
    """The binarization that was asked for, or the one that fits the likelihood.

    Raises:
        RequestError: If they contradict each other.
    """
    name, pixels = type(likelihood).__name__, getattr(likelihood, "pixels", None)
    if pixels not in get_args(Pixels):
        raise RequestError(f"likelihood: {name} must declare its pixels, one of {', '.join(get_args(Pixels))}")
    binary = pixels == "binary"
    if binary and asked == "none":
        raise RequestError(
            f"binarization: {name} scores binary pixels, and with none they stay grey: use dynamic or static, or a likelihood"
            " on grey pixels (--likelihood.relaxed true for the cross-entropy of the classic examples)"
        )
    if not binary and asked in ("dynamic", "static"):
        raise RequestError(f"binarization: {name} scores {pixels} pixels: drop --binarization {asked}")
    return asked or ("dynamic" if binary else "none")


def add_parts(parser: ArgumentParser) -> None:
    """Add a flag for each part of a VAE and its training: a class, and the parameters of its constructor."""
    for name, base in PARTS.items():
        parser.add_subclass_arguments(base, name, required=False, default=DEFAULTS.get(name), skip=SUPPLIED)


def constructors(config: Namespace) -> Namespace:
    """Each part that was parsed, as its constructor with the options filled in; `supply` gives it the rest and calls it."""
    return Namespace({name: config.get(name) and _constructor(name, config[name]) for name in PARTS})


def rehearse_optimizer(optimizer: MakeOptimizer, lr_scheduler: Callable[..., Any] | None) -> None:
    """Take one step on a parameter of no account, so that optimizers and schedulers of other kinds are refused before training.

    Raises:
        RequestError: If one cannot be made, or needs more than gradients.
    """
    param = nn.Parameter(torch.zeros(2))
    param.grad = torch.zeros(2)
    made = supply("optimizer", optimizer, params=[param])
    scheduler = None if lr_scheduler is None else supply("lr_scheduler", lr_scheduler, optimizer=made)
    supply("optimizer", made.step)
    if scheduler is not None:
        supply("lr_scheduler", scheduler.step, metrics=0.0)
        supply("lr_scheduler", scheduler.state_dict)


def build_objective(make: Callable[..., Any]) -> ELBO:
    """Build the objective.

    Raises:
        RequestError: If its constructor refuses, or an option that Pyro does not check is of the wrong kind.
    """
    objective = supply("objective", make)
    if not isinstance(objective.num_particles, int) or objective.num_particles < 1:
        raise RequestError(f"objective: num_particles must be a positive integer, but is {objective.num_particles}")
    return objective


def _constructor(name: str, part: Namespace) -> Callable[..., Any]:
    cls = resolve_name(part.class_path)
    if not isinstance(cls, type):
        raise RequestError(f"{name}: {part.class_path} is no class: name one")
    options = ArgumentParser(exit_on_error=False)
    options.add_class_arguments(cls, skip=SUPPLIED, instantiate=False)
    return partial(cls, **supply(name, lambda: options.instantiate(part.get("init_args", Namespace())).as_dict()))


def build(parts: Namespace, latent_dim: int, shape: Shape) -> Model:
    """Build the model of parts given by `constructors`, for images of `shape`.

    Raises:
        RequestError: If a part's constructor refuses; the message names the part.
    """
    likelihood = supply("likelihood", parts.likelihood, data_shape=shape)
    given = {"latent_dim": latent_dim, "data_shape": shape, "likelihood": likelihood}
    posterior = supply("posterior", parts.posterior, **given, encoder=nn.Identity())
    codes = (posterior.num_params, latent_dim)
    posterior.encoder = supply("encoder", parts.encoder, in_shape=shape, out_shape=codes)
    images = (likelihood.num_params, *shape)
    decoder = supply("decoder", parts.decoder, **given, in_shape=(latent_dim,), out_shape=images)
    given |= {"posterior": posterior, "decoder": decoder}
    prior_dim = parts.model.keywords.get("prior_dim", latent_dim)
    prior = supply("prior", parts.prior, **{**given, "latent_dim": prior_dim})
    model = supply("model", parts.model, **given, prior=prior)
    _rehearse(model, shape)
    return model


@torch.no_grad()
def _rehearse(vae: Model, shape: Shape) -> None:
    """Run the programs once, so that parts that do not fit are refused before training; it leaves no trace in the seed."""
    x = torch.full((2, *shape), 0.5 if vae.pixels == "dequantized" else 0.0)
    try:
        with torch.random.fork_rng():
            terms(vae.model, vae.guide, x, num_samples=2)
            mean = vae.reconstruct(x)
    except Exception as error:
        raise RequestError(f"the parts do not fit together: {one_line(str(error))}") from error
    if not mean.isfinite().all():
        raise RequestError("likelihood: the mean of p(x | z) is not finite, so there would be nothing to draw")


def supply(name: str, make: Callable[..., Any], **context: Any) -> Any:
    """Call the constructor of a part with those of `context` that it has a parameter for.

    Raises:
        RequestError: If it refuses.
    """
    accepted = signature(make).parameters
    try:
        return make(**{key: value for key, value in context.items() if key in accepted})
    except Exception as error:
        raise RequestError(f"{name}: {one_line(str(error)) or type(error).__name__}") from error


def device(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" stands for.

    Raises:
        RequestError: If there is no CUDA device and one is asked for.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise RequestError("there is no CUDA device here: use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def run(command: Callable[[list[str] | None], None], argv: list[str] | None) -> int:
    """Run a command and give its exit code: 0, 2 for a wrong request, 130 for Ctrl-C, 143 for SIGTERM, 1 else.

    One line says what is wrong, and what can be done where the exception has a note of it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with _termination():
            command(argv)
    except RequestError as error:
        return _stop(2, f"error: {error}", error)
    except (NotFiniteError, StorageError, LostWorkerError) as error:
        return _stop(1, f"error: {error}", error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        return _stop(130, "stopped by Ctrl-C", error)
    except TerminatedError as error:
        return _stop(143, "stopped by SIGTERM", error)
    return 0


@contextmanager
def _termination() -> Iterator[None]:
    """Have SIGTERM raise an exception, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_terminated(number: int, frame: Any) -> None:
    raise TerminatedError


def _stop(code: int, line: str, error: BaseException) -> int:
    if not distributed.is_lead() and isinstance(error, RequestError | NotFiniteError | LostWorkerError):
        return code
    print("; ".join([line, *getattr(error, "__notes__", [])]), file=sys.stderr)
    return code


def one_line(message: str) -> str:
    """jsonargparse's nested message, as `part.option: what is wrong`."""
    lines = [line.strip(" -") for line in message.splitlines()]
    line = " ".join(line for line in lines if line and "Expected a path but" not in line)
    for pattern, replacement in _REWORDED:
        line = re.sub(pattern, replacement, line)
    part, _, problem = line.partition(": ")
    if part in PARTS and ("no class" in problem or problem.startswith(f"expected {PARTS[part].__name__},")):
        line += f"; choose from {', '.join(_names(part))}, or give an import path, such as my_module.MyClass"
    return line


def _names(part: str) -> list[str]:
    """The classes that are known by name alone."""
    home = "torch.optim" if part in ("optimizer", "lr_scheduler") else "pyro_vae"
    foreign = [Trace_ELBO, TraceMeanField_ELBO, RenyiELBO] if part == "objective" else []
    known = {cls for cls in concrete(PARTS[part]) if cls.__module__.startswith(home) and cls.__module__ != "pyro_vae.testing"}
    return sorted({cls.__name__ for cls in known.union(foreign)} - UNUSABLE)


UNUSABLE = {"_LRScheduler", "ChainedScheduler", "SequentialLR"}
"""Learning-rate schedulers that are abstract, or made of others."""

_REWORDED = [
    (r'^Parser key "(.*?)":', r"\1:"),
    (r"Problem with given class_path '[^']*': Parser key \"(.*?)\":", r".\1:"),
    (r"Problem with given class_path '([^']*)': Option '(.*?)' is not accepted", r"\1 has no option \2"),
    (r"Problem with given class_path '([^']*)': Key '(.*?)' is required.*", r"\1 needs its option \2"),
    (r": \.", "."),
    (r"Expected a <class '(?:[\w.]+\.)?(\w+)'>\. Got value: (.*)", r"expected \1, but got \2"),
    (
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .*Given value: (.*)",
        r"expected \1, but got \2",
    ),
    (r"<class '(?:[\w.]+\.)?(\w+)'>, <class '(?:[\w.]+\.)?(\w+)'>", r"\1 or \2"),
    (r"(,? <class 'NoneType'>|,| or NoneType)(?=, but got)", ""),
    (r"[Ee]xpected a? ?typing\.Literal\[(.*?)\](?:\. Got value: |, but got )(.*)", r"choose from \1, not \2"),
    (r"Not of type PositiveInt: (?:.*base 10: )?(\S+).*", r"must be a positive integer, but is \1"),
    (r"Not of type Seed: (?:.*base 10: )?(\S+).*", r"must be an integer from 0 to 2**32 - 1, but is \1"),
    (r"Not of type NonNegativeInt: (?:.*base 10: )?(\S+).*", r"must be an integer of at least 0, but is \1"),
    (r"expected PositiveInt", "expected a positive integer"),
    (r"Expected a dot import path string: (\S+)", r"there is no class \1"),
    (r"Problem with given class_path '([^']*)': (?=there is no|No module|module)", ""),
    (r"Import path (\S+) does not correspond to a subclass of (\w+)", r"\1 is not a \2"),
    (r"No module named '([\w.]+)'", r"there is no module \1"),
    (r"module '([\w.]+)' has no attribute '(\w+)'", r"there is no class \2 in the module \1"),
]


def concrete(base: type) -> list[type]:
    """The subclasses of a class, at any depth, that can be instantiated."""
    children: list[type] = base.__subclasses__()
    found = [cls for child in children for cls in (child, *concrete(child))]
    return [cls for cls in found if not getattr(cls, "__abstractmethods__", ())]
