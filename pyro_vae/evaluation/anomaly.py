"""Scores of anomalies, and how well they tell anomalies from normal images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.engine.graphs import AnyEngine
from pyro_vae.errors import RequestError
from pyro_vae.evaluation.batch import BatchLike, random_rows, scored
from pyro_vae.evaluation.calibration import simulates
from pyro_vae.evaluation.gap import likelihood_regret
from pyro_vae.evaluation.metrics import Scores, score_images
from pyro_vae.vae import Model

# Images of the model whose mean log p(x) is that of its typical images.
SIMULATED = 200


class AUROC(NamedTuple):
    """The probability that an anomaly has a higher score than a normal image."""

    auroc: float
    standard_error: float | None
    num_normal: int
    num_anomalies: int


def anomaly_scores(
    vae: Model,
    data: BatchLike,
    scores: Scores,
    num_samples: int,
    batch_size: int | None = None,
    engine: AnyEngine = "auto",
) -> dict[str, Tensor]:
    """Scores that are meant to be high for anomalies, in nats, each of shape `(N,)`.

    None is reliable, see the table in experiments/README.md: measure them on anomalies of the kind
    that you look for. `minus_elbo` and `minus_log_likelihood` are low for simple images, such as
    blank ones, whatever the model was trained on. `typicality` is the distance of log p(x) from the
    mean of 200 images of the model, that is from minus its entropy. `likelihood_regret` is the
    ELBO that the encoder loses against the best posterior of the image, see `likelihood_regret`.

    References:
        | Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality
          (Nalisnick et al., 2019)
        | https://arxiv.org/abs/1906.02994
        | Likelihood Regret: An Out-of-Distribution Detection Score for Variational Auto-encoder
          (Xiao et al., 2020)
        | https://arxiv.org/abs/2003.02977

    Arguments:
        vae: A trained model.
        data: The images, see `scored`.
        scores: Their scores, from `score_images`.
        num_samples: Importance samples of those scores, also taken for the model's images.
        batch_size: Decoder rows per pass, as for `score_images`.
        engine: What runs the passes, as for `score_images`.

    Returns:
        The scores by name. There is no typicality where the likelihood is no density or is given
        the total of each row, and no regret where the posterior has no reparameterized draws.
    """
    batch = scored(vae, data)
    found = {"minus_elbo": -scores.elbo, "minus_log_likelihood": -scores.log_likelihood}
    if simulates(vae):
        index = random_rows(batch, SIMULATED)
        typical = batch[index]
        with torch.no_grad():
            typical = typical.with_x(vae.sample(len(index), typical.y))
        mean = score_images(vae, typical, num_samples, batch_size, engine).log_likelihood.mean()
        found["typicality"] = (scores.log_likelihood - mean).abs()
    with torch.no_grad():
        has_gradient = vae.q_z(*batch[:1]).has_rsample
    if has_gradient:
        found["likelihood_regret"] = likelihood_regret(
            vae, batch, batch_size=batch_size, engine=engine
        )
    return found


def auroc(scores: Tensor, is_anomaly: Tensor) -> AUROC:
    """The area under the ROC curve with DeLong's standard error.

    Equal scores count half. The error is None for a single normal image or a single anomaly, and 0,
    which tells nothing, if the area is 0 or 1.

    References:
        | Comparing the Areas under Two or More Correlated Receiver Operating Characteristic Curves
          (DeLong et al., 1988)
        | https://doi.org/10.2307/2531595

    Arguments:
        scores: Higher for anomalies, shape `(N,)`.
        is_anomaly: Bools, shape `(N,)`.

    Raises:
        RequestError: If there are no anomalies, or no normal images.

    Example:
        >>> scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> auroc(scores, torch.tensor([False, False, True, True])).auroc
        1.0
        >>> auroc(scores, torch.tensor([False, True, False, True])).auroc
        0.75
    """
    anomalies = scores[is_anomaly].double()
    normal = scores[~is_anomaly].double()
    if min(len(anomalies), len(normal)) == 0:
        raise RequestError(
            f"there are {len(normal)} normal images and {len(anomalies)} anomalies; use images of"
            " both kinds"
        )
    of_anomalies = _shares_below(anomalies, normal)
    of_normal = 1 - _shares_below(normal, anomalies)
    error = None
    if min(len(anomalies), len(normal)) > 1:
        variance = of_anomalies.var() / len(anomalies) + of_normal.var() / len(normal)
        error = variance.sqrt().item()
    return AUROC(of_anomalies.mean().item(), error, len(normal), len(anomalies))


def _shares_below(values: Tensor, others: Tensor) -> Tensor:
    """For each value the share of others that are below, with half of those that are equal."""
    ordered = others.sort().values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to).double() / (2 * len(others))
