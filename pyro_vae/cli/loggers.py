"""What else is told about each epoch of `train`: a logger is a context that gives a function of records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal

import torch

from pyro_vae.cli.files import writing
from pyro_vae.data import Data
from pyro_vae.errors import RequestError
from pyro_vae.evaluation.metrics import arguments
from pyro_vae.inference.fit import Record
from pyro_vae.vae import Model
from pyro_vae.viz import figures, views

Log = Callable[[Record], None]
Logger = Callable[[Path, Model, Data, int], AbstractContextManager[Log]]
Name = Literal["tensorboard"]


@contextmanager
def nothing(folder: Path, vae: Model, data: Data, epoch: int) -> Iterator[Log]:
    """Log nothing."""
    yield lambda record: None


@contextmanager
def tensorboard(folder: Path, vae: Model, data: Data, epoch: int) -> Iterator[Log]:
    """Write curves, samples and reconstructions of validation images to event files in `folder`.

    The samples and reconstructions of all epochs use the same random numbers, and leave the random state as it is. Events after
    `epoch`, of an interrupted run, are hidden.
    """
    from torch.utils.tensorboard import SummaryWriter

    few = data.validation[:10]
    x, y = arguments(vae, few)

    def log(record: Record) -> None:
        with writing(folder):
            _write(record)

    def _write(record: Record) -> None:
        step = record["epoch"]
        for key, value in record.items():
            name, kind = key.removeprefix("validation_"), "validation" if key.startswith("validation_") else "training"
            writer.add_scalar(f"{name}/{kind}" if f"validation_{name}" in record else name, value, step)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = views.samples(vae, 40, y=views.random_labels(vae, data.validation, 40))
            pairs = views.reconstructions(vae, x, y).transpose(0, 1)
        writer.add_image("samples", figures.tile(made, 10), step, dataformats="HWC")
        writer.add_image("reconstructions", figures.tile(pairs.flatten(0, 1), len(few)), step, dataformats="HWC")
        writer.flush()

    with writing(folder):
        writer = SummaryWriter(str(folder), purge_step=epoch + 1)
    try:
        yield log
    finally:
        with writing(folder):
            writer.close()


LOGGERS: dict[Name | None, Logger] = {None: nothing, "tensorboard": tensorboard}


def check_installed(name: Name | None) -> None:
    """Raise `RequestError` if the library of a logger is not installed."""
    try:
        if name:
            import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise RequestError(f"--logger {name} needs the package {name}; install it with pip install {name}") from error
