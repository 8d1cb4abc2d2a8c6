"""Checks before the first step: whether the model, the data and the batches fit together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from logging import getLogger
from math import prod
from numbers import Integral
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyro_vae.data.split import Data, Split
from pyro_vae.engine import distributed
from pyro_vae.engine.programs import Batch
from pyro_vae.errors import RequestError
from pyro_vae.networks import MLP, Conv, Gated
from pyro_vae.vae import Model

logger = getLogger("pyro_vae")

# Images per step, if there are as many.
BATCH_SIZE = 128

# NumPy's generator, which is seeded, too, takes no larger seed.
LARGEST_SEED = 2**32 - 1


def check_arguments(vae: Any, data: Any, objective: Any, seed: Any) -> None:
    """Raise `RequestError` if `fit` gets an argument of another type, or a seed out of range."""
    if not isinstance(vae, Model):
        raise RequestError(f"vae must be a model such as VAE, but is of type {type(vae).__name__}")
    if not isinstance(data, Data):
        raise RequestError(
            f"data must be Data, but is of type {type(data).__name__}; use"
            " Data(name, Split(train), Split(validation), Split(test)), with a tensor for each"
        )
    is_object = hasattr(objective, "loss_and_grads") and not isinstance(objective, type)
    if objective is not None and not is_object:
        raise RequestError(
            f"objective must be an object such as Trace_ELBO(), but is {objective!r}"
        )
    if seed is not None and not (isinstance(seed, Integral) and 0 <= int(seed) <= LARGEST_SEED):
        raise RequestError(f"seed must be an integer from 0 to {LARGEST_SEED}, but is {seed!r}")


def pick_batch_size(asked: int | None, images: int, validation: int, each: str = "image") -> int:
    """The batch size: the one asked for, or the default.

    Arguments:
        asked: The batch size asked for, if any.
        images: Number of training images.
        validation: Number of validation images.
        each: What messages call an image.

    Raises:
        ValueError: If there are fewer images, or a process would have no image of a batch or of the
            validation images.
    """
    if asked is not None and asked > images:
        raise RequestError(
            f"batch_size={asked} exceeds the {images} training {each}s; use a smaller batch_size"
        )
    if asked is None and images < BATCH_SIZE:
        logger.info("batch_size: using all %d training %ss", images, each)
    size = asked or min(BATCH_SIZE, images)
    processes = distributed.world_size()
    if smallest_share(size, images) == 0 or validation < processes:
        raise RequestError(
            f"batch_size={size} leaves a batch with fewer {each}s than the {processes} processes;"
            " change it"
        )
    return size


def smallest_share(batch_size: int, images: int) -> int:
    """The smallest number of images that a process has of a batch, the last one included."""
    last = images % batch_size or batch_size
    return last // distributed.world_size()


def check_columns(train: Split) -> None:
    """Raise `RequestError` if an element of the training data is missing in every row."""
    if train.observed is None:
        return
    never = (~train.observed.any(0)).nonzero().tolist()
    if never:
        raise RequestError(
            f"{len(never):,} elements of x are missing in all training rows, such as the one at"
            f" {tuple(never[0])}; remove them from the data"
        )


def check_model(vae: Model, batch: Batch) -> None:
    """Raise `RequestError` if a model is incomplete. Leaves it in training mode.

    Arguments:
        vae: The model.
        batch: Training images, as the likelihood's pixels, with their labels.
    """
    if vae.latent_dim < 1:
        raise RequestError(
            f"{type(vae).__name__} does not declare its latent_dim; set self.latent_dim in the"
            " constructor, after super().__init__"
        )
    for param in vae.parameters():
        if param.isnan().any():
            raise RequestError(
                "the model has parameters that are NaN; create a new one, or load a state_dict"
                " before training"
            )
    first = batch[:1]
    vae.eval()  # in training mode, batch normalization rejects a single image
    with _outputs("decoder", vae.decoder, (vae.likelihood.num_params, *first.x.shape[1:])):
        vae.sample(1, first.y)
    with _outputs("encoder", vae.encoder, (vae.posterior.num_params, vae.latent_dim)):
        vae.guide(first.x, first.y)
    vae.train()


@contextmanager
def _outputs(name: str, network: nn.Module, wanted: tuple[int, ...]) -> Iterator[None]:
    """Raise `RequestError` if a network's output in the block has another shape than is wanted.

    It replaces any exception of the block. Of the package's networks, the inputs are checked, too.
    """
    inputs: list[tuple[int, ...]] = []
    outputs: list[tuple[int, ...]] = []

    def note_input(module: nn.Module, args: Any) -> None:
        inputs.append(tuple(args[0].shape[1:]))

    def note_output(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(tuple(output.shape[1:]))

    try:
        with (
            network.register_forward_pre_hook(note_input),
            network.register_forward_hook(note_output),
        ):
            yield
    finally:
        if isinstance(network, MLP | Gated | Conv):
            _check_inputs(name, tuple(network.in_shape), inputs)
        for shape in outputs:
            if shape != wanted:
                raise RequestError(
                    f"{name} returns shape {shape} for each input, but must return {wanted}"
                )


def _check_inputs(name: str, wanted: tuple[int, ...], inputs: list[tuple[int, ...]]) -> None:
    for shape in inputs:
        if prod(shape) != prod(wanted):
            raise RequestError(f"{name} was built for inputs of shape {wanted}, but gets {shape}")


def check_normalization(vae: Model, batch: Batch, batch_size: int, images: int) -> None:
    """Raise `RequestError` if batch normalization would have a single value of a channel.

    In training mode, it needs several: a batch of one image is not enough, except in layers that
    see several positions of an image.

    Arguments:
        vae: The model, which is in training mode afterwards.
        batch: Training images, as the likelihood's pixels, with their labels.
        batch_size: Images per step, of all processes.
        images: Number of training images.
    """
    if smallest_share(batch_size, images) > 1:
        return
    single: list[nn.Module] = []

    def look(module: nn.Module, args: Any) -> None:
        if args and args[0].numel() == args[0].shape[1]:
            single.append(module)

    vae.train()
    layers = [module for module in vae.modules() if isinstance(module, _BatchNorm)]
    first = batch[:1]
    with ExitStack() as hooks:
        for layer in layers:
            if layer.training:
                hooks.enter_context(layer.register_forward_pre_hook(look))
        vae.eval()
        vae.sample(1, first.y)
        vae.guide(first.x, first.y)
    vae.train()
    if single:
        where = "a batch of one image"
        if distributed.world_size() > 1:
            where = "a process with one image of a batch"
        raise RequestError(
            f"batch_size={batch_size} leaves {where}, of which batch normalization has no"
            f" variance; use another batch_size{_larger(batch_size, images)}"
        )


def _larger(batch_size: int, images: int) -> str:
    """Advice: the next larger batch size with which each process has more than one image."""
    for size in range(batch_size + 1, images + 1):
        if smallest_share(size, images) > 1:
            return f", such as {size}"
    return ""
