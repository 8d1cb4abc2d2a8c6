"""The options of the commands: flags and YAML keys, whose schema is the constructors' signatures."""

from __future__ import annotations

import os
import re
import sys
from argparse import SUPPRESS
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import isabstract, signature
from pkgutil import resolve_name
from types import ModuleType
from typing import Any, Literal

import pyro.infer
import torch
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt, restricted_number_type
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.optim import LBFGS, Optimizer, SparseAdam, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae import likelihoods, networks, objectives, posteriors, priors, schedules, vae
from pyro_vae.data import NAMED, Binarization
from pyro_vae.errors import RequestError
from pyro_vae.inference.fit import OnNaN
from pyro_vae.inference.graphs import AnyEngine
from pyro_vae.inference.precision import Precision

Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)], docstring="A seed from 0 to 2**32 - 1.")


@dataclass(frozen=True)
class Part:
    """A part of a run that a flag exchanges.

    Attributes:
        base: The base class.
        home: The module whose classes are known by name.
        supplied: Constructor parameters that the run fills in; they are not flags.
        default: The class that is used by default.
        options: Its options that differ from the constructor's defaults.
        others: Further known classes.
        unsupported: Classes of `home` that do not work here.
    """

    base: type
    home: ModuleType
    supplied: frozenset[str]
    default: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    others: tuple[type, ...] = ()
    unsupported: tuple[type, ...] = ()

    def known(self) -> list[type]:
        """The classes that are known by name and may be named by a run folder."""
        classes = [cls for cls in vars(self.home).values() if isinstance(cls, type) and issubclass(cls, self.base)]
        usable = [cls for cls in classes if not isabstract(cls) and cls not in (self.base, *self.unsupported)]
        return sorted({*usable, *self.others}, key=lambda cls: cls.__name__)


NETWORK = Part(
    networks.Network,
    networks,
    frozenset({"in_shape", "out_shape"}),
    "pyro_vae.networks.MLP",
    unsupported=(networks.GatedLayer,),
)

PARTS: dict[str, Part] = {
    "model": Part(
        vae.Model,
        vae,
        frozenset({"prior", "encoder", "posterior", "decoder", "likelihood", "latent_dim", "data_shape"}),
        "pyro_vae.VAE",
    ),
    "prior": Part(
        priors.Prior,
        priors,
        frozenset({"latent_dim", "data_shape", "encoder", "posterior"}),
        "pyro_vae.priors.StandardNormal",
    ),
    "posterior": Part(posteriors.Posterior, posteriors, frozenset({"latent_dim"}), "pyro_vae.posteriors.DiagonalNormal"),
    "likelihood": Part(likelihoods.Likelihood, likelihoods, frozenset({"data_shape"}), "pyro_vae.likelihoods.Bernoulli"),
    "encoder": NETWORK,
    "decoder": NETWORK,
    "objective": Part(
        ELBO,
        objectives,
        frozenset(
            {
                *("max_plate_nesting", "max_iarange_nesting", "retain_graph", "strict_enumeration_warning"),
                *("ignore_jit_warnings", "jit_options", "tail_adaptive_beta"),
            }
        ),
        "pyro.infer.Trace_ELBO",
        others=(Trace_ELBO, TraceMeanField_ELBO, RenyiELBO),
        unsupported=objectives.OTHER_LOOPS,
    ),
    "optimizer": Part(
        Optimizer,
        torch.optim,
        frozenset({"params"}),
        "torch.optim.Adam",
        {"fused": True},
        unsupported=(LBFGS, SparseAdam),
    ),
    "lr_scheduler": Part(
        LRScheduler,
        lr_scheduler,
        frozenset({"optimizer", "last_epoch"}),
        unsupported=(lr_scheduler.ChainedScheduler, lr_scheduler.SequentialLR, lr_scheduler._LRScheduler),
    ),
    "beta": Part(schedules.Schedule, schedules, frozenset(), "pyro_vae.schedules.Constant"),
}

