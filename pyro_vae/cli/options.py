"""The options of the commands: flags and YAML keys, whose schema is the constructors' signatures.

No other file imports jsonargparse.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from hashlib import sha256
from inspect import Parameter, getdoc
from itertools import pairwise
from pathlib import Path
from traceback import walk_tb
from typing import Any, Literal, TypeVar, get_type_hints

import docstring_parser
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
from pyro.infer import Trace_ELBO
from torch.optim import Adam

from pyro_vae.data.datasets import NAMED, stored_name
from pyro_vae.errors import RequestError
from pyro_vae.runs.annotations import hints, parameters
from pyro_vae.runs.parts import PARTS, Choice, import_path, known_classes, resolve
from pyro_vae.runs.recipe import Device, Recipe
from pyro_vae.runs.recipe_check import Check
from pyro_vae.runs.strict_yaml import parse_yaml, read_yaml

__all__ = ["ArgumentParser", "Namespace", "NonNegativeInt", "PositiveInt"]

# Every value and configuration file is read by `parse_yaml`.
set_loader("strict", parse_yaml, (ValueError,))

# To find stubs, jsonargparse would start `python -c "import json"` in the current folder, which may
# hold a json.py.
_nowhere = typeshed_client.get_search_context(search_path=[])
vars(_stubs_resolver)["stubs_resolver"] = _stubs_resolver.StubsResolver(search_context=_nowhere)


def up_to(limit: int) -> Any:
    """The type of the integers from 1 to a limit, which bounds the memory."""
    return restricted_number_type(
        f"UpTo{limit}", int, [(">=", 1), ("<=", limit)], docstring=f"1 to {limit:,}."
    )


Seed = restricted_number_type(
    "Seed", int, [(">=", 0), ("<", 2**32)], docstring="A seed from 0 to 2**32 - 1."
)

Resume = Literal["never", "always", "auto"]
Result = TypeVar("Result")


class FusedAdam(Adam):
    """Stands for the default optimizer: another one, also Adam by its name, is not fused."""


class OfModel(Trace_ELBO):
    """Stands for the default objective, which depends on the model, with its options."""


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
NOT_STORED = ("config", "print_config", "run_dir", "resume", "trust")

# Options that may differ when a run is resumed.
MAY_CHANGE = {
    "epochs",
    "device",
    "data_dir",
    "checkpoint_every",
    "keep_every",
    "logger",
    "report",
    "figure_format",
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
        if given:
            return f"{action.help} (default: %(default)s)"
        return str(action.help)


class _ConfigFile(ActionConfigFile):
    """Reads a configuration file with `read_yaml`; takes JSON as it is."""

    def __call__(
        self, parser: Any, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        if not values.startswith("{"):
            values = json.dumps(read_yaml(Path(values)))
        super().__call__(parser, cfg, values, option_string)


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
        print_config=None,
    )


def add(parser: ArgumentParser, name: str, kind: Any, default: Any, text: str) -> None:
    """Add a flag; without a default it may be None."""
    if default is None:
        kind = kind | None
    parser.add_argument(f"--{name}", type=kind, default=default, help=text)


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
    """The part of file names that says which images the options of `run_parser` ask for.

    Paths that end in the same name differ in a hash.
    """
    if config.data is None:
        return config.split
    if config.data in NAMED:
        return f"data-{config.data}"
    path = stored_name(config.data)
    return f"data-{Path(path).name.replace('.', '_')}-{sha256(path.encode()).hexdigest()[:6]}"


@cache
def train_parser() -> ArgumentParser:
    """The options of `train`: the fields of `Recipe`, and those that config.yaml does not hold."""
    parser = new_parser(
        "train", "Train a variational autoencoder, score it on the test set and draw figures."
    )
    text = "Options as YAML; the config.yaml of a run repeats the run."
    parser.add_argument("--config", action=_ConfigFile, help=text)
    text = "Print all options as YAML, and stop."
    parser.add_argument("--print_config", action="store_true", help=text)
    parser.add_class_arguments(Recipe, as_group=False, skip={*PARTS, "image_shape"})
    text = "Height and width, or channels, height and width, of images that a file stores as rows."
    parser.add_argument("--image_shape", nargs="+", type=_size, metavar="SIZE", help=text)
    text = "New folder for everything that the run writes; by default runs/DATA-TIME."
    add(parser, "run_dir", str, None, text)
    text = "Continue the run in --run_dir from its last checkpoint; with auto, start it if new."
    parser.add_argument(
        "--resume", nargs="?", const="always", type=Resume, default="never", help=text
    )
    text = "Import any class that the run folder names. This runs code from its module."
    parser.add_argument("--trust", action="store_true", help=text)
    for name, part in PARTS.items():
        default = part.otherwise
        if part.default is not None:
            default = part.default.class_path.rpartition(".")[2]
        text = f"{part.choices}; options of one: --{name}.help CLASS (default: {default})"
        parser.add_argument_group(name).add_subclass_arguments(
            part.base, name, as_group=False, skip={*part.supplied}, metavar="CLASS", help=text
        )
    return parser


def parse_training(argv: list[str]) -> Asked:
    """The options of `train`; raises as `parse`."""
    for flag, value in pairwise([*argv, ""]):
        asked = re.fullmatch(r"--(\w+)\.help(?:=(.*))?", flag)
        if asked and asked[1] in PARTS:
            _print_help(asked[1], asked[2] or value)
    config = parse(train_parser(), [*_defaults(), *argv])
    values = Namespace({key: value for key, value in config.items() if key not in NOT_STORED})
    plain = json.loads(train_parser().dump(values, "json", skip_unset=False, skip_validation=True))
    optimizer = plain["optimizer"]
    if optimizer and optimizer["class_path"] == _path(FusedAdam):
        optimizer["class_path"] = "torch.optim.Adam"
        if optimizer["init_args"]["fused"] is None:
            optimizer["init_args"]["fused"] = True
    objective = plain["objective"]
    if plain["model"] and objective and objective["class_path"] == _path(OfModel):
        plain["objective"] = _objective_of_model(plain)
    recipe = Recipe.from_plain(plain)
    recipe.check(trust=True)
    if config.print_config:
        print(recipe.to_yaml(), end="")
        raise SystemExit(0)
    return Asked(recipe, config.run_dir, config.resume, config.trust)


def _defaults() -> list[str]:
    """The default classes as flags.

    As jsonargparse's defaults they would lend their options to the classes that replace them.
    """
    paths = {name: part.default.class_path for name, part in PARTS.items() if part.default}
    paths["optimizer"] = _path(FusedAdam)
    paths["objective"] = _path(OfModel)
    return [f"--{name}={path}" for name, path in paths.items()]


def _objective_of_model(plain: dict[str, Any]) -> dict[str, Any]:
    """The default objective of the model, with the options that were given for it."""
    path = plain["model"]["class_path"]
    model: Any = known_classes("model").get(path) or resolve("model", path)
    return {**plain["objective"], "class_path": import_path(model.default_objective)}


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__name__}"


def _print_help(name: str, path: str) -> None:
    """Print the options of a class, or the known classes if none is named, and stop."""
    part = PARTS[name]
    if not path or path.startswith("-"):
        print(f"--{name} CLASS is one of {part.choices}")
        raise SystemExit(0)
    known = known_classes(name)
    if path not in known and "." not in path:
        raise RequestError(f"{name}: there is no class {path}; choose from {part.choices}")
    cls = _with_current_folder(lambda: known.get(path) or resolve(name, path))
    summary = docstring_parser.parse(getdoc(cls) or "").short_description
    texts = _option_texts(cls)
    printed = argparse.ArgumentParser(
        prog=f"--{name} {path}",
        usage=f"--{name} CLASS [--{name}.OPTION VALUE ...]",
        description=_plain_text(summary or cls.__name__),
        add_help=False,
        allow_abbrev=False,
    )
    for option, param in parameters(cls, part.supplied).items():
        text = _plain_text(texts.get(option, ""))
        if param.default is not Parameter.empty and "default" not in text:
            default = getattr(param.default, "__name__", param.default)
            text = f"{text} (default: {default})"
        printed.add_argument(f"--{name}.{option}", metavar="VALUE", help=text.replace("%", "%%"))
    printed.print_help()
    raise SystemExit(0)


def _option_texts(cls: type) -> dict[str, str]:
    """What the docstrings of a class and of its bases say of each parameter."""
    texts = {}
    for base in reversed(cls.__mro__):
        for param in docstring_parser.parse(base.__doc__ or "").params:
            texts[param.arg_name] = param.description or ""
    return texts


def _plain_text(text: str) -> str:
    """The first sentence of a description, without the markup of Sphinx."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[a-z)][.;]) ", paragraph)[0]
    if sentence.endswith(";"):
        sentence = sentence[:-1] + "."
    return re.sub(r":\w+:`~?(.*?)`", r"\1", sentence)


