"""The options of the commands: flags and YAML keys, whose schema is the constructors' signatures."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from hashlib import sha256
from inspect import isabstract, signature
from itertools import accumulate
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any, Literal

import torch
from jsonargparse import (
    ActionConfigFile,
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    set_loader,
)
from jsonargparse.typing import PositiveInt, restricted_number_type
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, SequentialLR

import pyro_vae.objectives as objectives  # the package itself is still being imported
from pyro_vae.data.datasets import NAMED, Binarization, stored_name
from pyro_vae.errors import RequestError
from pyro_vae.likelihoods import Likelihood
from pyro_vae.networks import Network
from pyro_vae.posteriors import Posterior
from pyro_vae.priors import Prior
from pyro_vae.runs.store import parse_yaml, read_yaml
from pyro_vae.schedules import Schedule
from pyro_vae.training.fit import fit
from pyro_vae.vae import Model

# Every value and configuration file is read by `parse_yaml`.
set_loader("strict", parse_yaml, (ValueError,))


def up_to(limit: int) -> Any:
    """The type of the integers from 1 to a limit, which is far above useful values and bounds the memory."""
    return restricted_number_type(
        f"UpTo{limit}", int, [(">=", 1), ("<=", limit)], docstring=f"1 to {limit:,}."
    )


Seed = restricted_number_type(
    "Seed", int, [(">=", 0), ("<", 2**32)], docstring="A seed from 0 to 2**32 - 1."
)


@dataclass(frozen=True)
class Part:
    """A part of a run that a flag exchanges.

    Attributes:
        base: The base class.
        default: The name of the class that is used by default.
        supplied: Constructor parameters that the run fills in; they are not flags.
        home: The module of the known classes; None is that of the base class.
        others: Known classes of other modules.
        unsupported: Classes that training does not support.
    """

    base: type
    default: str | None
    supplied: set[str]
    home: ModuleType | None = None
    others: Collection[type] = ()
    unsupported: Collection[type] = ()

    @cached_property
    def known(self) -> list[type]:
        """The classes that `--help` lists and that a run folder may name: the concrete ones of the module, and others."""
        members = [
            cls
            for cls in vars(self.home or sys.modules[self.base.__module__]).values()
            if isinstance(cls, type)
        ]
        concrete = {
            cls
            for cls in members
            if self.base in cls.__mro__[1:] and not isabstract(cls) and cls.__name__[0] != "_"
        }
        return sorted({*concrete, *self.others} - {*self.unsupported}, key=lambda cls: cls.__name__)

    @property
    def choices(self) -> str:
        """The known classes, for messages."""
        return f"{', '.join(cls.__name__ for cls in self.known)}, or an import path such as my_module.MyClass"


OF_PYRO = (
    "max_plate_nesting",
    "max_iarange_nesting",
    "retain_graph",
    "strict_enumeration_warning",
    "ignore_jit_warnings",
)
PARTS = {
    "model": Part(
        Model,
        "VAE",
        {
            "prior",
            "encoder",
            "posterior",
            "decoder",
            "likelihood",
            "latent_dim",
            "data_shape",
            "label_dim",
        },
    ),
    "prior": Part(Prior, "StandardNormal", {"latent_dim", "data_shape", "encoder", "posterior"}),
    "posterior": Part(Posterior, "DiagonalNormal", {"latent_dim"}),
    "likelihood": Part(Likelihood, "Bernoulli", {"data_shape"}),
    "encoder": Part(Network, "MLP", {"in_shape", "out_shape"}),
    "decoder": Part(Network, "MLP", {"in_shape", "out_shape"}),
    "objective": Part(
        ELBO,
        "Trace_ELBO",
        {*OF_PYRO, "jit_options", "tail_adaptive_beta"},
        objectives,
        others=(Trace_ELBO, TraceMeanField_ELBO, RenyiELBO),
        unsupported=objectives.OTHER_LOOPS,
    ),
    "optimizer": Part(Optimizer, "Adam", {"params"}, torch.optim, unsupported=(LBFGS, SparseAdam)),
    "lr_scheduler": Part(
        LRScheduler, None, {"optimizer", "last_epoch"}, unsupported=(ChainedScheduler, SequentialLR)
    ),
    "beta": Part(Schedule, "Constant", set()),
}

# The parameters of `fit` that are flags as they are, and the others.
FIT_OPTIONS = (
    "epochs",
    "batch_size",
    "clip_grad_norm",
    "normalize_gradients",
    "patience",
    "engine",
    "precision",
    "on_nan",
)
NOT_FLAGS: set[str | int] = {name for name in signature(fit).parameters if name not in FIT_OPTIONS}

# Defaults come first on the command line. As jsonargparse's defaults they would lend their options to the classes that
# replace them.
DEFAULTS = [
    *(f"--{name}={part.default}" for name, part in PARTS.items() if part.default),
    "--optimizer.fused=true",
]


class HelpFormatter(DefaultHelpFormatter):
    """Shows descriptions and defaults, without jsonargparse's types and lists of subclasses."""

    def _get_help_string(self, action: Any) -> str:
        given = (
            isinstance(action.default, int | str)
            and action.default is not False
            and action.default != "==SUPPRESS=="
        )
        return f"{action.help} (default: %(default)s)" if given else str(action.help)


