"""How well a model that infers labels classifies, and how far its probabilities can be trusted."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.data.split import Split
from pyro_vae.engine.programs import Batch
from pyro_vae.errors import RequestError, check_positive
from pyro_vae.evaluation.batch import IMAGES, BatchLike, scored
from pyro_vae.vae import Model

# Bins of the calibration curve (Guo et al., 2017).
BINS = 15


class Bin(NamedTuple):
    """Images whose largest class probability is in an interval."""

    confidence: float
    """The mean of their largest probability."""
    accuracy: float
    """The share of them whose most likely class is right."""
    standard_error: float
    """That of the accuracy."""
    num_images: int


class Classification(NamedTuple):
    """Accuracy and calibration of q(y | x) on images with known labels."""

    accuracy: float
    """The share of images whose most likely class is right."""
    standard_error: float
    """That of the accuracy, a binomial share."""
    num_images: int
    log_loss: float
    """The mean of -log q(y | x), in nats."""
    log_loss_error: float
    """The standard error of the log loss over images."""
    calibration_error: float
    """The mean distance of confidence and accuracy over images, in bins. It is above 0 even for a
    calibrated classifier, because of the noise of the bins."""
    bins: list[Bin]
    """The calibration curve; bins without images are left out."""

    def summary(self) -> dict[str, Any]:
        """Plain values for results.json."""
        return {**self._asdict(), "bins": [each._asdict() for each in self.bins]}


@torch.no_grad()
def class_probabilities(vae: Model, data: BatchLike) -> Tensor:
    """q(y | x) of each class for each image, shape `(N, label_dim)`.

    Arguments:
        vae: A model that infers labels.
        data: The images, see `scored`; their labels are not used.

    Raises:
        RequestError: If the model infers no labels.
    """
    batch = scored(vae, data)
    return torch.cat([vae.q_y(rows.x).probs for rows in batch.split(IMAGES)])


def classify(vae: Model, data: Split | Batch, num_bins: int = BINS) -> Classification:
    """Accuracy and calibration of q(y | x) on the images whose label is known.

    References:
        | On Calibration of Modern Neural Networks (Guo et al., 2017)
        | https://arxiv.org/abs/1706.04599

    Arguments:
        vae: A model that infers labels.
        data: Images with labels.
        num_bins: Bins of equal width of the largest probability.

    Raises:
        RequestError: If no label is known, or the model infers no labels.
    """
    check_positive(num_bins=num_bins)
    known = known_labels(vae, data)
    if known is None:
        raise RequestError("classification needs images with known labels; add labels")
    probabilities = class_probabilities(vae, known.x).double().cpu()
    labels = known.more[0].cpu()
    confidence, predicted = probabilities.max(1)
    right = (predicted == labels).double()
    losses = -probabilities.gather(1, labels[:, None])[:, 0].log()
    bins = []
    distance = 0.0
    of_image = (confidence * num_bins).long().clamp(max=num_bins - 1)
    for number in of_image.unique():
        inside = of_image == number
        part = right[inside]
        mean = confidence[inside].mean().item()
        bins.append(Bin(mean, *_share(part), len(part)))
        distance += abs(mean - bins[-1].accuracy) * len(part) / len(labels)
    return Classification(
        *_share(right),
        len(labels),
        losses.mean().item(),
        losses.std(correction=0).item() / len(labels) ** 0.5,
        distance,
        bins,
    )


def known_labels(vae: Model, data: Split | Batch) -> Batch | None:
    """The images with a known class and their labels, as a batch; None if there are none."""
    labels = data.y
    if isinstance(data, Split):
        labels = data.labels
    if labels is None or not (labels >= 0).any():
        return None
    x = scored(vae, data).x
    labelled = Batch(x, labels.to(x.device))
    return labelled[(labels >= 0).nonzero()[:, 0].to(x.device)]


def _share(right: Tensor) -> tuple[float, float]:
    """The share of ones, and its standard error."""
    share = right.mean().item()
    return share, (share * (1 - share) / len(right)) ** 0.5
