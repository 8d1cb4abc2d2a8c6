"""The run folder: everything that a run writes, and the model back from it."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.data.datasets import TORCHVISION, load_data, load_images, stored_name
from pyro_vae.data.split import MAX_CLASSES, Data, Split
from pyro_vae.engine.graphs import logger
from pyro_vae.errors import RequestError, check_choice
from pyro_vae.networks import Shape
from pyro_vae.runs.build import build_stored_model
from pyro_vae.runs.recipe import Recipe
from pyro_vae.runs.store import (
    load_checkpoint,
    read,
    save_checkpoint,
    write,
    writing,
)
from pyro_vae.training.fit import Record, Training
from pyro_vae.vae import Model

Which = Literal["last", "best"]
# Largest number of earlier epochs in the report, which bounds its size and time.
EARLIER = 5

FILES: dict[Which, str] = {"last": "checkpoint.pt", "best": "best.pt"}

# What a run writes before config.yaml.
UNFINISHED = {".lock", "checkpoint.pt", ".checkpoint.pt.tmp", ".config.yaml.tmp"}

METRICS_BYTES = 2**28


class Images(NamedTuple):
    """The images that a command uses.

    Attributes:
        name: What titles call them.
        split: The images.
        train: The training images of the run, unless the images are of other data.
    """

    name: str
    split: Split
    train: Split | None


class Checkpoint(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        file: The file.
        content: What identifies the data, the state of the training, and the versions of the libraries.
    """

    file: Path
    content: dict[str, Any]

    @property
    def shape(self) -> Shape:
        """The shape of the images; empty if it is damaged."""
        shape = self.content.get("shape")
        valid = isinstance(shape, list) and all(
            isinstance(size, int) and size > 0 for size in shape
        )
        return tuple(shape) if valid and shape else ()

    @property
    def label_dim(self) -> int | None:
        """The number of classes or covariates, if the model uses labels."""
        label_dim = self.content.get("label_dim")
        return label_dim if isinstance(label_dim, int) and 0 < label_dim <= MAX_CLASSES else None

    @property
    def misfit(self) -> RequestError:
        """The exception for a checkpoint that does not fit the configuration."""
        return RequestError(
            f"{self.file} does not fit its config.yaml; use the other --checkpoint, or train again"
        )


