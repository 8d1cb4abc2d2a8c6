"""A saved run: its model, its data, and the images that a command uses."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import NamedTuple

import torch

from pyro_vae.data.datasets import TORCHVISION, load_images, stored_name
from pyro_vae.data.split import Data, Split
from pyro_vae.errors import RequestError, check_choice
from pyro_vae.likelihoods import IMAGE_DIMS
from pyro_vae.networks import Shape
from pyro_vae.runs.build import build_stored_model, load_data_for, pick_binarization
from pyro_vae.runs.checkpoints import Checkpoint, load_checkpoint, load_parameters
from pyro_vae.runs.folder import Run, Which
from pyro_vae.runs.recipe import Recipe
from pyro_vae.vae import Model

logger = getLogger("pyro_vae")

# Largest number of earlier epochs in the report, which bounds its size and time.
EARLIER = 5


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


def load_run(
    path: str | Path,
    checkpoint: Which | int = "last",
    device: torch.device | str = "cpu",
    trust: bool = False,
) -> Model:
    """The model of a run folder, in evaluation mode.

    Arguments:
        path: The run folder.
        checkpoint: "last" epoch, the "best" by validation ELBO, or the number of one that
            `--keep_every` kept.
        device: Where to put the model.
        trust: Import any class that the folder names; this runs code from its module.

    Raises:
        ValueError: If the folder is not a run folder, the checkpoint is missing or damaged, or a
            class is not trusted.
    """
    return open_run(path, checkpoint, device, trust).vae


def open_run(
    path: str | Path,
    checkpoint: Which | int = "last",
    device: torch.device | str = "cpu",
    trust: bool = False,
) -> SavedRun:
    """The contents of a run folder; arguments and errors are those of `load_run`."""
    if not isinstance(checkpoint, int):
        check_choice("checkpoint", checkpoint, Which)
    run = Run.open(path)
    recipe = Recipe.load(run.recipe_file, trust)
    loaded = load_checkpoint(run, checkpoint)
    size = loaded.file.stat().st_size
    vae = build_stored_model(recipe, loaded.shape, loaded.label_dim, size)
    return SavedRun(run, recipe, loaded, load_parameters(vae, loaded).to(device))


@dataclass(frozen=True)
class SavedRun:
    """A run folder that was read.

    Attributes:
        run: The folder.
        recipe: What the run was asked for.
        checkpoint: One of its checkpoints.
        vae: The model with the checkpoint's parameters, in evaluation mode.
    """

    run: Run
    recipe: Recipe
    checkpoint: Checkpoint
    vae: Model

    def data(self, data_dir: str | None = None, hidden: bool = True) -> Data:
        """The data set of the run. It is downloaded only if `data_dir` is given.

        Arguments:
            data_dir: Folder of the downloaded data sets; None is that of the run.
            hidden: Without the values that the run hid, see `Recipe.missing`.

        Raises:
            ValueError: If the data are missing, or have another shape.
        """
        recipe = self.recipe
        folder = data_dir or recipe.data_dir
        data = load_data_for(recipe, folder, download=data_dir is not None, hidden=hidden)
        if not hidden:
            return data
        self._check_shape(recipe.data, data.shape)
        if not self.checkpoint.is_of(data, "labels" in self.checkpoint.content):
            logger.warning(
                "%s has changed since %s was trained; its splits may overlap with those of"
                " training",
                recipe.data,
                self.run.path,
            )
        return data

    def images(
        self,
        split: str = "test",
        data: str | None = None,
        data_dir: str | None = None,
        image_size: int | None = None,
    ) -> Images:
        """A split of the run's data, or the images of other data.

        Arguments:
            split: A split of the run's data.
            data: Other data, of which all images are used.
            data_dir: Folder of the downloaded data sets; None is that of the run.
            image_size: Height and width to resize other data to; None is that of the run.

        Raises:
            ValueError: If the data are missing, or have another shape.
        """
        if data is None:
            loaded = self.data(data_dir)
            return Images(f"{loaded.name}, {split} set", getattr(loaded, split), loaded.train)
        if split != "test":
            raise RequestError("--data uses all its images; leave out --split")
        recipe = self.recipe
        image_shape: Sequence[int] | None = recipe.image_shape
        if image_shape is None and len(self.checkpoint.shape) == IMAGE_DIMS:
            image_shape = self.checkpoint.shape
        images = load_images(
            data,
            data_dir or recipe.data_dir,
            image_size or recipe.image_size,
            pick_binarization(recipe),
            download=data_dir is not None,
            image_shape=image_shape,
            condition_on=recipe.condition_on,
        )
        self._check_shape(data, tuple(images.x.shape[1:]))
        if self.checkpoint.classes is not None:
            images = images.with_classes(self.checkpoint.classes)
        same = recipe.data in (data, stored_name(data))
        if same and recipe.data not in TORCHVISION:  # whose official test images were loaded
            logger.warning(
                "%s was trained on some of these %ss; leave out --data to use the test set",
                self.run.path,
                images.noun,
            )
        return Images(Path(data).name, images, None)

    def earlier(self) -> Iterator[tuple[str, Model]]:
        """Models of epochs that were kept before the checkpoint, evenly spaced, with names."""
        kept = []
        for file in (self.run.path / "epochs").glob("*.pt"):
            if not file.stem.isdecimal():
                continue
            epoch = int(file.stem)
            if file == self.run.checkpoint_file(epoch) and 0 < epoch < self.checkpoint.epoch:
                kept.append(epoch)
        kept.sort()
        step = max(1, -(-len(kept) // EARLIER))
        for epoch in kept[::step]:
            checkpoint = load_checkpoint(self.run, epoch)
            yield f"epoch {epoch}", load_parameters(copy.deepcopy(self.vae), checkpoint)

    def _check_shape(self, name: str, shape: Shape) -> None:
        trained = self.checkpoint.shape
        if shape != trained:
            remedy = "give data of that shape"
            if len(shape) == len(trained) == IMAGE_DIMS:
                remedy = (
                    "--image_size changes height and width of images, but not the number of"
                    " channels"
                )
            raise RequestError(
                f"{name} has data of shape {shape}, but {self.run.path} was trained on {trained};"
                f" {remedy}"
            )
