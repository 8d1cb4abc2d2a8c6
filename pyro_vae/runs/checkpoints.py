"""Checkpoints: the state of a training in one file, with a digest, without code."""

from __future__ import annotations

import copy
import io
import platform
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch.optim import Optimizer

from pyro_vae.data.split import Data
from pyro_vae.data.values import Classes
from pyro_vae.errors import RequestError
from pyro_vae.networks import Shape
from pyro_vae.runs.checkpoint_check import (
    MisfitError,
    check_counters,
    check_data,
    check_optimizer,
    check_parameters,
    check_random,
    check_scheduler,
    check_trained,
)
from pyro_vae.runs.folder import Run, Which
from pyro_vae.runs.store import read, write
from pyro_vae.training.fit import Training
from pyro_vae.vae import Model

FORMAT = 3
DIGEST = 32
# Limits of the file, and of its part that says which tensors there are. They bound memory and time.
BYTES = 2**32
INDEX_BYTES = 2**22


class Checkpoint(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        file: The file.
        content: What identifies the data, the state of the training, and the versions of the
            libraries.
    """

    file: Path
    content: dict[str, Any]

    @property
    def shape(self) -> Shape:
        """The shape of the images."""
        return tuple(self.content["shape"])

    @property
    def label_dim(self) -> int | None:
        """The number of classes or covariates, if the model uses labels."""
        return self.content.get("label_dim")

    @property
    def classes(self) -> Classes | None:
        """The names of classes 0, 1, ..., if the model uses them and the checkpoint has them."""
        names = self.content.get("classes")
        return None if names is None else tuple(names)

    @property
    def state(self) -> dict[str, Any]:
        """The state of the training, with at least the parameters `vae`."""
        return self.content["training"]

    @property
    def epoch(self) -> int:
        """The number of epochs trained."""
        return self.state.get("epoch", 0)

    def is_of(self, data: Data, needs_labels: bool) -> bool:
        """Whether it was trained on these data."""
        return data_identity(data, needs_labels).items() <= self.content.items()

    def misfit(self, error: Exception) -> RequestError:
        """The exception for a checkpoint that does not fit the configuration."""
        reason = ""
        if isinstance(error, MisfitError):
            reason = f" ({error})"
        return RequestError(
            f"{self.file} does not fit its config.yaml{reason}; use the other --checkpoint, or"
            " train again"
        )


def data_identity(data: Data, needs_labels: bool) -> dict[str, Any]:
    """What identifies the data in a checkpoint, with the labels if the model uses them."""
    identity: dict[str, Any] = {"shape": list(data.shape), "data": data.fingerprint}
    if needs_labels:
        identity |= {"label_dim": data.label_dim, "labels": data.label_fingerprint}
    return identity


def save_checkpoint(run: Run, which: Which | int, training: Training, data: Data) -> None:
    """Write the state of a training, as the last, the best, or one of the epochs that are kept.

    Raises:
        StorageError: If it cannot be written; the previous checkpoint is still there.
    """
    needs_labels = training.loop.vae.needs_labels
    identity = data_identity(data, needs_labels)
    if needs_labels and data.train.covariates is None:
        identity["classes"] = data.train.class_names()
        if data.classes is not None:
            identity["classes"] = list(data.classes)
    content = {**identity, "training": training.state_dict()}
    write_content(run.checkpoint_file(which), content)


def load_checkpoint(run: Run, which: Which | int) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: If it is missing, damaged, or not of a training.
    """
    file = run.checkpoint_file(which)
    content = read_content(file)
    try:
        check_data(content)
        check_counters(content.get("training"))
    except MisfitError as error:
        raise RequestError(
            f"{file} is not the checkpoint of a training ({error}); use the other --checkpoint, or"
            " train again"
        ) from error
    return Checkpoint(file, content)


def load_parameters(vae: Model, checkpoint: Checkpoint) -> Model:
    """Load the parameters of a checkpoint into a model and return it in evaluation mode.

    Raises:
        ValueError: If they are of another model.
    """
    parameters = dict(checkpoint.state["vae"])  # without attributes that torch would read
    try:
        check_parameters(parameters, vae.state_dict())
    except MisfitError as error:
        raise checkpoint.misfit(error) from error
    vae.load_state_dict(parameters)
    return vae.eval()


def resume(training: Training, data: Data, checkpoint: Checkpoint, epochs: int) -> None:
    """Continue a training from a checkpoint.

    Arguments:
        training: The training, which has not started.
        data: Its data.
        checkpoint: The checkpoint.
        epochs: The length that the run was started with, which version 0.2 did not store in
            checkpoints.

    Raises:
        ValueError: If the checkpoint is of another training.
    """
    # Earlier versions did not average the weights.
    state = {"trained": None, **checkpoint.state, "vae": dict(checkpoint.state["vae"])}
    if "optimizer" not in state:
        raise RequestError(
            f"{checkpoint.file} holds parameters only, from which training cannot be resumed; use"
            " a new run_dir"
        )
    if not checkpoint.is_of(data, training.loop.vae.needs_labels):
        raise RequestError(
            f"{data.name} has changed since {checkpoint.file.parent} was trained; restore it, or"
            " start a new run"
        )
    expected = training.state_dict()
    if "schedule_epochs" not in state:
        state["schedule_epochs"] = None
        if expected["schedule_epochs"] is not None:
            state["schedule_epochs"] = epochs
    try:
        _check_state(state, expected, training)
        training.load_state_dict(state)
    except Exception as error:  # what a user's own optimizer raises is of almost any class
        raise checkpoint.misfit(error) from error
    if training.epoch > training.epochs:
        raise RequestError(
            f"--epochs {training.epochs} is less than the {training.epoch} epochs already trained;"
            " use more"
        )


def _check_state(state: dict[str, Any], expected: dict[str, Any], training: Training) -> None:
    """Raise `MisfitError` unless this is a state of the training."""
    if state.keys() != expected.keys():
        raise MisfitError("it has other entries")
    if (state["schedule_epochs"] is None) != (expected["schedule_epochs"] is None):
        raise MisfitError("schedule_epochs is not that of the schedules")
    optimizer = training.loop.optimizer
    scheduler = training.loop.scheduler
    check_parameters(state["vae"], expected["vae"])
    check_trained(state["trained"], expected["trained"])
    check_optimizer(
        state["optimizer"], expected["optimizer"], _after_a_step(optimizer), _is_torchs(optimizer)
    )
    check_scheduler(state["lr_scheduler"], expected["lr_scheduler"], _is_torchs(scheduler))
    last = (state["lr_scheduler"] or {}).get("last_epoch", 0)
    if _is_torchs(scheduler) and last > state["epoch"]:
        raise MisfitError("last_epoch of the scheduler is after the last epoch")
    check_random(state["random"])


def _is_torchs(part: Any) -> bool:
    return type(part).__module__.startswith("torch.")


def _after_a_step(optimizer: Optimizer) -> Any:
    """The state of an optimizer, from a step of a copy."""
    trial = copy.deepcopy(optimizer)
    for group in trial.param_groups:
        for param in group["params"]:
            param.grad = torch.zeros_like(param)
    trial.step()
    return trial.state_dict()["state"]


def write_content(file: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values, with the versions of the libraries and a digest of the file.

    Raises:
        StorageError: If it cannot be written; the old checkpoint is still there.
    """
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "pyro": str(pyro.__version__),
    }
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "versions": versions, **content}, buffer)
    # torch does not verify the CRC of each record. The digest becomes the comment of the zip
    # archive, which ends with the length of its comment, so that torch.load still reads the file.
    archive = buffer.getvalue()
    write(file, archive[:-2] + DIGEST.to_bytes(2, "little") + sha256(archive).digest())


def read_content(file: Path) -> dict[str, Any]:
    """Read what `write_content` wrote, as tensors and plain values only: no file can run code.

    Raises:
        ValueError: If it cannot be read, is damaged, or was written by another version.
    """
    written = read(file, BYTES)
    archive = written[: -DIGEST - 2] + bytes(2)
    comment = written[-DIGEST - 2 :]
    if comment != DIGEST.to_bytes(2, "little") + sha256(archive).digest():
        raise RequestError(
            f"{file} is damaged, or of another version of pyro_vae; use the other --checkpoint, or"
            " train again"
        )
    try:
        _check_archive(archive)
        content = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except Exception as error:  # it raises almost any class
        raise RequestError(
            f"{file} is not a checkpoint: it holds more than tensors and plain values"
        ) from error
    if not isinstance(content, dict) or str(content.get("format")) != str(FORMAT):
        raise RequestError(f"{file} was written by another version of pyro_vae; train again")
    return content


def _check_archive(archive: bytes) -> None:
    """Raise `MisfitError` if reading would take more memory or time than the file's size."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        records = opened.infolist()
    if sum(record.file_size for record in records) > len(archive):
        raise MisfitError("it is compressed")
    for record in records:
        if record.filename.endswith("data.pkl") and record.file_size > INDEX_BYTES:
            raise MisfitError("it has too many entries")
