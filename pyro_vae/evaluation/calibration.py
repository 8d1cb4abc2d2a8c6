"""Calibration of the guide: are codes of simulated images distributed as q(z | x) says?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.data.split import Split
from pyro_vae.engine.importance import joint_terms
from pyro_vae.engine.precision import products
from pyro_vae.engine.programs import SAMPLES, Batch, is_summed_out, sample_sites
from pyro_vae.engine.progress import progress_bar
from pyro_vae.errors import RequestError, check_positive
from pyro_vae.evaluation.batch import random_rows, scored
from pyro_vae.evaluation.metrics import Metrics, summary
from pyro_vae.evaluation.uniformity import detectable_scale, detectable_shift, uniformity
from pyro_vae.vae import Model, default_batch_size

# Draws of the guide for each image. With the true code there are 100 values, so that regions of 50,
# 90 and 99 % hold an integer number of them.
DRAWS = 99
REGIONS = (0.5, 0.9, 0.99)
# Bins of the histograms that a picture is drawn of.
BINS = 20


class Calibration(NamedTuple):
    """Ranks of the codes that simulated images came from, among draws of the guide.

    With an exact guide every level is uniform on [0, 1].
    """

    names: tuple[str, ...]
    """The Q quantities, which are each latent dimension, log q(z | x) and log p(x | z)."""
    levels: Tensor
    """The rank of the true code divided by the number of values, within a rank at random; shape
    `(num_images, Q)`, float64."""
    log_q: Tensor
    """log q(z | x) of the true code, in nats, shape `(num_images,)`."""
    log_prior: Tensor
    """log p(z) of the true code."""

    @property
    def p_values(self) -> Tensor:
        """The p-value of each quantity, shape `(Q,)`; see `uniformity`."""
        return uniformity(self.levels)

    @property
    def p_value(self) -> float:
        """The smallest p-value times Q (Bonferroni), valid for dependent dimensions; at most 1."""
        return min(1.0, self.p_values.min().item() * len(self.names))

    @property
    def coverage(self) -> dict[float, float]:
        """The share of true codes in the regions of highest q(z | x) that hold 50, 90 and 99 %."""
        level = self.levels[:, self.names.index("log q(z | x)")]
        return {region: (level > 1 - region).double().mean().item() for region in REGIONS}

    def summary(self) -> Metrics:
        """The results as `pyro-vae evaluate` reports them.

        `score` is the mean of log q(z | x) of the true codes, highest for the exact posterior.
        `gain` is the same minus log p(z): a lower bound on the mutual information of code and image
        in the model, 0 if the guide is the prior. The standard errors of the coverage are those of
        an exact guide. `detectable_shift` and `detectable_scale` are what the test finds with a
        power of 90 % in a single dimension: a Gaussian posterior whose mean is off by this many
        standard deviations, or whose standard deviation is too small by this factor. `histograms`
        counts the levels of each quantity in 20 bins.
        """
        images, quantities = self.levels.shape
        coverage = {}
        for region, share in self.coverage.items():
            error = (region * (1 - region) / images) ** 0.5
            coverage[f"{region:g}"] = {"share": share, "standard_error": error}
        histograms = {}
        for name, levels in zip(self.names, self.levels.T, strict=True):
            histograms[name] = levels.histc(BINS, 0, 1).long().tolist()
        return {
            "p_value": self.p_value,
            "worst": self.names[int(self.p_values.argmin())],
            "num_quantities": quantities,
            "num_images": images,
            "coverage": coverage,
            "score": summary(self.log_q, 1),
            "gain": summary(self.log_q - self.log_prior, 1),
            "detectable_shift": detectable_shift(images, quantities),
            "detectable_scale": detectable_scale(images, quantities),
            "histograms": histograms,
        }


class Deviations(NamedTuple):
    """The empirical distribution functions of the levels, minus that of an exact guide."""

    level: Tensor
    """The edges of the bins, shape `(21,)`."""
    excess: Tensor
    """One row for each quantity, shape `(Q, 21)`."""
    band: Tensor
    """With an exact guide no row leaves plus or minus this, with a probability of at least 95 %."""


def deviations(found: Mapping[str, Any]) -> Deviations:
    """The deviations of a `Calibration.summary`."""
    counts = torch.tensor(list(found["histograms"].values())).double()
    images = found["num_images"]
    level = torch.linspace(0, 1, counts.shape[1] + 1, dtype=torch.float64)
    shares = counts.cumsum(1) / images
    excess = torch.cat([torch.zeros(len(counts), 1), shares], 1) - level
    points = len(counts) * (counts.shape[1] - 1)
    z = torch.special.ndtri(torch.tensor(1 - 0.05 / (2 * points)).double())
    return Deviations(level, excess, z * (level * (1 - level) / images).sqrt())


@torch.no_grad()
@products("float32")
def calibration(
    vae: Model,
    data: Split | Batch | None = None,
    *,
    num_images: int = 1000,
    batch_size: int | None = None,
) -> Calibration:
    r"""Simulation-based calibration of the guide: no draw of the guide decides what is found.

    Images are simulated, :math:`z \sim p(z)`, :math:`x \sim p(x \mid z)`, so that z is an exact
    draw from the posterior of x. Its rank among 99 draws from q(z | x) is uniform if the guide is
    exact. Ranks are taken of each latent dimension; of log q(z | x), which gives the coverage of
    regions; and of log p(x | z), without which a guide that ignores the image would pass.

    The images are the model's: the result is about the guide on such images, not on those of the
    data. A guide of another family than the posterior, or an encoder, is never exact: with enough
    images the test rejects it, and the coverage says by how much it is wrong.

    References:
        | Validating Bayesian Inference Algorithms with Simulation-Based Calibration
          (Talts et al., 2018)
        | https://arxiv.org/abs/1804.06788
        | Simulation-Based Calibration Checking for Bayesian Computation: The Choice of Test
          Quantities Shapes Sensitivity (Modrák et al., 2023)
        | https://arxiv.org/abs/2211.02383

    Arguments:
        vae: A model.
        data: Data whose y is given to models that use labels; others need none.
        num_images: Number of simulated images.
        batch_size: Decoder rows per pass; None is `default_batch_size`.

    Raises:
        RequestError: If the likelihood is no density or is given the total of each row, a model
            that uses labels gets none, or a number is not positive.

    Example:
        >>> from pyro_vae.testing import LinearGaussianVAE
        >>> vae = LinearGaussianVAE((1, 2, 3), latent_dim=2)
        >>> vae.make_guide_exact()
        >>> found = calibration(vae)
        >>> found.p_value > 0.001, abs(found.coverage[0.9] - 0.9) < 0.04
        (True, True)
    """
    check_positive(num_images=num_images)
    if not simulates(vae):
        raise RequestError(
            "calibration needs data of the model, but the likelihood is no density, or is given"
            " the total of each row; use another likelihood"
        )
    vae.eval()
    y = _labels(vae, data, num_images)
    # The values of an unconditioned program's images are not used.
    empty = next(vae.parameters()).new_empty(num_images, 0)
    simulated = sample_sites(poutine.trace(poutine.uncondition(vae.model)).get_trace(empty, y))
    batch = Batch(simulated["x"]["value"], y)
    rows = max(1, (batch_size or default_batch_size(vae, batch.x)) // (1 + DRAWS))
    parts = []
    names: list[str] = []
    with progress_bar(num_images, "calibration") as bar:
        for index in torch.arange(num_images, device=batch.x.device).split(rows):
            truth = {name: site["value"][index] for name, site in simulated.items()}
            names, quantities, log_prior = _quantities(vae, batch[index], truth)
            log_q = quantities[0, :, names.index("log q(z | x)")]
            parts.append((_levels(quantities), log_q.double().cpu(), log_prior.double().cpu()))
            bar.update(len(index))
    return Calibration(tuple(names), *(torch.cat(part) for part in zip(*parts, strict=True)))


def simulates(vae: Model) -> bool:
    """Whether the density of the model is that of its draws."""
    return vae.likelihood.is_density and not vae.likelihood.given_total


def _labels(vae: Model, data: Split | Batch | None, count: int) -> Tensor | None:
    """The y of random rows of the data, repeated if there are too few; None for other models."""
    if vae.infers_labels or not vae.needs_labels:
        return None
    y = None
    if data is not None:
        y = scored(vae, data).y
    vae.check_labels(y)
    assert data is not None
    assert y is not None
    index = random_rows(data, count)
    return y[index.repeat(-(-count // len(index)))[:count]]


def _quantities(
    vae: Model, batch: Batch, truth: dict[str, Tensor]
) -> tuple[list[str], Tensor, Tensor]:
    """The names and values `(1 + DRAWS, N, Q)`, the true code first; and log p(z) of that, `(N,)`.

    All values are computed in one pass, because a difference in rounding would be a rank.
    """
    with pyro.plate(SAMPLES, DRAWS, dim=-2):
        drawn = sample_sites(poutine.trace(vae.guide).get_trace(*batch))
    latents = {}
    names = []
    values = []
    for name, site in drawn.items():
        if is_summed_out(site):
            continue
        both = torch.cat([truth[name].unsqueeze(0), site["value"]])
        latents[name] = both
        flat = both.reshape(1 + DRAWS, len(batch), -1)
        values.append(flat)
        names += [f"{name}[{d}]" for d in range(flat.shape[-1])]
    log_q, _ = joint_terms(vae.guide, batch, latents, 1 + DRAWS)
    prior, likelihood = joint_terms(vae.model, batch, latents, 1 + DRAWS)
    values += [log_q.unsqueeze(-1), likelihood.unsqueeze(-1)]
    return [*names, "log q(z | x)", "log p(x | z)"], torch.cat(values, -1), prior[0]


def _levels(values: Tensor) -> Tensor:
    """The levels of the first values among all, shape `(N, Q)`; equal ones in random order."""
    truth = values[0]
    draws = values[1:]
    below = (draws < truth).sum(0).double().cpu()
    equal = (draws == truth).sum(0).double().cpu()
    return (below + torch.rand_like(below) * (1 + equal)) / (1 + DRAWS)