# The flags of `train` and the description of each.
HELP = {
    "config": "Options as YAML; the config.yaml of a run repeats the run.",
    "data": f"auto, {', '.join(NAMED)}, or a path to your own images: .npy, .npz or a folder.",
    "data_dir": "Folder of the downloaded data sets.",
    "image_size": "Height and width to resize every image to, up to 1024.",
    "binarization": "How grey pixels become binary: drawn at each presentation, drawn once, or not at all.",
    "latent_dim": "Number of latent dimensions.",
    "epochs": "Passes over the training images; by default 20 epochs or 3,000 steps, whichever is longer.",
    "batch_size": "Images per step; by default 128, or all if there are fewer.",
    "seed": "Seed of the random number generators.",
    "device": "Where to compute.",
    "run_dir": "New folder for everything that the run writes; by default runs/DATA-TIME.",
    "resume": "Continue the run in --run_dir from its last checkpoint; with auto, start it if it does not exist.",
    "trust": "Import any class that the run folder names. This runs code from its module.",
    "checkpoint_every": "Epochs between checkpoints.",
    "patience": "Stop after this many epochs without a better validation ELBO; by default never.",
    "clip_grad_norm": "Maximum norm of the gradient; by default unlimited.",
    "on_nan": "If the loss is not finite, stop, or rewind to the previous epoch with half the learning rate.",
    "engine": "What runs the steps: Pyro as written, its traced graph, or the compiled graph; auto chooses.",
    "precision": "Precision of matrix products in training.",
}


class HelpFormatter(DefaultHelpFormatter):
    """Shows descriptions and defaults, without jsonargparse's types and lists of subclasses."""

    def _get_help_string(self, action: Any) -> str:
        plain = action.default in (None, False, SUPPRESS) or action.dest in PARTS
        return str(action.help) if plain else f"{action.help} (default: %(default)s)"


def new_parser(command: str, description: str) -> ArgumentParser:
    """A parser without options."""
    return ArgumentParser(
        prog=f"pyro-vae {command}",
        usage="%(prog)s [--OPTION VALUE ...]",
        description=description,
        allow_abbrev=False,
        exit_on_error=False,
        formatter_class=HelpFormatter,
    )


def add_option(parser: ArgumentParser, name: str, kind: Any, default: Any = None) -> None:
    """Add a flag of `HELP`."""
    parser.add_argument(f"--{name}", type=kind if default is not None else kind | None, default=default, help=HELP[name])


def train_parser() -> ArgumentParser:
    """The options of `train`, which are those of config.yaml."""
    parser = new_parser("train", "Train a variational autoencoder, score it on the test set and draw figures.")
    parser.add_argument("--config", action="config", help=HELP["config"])
    add_option(parser, "data", str, "auto")
    add_option(parser, "data_dir", str, "data")
    add_option(parser, "image_size", PositiveInt)
    add_option(parser, "binarization", Binarization)
    add_option(parser, "latent_dim", PositiveInt, 20)
    add_option(parser, "epochs", PositiveInt)
    add_option(parser, "batch_size", PositiveInt)
    add_option(parser, "seed", Seed, 0)
    add_option(parser, "device", Literal["auto", "cpu", "cuda"], "auto")
    add_option(parser, "run_dir", str)
    resume = Literal["never", "always", "auto"]
    parser.add_argument("--resume", nargs="?", const="always", type=resume, default="never", help=HELP["resume"])
    parser.add_argument("--trust", action="store_true", help=HELP["trust"])
    add_option(parser, "checkpoint_every", PositiveInt, 1)
    add_option(parser, "patience", PositiveInt)
    add_option(parser, "clip_grad_norm", PositiveFloat)
    add_option(parser, "on_nan", OnNaN, "stop")
    add_option(parser, "engine", AnyEngine, "auto")
    add_option(parser, "precision", Precision, "float32")
    for name, part in PARTS.items():
        _add_part(parser, name, part)
    return parser


def _add_part(parser: ArgumentParser, name: str, part: Part) -> None:
    group = parser.add_argument_group(name)
    default = part.default and {"class_path": part.default, **({"init_args": part.options} if part.options else {})}
    text = f"{_choices(part)}; options of one: --{name}.help CLASS (default: {(part.default or 'none').split('.')[-1]})"
    group.add_subclass_arguments(
        part.base, name, as_group=False, required=False, default=default, skip=part.supplied, metavar="CLASS", help=text
    )


def _choices(part: Part) -> str:
    return f"{', '.join(cls.__name__ for cls in part.known())}, or an import path such as my_module.MyClass"