def parse_resumed(stored: Recipe, argv: list[str], where: Path) -> Recipe:
    """The recipe of a run with those options in `argv` that may change.

    Raises:
        ValueError: If other options differ.
    """
    as_flags = ["--config", json.dumps(stored.plain())]
    before = parse_training(as_flags).recipe
    asked = parse_training([*as_flags, *argv]).recipe
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
        ValueError: If the options are wrong. Exceptions of a module that is imported keep their
            traceback.
    """
    return _with_current_folder(lambda: _parse(parser, argv))


def _with_current_folder(function: Callable[[], Result]) -> Result:
    """Call a function, and again with the current folder on the path if a module is missing."""
    try:
        return function()
    except RequestError as error:
        is_missing = isinstance(_cause(error, ModuleNotFoundError), ModuleNotFoundError)
        if not is_missing or os.getcwd() in sys.path:
            raise
    sys.path.append(os.getcwd())
    return function()


def _parse(parser: ArgumentParser, argv: list[str]) -> Namespace:
    try:
        return parser.parse_args(argv)
    except (ArgumentError, OSError, ValueError) as error:
        own = _raised_by_an_import(error)
        if own:
            raise own from None
        raise RequestError(one_line(str(error), parser)) from error


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """The first exception of a kind in the chain of an exception's causes."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _raised_by_an_import(error: BaseException | None) -> BaseException | None:
    """The exception in the code of a module that was being imported, if it is the cause."""
    while error is not None:
        functions = [frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) or "<module>" in functions:
            return error
        error = error.__cause__ or error.__context__
    return None


