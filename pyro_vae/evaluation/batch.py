"""What the functions of evaluation take: a split, a batch or a tensor, as a `Batch` of values."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.data.split import Split, shuffled
from pyro_vae.engine.programs import Batch
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError
from pyro_vae.likelihoods import noun
from pyro_vae.vae import Model

# Images encoded in one pass.
IMAGES = 1000
# What `scored` makes a `Batch` of.
BatchLike = Split | Batch | Tensor


def scored(vae: Model, data: BatchLike) -> Batch:
    """The arguments of a model's programs, on its device; sets the model to evaluation mode.

    The pixels of a split are equal at every call: noise that it lacks is fixed, see
    `Split.with_fixed_noise`. Its labels are left out if the model infers labels, so that scores are
    about p(x); those of a batch are used: scores are then about p(x, y).

    Arguments:
        vae: A model.
        data: A split of a data set; or a batch, or a tensor, of the values that the likelihood
            scores (`Split.scored`).

    Raises:
        ValueError: If images or labels do not have the dtype and shape of the model's.
    """
    vae.eval()
    if isinstance(data, Split):
        batch = batch_of(vae, data.with_fixed_noise().to(next(vae.parameters()).device))
    elif isinstance(data, Tensor):
        batch = Batch(data, None)
    elif isinstance(data, Batch):
        batch = data
    else:
        raise RequestError(
            f"images to score must be a Split such as data.test, a Batch or a tensor, but are of"
            f" type {type(data).__name__}"
        )
    _check_batch(vae, batch)
    return batch


def batch_of(vae: Model, split: Split) -> Batch:
    """The values of a split that a model scores, and its y unless the model infers labels."""
    x = split.scored(vae.pixels, vae.likelihood.largest)
    if vae.infers_labels:
        return Batch(x, None)
    return Batch(x, split.y)


@torch.no_grad()
def completed(vae: Model, data: BatchLike) -> Batch:
    """As `scored`, with the most likely labels where a model infers labels that are unknown."""
    batch = scored(vae, data)
    if not vae.infers_labels:
        return batch
    labels = [vae.complete_labels(*rows) for rows in batch.split(IMAGES)]
    return Batch(batch.x, torch.cat([part for part in labels if part is not None]))


def random_rows(data: Split | Batch, count: int) -> Tensor:
    """The positions of at most `count` random rows, the same at every call; all rows in order."""
    device = data.x.device
    if count >= len(data):
        return torch.arange(len(data), device=device)
    return shuffled(len(data))[:count].to(device)


def _check_batch(vae: Model, batch: Batch) -> None:
    if len(batch) == 0:
        raise RequestError(f"there are no {noun(batch.x.ndim - 1)}s; use at least one")
    vae.check_labels(batch.y)
    first = batch[:1]
    with forked_rng():
        shape = vae.sample(1, first.y).shape[1:]
    if batch.x.shape[1:] != shape:
        raise RequestError(
            f"{noun(len(shape))}s have shape {tuple(batch.x.shape[1:])}, but the model was made for"
            f" {tuple(shape)}; use data of that shape (image_size in load_data resizes images)"
        )
    vae.check_missing(batch.x, batch.y)
    dtype = next(vae.parameters()).dtype
    if batch.x.dtype != dtype:
        raise RequestError(
            f"x must be values that the likelihood scores, {dtype}, but is {batch.x.dtype};"
            " pass a split, or its split.scored(vae.pixels)"
        )
    if vae.pixels == "binary" and bool(((batch.x < 0) | (batch.x > 1)).any()):
        raise RequestError(
            "x holds values outside of 0 to 1, but the likelihood scores binary values;"
            " pass a split, or its split.scored(vae.pixels)"
        )
