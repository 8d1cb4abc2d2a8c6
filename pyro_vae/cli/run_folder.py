"""The run folder: everything that a run leaves, and a VAE back from it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

import torch
import yaml
from filelock import FileLock, Timeout
from jsonargparse import ArgumentError, Namespace

from pyro_vae import checkpoints
from pyro_vae.cli.checkpoints import storing
from pyro_vae.cli import PARTS, build, constructors, one_line, parse, train_parser
from pyro_vae.data import Data, load_data
from pyro_vae.errors import RequestError
from pyro_vae.inference.fit import Record, Training
from pyro_vae.vae import Model

TRUSTED = ("pyro_vae", "torch.nn", "torch.optim", "pyro.infer", "pyro.nn", "pyro.optim")
"""Where the classes are defined that a folder may name: those there do nothing but what they are asked for."""

Which = Literal["last", "best"]

OF_THE_FOLDER = {"config", "run_dir", "resume", "trust"}
"""Options that config.yaml does not hold."""

MAY_CHANGE = {*OF_THE_FOLDER, "epochs", "device", "data_dir", "checkpoint_every", "on_nan", "engine"}
"""Options that a resumed run may be given anew."""

FILES: dict[Which, str] = {"last": "checkpoint.pt", "best": "best.pt"}


@dataclass(frozen=True)
class Run:
    """A folder with config.yaml, metrics.jsonl, checkpoint.pt, best.pt, results.json and figures/."""

    path: Path

    @property
    def figures(self) -> Path:
        """The folder of pictures."""
        return self.path / "figures"

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run in a folder.

        Raises:
            RequestError: If the folder is no run folder, or holds links, through which other files would be written.
        """
        if not os.path.isfile(Path(path) / "config.yaml"):
            raise RequestError(f"{path} is no run folder, for it has no config.yaml: give the --run_dir of a training")
        for file in Path(path).rglob("*"):
            if file.is_symlink():
                raise RequestError(f"{file} is a link, and a run's files must lie in its folder: put the file itself there")
        return cls(Path(path))

    def config(self, trust: bool = False) -> Namespace:
        """The options of the run.

        Naming a class imports its module, which runs its code: a folder may come from a stranger.

        Arguments:
            trust: Import classes that none of `TRUSTED` defines.

        Raises:
            RequestError: If they cannot be read, or name such a class without `trust`.
        """
        file = self.path / "config.yaml"
        try:
            if not trust:
                _check_names(yaml.safe_load(file.read_text(encoding="utf-8")), file)
            return train_parser().parse_path(file)
        except (ArgumentError, UnicodeDecodeError, OSError, yaml.YAMLError) as error:
            raise RequestError(f"{file} cannot be read: {one_line(str(error))}") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in the folder.

        Raises:
            RequestError: If one does.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        with storing(self.path / ".lock"):
            try:
                lock.acquire()
            except Timeout as error:
                raise RequestError(
                    f"another process trains in {self.path}: wait for it, or choose another --run_dir"
                ) from error
        try:
            yield
        finally:
            lock.release()

    def add_record(self, record: Record) -> None:
        """Append a line to metrics.jsonl.

        Raises:
            StorageError: If it cannot be written.
        """
        file = self.path / "metrics.jsonl"
        with storing(file), file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")

    def records(self) -> list[Record]:
        """The lines of metrics.jsonl; the last is left out if it was cut short."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def keep_records(self, epochs: int) -> None:
        """Drop the records of later epochs, whose checkpoint was never written: they are trained again."""
        kept = [record for record in self.records() if record["epoch"] <= epochs]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        checkpoints.write(self.path / "metrics.jsonl", text.encode())

    def save_checkpoint(self, which: Which, training: Training, data: Data) -> None:
        """Write where a training on some data stands, at the end of an epoch.

        Raises:
            StorageError: If it cannot be written; the checkpoint before it is whole.
        """
        content = {"shape": list(data.shape), "data": data.fingerprint, "training": training.state_dict()}
        checkpoints.save(self.path / FILES[which], content)

    def load_checkpoint(self, which: Which) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote.

        Raises:
            RequestError: If it is missing or damaged.
        """
        file = self.path / FILES[which]
        if not file.is_file():
            raise RequestError(f"{self.path} has no {file.name}: the run ended before there was one")
        return checkpoints.load(file)

    def save_config(self, config: Namespace) -> None:
        """Write the options of the run, without those that are about the folder itself.

        Raises:
            StorageError: If they cannot be written.
        """
        kept = Namespace({key: value for key, value in config.items() if key not in OF_THE_FOLDER})
        checkpoints.write(self.path / "config.yaml", train_parser().dump(kept).encode())

    def resumed_config(self, asked: Namespace, argv: list[str] | None) -> Namespace:
        """The options of the run, changed by those in `argv` that may change: `MAY_CHANGE`.

        Raises:
            RequestError: If other options are changed; the message names them.
        """
        stored = self.config(asked.trust)
        config = parse(train_parser(), ["--config", str(self.path / "config.yaml"), *(sys.argv[1:] if argv is None else argv)])
        changed = sorted(key for key in {*stored.keys(), *config.keys()} if config.get(key) != stored.get(key))
        fixed = [key for key in changed if key.split(".")[0] not in MAY_CHANGE]
        if fixed:
            raise RequestError(
                f"a run cannot be resumed with other options, but {', '.join(fixed)} differ: start a new --run_dir"
            )
        return config

    def save_results(self, results: Mapping[str, Any], name: str = "results") -> Path:
        """Write figures as JSON; the path written to.

        Raises:
            StorageError: If it cannot be written.
        """
        file = self.path / f"{name}.json"
        checkpoints.write(file, (json.dumps(results, indent=2) + "\n").encode())
        return file