@dataclass(frozen=True)
class Run:
    """A folder with config.yaml, metrics.jsonl, checkpoint.pt, best.pt, results.json and figures/."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> Run:
        """A new run folder, or one whose run was killed before it had a config.yaml.

        Raises:
            ValueError: If the folder holds anything else.
            StorageError: If it cannot be made.
        """
        if "\0" in str(path) or (os.path.lexists(path) and not os.path.isdir(path)):
            raise RequestError(f"{path} is not a folder; use another run_dir")
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            if not {file.name for file in path.iterdir()} <= UNFINISHED:
                raise RequestError(f"{path} exists already; use another run_dir, or remove it")
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run folder.

        Raises:
            ValueError: If it is not one, or contains links, through which files outside it would be written.
        """
        run = cls(Path(path))
        if not run.exists():
            raise RequestError(
                f"config.yaml not found in {path}; give the run_dir of a training run"
            )
        for file in run.path.iterdir():
            if file.is_symlink() or (file.name == ".lock" and file.stat().st_nlink > 1):
                raise RequestError(
                    f"{file} is a link, which run folders may not contain; replace it by the file itself"
                )
        return run

    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return os.path.isfile(self.path / "config.yaml")

    @property
    def recipe_file(self) -> Path:
        """The file of the recipe; with it, the folder holds a run."""
        return self.path / "config.yaml"

    def recipe(self, trust: bool = False, allowed: Collection[str] = ()) -> Recipe:
        """The recipe of the run.

        Arguments:
            trust: Accept every class that it names; naming one imports its module, which runs code.
            allowed: Import paths to accept besides the known classes.

        Raises:
            ValueError: If it is wrong, or names another class.
        """
        return Recipe.load(self.recipe_file, trust, allowed)

    def save_recipe(self, recipe: Recipe) -> None:
        """Write the recipe.

        Raises:
            StorageError: If it cannot be written.
        """
        write(self.recipe_file, recipe.to_yaml().encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in the folder.

        Raises:
            ValueError: If another process does.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        with writing(self.path / ".lock"):
            try:
                lock.acquire()
            except Timeout as error:
                raise RequestError(
                    f"another process trains in {self.path}; wait for it, or use another run_dir"
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
        with writing(file), file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")

    def records(self) -> list[Record]:
        """The well-formed records of metrics.jsonl, in order; a warning says how many lines are not."""
        file = self.path / "metrics.jsonl"
        try:
            lines = (
                read(file, METRICS_BYTES).decode(errors="replace").split("\n")[:-1]
                if os.path.lexists(file)
                else []
            )
        except RequestError as error:
            logger.warning("%s; its records are lost", error)
            return []
        records = [record for line in lines if (record := _record(line)) is not None]
        if len(records) < len(lines):
            logger.warning("%s: ignoring %d damaged lines", file, len(lines) - len(records))
        return records

    def keep_records(self, epochs: int) -> None:
        """Drop the records after an epoch: it is the last with a checkpoint."""
        file = self.path / "metrics.jsonl"
        kept = [record for record in self.records() if record["epoch"] <= epochs]
        if file.is_dir():
            file.rename(file.with_suffix(".damaged"))
        write(file, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def save_checkpoint(self, which: Which | int, training: Training, data: Data) -> None:
        """Write the state of a training, as the last, the best, or one of the epochs that are kept.

        Raises:
            StorageError: If it cannot be written; the previous checkpoint is still there.
        """
        content = {
            **_identity(data, training.loop.vae.needs_labels),
            "training": training.state_dict(),
        }
        save_checkpoint(self._file(which), content)

    def _file(self, which: Which | int) -> Path:
        return self.path / (f"epochs/{which:04}.pt" if isinstance(which, int) else FILES[which])

    def save_results(self, results: Mapping[str, Any], name: str = "results") -> Path:
        """Write metrics as JSON; the path.

        Raises:
            StorageError: If they cannot be written.
        """
        return write(self.path / f"{name}.json", (json.dumps(results, indent=2) + "\n").encode())

    def load_checkpoint(self, which: Which | int) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            ValueError: If it is missing, damaged, or not of a training.
        """
        file = self._file(which)
        checkpoint = Checkpoint(file, load_checkpoint(file))
        training = checkpoint.content.get("training")
        if not isinstance(training, dict) or "vae" not in training or not checkpoint.shape:
            raise RequestError(
                f"{file} is not the checkpoint of a training; use the other --checkpoint, or train again"
            )
        return checkpoint

    def model(self, recipe: Recipe, checkpoint: Checkpoint) -> Model:
        """The model of the run, in evaluation mode.

        Raises:
            ValueError: If the checkpoint does not fit the recipe.
        """
        size = checkpoint.file.stat().st_size
        vae = build_stored_model(recipe, checkpoint.shape, checkpoint.label_dim, size)
        return _load(vae, checkpoint)

    def load(
        self, which: Which | int, device: torch.device | str, trust: bool
    ) -> tuple[Recipe, Checkpoint, Model]:
        """The recipe, a checkpoint and its model on a device; raises as `recipe`, `load_checkpoint` and `model`."""
        recipe, checkpoint = self.recipe(trust), self.load_checkpoint(which)
        return recipe, checkpoint, self.model(recipe, checkpoint).to(device)

    def earlier(self, vae: Model, checkpoint: Checkpoint) -> Iterator[tuple[str, Model]]:
        """Copies of the model after epochs that were kept before a checkpoint, evenly spaced, with their names."""
        last = checkpoint.content["training"]["epoch"]
        files = (self.path / "epochs").glob("*.pt")
        kept = sorted(
            int(file.stem) for file in files if file.stem.isdecimal() and int(file.stem) < last
        )
        for epoch in kept[:: -(-len(kept) // EARLIER) or 1]:
            yield f"epoch {epoch}", _load(copy.deepcopy(vae), self.load_checkpoint(epoch))

    def data(self, recipe: Recipe, checkpoint: Checkpoint, data_dir: str | None = None) -> Data:
        """The data set of the run; it is downloaded only to a folder that the user names.

        Raises:
            ValueError: If the data are missing, or have another shape.
        """
        options = (
            recipe.image_size,
            recipe.binarization,
            data_dir is not None,
            recipe.validation_size,
            recipe.image_shape,
            recipe.condition_on,
        )
        data = load_data(recipe.data, data_dir or recipe.data_dir, *options)
        self._check_shape(recipe.data, data.shape, checkpoint)
        if (
            not _identity(data, "labels" in checkpoint.content).items()
            <= checkpoint.content.items()
        ):
            text = (
                "%s has changed since %s was trained; its splits may overlap with those of training"
            )
            logger.warning(text, recipe.data, self.path)
        return data

    def images(self, recipe: Recipe, checkpoint: Checkpoint, asked: Any) -> Images:
        """The images that the options of a command ask for: a split of the run's data, or other data.

        Raises:
            ValueError: If the data are missing, or have another shape.
        """
        if asked.data is None:
            data = self.data(recipe, checkpoint, asked.data_dir)
            return Images(f"{data.name}, {asked.split} set", getattr(data, asked.split), data.train)
        if asked.split != "test":
            raise RequestError("--data uses all its images; leave out --split")
        where, size = asked.data_dir or recipe.data_dir, asked.image_size or recipe.image_size
        split = load_images(
            asked.data,
            where,
            size,
            recipe.binarization,
            asked.data_dir is not None,
            image_shape=recipe.image_shape or checkpoint.shape,
            condition_on=recipe.condition_on,
        )
        self._check_shape(asked.data, tuple(split.x.shape[1:]), checkpoint)
        same = recipe.data in (asked.data, stored_name(asked.data))
        if same and recipe.data not in TORCHVISION:  # whose official test images were loaded
            logger.warning(
                "%s was trained on images of --data; leave it out to use the test images", self.path
            )
        return Images(Path(asked.data).name, split, None)

    def _check_shape(self, name: str, shape: Shape, checkpoint: Checkpoint) -> None:
        if shape != checkpoint.shape:
            text = f"{name} has images of shape {shape}, but {self.path} was trained on {checkpoint.shape}"
            raise RequestError(
                f"{text}; --image_size changes height and width, but not the number of channels"
            )

    def resume(self, training: Training, data: Data, checkpoint: Checkpoint) -> None:
        """Continue a training from the last checkpoint.

        Raises:
            ValueError: If the checkpoint is of another training.
        """
        state = checkpoint.content["training"]
        if (
            not _identity(data, training.loop.vae.needs_labels).items()
            <= checkpoint.content.items()
        ):
            raise RequestError(
                f"{data.name} has changed since {self.path} was trained; restore it, or start a new run"
            )
        try:
            expected, moments = training.state_dict(), _state_after_a_step(training.loop.optimizer)
            expected["optimizer"]["state"] = {
                key: moments[key] for key in state["optimizer"]["state"]
            }
            if not _fits({**state, "random": None}, {**expected, "random": None}):
                raise ValueError("other keys, types or shapes")
            training.load_state_dict(state)
        except Exception as error:  # damaged states raise almost any class
            raise checkpoint.misfit from error
        if not 0 <= training.epoch <= training.epochs:
            raise RequestError(
                f"--epochs {training.epochs} is less than the {training.epoch} epochs already trained; use more"
            )


def _load(vae: Model, checkpoint: Checkpoint) -> Model:
    """The model with the parameters of a checkpoint, in evaluation mode."""
    state = checkpoint.content["training"]["vae"]
    if not _fits(state, vae.state_dict()):
        raise checkpoint.misfit
    vae.load_state_dict(state)
    return vae.eval()


def _identity(data: Data, labels: bool) -> dict[str, Any]:
    """What identifies the data in a checkpoint."""
    of_labels = {"label_dim": data.label_dim, "labels": data.label_fingerprint} if labels else {}
    return {"shape": list(data.shape), "data": data.fingerprint, **of_labels}


def _state_after_a_step(optimizer: Optimizer) -> Any:
    """The state of an optimizer, from a step of a copy."""
    trial = copy.deepcopy(optimizer)
    for param in (param for group in trial.param_groups for param in group["params"]):
        param.grad = torch.zeros_like(param)
    trial.step()
    return trial.state_dict()["state"]


def _fits(given: Any, expected: Any) -> bool:
    """Whether nested containers have equal keys, types and shapes, without NaN."""
    if isinstance(expected, dict):
        return (
            isinstance(given, dict)
            and given.keys() == expected.keys()
            and all(_fits(given[k], expected[k]) for k in given)
        )
    if isinstance(expected, list | tuple):
        return (
            isinstance(given, list | tuple)
            and len(given) == len(expected)
            and all(map(_fits, given, expected))
        )
    if isinstance(expected, Tensor) and expected.ndim:
        same = isinstance(given, Tensor) and (given.dtype, given.shape) == (
            expected.dtype,
            expected.shape,
        )
        return same and not given.isnan().any()
    if expected is None or isinstance(
        expected, int | float | Tensor
    ):  # a number may be None, or a tensor for CUDA graphs
        return given is None or _is_number(given, inf)
    return type(given) is type(expected)


def _is_number(value: Any, limit: float = 1e300) -> bool:
    return isinstance(value, int | float | Tensor) and -limit <= float(value) <= limit


def _record(line: str) -> Record | None:
    """A line of metrics.jsonl, if it holds the numbers of a record."""
    try:
        record = json.loads(line)
        return record if all(_is_number(record[name]) for name in Record.__annotations__) else None
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        return None


def load_run(
    path: str | Path,
    checkpoint: Which | int = "last",
    device: torch.device | str = "cpu",
    trust: bool = False,
) -> Model:
    """The model of a run folder, in evaluation mode.

    Arguments:
        path: The run folder.
        checkpoint: "last" epoch, the "best" by validation ELBO, or the number of one that `--keep_every` kept.
        device: Where to put the model.
        trust: Import any class that the folder names; this runs code from its module.

    Raises:
        ValueError: If the folder is not a run folder, the checkpoint is missing or damaged, or a class is not trusted.
    """
    if not isinstance(checkpoint, int):
        check_choice("checkpoint", checkpoint, Which)
    return Run.open(path).load(checkpoint, device, trust)[-1]
