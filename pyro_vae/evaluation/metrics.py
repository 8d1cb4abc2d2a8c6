"""Metrics of held-out images: ELBO, importance-weighted log-likelihood, and their errors."""

from __future__ import annotations

from functools import partial
from math import isfinite, log
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.data.split import Split
from pyro_vae.engine import distributed
from pyro_vae.engine.graphs import AnyEngine, Engine, Graph, pick_engine
from pyro_vae.engine.importance import (
    Terms,
    curve_lengths,
    effective_sample_size,
    k_curve,
    log_likelihood,
    monte_carlo_error,
    pareto_k,
    terms,
)
from pyro_vae.engine.precision import products
from pyro_vae.engine.programs import Batch, Program
from pyro_vae.engine.progress import progress_bar
from pyro_vae.errors import NotFiniteError, RequestError, check_count, check_positive
from pyro_vae.evaluation.batch import BatchLike, random_rows, scored
from pyro_vae.evaluation.bits import scale_of
from pyro_vae.evaluation.codes import ACTIVE, activity
from pyro_vae.evaluation.labels import classify, known_labels
from pyro_vae.likelihoods import noun
from pyro_vae.vae import Model, default_batch_size

ELBO_SAMPLES = 10
# k-hat above which importance sampling is unreliable (Vehtari et al., 2024).
RELIABLE = 0.7

Metrics = dict[str, Any]


class Scores(NamedTuple):
    """Metrics of each image, in nats, float64 on the CPU; each of shape `(N,)`, except the curve.

    log p(x) is not a score of anomalies: a model gives simple images, such as blank ones, a higher
    density than most images that it was trained on (Nalisnick et al., 2019).

    References:
        | Do Deep Generative Models Know What They Don't Know? (Nalisnick et al., 2019)
        | https://arxiv.org/abs/1810.09136

    Attributes:
        reconstruction: The mean of log p(x | z).
        kl: The mean of log q(z | x) - log p(z).
        log_likelihood: The importance-weighted bound with all samples.
        monte_carlo_error: Its standard error over the draws, see `monte_carlo_error`. Too small
            where k-hat is over 0.7, and NaN for one sample.
        effective_sample_size: Of the importance weights, from 1 to the number of samples.
        pareto_k: k-hat of the importance weights, see `pareto_k`; NaN for fewer than 25 samples.
        curve: The bounds with 1, 2, 4, ... samples, shape `(N, lengths)`.
    """

    reconstruction: Tensor
    kl: Tensor
    log_likelihood: Tensor
    monte_carlo_error: Tensor
    effective_sample_size: Tensor
    pareto_k: Tensor
    curve: Tensor

    @property
    def elbo(self) -> Tensor:
        """The ELBO of each image."""
        return self.reconstruction - self.kl