def _check_names(options: Any, file: Path) -> None:
    """Refuse whatever could make the parser import or read something else than classes of the trusted packages."""
    options = (
        {key: value for key, value in options.items() if key not in ("data", "data_dir")} if isinstance(options, dict) else {}
    )
    if "config" in options or any("." in str(key) or (key in PARTS and isinstance(options[key], str)) for key in options):
        raise RequestError(f"{file} is not as pyro_vae writes it, and may load other files: add --trust if you know it")
    for name in _strings(options):
        if any(Path(folder, name).is_file() for folder in (".", file.parent)):
            raise RequestError(f"{file} names {name}, which is a file that could be loaded: add --trust if you know it")
        if re.search(r"[./\\]", name) and not _is_trusted(name):
            raise RequestError(f"{file} names {name}: loading it would run its module's code; add --trust if you know it")


def _is_trusted(name: str) -> bool:
    """Whether a dotted name is that of a class which a trusted module defines: `torch.os.system` is not."""
    if name.split(".", maxsplit=1)[0] not in {home.split(".")[0] for home in TRUSTED} or not re.fullmatch(r"[\w.]+", name):
        return False
    try:
        named = resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return True  # the parser says what is wrong with it
    return isinstance(named, type) and f"{named.__module__}.".startswith(tuple(f"{home}." for home in TRUSTED))


def _strings(options: Any) -> Iterator[str]:
    if isinstance(options, str):
        yield options
    elif isinstance(options, dict | list):
        for value in options.values() if isinstance(options, dict) else options:
            yield from _strings(value)


def new_run(path: Path, config: Namespace) -> Run:
    """Make a run folder that holds the options.

    Raises:
        RequestError: If it exists already or cannot be made.
    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RequestError(f"{path} exists already: choose another --run_dir, or remove it")
        (path / "figures").mkdir(parents=True)
    except OSError as error:
        raise RequestError(f"{path} cannot be made ({error.strerror}): choose another --run_dir") from error
    run = Run(path)
    run.save_config(config)
    return run


def load_run(path: str | Path, checkpoint: Which = "last", device: torch.device | str = "cpu", trust: bool = False) -> Model:
    """The VAE of a run folder, in evaluation mode.

    Arguments:
        path: The run folder.
        checkpoint: "last" epoch, or the "best" by validation ELBO.
        device: Where to put it.
        trust: Import classes that none of `TRUSTED` defines, which runs their module's code.

    Raises:
        RequestError: If the folder is no run folder, the checkpoint is missing or damaged, or a class is not trusted.
    """
    if checkpoint not in FILES:
        raise RequestError(f"checkpoint must be one of {', '.join(FILES)}, but is {checkpoint}")
    run = Run.open(path)
    config, content = run.config(trust), run.load_checkpoint(checkpoint)
    vae = build(constructors(config), config.latent_dim, tuple(content["shape"]))
    try:
        vae.load_state_dict(content["training"]["vae"])
    except RuntimeError as error:
        raise RequestError(
            f"{FILES[checkpoint]} of {path} does not belong to its config.yaml: {str(error).splitlines()[-1].strip()}"
        ) from error
    return vae.to(device).eval()


def run_data(
    run: Run, data_dir: str | None = None, trust: bool = False, say: Callable[[str], object] = lambda line: None
) -> Data:
    """The data set that a run was trained on; nothing is downloaded to a folder that only the run names.

    Arguments:
        run: The run.
        data_dir: Folder of the downloaded data sets, if it has moved.
        trust: As for `load_run`.
        say: Called with a warning if the images are others by now.

    Raises:
        RequestError: If the data are gone, or have another shape by now.
    """
    config, content = run.config(trust), run.load_checkpoint("last")
    where, shape = data_dir or config.data_dir, tuple(content["shape"])
    data = load_data(config.data, where, config.image_size, config.binarization, download=data_dir is not None)
    if data.shape != shape:
        raise RequestError(f"{config.data} has images of shape {data.shape}, but {run.path} was trained on {shape}")
    if not is_of(data, content):
        say(f"warning: {config.data} has changed since {run.path} was trained: its splits may mix what was kept apart")
    return data


def is_of(data: Data, content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's run was trained on these very images."""
    return content.get("data") in (None, data.fingerprint)
