"""The run folder: everything that a run writes, and the model back from it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from filelock import FileLock, Timeout
from jsonargparse import Namespace

from pyro_vae.cli.build import build_model
from pyro_vae.cli.files import load_checkpoint, read, read_yaml, save_checkpoint, write
from pyro_vae.cli.options import PARTS, known_paths, parse, train_parser
from pyro_vae.data import Data, load_data
from pyro_vae.errors import RequestError, StorageError, check_choice
from pyro_vae.inference.fit import Record, Training
from pyro_vae.inference.graphs import logger
from pyro_vae.vae import Model

Which = Literal["last", "best"]

FILES: dict[Which, str] = {"last": "checkpoint.pt", "best": "best.pt"}

# Options that config.yaml does not hold.
NOT_STORED = {"config", "run_dir", "resume", "trust"}

# Options that may differ when a run is resumed.
MAY_CHANGE = {*NOT_STORED, "epochs", "device", "data_dir", "checkpoint_every", "on_nan", "engine"}


@dataclass(frozen=True)
class Run:
    """A folder with config.yaml, metrics.jsonl, checkpoint.pt, best.pt, results.json and figures/."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: Namespace) -> Run:
        """A new run folder with its config.yaml.

        Raises:
            ValueError: If the folder is not empty, or cannot be made.
        """
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise RequestError(f"{path} exists already; use another run_dir, or remove it")
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"{path} cannot be made ({error.strerror}); use another run_dir") from error
        run = cls(path)
        run.save_config(config)
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run folder.

        Raises:
            ValueError: If it is not one, or contains links.
        """
        run = cls(Path(path))
        if not run.exists():
            raise RequestError(f"config.yaml not found in {path}; give the run_dir of a training run")
        for file in run.path.rglob("*"):
            if file.is_symlink():
                raise RequestError(f"{file} is a link, which run folders may not contain; replace it by the file itself")
        return run

    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.path / "config.yaml").is_file()

    def config(self, trust: bool = False, allowed: Collection[str] = ()) -> Namespace:
        """The options of the run.

        Naming a class imports its module, which runs code, so that only known classes are accepted by default.

        Arguments:
            trust: Accept every class.
            allowed: Further import paths to accept.

        Raises:
            ValueError: If the options are wrong, or name another class.
        """
        file = self.path / "config.yaml"
        content = read_yaml(file)
        if not trust:
            _check_names(content, {*known_paths(), *allowed}, file)
        try:
            return parse(train_parser(), ["--config", json.dumps(content)])
        except RequestError as error:
            raise RequestError(f"{file}: {error}") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in the folder.

        Raises:
            ValueError: If another process does.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise RequestError(f"another process trains in {self.path}; wait for it, or use another run_dir") from error
        except OSError as error:
            raise StorageError(f"{self.path / '.lock'} cannot be written ({error.strerror})") from error
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
        try:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record) + "\n")
        except OSError as error:
            raise StorageError(f"{file} cannot be written ({error.strerror})") from error

    def records(self) -> list[Record]:
        """The well-formed records of metrics.jsonl, in order; a warning says how many lines are not."""
        file = self.path / "metrics.jsonl"
        lines = read(file).decode(errors="replace").split("\n")[:-1] if file.is_file() else []
        records = [record for line in lines if (record := _record(line)) is not None]
        if len(records) < len(lines):
            logger.warning("%s: ignoring %d damaged lines", file, len(lines) - len(records))
        return records

    def keep_records(self, epochs: int) -> None:
        """Drop the records after an epoch: it is the last with a checkpoint."""
        kept = [record for record in self.records() if record["epoch"] <= epochs]
        write(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept).encode())

    def save_checkpoint(self, which: Which, training: Training, data: Data) -> None:
        """Write the state of a training.

        Raises:
            StorageError: If it cannot be written; the previous checkpoint is still there.
        """
        content = {"shape": list(data.shape), "data": data.fingerprint, "training": training.state_dict()}
        save_checkpoint(self.path / FILES[which], content)

    def load_checkpoint(self, which: Which) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            ValueError: If it is missing or damaged.
        """
        return load_checkpoint(self.path / FILES[which])

    def save_config(self, config: Namespace) -> None:
        """Write the options of the run, except those about the folder itself.

        Raises:
            StorageError: If they cannot be written.
        """
        kept = Namespace({key: value for key, value in config.items() if key not in NOT_STORED})
        write(self.path / "config.yaml", train_parser().dump(kept).encode())

    def save_results(self, results: Mapping[str, Any], name: str = "results") -> Path:
        """Write metrics as JSON; the path.

        Raises:
            StorageError: If they cannot be written.
        """
        return write(self.path / f"{name}.json", (json.dumps(results, indent=2) + "\n").encode())

    def resumed_config(self, asked: Namespace, argv: list[str]) -> Namespace:
        """The options of the run, with those in `argv` that may change.

        Classes that `argv` names are accepted: the user has typed them.

        Raises:
            ValueError: If other options differ.
        """
        stored = self.config(asked.trust, {name for arg in argv for name in arg.split("=")})
        config = parse(train_parser(), ["--config", json.dumps(read_yaml(self.path / "config.yaml")), *argv])
        differing = {key.split(".")[0] for key in {*stored.keys(), *config.keys()} if config.get(key) != stored.get(key)}
        if fixed := sorted(differing - MAY_CHANGE):
            raise RequestError(f"the run in {self.path} has other values of {', '.join(fixed)}; use a new run_dir")
        return config