def evaluate(
    vae: Model,
    data: BatchLike,
    num_samples: int = 5000,
    num_images: int | None = None,
    batch_size: int | None = None,
    engine: AnyEngine = "auto",
) -> Metrics:
    """Score held-out images, in nats per image.

    The estimate of log p(x) is a lower bound in expectation. Its `monte_carlo_error` covers only
    what the samples reached: a guide that misses a mode of the posterior gives an estimate that is
    too low, with a small error and a small k-hat. `check_log_likelihood` compares it with a second
    method. Where many images have a k-hat over 0.7 the error is too small: on linear-Gaussian
    models, intervals of two errors cover the exact mean in 95 % or more of repetitions if no image
    has, in 78 % if 13 % of the images have, and in 35 % if 41 % have.

    Arguments:
        vae: A trained model, on the device on which to score it.
        data: The images, such as `data.test`, see `scored`.
        num_samples: Importance samples for each image.
        num_images: Size of the seeded random subset whose log-likelihood is estimated; None is all
            images.
        batch_size: Decoder rows per pass, where a row is one sample of one image; None is
            `default_batch_size`.
        engine: What runs the passes, see `Graph`; "auto" depends on the device and the number of
            passes.

    Returns:
        `elbo`, `reconstruction` and `kl` of all images and the `log_likelihood`, each with its
        `mean`, its `standard_error` over images, and the `num_samples` and `num_images` that it is
        based on. The log-likelihood also has the `monte_carlo_error` of the mean,
        `share_of_images_with_k_hat_over_0.7`, `share_of_images_with_k_hat_over_1`, where no number
        of samples suffices (`required_samples`), `median_effective_sample_size` and
        `elbo_same_images`. For a subset there is `log_likelihood_all_images`, see
        `two_phase_mean`. `bits_per_dimension`, of all images, is an upper bound in expectation, and
        says what it is `of`, see `scale_of`; counts have `nats_per_count`. `k_curve` has the bounds
        with 1, 2, 4, ... samples and their `gain` over the first, with the standard error of the
        paired differences. `active_units` counts the latent dimensions that vary with the image. A
        model that uses labels is scored `given` its "labels" or "covariates" y: log p(x) is log p(x
        | y). A model that infers labels is scored without them; for images whose label is known
        there are `log_joint`, the estimate of log p(x, y), and `classification`, the accuracy and
        calibration of q(y | x), see `classify`. If values are missing, log p(x) is that of the
        `observed` share of them.

    Raises:
        RequestError: If `num_images` exceeds the number of images, or a number is not positive.
        NotFiniteError: If an image has no finite importance weight.
    """
    batch = scored(vae, data)
    rows = torch.arange(len(batch), device=batch.x.device)
    if num_images is not None:
        check_positive(num_images=num_images)
        if num_images > len(batch):
            raise RequestError(
                f"num_images={num_images} exceeds the {len(batch)} {noun(batch.x.ndim - 1)}s; use a"
                " smaller num_images"
            )
        rows = random_rows(batch, num_images)
    scores = score_images(vae, batch[rows], num_samples, batch_size, engine)
    results = summarize(vae, batch, scores, num_samples, batch_size, engine)
    if vae.infers_labels and not isinstance(data, Tensor):
        subset = data[rows.to(data.x.device)]
        results |= label_metrics(vae, data, subset, num_samples, batch_size, engine)
    return results


def label_metrics(
    vae: Model,
    data: Split | Batch,
    subset: Split | Batch,
    num_samples: int,
    batch_size: int | None = None,
    engine: AnyEngine = "auto",
) -> Metrics:
    """The `classification` of `evaluate`, and the `log_joint` of a subset, if labels are known."""
    if known_labels(vae, data) is None:
        return {}
    results: Metrics = {"classification": classify(vae, data).summary()}
    known = known_labels(vae, subset)
    if known is not None:
        scores = score_images(vae, known, num_samples, batch_size, engine)
        results["log_joint"] = summary(scores.log_likelihood, num_samples)
    return results


