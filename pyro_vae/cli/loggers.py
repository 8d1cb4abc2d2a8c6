"""TensorBoard's log of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from pyro_vae.data.split import Data
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError
from pyro_vae.evaluation.batch import scored
from pyro_vae.reporting import figures, views
from pyro_vae.runs.store import writing
from pyro_vae.training.fit import Record
from pyro_vae.vae import Model

Log = Callable[[Record], None]


@contextmanager
def tensorboard(folder: Path, vae: Model, data: Data, epoch: int) -> Iterator[Log]:
    """A function that writes a record to event files: its curves, samples and reconstructions.

    The pictures of all epochs use the same random numbers, and leave the random state as it is.
    Events after `epoch`, of an interrupted run, are hidden.

    Arguments:
        folder: The folder of the event files.
        vae: The model that is being trained.
        data: Its data; validation images are reconstructed.
        epoch: Number of epochs that were trained before.
    """
    from torch.utils.tensorboard import SummaryWriter

    batch = scored(vae, data.validation[:10])

    @writing(folder)
    def log(record: Record) -> None:
        step = record["epoch"]
        for key, value in record.items():
            writer.add_scalar(_tag(key, record), value, step)
        with forked_rng():
            torch.manual_seed(0)
            labels = views.random_labels(vae, data.validation, 40)
            samples = figures.tile(views.samples(vae, 40, y=labels), 10)
            pairs = views.reconstructions(vae, batch).transpose(0, 1)
        reconstructions = figures.tile(pairs.flatten(0, 1), len(batch))
        writer.add_image("samples", samples, step, dataformats="HWC")
        writer.add_image("reconstructions", reconstructions, step, dataformats="HWC")
        writer.flush()

    with writing(folder):
        writer = SummaryWriter(str(folder), purge_step=epoch + 1)
    try:
        yield log
    finally:
        with writing(folder):
            writer.close()


def _tag(key: str, record: Record) -> str:
    """The name of a curve: `elbo/training` and `elbo/validation` where both are measured."""
    if key.startswith("validation_"):
        return f"{key.removeprefix('validation_')}/validation"
    if f"validation_{key}" in record:
        return f"{key}/training"
    return key


def check_installed() -> None:
    """Raise `RequestError` if TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise RequestError(
            "--logger tensorboard needs the package tensorboard; install it with pip install"
            " tensorboard"
        )