def _record(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    kinds = get_type_hints(Record).items()
    valid = isinstance(record, dict) and all(isinstance(record.get(name), (int, kind)) for name, kind in kinds)
    return record if valid else None


def _check_names(content: Mapping[str, Any], known: Collection[str], file: Path) -> None:
    """Reject every string that could be an import path or a file, unless it is known; before anything is imported."""
    for key, value in content.items():
        if key in ("data", "data_dir"):
            continue
        if key in NOT_STORED:
            raise RequestError(f"{file}: {key} is not an option of a run folder")
        if key in PARTS and not isinstance(value, dict | None):
            raise RequestError(f"{file}: {key} must be a class with its options, as pyro_vae writes it")
        for name in _strings(value):
            if name not in known and not (name.isidentifier() and not Path(name).is_file()):
                raise RequestError(f"{file} names {name}; if you trust it, add --trust, which runs its module's code")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(child)


def load_run(path: str | Path, checkpoint: Which = "last", device: torch.device | str = "cpu", trust: bool = False) -> Model:
    """The model of a run folder, in evaluation mode.

    Arguments:
        path: The run folder.
        checkpoint: "last" epoch, or the "best" by validation ELBO.
        device: Where to put the model.
        trust: Import any class that the folder names; this runs code from its module.

    Raises:
        ValueError: If the folder is not a run folder, the checkpoint is missing or damaged, or a class is not trusted.
    """
    check_choice("checkpoint", checkpoint, Which)
    run = Run.open(path)
    config, content = run.config(trust), run.load_checkpoint(checkpoint)
    vae = build_model(config, tuple(content["shape"]))
    try:
        vae.load_state_dict(content["training"]["vae"])
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise RequestError(f"{FILES[checkpoint]} of {path} does not fit its config.yaml: {reason}") from error
    return vae.to(device).eval()


def run_data(run: Run, data_dir: str | None = None, trust: bool = False) -> Data:
    """The data set that a run was trained on; nothing is downloaded to a folder that only the run names.

    Arguments:
        run: The run.
        data_dir: Folder of the downloaded data sets, if it was moved.
        trust: As for `load_run`.

    Raises:
        ValueError: If the data are missing, or have another shape.
    """
    config, content = run.config(trust), run.load_checkpoint("last")
    where, shape = data_dir or config.data_dir, tuple(content["shape"])
    data = load_data(config.data, where, config.image_size, config.binarization, download=data_dir is not None)
    if data.shape != shape:
        raise RequestError(f"{config.data} has images of shape {data.shape}, but {run.path} was trained on {shape}")
    if data.fingerprint != content["data"]:
        logger.warning(
            "%s has changed since %s was trained; its splits may overlap with those of training", config.data, run.path
        )
    return data
