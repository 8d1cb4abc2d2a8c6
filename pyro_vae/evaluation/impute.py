"""Missing values given those that are observed: their means, and draws of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.engine.importance import effective_sample_size, pareto_k
from pyro_vae.engine.precision import products
from pyro_vae.engine.programs import (
    Batch,
    Site,
    is_summed_out,
    latent_sites,
    site_sum,
    trace_at,
    traces,
)
from pyro_vae.engine.progress import progress_bar
from pyro_vae.errors import NotFiniteError, check_positive
from pyro_vae.evaluation.batch import BatchLike, scored
from pyro_vae.vae import Model, default_batch_size


class Imputation(NamedTuple):
    """Complete data, and how reliable they are. Observed values are as they were.

    Attributes:
        mean: The conditional mean of each missing value, shape `(N, *data_shape)`.
        draws: Joint draws of the missing values, shape `(M, N, *data_shape)`.
        error: The standard error of `mean` over the importance samples, by the delta method, shape
            `(N, *data_shape)`; 0 for observed values.
        effective_sample_size: Of the importance weights, shape `(N,)`.
        pareto_k: k-hat of the importance weights, shape `(N,)`: the results of a row are unreliable
            above 0.7. NaN for fewer than 25 samples.
    """

    mean: Tensor
    draws: Tensor
    error: Tensor
    effective_sample_size: Tensor
    pareto_k: Tensor


@torch.no_grad()
@pyro.validation_enabled(False)
@products("float32")
def impute(
    vae: Model,
    data: BatchLike,
    num_samples: int = 1000,
    num_draws: int = 5,
    batch_size: int | None = None,
) -> Imputation:
    r"""Complete data with missing values by self-normalized importance sampling.

    With :math:`w_k = p(x_o, z_k) / q(z_k \mid x_o)` for the observed values :math:`x_o`, the mean
    is

    .. math:: \mathbb{E}[x_m \mid x_o] \approx \sum_k w_k \, \mathbb{E}[x_m \mid z_k]
        \Big/ \sum_k w_k.

    For each draw one of the :math:`z_k` is resampled with probability proportional to
    :math:`w_k`, and :math:`x_m \sim p(x \mid z_k)`. The draws are multiple imputations: their
    spread is the uncertainty about the missing values. Values are those that the likelihood scores;
    `Split.completed` converts them back.

    References:
        | MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets
        | (Mattei & Frellsen, 2019)
        | https://arxiv.org/abs/1812.02633

    Arguments:
        vae: A trained model.
        data: The data, with NaN for what is missing, see `scored`.
        num_samples: Importance samples for each row.
        num_draws: Draws for each row.
        batch_size: Decoder rows per pass; None is `default_batch_size`.

    Raises:
        RequestError: If a number is not positive, or the model cannot treat missing values.
        NotFiniteError: If a row has no finite importance weight.

    Example:
        >>> from pyro_vae.testing import LinearGaussianVAE
        >>> vae = LinearGaussianVAE((3,), latent_dim=1)
        >>> x = torch.tensor([[0.5, torch.nan, 1.0]])
        >>> imputed = impute(vae, x, num_samples=100)
        >>> imputed.mean.isnan().any(), imputed.draws.shape
        (tensor(False), torch.Size([5, 1, 3]))
    """
    check_positive(num_samples=num_samples, num_draws=num_draws, batch_size=batch_size)
    batch = scored(vae, data)
    batch_size = batch_size or default_batch_size(vae, batch.x)
    size = min(num_samples, batch_size)
    passes = [size] * (num_samples // size)
    if num_samples % size:
        passes.append(num_samples % size)
    parts = []
    with progress_bar(len(batch), "imputing") as bar:
        for rows in batch.split(max(1, batch_size // num_samples)):
            parts.append(_impute_rows(vae, rows, passes, num_draws))
            bar.update(len(rows))
    mean, draws, error, sizes, tails = zip(*parts, strict=True)
    return Imputation(
        torch.cat(mean), torch.cat(draws, 1), torch.cat(error), torch.cat(sizes), torch.cat(tails)
    )


def _impute_rows(vae: Model, rows: Batch, passes: list[int], num_draws: int) -> Imputation:
    sums = _Sums(rows.x)
    chosen = _Chosen(num_draws)
    all_weights = []
    for count in passes:
        p, q = traces(vae.model, vae.guide, rows, count)
        drawn = site_sum(q, rows.x, count, lambda site: not is_summed_out(site))
        # Values of a site that is summed out are samples, too: each has its own weight.
        log_ratios = site_sum(p, rows.x, count) - drawn
        weights = log_ratios.double().flatten(0, -2)
        if weights.isnan().any() or (weights == -torch.inf).all(0).any():
            raise NotFiniteError(
                "a row has importance weights that are NaN, or all 0; check the likelihood"
            )
        observed: Site = p.nodes["x"]
        means = observed["fn"].mean
        sums.add(weights, means.expand(*log_ratios.shape, *means.shape[-rows.x[0].ndim :]))
        latents = {}
        for name, site in latent_sites(p).items():
            value = site["value"]
            shape = (*log_ratios.shape, *site["fn"].event_shape)
            latents[name] = value.expand(shape).flatten(0, log_ratios.ndim - 2)
        chosen.add(weights, latents)
        all_weights.append(weights)
    decoded: Site = trace_at(vae.model, rows, chosen.latents, num_draws).nodes["x"]
    values = decoded["fn"].sample()
    missing = rows.x.isnan()
    mean, error = sums.result
    log_weights = torch.cat(all_weights)
    return Imputation(
        torch.where(missing, mean.to(rows.x.dtype), rows.x),
        torch.where(missing, values.to(rows.x.dtype), rows.x),
        torch.where(missing, error.to(rows.x.dtype), 0.0),
        effective_sample_size(log_weights),
        pareto_k(log_weights),
    )


class _Sums:
    """Weighted sums of the values f of samples, added pass by pass, relative to the total weight.

    Attributes:
        total: The logarithm of the total weight, shape `(N,)`.
        mean: The sum of w f, shape `(N, D)`.
        squares: The sums of w^2, w^2 f and w^2 f^2, shape `(3, N, D)`.
    """

    def __init__(self, x: Tensor) -> None:
        self.shape = x.shape
        self.mean = torch.zeros_like(x.flatten(1), dtype=torch.float64)
        self.total = torch.full_like(self.mean[:, 0], -torch.inf)
        self.squares = self.mean.new_zeros(3, *self.mean.shape)

    def add(self, log_weights: Tensor, values: Tensor) -> None:
        """Add samples with log-weights `(P, N)` and values `(..., N, *data_shape)`."""
        new_total = torch.logaddexp(self.total, log_weights.logsumexp(0))
        kept = (self.total - new_total).exp()[:, None]
        weights = (log_weights - new_total).exp()
        values = values.double().reshape(*weights.shape, -1)
        self.mean = kept * self.mean + _weighted(weights, values)
        weights = weights.square()
        new_squares = [
            weights.sum(0)[:, None].expand_as(self.mean),
            _weighted(weights, values),
            _weighted(weights, values.square()),
        ]
        self.squares = kept.square() * self.squares + torch.stack(new_squares)
        self.total = new_total

    @property
    def result(self) -> tuple[Tensor, Tensor]:
        """The mean, and its standard error by the delta method; each of the shape of the data."""
        ones, values, squares = self.squares
        variance = squares - 2 * self.mean * values + self.mean.square() * ones
        return self.mean.reshape(self.shape), variance.clamp(min=0).sqrt().reshape(self.shape)


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """The sums over the samples P of weights `(P, N)` times values `(P, N, D)`."""
    return torch.einsum("pn,pnd->nd", weights, values)


class _Chosen:
    """Samples chosen in proportion to their weights among those of all passes.

    Attributes:
        latents: The chosen values of each latent site, shape `(count, N, *event_shape)`.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.total: Tensor | None = None
        self.latents: dict[str, Tensor] = {}

    def add(self, log_weights: Tensor, latents: Mapping[str, Tensor]) -> None:
        """Replace each choice by one of new samples, with the probability of their weight."""
        index = torch.multinomial(log_weights.softmax(0).T, self.count, replacement=True).T
        rows = torch.arange(index.shape[1], device=index.device)
        drawn = {name: value[index, rows] for name, value in latents.items()}
        weight = log_weights.logsumexp(0)
        if self.total is None:
            self.total = weight
            self.latents = drawn
            return
        self.total = torch.logaddexp(self.total, weight)
        is_new = torch.rand(index.shape, device=index.device) < (weight - self.total).exp()
        for name, value in drawn.items():
            where = is_new.reshape(*index.shape, *[1] * (value.ndim - 2))
            self.latents[name] = torch.where(where, value, self.latents[name])
