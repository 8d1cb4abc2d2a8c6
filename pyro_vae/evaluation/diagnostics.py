"""How good a trained VAE is: figures on held-out images, each with its standard error, and what lies behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import log
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.optim import Adam

from pyro_vae.inference import distributed
from pyro_vae.data import Split
from pyro_vae.errors import RequestError
from pyro_vae.inference.graphs import Engine
from pyro_vae.inference.importance import log_likelihood, log_weights
from pyro_vae.memory import rows_at_once
from pyro_vae.evaluation.metrics import Scores, in_chunks, score
from pyro_vae.inference.codes import ACTIVE, activity, codes
from pyro_vae.vae import Model

ELBO_SAMPLES = 10

RELIABLE = 0.7
"""The largest k-hat at which an importance-weighted estimate is to be trusted (Vehtari et al., 2024)."""

DRAWS = 100
PAIRS = 1000

Metrics = dict[str, dict[str, Any]]


def evaluate(
    vae: Model,
    images: Split,
    num_samples: int = 5000,
    num_images: int | None = None,
    memory_mb: float | None = None,
    engine: Engine = "eager",
    on_images: Callable[[int], object] = lambda images: None,
) -> Metrics:
    """Score held-out images, in nats per image.

    Arguments:
        vae: A trained VAE, on the device where it will be scored.
        images: The images, such as `data.test`.
        num_samples: Importance samples for each image.
        num_images: Size of the seeded random subset whose log-likelihood is estimated; None is all images.
        memory_mb: What one pass may take, in MiB; None takes what is fast.
        engine: What runs the passes: see `Graph`.
        on_images: Called with the number of images done, after each chunk of the log-likelihood.

    Returns:
        `elbo`, `reconstruction` and `kl`, over all images, and the importance-weighted `log_likelihood`, each with its `mean`,
        its `standard_error` over images, and the `num_samples` and `num_images` it rests on. The log-likelihood has the
        `monte_carlo_error` of the mean too, or None where k-hat is over 0.7 for any image: then it is a lower bound. For
        bytes there are `bits_per_dimension`, and there are the `k_curve` and the `active_units`.

    Raises:
        RequestError: If `num_images` is over the number of images, or `num_samples` is not positive.
        NotFiniteError: If an image has no finite importance weight.
    """
    subset = images if num_images is None else images.subset(num_images)
    return summarized(vae, images, score_images(vae, subset, num_samples, memory_mb, engine, on_images), num_samples)


def score_images(
    vae: Model,
    images: Split,
    num_samples: int = 5000,
    memory_mb: float | None = None,
    engine: Engine = "eager",
    on_images: Callable[[int], object] = lambda images: None,
) -> Scores:
    """The figures of each image; arguments as for `evaluate`. Several processes share the images."""
    if len(images) == 0:
        raise RequestError("there are no images to score")
    vae.eval()
    x = images.to(_device(vae)).scored(vae.pixels)
    own = distributed.shard(len(x))
    with _own_noise():
        scores = score(vae.model, vae.guide, x[own], num_samples, memory_mb, engine, on_images)
    return scores.map(lambda values: distributed.all_gather(values, len(x)))


def summarized(vae: Model, images: Split, scores: Scores, num_samples: int) -> Metrics:
    """The results of `evaluate`, given the scores of all the images or of a subset of them."""
    terms = _terms(vae, images) if len(scores.kl) < len(images) else (scores.reconstruction, scores.kl)
    draws = ELBO_SAMPLES if len(scores.kl) < len(images) else num_samples
    reconstruction, kl = terms
    results = {
        "elbo": summary(reconstruction - kl, draws),
        "reconstruction": summary(reconstruction, draws),
        "kl": summary(kl, draws),
        "log_likelihood": {**summary(scores.log_likelihood, num_samples), **_reliability(scores)},
        "active_units": _active_units(vae, images),
        "k_curve": {str(k): summary(scores.curve[:, i], k) for i, k in enumerate(_lengths(num_samples))},
    }
    if vae.pixels == "byte":
        dimensions = images.images[0].numel()
        results["bits_per_dimension"] = summary(-scores.log_likelihood / dimensions / log(2), num_samples)
    return results


@torch.no_grad()
def _terms(vae: Model, images: Split) -> tuple[Tensor, Tensor]:
    """The mean reconstruction and KL of each image, with a few draws."""
    x = images.to(_device(vae)).scored(vae.pixels)
    own = distributed.shard(len(x))
    with _own_noise():
        chunks = list(in_chunks(vae.model, vae.guide, x[own], ELBO_SAMPLES))
    reconstruction, kl = (torch.cat([part.double().mean(0).cpu() for part in parts]) for parts in zip(*chunks, strict=True))
    return distributed.all_gather(reconstruction, len(x)), distributed.all_gather(kl, len(x))


def _reliability(scores: Scores) -> dict[str, Any]:
    """The error of the estimate itself, and how far it is to be trusted."""
    k_hat, size = scores.pareto_k, len(scores.pareto_k)
    over = (k_hat > RELIABLE).double().mean().item()
    error = (scores.monte_carlo_error.square().sum().sqrt() / size).item()
    return {
        "monte_carlo_error": error if over == 0 and not k_hat.isnan().any() else None,
        "share_of_images_with_k_hat_over_0.7": None if k_hat.isnan().any() else over,
        "median_effective_sample_size": scores.effective_sample_size.median().item(),
    }


def _lengths(num_samples: int) -> list[int]:
    return [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples] + [num_samples]


def _active_units(vae: Model, images: Split) -> dict[str, Any]:
    if len(images) < 2:
        return {"count": None, "latent_dim": vae.latent_dim}
    active = activity(vae, images.to(_device(vae)).scored(vae.pixels)) > ACTIVE
    return {"count": int(active.sum()), "latent_dim": vae.latent_dim}


def summary(values: Tensor, num_samples: int) -> dict[str, Any]:
    """The mean of a figure of each image, its standard error over the images, and what it rests on."""
    values = values.double()
    return {
        "mean": values.mean().item(),
        "standard_error": (values.std() / len(values) ** 0.5).item() if len(values) > 1 else None,
        "num_samples": num_samples,
        "num_images": len(values),
    }


class Information(NamedTuple):
    """What the codes know of the images, in nats, with standard errors over images: None for a single one."""

    mutual_information: float
    mutual_information_error: float | None
    marginal_kl: float
    """KL(q(z) || p(z)): the rate, less the mutual information."""
    marginal_kl_error: float | None
    num_images: int
    """N: the mutual information of N images is at most log N, and so is its estimate."""


@torch.no_grad()
def information(vae: Model, x: Tensor, num_images: int = PAIRS) -> Information:
    r"""The rate split in two: the mutual information of code and image, and the KL of the aggregate posterior to the prior.

    .. math:: \overline{\mathrm{KL}(q(z \mid x) \,\|\, p(z))} = I_q(x; z) + \mathrm{KL}(q(z) \,\|\, p(z)),
        \qquad q(z) = \tfrac{1}{N} \sum_n q(z \mid x_n)

    Every code is scored under the posterior of every image, so the work grows with the square of their number.

    References:
        | ELBO surgery: yet another way to carve up the variational evidence lower bound (Hoffman & Johnson, 2016)
        | http://approximateinference.org/accepted/HoffmanJohnson2016.pdf

    Arguments:
        vae: A VAE.
        x: Images, as the likelihood's pixels.
        num_images: How many of them to take, N.
    """
    vae.eval()
    x = x[:num_images]
    q = vae.encode(x)
    z = q.sample()
    own = q.log_prob(z)
    at_once = rows_at_once(lambda z: q.log_prob(z.unsqueeze(1)), z)
    aggregate = torch.cat([q.log_prob(rows.unsqueeze(1)).logsumexp(1) for rows in z.split(at_once)]) - log(len(x))
    shared = (own - aggregate).double()
    rate = torch.cat([chunk.kl.mean(0) for chunk in in_chunks(vae.model, vae.guide, x, ELBO_SAMPLES)]).double()
    of_code, of_prior = summary(shared, 1), summary(rate - shared, ELBO_SAMPLES)
    return Information(of_code["mean"], of_code["standard_error"], of_prior["mean"], of_prior["standard_error"], len(x))


class Probe(NamedTuple):
    """The share of labels that a linear classifier finds from the codes, and its standard error."""

    accuracy: float
    standard_error: float
    num_images: int


def linear_probe(vae: Model, train: Split, test: Split) -> Probe:
    """Logistic regression from the posterior means of labelled training images, scored on test images.

    Raises:
        RequestError: If there are no labels, or only one.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if train.labels is None or test.labels is None:
        raise RequestError("a linear probe needs labels: add an array `labels`, or one folder a class")
    if len(train.labels.unique()) < 2:
        raise RequestError("a linear probe needs images of two classes at least")
    vae.eval()
    device = _device(vae)
    seen, unseen = (codes(vae, split.to(device).scored(vae.pixels)).loc.cpu().double().numpy() for split in (train, test))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000, tol=1e-3))
    right = classifier.fit(seen, train.labels.cpu().numpy()).predict(unseen) == test.labels.cpu().numpy()
    accuracy = float(right.mean())
    return Probe(accuracy, (accuracy * (1 - accuracy) / len(right)) ** 0.5, len(right))


