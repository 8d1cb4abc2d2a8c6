"""Saving a model as a run folder, also one that was trained in a custom loop."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.datasets import NAMED
from pyro_vae.data.split import Data, Split
from pyro_vae.engine.importance import log_weights
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError
from pyro_vae.evaluation.batch import scored
from pyro_vae.runs.build import build_model_for, load_data_for, pick_binarization, stored_data
from pyro_vae.runs.checkpoint_check import MisfitError, check_parameters
from pyro_vae.runs.checkpoints import data_identity, write_content
from pyro_vae.runs.folder import Run
from pyro_vae.runs.log import write_records
from pyro_vae.runs.recipe import Recipe
from pyro_vae.runs.store import write
from pyro_vae.training.fit import Record, Training
from pyro_vae.vae import Model

logger = getLogger("pyro_vae")

# Images on which a model and the one that its recipe builds are compared.
COMPARED = 2


def save_run(
    vae: Model,
    path: str | Path,
    recipe: Recipe | None = None,
    data: Data | None = None,
    *,
    training: Training | None = None,
    records: Sequence[Record] = (),
) -> Path:
    """Save a model as a run folder, which `load_run` and the commands accept.

    A run is rebuilt from its recipe, and scored on its data. Without both, only the weights are
    saved, as `weights.pt`, which `vae.load_state_dict(torch.load(path))` reads.

    Arguments:
        vae: The model, trained by `fit` or otherwise.
        path: The folder, which must not exist, or be empty.
        recipe: The data, the parts and the options that the model was built with. It is checked:
            the model that it builds must compute the same.
        data: The data that the model was trained on, those of `recipe.data`.
        training: What `fit` returned; with it, `pyro-vae train --resume` continues the training.
        records: One record per epoch; the report shows them.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder holds anything, or the recipe builds another model.
        StorageError: If the folder cannot be written.

    Example:
        >>> import tempfile
        >>> import pyro_vae as pv
        >>> data = pv.load_data("digits")
        >>> encoder, decoder = pv.MLP(data.shape, (2, 5)), pv.MLP((5,), (1, *data.shape))
        >>> prior, posterior = pv.StandardNormal(5), pv.DiagonalNormal()
        >>> vae = pv.VAE(prior, encoder, posterior, decoder, pv.Bernoulli())
        >>> folder = tempfile.mkdtemp()
        >>> path = pv.save_run(vae, folder, pv.Recipe(data="digits", latent_dim=5), data)
        >>> type(pv.load_run(path)).__name__
        'VAE'
    """
    folder = Path(path)
    if recipe is None or data is None:
        missing = "recipe" if recipe is None else "data"
        Run.create(folder)
        buffer = io.BytesIO()
        torch.save(vae.state_dict(), buffer)
        file = write(folder / "weights.pt", buffer.getvalue())
        logger.warning(
            "saved the weights only, to %s: a run that can be loaded needs %s=...", file, missing
        )
        return folder
    recipe = _completed(recipe, data)
    identity = data_identity(data, vae.needs_labels)
    _check_data(recipe, data, vae.needs_labels)
    _check_recipe(vae, recipe, data)
    state = {"epoch": 0, "vae": vae.state_dict()}
    if training is not None:
        if training.loop.vae is not vae:
            raise RequestError("training is of another model; give the one that fit returned")
        state = training.state_dict()
        recipe.epochs = training.epochs
        recipe.batch_size = training.loop.batch_size
        recipe.engine = training.engine
    run = Run.create(folder)
    with run.lock():
        for which in ("last", "best"):
            write_content(run.checkpoint_file(which), {**identity, "training": state})
        write_records(run, list(records))
        recipe.save(run.recipe_file)  # last: with it, the folder holds a run
    return folder


def _completed(recipe: Recipe, data: Data) -> Recipe:
    """A checked copy of the recipe, with the values of what it left open."""
    recipe.check(trust=True)
    return replace(
        recipe,
        data=stored_data(recipe.data, data),
        data_dir=os.path.abspath(recipe.data_dir),
        binarization=pick_binarization(recipe),
    )


def _check_data(recipe: Recipe, data: Data, needs_labels: bool) -> None:
    """Raise `RequestError` unless the recipe loads the same data, with the labels that are used."""
    if recipe.data == data.name and data.name not in NAMED:
        raise RequestError(
            f"the recipe must say where {data.name} is; give data=... in the recipe, a path or a"
            " name"
        )
    loaded = load_data_for(recipe, recipe.data_dir, download=False)
    if loaded.fingerprint != data.fingerprint:
        raise RequestError(
            f"the recipe loads other data than {data.name}; give its data, image_size and"
            " validation_size in the recipe"
        )
    if needs_labels and loaded.label_fingerprint != data.label_fingerprint:
        raise RequestError(
            f"the recipe loads other labels than those of {data.name}; give its data and"
            " condition_on in the recipe"
        )


def _check_recipe(vae: Model, recipe: Recipe, data: Data) -> None:
    """Raise `RequestError` unless the recipe builds a model that computes the same."""
    with forked_rng():
        built = build_model_for(recipe, data)
    if type(built) is not type(vae):
        raise RequestError(
            f"the recipe builds a {type(built).__name__}, but the model is a {type(vae).__name__};"
            " give the recipe of this model"
        )
    state = {name: _on_cpu(value) for name, value in vae.state_dict().items()}
    try:
        check_parameters(state, built.state_dict())
    except MisfitError as error:
        raise RequestError(
            f"the recipe builds another model ({error}); give the recipe of this model"
        ) from error
    built.load_state_dict(state)
    built.to(next(vae.parameters()).device)
    few = data.validation[:COMPARED]
    same = vae.pixels == built.pixels
    if not same or not _weights(vae, few).allclose(_weights(built, few), equal_nan=True):
        raise RequestError(
            "the recipe builds a model with the same parameters that computes other values; give"
            " the options of each part in the recipe"
        )


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    return value


@torch.no_grad()
def _weights(vae: Model, split: Split) -> Tensor:
    """Importance weights of a model in evaluation mode, with fixed random numbers."""
    was_training = vae.training
    try:
        batch = scored(vae, split)
        with forked_rng():
            torch.manual_seed(0)
            return log_weights(vae.model, vae.guide, *batch, num_samples=2)
    finally:
        vae.train(was_training)