class _ConfigFile(ActionConfigFile):
    """Reads a configuration file with `read_yaml`; takes JSON as it is."""

    def __call__(
        self, parser: Any, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        super().__call__(
            parser,
            cfg,
            values if values.startswith("{") else json.dumps(read_yaml(Path(values))),
            option_string,
        )


def new_parser(command: str, description: str) -> ArgumentParser:
    """A parser without options."""
    return ArgumentParser(
        prog=f"pyro-vae {command}",
        usage="%(prog)s [--OPTION VALUE ...]",
        description=description,
        allow_abbrev=False,
        exit_on_error=False,
        formatter_class=HelpFormatter,
        parser_mode="strict",
    )


def add(parser: ArgumentParser, name: str, kind: Any, default: Any, text: str) -> None:
    """Add a flag; without a default it may be None."""
    parser.add_argument(
        f"--{name}", type=kind if default is not None else kind | None, default=default, help=text
    )


def add_common(parser: ArgumentParser) -> None:
    """Add the flags of every command."""
    add(parser, "seed", Seed, 0, "Seed of the random number generators.")
    add(parser, "device", Literal["auto", "cpu", "cuda"], "auto", "Where to compute.")
    text = "Import any class that the run folder names. This runs code from its module."
    parser.add_argument("--trust", action="store_true", help=text)


def run_parser(command: str, description: str) -> ArgumentParser:
    """The options that the commands on a saved run share."""
    parser = new_parser(command, description)
    parser.add_argument("run_dir", help="Folder of a run.")
    text = "Last epoch, the best by validation ELBO, or the number of one that --keep_every kept."
    add(parser, "checkpoint", Literal["last", "best"] | PositiveInt, "last", text)
    add(
        parser, "split", Literal["train", "validation", "test"], "test", "Images of the run to use."
    )
    add(
        parser,
        "data",
        str,
        None,
        "Images that are not the run's: as in train; all of them, or the official test set.",
    )
    add(parser, "data_dir", str, None, "Folder of the downloaded data sets, if it was moved.")
    add(
        parser,
        "image_size",
        PositiveInt,
        None,
        "Height and width to resize the images of --data to; by default as the run.",
    )
    add_common(parser)
    return parser


def source(config: Namespace) -> str:
    """The part of file names that says which images the options of `run_parser` ask for; paths of one name differ in a hash."""
    if config.data is None:
        return config.split
    if config.data in NAMED:
        return f"data-{config.data}"
    path = stored_name(config.data)
    return f"data-{Path(path).name.replace('.', '_')}-{sha256(path.encode()).hexdigest()[:6]}"


@cache
def train_parser() -> ArgumentParser:
    """The options of `train`, which are those of config.yaml."""
    parser = new_parser(
        "train", "Train a variational autoencoder, score it on the test set and draw figures."
    )
    parser.add_argument(
        "--config",
        action=_ConfigFile,
        help="Options as YAML; the config.yaml of a run repeats the run.",
    )
    add(
        parser,
        "data",
        str,
        "auto",
        f"auto, {', '.join(NAMED)}, a path to your own images (.npy, .npz or a folder), or a function"
        " such as my_module.my_dataset that returns Data.",
    )
    add(parser, "data_dir", str, "data", "Folder of the downloaded data sets.")
    add(
        parser,
        "image_size",
        PositiveInt,
        None,
        "Height and width to resize every image to, up to 1024.",
    )
    text = "How grey pixels become binary: drawn at each presentation, drawn once, or not at all."
    add(parser, "binarization", Binarization, None, text)
    text = "Training images held out for validation; by default a twelfth."
    add(parser, "validation_size", PositiveInt, None, text)
    add(parser, "latent_dim", PositiveInt, 20, "Number of latent dimensions.")
    parser.add_function_arguments(fit, as_group=False, skip=NOT_FLAGS)
    add_common(parser)
    add(
        parser,
        "run_dir",
        str,
        None,
        "New folder for everything that the run writes; by default runs/DATA-TIME.",
    )
    kind = Literal["never", "always", "auto"]
    text = "Continue the run in --run_dir from its last checkpoint; with auto, start it if it does not exist."
    parser.add_argument(
        "--resume", nargs="?", const="always", type=kind, default="never", help=text
    )
    add(parser, "checkpoint_every", PositiveInt, 1, "Epochs between checkpoints.")
    text = "Epochs between checkpoints that are all kept, in epochs/ of the run folder; the report has a slider over them."
    add(parser, "keep_every", PositiveInt, None, text)
    text = "Also write curves, samples and reconstructions of each epoch to tensorboard/ in the run folder."
    add(parser, "logger", Literal["tensorboard"], None, text)
    add(parser, "report", bool, True, "Write report.html, a page about the run, at the end.")
    for name, part in PARTS.items():
        _add_part(parser, name, part)
    return parser


def _add_part(parser: ArgumentParser, name: str, part: Part) -> None:
    text = (
        f"{part.choices}; options of one: --{name}.help CLASS (default: {part.default or 'none'})"
    )
    group = parser.add_argument_group(name)
    group.add_subclass_arguments(
        part.base, name, as_group=False, skip=part.supplied, metavar="CLASS", help=text
    )


def parse_training(argv: list[str]) -> Namespace:
    """The options of `train`; raises as `parse`."""
    config = parse(train_parser(), [*DEFAULTS, *argv])
    for name, part in PARTS.items():
        if part.default and config[name] is None:
            raise RequestError(f"{name} must be a class, but is null; choose from {part.choices}")
    return config


def parse(parser: ArgumentParser, argv: list[str]) -> Namespace:
    """The options in `argv`.

    Modules are looked up in the current folder only if they are not found elsewhere.

    Raises:
        ValueError: If the options are wrong.
    """
    try:
        return parser.parse_args(argv)
    except (ArgumentError, OSError, ValueError) as error:
        if own := _raised_by_an_import(error):
            raise own from None
        if "No module named" not in str(error) or os.getcwd() in sys.path:
            raise RequestError(one_line(str(error), parser)) from error
    sys.path.append(os.getcwd())
    return parse(parser, argv)


def _raised_by_an_import(error: BaseException | None) -> BaseException | None:
    """The exception in the code of a module that was being imported, if this is the reason of an error."""
    while error is not None:
        functions = [frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) or "<module>" in functions:
            return error
        error = error.__cause__ or error.__context__
    return None


def one_line(message: str, parser: ArgumentParser) -> str:
    """The option and the first line that says what is wrong, of jsonargparse's nested message."""
    option = ".".join(re.findall(r'Parser key "(.*?)":', message))
    lines = [re.sub(r'Parser key ".*?":', "", line).strip(" -") for line in message.splitlines()]
    line = next((line for line in lines if line and not line.startswith(_NESTING)), message)
    line = re.sub(r"a <class '(?:\w+\.)*(\w+)'>", r"type \1", line).replace(
        "a typing.Literal", "one of "
    )
    line = line.replace("Expected a dot import path string:", "there is no class")
    line = line.replace("type Sequence", "a list such as [2, 3]")
    line = re.sub(
        r"Not of type (?:UpTo)?(\w+): .*",
        lambda kind: _INTEGERS.get(kind[1], f"must be an integer from 1 to {kind[1]}"),
        line,
    )
    if (given := re.search(r"Given value: ([^\s(]+)$", message)) and given[1] not in line:
        line += f". Got value: {given[1]}"
    if option in PARTS and "class_path '" not in message:
        line += f"; choose from {PARTS[option].choices}"
    elif "there is no class" in line:
        line += "; give the import path of one, such as torch.nn.Tanh for an activation"
    elif option in PARTS and "is not accepted" in line:
        line += f"; --{option}.help CLASS lists the options of a class"
    flag = re.match(r"unrecognized arguments: (--[\w.]+)", line)
    if close := flag and get_close_matches(flag[1], parser._option_string_actions, 1, 0.7):
        line += f"; did you mean {close[0]}?"
    return f"{option}: {line}" if option else line


_INTEGERS = {
    "PositiveInt": "must be a positive integer",
    "NonNegativeInt": "must be an integer, at least 0",
    "Seed": "must be an integer from 0 to 4294967295",
}
# Lines of jsonargparse's messages that say how it tried to read a value.
_NESTING = (
    "Expected a path",
    "Does not validate",
    "Subtypes",
    "Errors",
    "Expected a <class 'NoneType'>",
    "Problem with given",
)


def known_paths() -> set[str]:
    """The import paths that a run folder may name without `trust`: the known classes, torch's activations and its init."""
    activations = [
        cls
        for cls in vars(nn.modules.activation).values()
        if isinstance(cls, type) and issubclass(cls, nn.Module)
    ]
    known = {
        path
        for cls in [*activations, *(cls for part in PARTS.values() for cls in part.known)]
        for path in _paths(cls)
    }
    return known | {
        f"torch.nn.init.{name}" for name in vars(nn.init) if re.fullmatch(r"[a-z]\w*[a-z]_", name)
    }


def _paths(cls: type) -> list[str]:
    """The import paths of a class: from its module, and from the packages around it that export it."""
    modules = accumulate(cls.__module__.split("."), "{}.{}".format)
    return [
        f"{name}.{cls.__name__}"
        for name in modules
        if getattr(sys.modules[name], cls.__name__, None) is cls
    ]