class Gap(NamedTuple):
    """The inference gap of each image, in nats, each of shape `(N,)`."""

    log_likelihood: Tensor
    """The importance-weighted bound, with the best posterior of the family as the proposal."""
    local_elbo: Tensor
    """The ELBO of the best posterior of the family, found for each image on its own."""
    elbo: Tensor
    """The ELBO of the encoder's posterior."""

    @property
    def approximation(self) -> Tensor:
        """What the family costs, log p(x) less the best ELBO."""
        return self.log_likelihood - self.local_elbo

    @property
    def amortization(self) -> Tensor:
        """What it costs to have an encoder give the posterior."""
        return self.local_elbo - self.elbo


def inference_gap(
    vae: Model,
    x: Tensor,
    num_samples: int = 1000,
    steps: int = 500,
    learning_rate: float = 0.02,
    draws: int = 10,
    memory_mb: float | None = None,
    on_step: Callable[[int], object] = lambda images: None,
) -> Gap:
    r"""Split :math:`\log p(x) - \mathrm{ELBO}` into the approximation gap and the amortization gap.

    The posterior's parameters are optimized for each image by Adam, from where the encoder puts them, and scored with draws
    of their own. In a hierarchical VAE they are those of q(z_1 | x); what lies above stays as it is.

    References:
        | Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018)
        | https://arxiv.org/abs/1801.03558

    Arguments:
        vae: A VAE whose posterior has reparameterized draws.
        x: Images, as the likelihood's pixels.
        num_samples: Samples for each of the figures.
        steps: Steps of Adam.
        learning_rate: Its learning rate.
        draws: Draws for each gradient.
        memory_mb: What one pass may take, in MiB; None takes what is fast.
        on_step: Called after each step with the number of images whose posteriors it moved.

    Raises:
        RequestError: If the posterior has no reparameterized draws.
    """
    vae.eval()
    at_once = rows_at_once(lambda x: log_weights(vae.model, vae.guide, x, num_samples=DRAWS), x, memory_mb)
    parts = [_gap(vae, rows, num_samples, steps, learning_rate, draws, on_step) for rows in x.split(at_once)]
    return Gap(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _gap(
    vae: Model,
    x: Tensor,
    num_samples: int,
    steps: int,
    learning_rate: float,
    draws: int,
    on_step: Callable[[int], object],
) -> Gap:
    with torch.no_grad():
        params = vae.encoder(vae.likelihood.unit(x))
    params.requires_grad_()
    if not vae.posterior(params).has_rsample:
        raise RequestError("the inference gap needs a posterior with reparameterized draws")
    elbo = _bounds(vae, x, num_samples)[0]
    optimizer = Adam([params], lr=learning_rate)
    with _local_posterior(vae, params):
        for _ in range(steps):
            (params.grad,) = torch.autograd.grad(
                -log_weights(vae.model, vae.guide, x, num_samples=draws).mean(0).sum(), [params]
            )
            optimizer.step()
            on_step(len(x))
        local_elbo, log_p = _bounds(vae, x, num_samples)
    return Gap(log_p, local_elbo, elbo)


@torch.no_grad()
def _bounds(vae: Model, x: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """The ELBO and the importance-weighted bound of each image."""
    weights = torch.cat([log_weights(vae.model, vae.guide, x, num_samples=DRAWS) for _ in range(-(-num_samples // DRAWS))])[
        :num_samples
    ]
    return weights.mean(0), log_likelihood(weights)


@contextmanager
def _local_posterior(vae: Model, params: Tensor) -> Iterator[None]:
    """Have the guide take these parameters of the posterior, whatever image it is given."""
    vae.encode = lambda x: vae.posterior(params)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del vae.encode


@contextmanager
def _own_noise() -> Iterator[None]:
    """Let each of several processes draw noise of its own; all then go on from the same random state."""
    if distributed.world_size() == 1:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(torch.randint(2**62, ()).item() + distributed.rank())
        yield


def _device(vae: Model) -> torch.device:
    return next(vae.parameters()).device