def one_line(message: str, parser: ArgumentParser) -> str:
    """What is wrong, from jsonargparse's nested message."""
    flag = re.match(r"unrecognized arguments: (--[\w.]+)", message)
    if flag:
        close = get_close_matches(flag[1], parser._option_string_actions, 1, 0.7)
        if close:
            return f"{message}; did you mean {close[0]}?"
        return message
    option = ".".join(re.findall(r'Parser key "(.*?)":', message))
    if option and parser is train_parser():
        _explain(option, message)
    lines = [re.sub(r'Parser key ".*?":', "", line).strip(" -") for line in message.splitlines()]
    said = [line for line in lines if line and not line.startswith(_NESTING)]
    line = said[0]
    restricted = re.match(r"Not of type (?:UpTo)?(\w+):", line)
    if restricted:
        line = _INTEGERS.get(restricted[1], f"must be an integer from 1 to {restricted[1]}")
    choice = re.match(r"Expected a typing\.Literal\[(.*?)\]", line)
    if choice:
        names = choice[1].replace("'", "")
        line = f"must be one of {names}"
        if "PositiveInt" in message:
            line += ", or a positive integer"
    if line.startswith("Expected a <class 'bool'>"):
        line = "must be true or false"
    if line.startswith("the following arguments are required"):
        line += "; --help says what they are"
    if option:
        return f"{option}: {line}"
    return line


_INTEGERS = {
    "PositiveInt": "must be a positive integer",
    "NonNegativeInt": "must be an integer, at least 0",
    "Seed": "must be an integer from 0 to 4294967295",
}

# Lines of jsonargparse's messages that say how it tried to read a value.
_NESTING = ("Expected a path", "Does not validate", "Subtypes", "Errors", "Problem with given")


def _explain(option: str, message: str) -> None:
    """Raise what `Recipe.check` says of the same mistake."""
    value = None
    for pattern in (r", val='?(.*?)'?\)$", r"Given value: (.*)$", r"Got value: (.*)$"):
        given = re.findall(pattern, message, re.M)
        if given:
            value = _value(given[-1])
            break
    name, *_ = option.split(".")
    paths = re.findall(r"class_path '(.*?)'", message)
    unknown = re.search(r"Option '(.*?)' is not accepted", message)
    check = Check(trust=True, allowed=())
    if not paths and name in PARTS:
        check.part(name, Choice(str(value)))
    elif name not in PARTS:
        check.value(name, value, get_type_hints(Recipe).get(name, Any))
    elif unknown and option in PARTS:
        check.part(name, Choice(paths[-1], {unknown[1]: value}))
    elif not unknown and "." in option:
        annotated = hints(resolve(name, paths[-1]))
        check.value(option, value, annotated.get(option.rpartition(".")[2], Any))


def _size(value: Any) -> Any:
    """An integer; what is none is refused by `Recipe.check`."""
    if str(value).isdecimal():
        return int(value)
    return value


def _value(text: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError:
        return text
