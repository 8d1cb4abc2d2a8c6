"""The options of the commands: flags and YAML keys, whose schema is the constructors' signatures.

No other file imports jsonargparse.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from hashlib import sha256
from pathlib import Path
from traceback import walk_tb
from typing import Any, Literal

import typeshed_client
from jsonargparse import (
    ActionConfigFile,
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    _stubs_resolver,
    set_loader,
)
from jsonargparse.typing import NonNegativeInt, PositiveInt, restricted_number_type
from torch.optim import Adam

from pyro_vae.data.datasets import NAMED, stored_name
from pyro_vae.errors import RequestError
from pyro_vae.runs.parts import PARTS, Part
from pyro_vae.runs.recipe import Device, Recipe
from pyro_vae.runs.store import parse_yaml, read_yaml

__all__ = ["ArgumentParser", "Namespace", "NonNegativeInt", "PositiveInt"]

# Every value and configuration file is read by `parse_yaml`.
set_loader("strict", parse_yaml, (ValueError,))

# To find stubs, jsonargparse would start `python -c "import sys, json"` in the current folder, which may hold a json.py.
_stubs_resolver.stubs_resolver = _stubs_resolver.StubsResolver(
    search_context=typeshed_client.get_search_context(search_path=[])
)


def up_to(limit: int) -> Any:
    """The type of the integers from 1 to a limit, which is far above useful values and bounds the memory."""
    return restricted_number_type(
        f"UpTo{limit}", int, [(">=", 1), ("<=", limit)], docstring=f"1 to {limit:,}."
    )


Seed = restricted_number_type(
    "Seed", int, [(">=", 0), ("<", 2**32)], docstring="A seed from 0 to 2**32 - 1."
)

Resume = Literal["never", "always", "auto"]


class DefaultOptimizer(Adam):
    """Stands for the default optimizer, whose options another class that is named must not inherit."""


@dataclass(frozen=True)
class Asked:
    """What `train` was asked for.

    Attributes:
        recipe: The options that config.yaml holds.
        run_dir: The folder.
        resume: Whether to continue the run in it.
        trust: Whether to import any class that it names.
    """

    recipe: Recipe
    run_dir: str | None
    resume: Resume
    trust: bool


# Options that config.yaml does not hold.
NOT_STORED = ("config", "run_dir", "resume", "trust")

# Options that may differ when a run is resumed.
MAY_CHANGE = {
    "epochs",
    "device",
    "data_dir",
    "checkpoint_every",
    "keep_every",
    "logger",
    "report",
    "on_nan",
    "engine",
    "test_samples",
    "test_images",
}


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
    add(parser, "device", Device, "auto", "Where to compute.")
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
    """The options of `train`: those of `Recipe`, and four about the folder."""
    parser = new_parser(
        "train", "Train a variational autoencoder, score it on the test set and draw figures."
    )
    text = "Options as YAML; the config.yaml of a run repeats the run."
    parser.add_argument("--config", action=_ConfigFile, help=text)
    parser.add_class_arguments(Recipe, as_group=False, skip=set(PARTS))
    text = "New folder for everything that the run writes; by default runs/DATA-TIME."
    add(parser, "run_dir", str, None, text)
    text = "Continue the run in --run_dir from its last checkpoint; with auto, start it if it does not exist."
    parser.add_argument(
        "--resume", nargs="?", const="always", type=Resume, default="never", help=text
    )
    text = "Import any class that the run folder names. This runs code from its module."
    parser.add_argument("--trust", action="store_true", help=text)
    for name, part in PARTS.items():
        _add_part(parser, name, part)
    return parser


def _add_part(parser: ArgumentParser, name: str, part: Part) -> None:
    default = _default_class(name, part).rpartition(".")[2] if part.default else "none"
    text = f"{part.choices}; options of one: --{name}.help CLASS (default: {default})"
    group = parser.add_argument_group(name)
    group.add_subclass_arguments(
        part.base, name, as_group=False, skip={*part.supplied}, metavar="CLASS", help=text
    )


def _default_class(name: str, part: Part) -> str:
    return "Adam, fused" if name == "optimizer" else part.default.class_path


def parse_training(argv: list[str]) -> Asked:
    """The options of `train`; raises as `parse`."""
    config = parse(train_parser(), [*_defaults(), *argv])
    values = Namespace({key: value for key, value in config.items() if key not in NOT_STORED})
    plain = json.loads(train_parser().dump(values, "json", skip_unset=False, skip_validation=True))
    for name, part in PARTS.items():
        if part.default and plain[name] is None:
            raise RequestError(f"{name} must be a class, but is null; choose from {part.choices}")
    optimizer = plain["optimizer"]
    if optimizer["class_path"].endswith(DefaultOptimizer.__name__):
        optimizer["class_path"] = PARTS["optimizer"].default.class_path
        for key, value in PARTS["optimizer"].default.options.items():
            if optimizer["init_args"].get(key) is None:
                optimizer["init_args"][key] = value
    recipe = Recipe.from_plain(plain)
    recipe.check(trust=True)
    return Asked(recipe, config.run_dir, config.resume, config.trust)


def _defaults() -> list[str]:
    """The default classes as flags. As jsonargparse's defaults they would lend their options to the classes that replace them."""
    flags = []
    for name, part in PARTS.items():
        if name == "optimizer":
            flags.append(f"--{name}={DefaultOptimizer.__module__}.{DefaultOptimizer.__name__}")
        elif part.default is not None:
            flags.append(f"--{name}={part.default.class_path}")
    return flags


def parse_resumed(stored: Recipe, argv: list[str], where: Path) -> Recipe:
    """The recipe of a run with those options in `argv` that may change.

    Raises:
        ValueError: If other options differ.
    """
    as_flags = ["--config", json.dumps(stored.plain())]
    before, asked = parse_training(as_flags).recipe, parse_training([*as_flags, *argv]).recipe
    if asked.data == "auto" or stored_name(asked.data) == stored.data:
        asked.data = stored.data
    fixed = [
        name
        for name, value in vars(asked).items()
        if value != getattr(before, name) and name not in MAY_CHANGE
    ]
    if fixed:
        raise RequestError(
            f"the run in {where} has other values of {', '.join(sorted(fixed))}; use a new run_dir"
        )
    return asked


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