def add_run_options(parser: ArgumentParser) -> None:
    """Add the options of a command on a saved run."""
    parser.add_argument("run_dir", help="Folder of a run.")
    checkpoint = Literal["last", "best"]
    parser.add_argument("--checkpoint", type=checkpoint, default="last", help="Last epoch, or the best by validation ELBO.")
    parser.add_argument("--split", type=Literal["train", "validation", "test"], default="test", help="Images to use.")
    parser.add_argument("--data_dir", type=str | None, help="Folder of the downloaded data sets, if it was moved.")
    add_option(parser, "seed", Seed, 0)
    parser.add_argument("--trust", action="store_true", help=HELP["trust"])
    add_option(parser, "device", Literal["auto", "cpu", "cuda"], "auto")


def parse(parser: ArgumentParser, argv: list[str]) -> Namespace:
    """The options in `argv`.

    Modules are looked up in the current folder only if they are not found elsewhere.

    Raises:
        ValueError: If the options are wrong.
    """
    try:
        return _with_own_defaults(parser, argv)
    except (ArgumentError, OSError, UnicodeDecodeError) as error:
        if "No module named" not in str(error) or os.getcwd() in sys.path:
            raise RequestError(one_line(str(error), parser)) from error
    sys.path.append(os.getcwd())
    return parse(parser, argv)


def _with_own_defaults(parser: ArgumentParser, argv: list[str]) -> Namespace:
    """Parse again with the defaults of the classes that were named; jsonargparse keeps those of the default class."""
    config = parser.parse_args(argv)
    parts = {name: config[name] for name, part in PARTS.items() if part.default and name in config}
    if missing := [name for name, value in parts.items() if value is None]:
        raise RequestError(f"{', '.join(missing)} must be a class, but is null")
    named = {name: value.class_path for name, value in parts.items()}
    other = {name: _defaults(name, path) for name, path in named.items() if parser.get_default(name)["class_path"] != path}
    if not other:
        return config
    parser.set_defaults(other)
    return parser.parse_args(argv)


def _defaults(name: str, class_path: str) -> dict[str, Any]:
    accepted = signature(resolve_name(class_path)).parameters
    options = {key: value for key, value in PARTS[name].options.items() if key in accepted}
    return {"class_path": class_path, "init_args": options}


def one_line(message: str, parser: ArgumentParser | None = None) -> str:
    """The part of jsonargparse's nested message that names the option and the problem, in one line."""
    keys = ".".join(re.findall(r'Parser key "(.*?)":', message))
    message = re.sub(r"""Parser key ".*?":|Problem with given class_path '[^']*':\s*(?=Parser key)""", "", message)
    lines = [line.strip(" -") for line in message.splitlines()]
    line = " ".join(line for line in lines if line and not line.startswith(_BOILERPLATE))
    line = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", line).replace("a typing.Literal", "one of ")
    known = f"; choose from {_choices(PARTS[keys])}" if keys in PARTS and "class_path" not in line else ""
    return f"{keys}: {line}{known}" if keys else f"{line}{_suggestion(line, parser)}"


# Lines of jsonargparse's messages about other ways in which it tried to read a value.
_BOILERPLATE = (
    "Expected a path but",
    "Does not validate against any",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value type:",
)


def _suggestion(line: str, parser: ArgumentParser | None) -> str:
    flag = re.match(r"unrecognized arguments: (--[\w.]+)", line)
    options = [name for action in (parser._actions if parser else []) for name in action.option_strings]
    close = get_close_matches(flag[1], options, 1, 0.7) if flag else []
    return f"; did you mean {close[0]}?" if close else ""


def known_paths() -> set[str]:
    """The import paths that a run folder may name without `trust`: the known classes and torch's activations."""
    classes = {cls for part in PARTS.values() for cls in part.known()}
    activations = {cls for cls in vars(nn.modules.activation).values() if isinstance(cls, type) and issubclass(cls, nn.Module)}
    modules = (vae, pyro.infer, torch.optim, lr_scheduler, nn, nn.modules.activation, sys.modules["pyro_vae"])
    homes = {*modules, *(sys.modules[cls.__module__] for cls in classes)}
    known = classes | activations
    return {
        f"{home.__name__}.{name}"
        for home in homes
        for name, value in vars(home).items()
        if isinstance(value, type) and value in known
    }
