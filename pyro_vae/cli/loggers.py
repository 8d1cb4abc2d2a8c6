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
from pyro_vae.evaluation.codes import scored
from pyro_vae.reporting import figures, views
from pyro_vae.runs.store import writing
from pyro_vae.training.fit import Record
from pyro_vae.vae import Model

Log = Callable[[Record], None]


@contextmanager
def tensorboard(folder: Path, vae: Model, data: Data, epoch: int) -> Iterator[Log]:
    """A function that writes the curves of a record, samples, and reconstructions of validation images, to event files.

    The samples and reconstructions of all epochs use the same random numbers, and leave the random state as it is. Events after
    `epoch`, of an interrupted run, are hidden.

    Arguments:
        folder: The folder of the event files.
        vae: The model that is being trained.
        data: Its data.
        epoch: Number of epochs that were trained before.
    """
    from torch.utils.tensorboard import SummaryWriter

    batch = scored(vae, data.validation[:10])

    @writing(folder)
    def log(record: Record) -> None:
        step = record["epoch"]
        for key, value in record.items():
            name, kind = (
                key.removeprefix("validation_"),
                "validation" if key.startswith("validation_") else "training",
            )
            writer.add_scalar(
                f"{name}/{kind}" if f"validation_{name}" in record else name, value, step
            )
        with forked_rng():
            torch.manual_seed(0)
            made = views.samples(vae, 40, y=views.random_labels(vae, data.validation, 40))
            pairs = views.reconstructions(vae, batch).transpose(0, 1)
        writer.add_image("samples", figures.tile(made, 10), step, dataformats="HWC")
        writer.add_image(
            "reconstructions",
            figures.tile(pairs.flatten(0, 1), len(batch)),
            step,
            dataformats="HWC",
        )
        writer.flush()

    with writing(folder):
        writer = SummaryWriter(str(folder), purge_step=epoch + 1)
    try:
        yield log
    finally:
        with writing(folder):
            writer.close()


def check_installed() -> None:
    """Raise `RequestError` if TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise RequestError(
            "--logger tensorboard needs the package tensorboard; install it with pip install tensorboard"
        )