def score_images(
    vae: Model,
    data: BatchLike,
    num_samples: int = 5000,
    batch_size: int | None = None,
    engine: AnyEngine = "auto",
) -> Scores:
    """The metrics of each image; arguments as for `evaluate`. Several processes share the images.

    Do not use log p(x) to find anomalies, see `Scores`.
    """
    check_count(num_samples=num_samples, batch_size=batch_size)
    batch = scored(vae, data)
    rows_per_pass = batch_size or default_batch_size(vae, batch.x)
    engine = pick_engine(engine, batch.x.device, len(batch) * num_samples // rows_per_pass)

    def score_rows(rows: Batch) -> Scores:
        return score(vae.model, vae.guide, rows, num_samples, rows_per_pass, engine)

    with vae.treating_missing(bool(batch.x.isnan().any())):
        return Scores(*distributed.map_rows(score_rows, batch))


def summarize(
    vae: Model,
    data: BatchLike,
    scores: Scores,
    num_samples: int,
    batch_size: int | None = None,
    engine: AnyEngine = "auto",
) -> Metrics:
    """The results of `evaluate`, from the scores of all images or of a subset of them."""
    batch = scored(vae, data)
    is_subset = len(scores.kl) < len(batch)
    draws = num_samples
    whole = scores
    if is_subset:
        draws = ELBO_SAMPLES
        whole = score_images(vae, batch, draws, batch_size, engine)
    active = None
    if len(batch) > 1:
        active = int((activity(vae, batch) > ACTIVE).sum())
    estimate = summary(scores.log_likelihood, num_samples)
    results: Metrics = {
        "elbo": summary(whole.elbo, draws),
        "reconstruction": summary(whole.reconstruction, draws),
        "kl": summary(whole.kl, draws),
        "log_likelihood": {
            **estimate,
            **_reliability(scores),
            "elbo_same_images": summary(scores.elbo, num_samples),
        },
        "k_curve": _k_curve(scores.curve, num_samples),
        "active_units": {"count": active, "latent_dim": vae.latent_dim},
    }
    of_all = estimate
    if is_subset:
        mean, error = two_phase_mean(scores.log_likelihood, scores.elbo, whole.elbo)
        of_all = {
            "mean": mean,
            "standard_error": error,
            "num_samples": num_samples,
            "num_images": len(batch),
        }
        results["log_likelihood_all_images"] = of_all
    return {**results, **_conditions(vae, batch), **_other_units(vae, batch, of_all)}


def _conditions(vae: Model, batch: Batch) -> Metrics:
    """What log p(x) is given, and of which share of the values it is."""
    conditions: Metrics = {}
    if vae.needs_labels and batch.y is not None:
        conditions["given"] = "covariates" if batch.y.is_floating_point() else "labels"
    if vae.likelihood.given_total:
        conditions["exposure"] = "total"
    observed = _share_observed(batch)
    if observed < 1:
        conditions["observed"] = observed
    return conditions


def _share_observed(batch: Batch) -> float:
    return (~batch.x.isnan()).double().mean().item()


def _other_units(vae: Model, batch: Batch, log_likelihood: Metrics) -> Metrics:
    """log p(x) in bits per dimension and in nats per count, as far as they have a meaning."""
    dimensions = _share_observed(batch) * batch.x[0].numel()
    converted: Metrics = {}
    scale = scale_of(vae.likelihood)
    if scale is not None:
        bits = _per(log_likelihood, dimensions * log(2), scale.offset)
        converted["bits_per_dimension"] = {**bits, "of": scale.of}
    if vae.pixels == "count":
        converted["nats_per_count"] = _per(log_likelihood, dimensions, 0.0)
    return converted


def _per(log_likelihood: Metrics, unit: float, offset: float) -> Metrics:
    """Minus a log-likelihood in nats per image, in another unit, plus an offset."""
    error = log_likelihood["standard_error"]
    if error is not None:
        error = error / unit
    mean = offset - log_likelihood["mean"] / unit
    return {**log_likelihood, "mean": mean, "standard_error": error}


def _k_curve(curve: Tensor, num_samples: int) -> Metrics:
    """The bounds with 1, 2, 4, ... samples, and their paired differences from the first."""
    results = {}
    for k, bound in zip(curve_lengths(num_samples), curve.T, strict=True):
        gain = summary(bound - curve[:, 0], k)
        results[str(k)] = {
            **summary(bound, k),
            "gain": gain["mean"],
            "gain_standard_error": gain["standard_error"],
        }
    return results


def summary(values: Tensor, num_samples: int) -> Metrics:
    """The mean of a metric, its standard error over the images, and what it is based on."""
    values = values.double()
    error = None
    if len(values) > 1:
        error = (values.std() / len(values) ** 0.5).item()
    return {
        "mean": values.mean().item(),
        "standard_error": error,
        "num_samples": num_samples,
        "num_images": len(values),
    }


def two_phase_mean(y: Tensor, x: Tensor, x_all: Tensor) -> tuple[float, float | None]:
    r"""The mean of y over N images from a subset of n, with a correlated x that is known for all.

    The difference estimator of two-phase sampling, with :math:`d = y - x`:

    .. math:: \bar d_n + \bar x_N, \qquad
        \operatorname{Var} = \frac{S_d^2}{n} + \frac{S_x^2 + 2 S_{x d}}{N}

    It is unbiased if the subset is drawn at random without replacement. The error is that over
    images: the N images are themselves a sample. It also holds if `x` and `x_all` are independent
    unbiased estimates.

    References:
        | Sampling Techniques (Cochran, 1977), chapter 12

    Arguments:
        y: Values of the subset, shape `(n,)`.
        x: Values of the control variate on the same images, shape `(n,)`.
        x_all: Its values on all images, shape `(N,)`.

    Returns:
        The mean and its standard error; None for a subset of one image.
    """
    y = y.double()
    x = x.double()
    x_all = x_all.double()
    mean = ((y - x).mean() + x_all.mean()).item()
    if len(y) < 2:
        return mean, None
    covariance = torch.cov(torch.stack([x, y - x]))
    variance = covariance[1, 1] / len(y) + (x_all.var() + 2 * covariance[0, 1]) / len(x_all)
    return mean, variance.clamp(min=0).sqrt().item()


def score(
    model: Program,
    guide: Program,
    batch: Batch,
    num_samples: int,
    batch_size: int,
    engine: Engine = "eager",
) -> Scores:
    """Score every row with `num_samples` importance samples.

    Arguments:
        model: A Pyro program, as for `log_weights`.
        guide: A Pyro program, as for `log_weights`.
        batch: The arguments of both programs.
        num_samples: Importance samples for each row.
        batch_size: Decoder rows per pass, where a row is one sample of one image.
        engine: What runs the passes, see `Graph`.

    Raises:
        RequestError: If a number is not positive.
        NotFiniteError: If a row has no finite weight, or one that is NaN.
    """
    check_positive(num_samples=num_samples, batch_size=batch_size)
    passes = -(-num_samples // batch_size)
    counts = [num_samples * (i + 1) // passes - num_samples * i // passes for i in range(passes)]
    graphs = {count: Graph(partial(_pass, model, guide, count), engine) for count in set(counts)}
    parts: list[Scores] = []
    done = 0
    unit = f" {noun(batch.x.ndim - 1)}s"
    with products("float32"), progress_bar(len(batch), "scoring", unit) as bar:
        for rows in batch.split(max(1, batch_size // num_samples)):
            drawn = [graphs[count](*rows) for count in counts]
            values = [torch.cat(part) for part in zip(*drawn, strict=True)]
            parts.append(_scores(Terms(*values), first=done))
            done += len(rows)
            bar.update(len(rows))
    return Scores(*(torch.cat(values) for values in zip(*parts, strict=True)))


@torch.no_grad()
@pyro.validation_enabled(False)  # validation looks at values, which a graph cannot
def _pass(model: Program, guide: Program, num_samples: int, *args: Any) -> list[Tensor]:
    return list(terms(model, guide, Batch(*args), num_samples))


def _scores(drawn: Terms, first: int) -> Scores:
    weights = drawn.log_weights.double().cpu()
    bad = weights.isnan().any(0) | (weights == -torch.inf).all(0)
    if bad.any():
        index = first + int(bad.nonzero()[0])
        raise NotFiniteError(
            f"image {index} of those scored has importance weights that are NaN, or all 0; check"
            " the likelihood"
        )
    return Scores(
        drawn.reconstruction.double().mean(0).cpu(),
        drawn.kl.double().mean(0).cpu(),
        log_likelihood(weights),
        monte_carlo_error(weights),
        effective_sample_size(weights),
        pareto_k(weights),
        torch.stack(list(k_curve(weights).values()), 1),
    )


def _reliability(scores: Scores) -> Metrics:
    """Monte Carlo diagnostics of the estimate."""
    k_hat = scores.pareto_k
    error = (scores.monte_carlo_error.square().sum().sqrt() / len(k_hat)).item()
    finite_error = error if isfinite(error) else None
    over = None
    hopeless = None
    if not k_hat.isnan().any():
        over = (k_hat > RELIABLE).double().mean().item()
        hopeless = (k_hat >= 1).double().mean().item()
    return {
        "monte_carlo_error": finite_error,
        "share_of_images_with_k_hat_over_0.7": over,
        "share_of_images_with_k_hat_over_1": hopeless,
        "median_effective_sample_size": scores.effective_sample_size.quantile(0.5).item(),
    }
