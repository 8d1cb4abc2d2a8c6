"""Imputations against the exact conditional distribution of a linear-Gaussian model."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.testing import LinearGaussianVAE

SHAPE = (1, 2, 3)


class NearlyExact(LinearGaussianVAE):
    """The guide is the exact posterior given what is observed, but wider and elsewhere."""

    def encode(self, x, y=None):
        p = self.exact_posterior(x)
        return dist.MultivariateNormal(p.mean + 0.1, 1.5 * p.covariance_matrix)


@pytest.fixture
def incomplete():
    pyro.set_rng_seed(0)
    vae = NearlyExact(SHAPE, latent_dim=2)
    with torch.no_grad():
        x = vae.sample(30)
    x[torch.rand_like(x) < 0.4] = torch.nan
    x[:, 0, 0, 0] = 0.3
    return vae, x


def missing_values(exact, x):
    """The exact mean, and the covariance of what is missing, for each row."""
    for row, mean, covariance in zip(
        x.flatten(1).isnan(), exact.mean, exact.covariance_matrix, strict=True
    ):
        yield row, mean[row], covariance[row][:, row]


def test_means_agree_within_their_errors(incomplete):
    vae, x = incomplete
    exact = vae.exact_values(x).mean.reshape(x.shape)
    imputed = pv.impute(vae, x, num_samples=2000)
    missing = x.isnan()
    z_scores = ((imputed.mean - exact) / imputed.error)[missing]
    assert z_scores.abs().max() < 4.5
    assert 0.7 < z_scores.square().mean() ** 0.5 < 1.4
    assert imputed.error[missing].max() < 0.05
    assert torch.equal(imputed.mean[~missing], x[~missing])
    assert imputed.pareto_k.max() < 0.7
    assert imputed.effective_sample_size.min() > 500


def test_draws_have_the_exact_moments(incomplete):
    vae, x = incomplete
    count = 4000
    imputed = pv.impute(vae, x, num_samples=20_000, num_draws=count)
    draws = imputed.draws.flatten(2)
    for index, (row, mean, covariance) in enumerate(missing_values(vae.exact_values(x), x)):
        drawn = draws[:, index, row]
        variance = covariance.diagonal()
        # Resampling adds a draw-to-draw dependence of about count / effective sample size.
        inflation = 1 + count / imputed.effective_sample_size[index].item()
        error = (variance * inflation / count).sqrt()
        assert ((drawn.mean(0) - mean).abs() < 4.5 * error).all()
        scales = torch.outer(variance, variance).sqrt()
        difference = (torch.cov(drawn.T).reshape(covariance.shape) - covariance).abs()
        assert (difference < 4.5 * scales * (2 * inflation / count) ** 0.5).all()
        assert torch.equal(
            draws[:, index, ~row], x.flatten(1)[index, ~row].expand(count, int((~row).sum()))
        )


def test_passes_do_not_change_the_result(incomplete):
    """Sums over passes are those over all samples at once: with equal draws, equal means."""
    vae, x = incomplete
    whole = pv.impute(vae, x, num_samples=3000)
    parts = pv.impute(vae, x, num_samples=3000, batch_size=700)
    error = torch.hypot(whole.error, parts.error)[x.isnan()]
    z_scores = (whole.mean - parts.mean)[x.isnan()] / error
    assert 0.7 < z_scores.square().mean() ** 0.5 < 1.4
    ratio = parts.error[x.isnan()] / whole.error[x.isnan()]
    assert ratio.log().abs().max() < 0.3


def test_complete_rows_come_back(incomplete):
    vae, x = incomplete
    complete = x.nan_to_num()
    imputed = pv.impute(vae, complete, num_samples=30, num_draws=2)
    assert torch.equal(imputed.mean, complete)
    assert torch.equal(imputed.draws, complete.expand(2, *x.shape))


def test_two_layers_are_imputed(digits):
    """Latent sites are resampled together."""
    encoder, decoder = pv.MLP(digits.shape, (2, 4)), pv.MLP((4,), (1, *digits.shape))
    parts = pv.StandardNormal(2), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli()
    vae = pv.HierarchicalVAE(*parts, latent_dim=4, prior_dim=2, hidden=(5,))
    split = digits.test.with_missing(0.5)[:7]
    imputed = pv.impute(vae, split, num_samples=50, num_draws=3)
    observed = split.observed
    assert imputed.draws.shape == (3, *split.x.shape)
    assert set(imputed.draws.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(imputed.mean[observed], split.with_fixed_noise().scored("binary")[observed])
    completed = split.completed(imputed.mean, vae.pixels)
    assert torch.equal(completed.x[observed], split.x[observed])


@pytest.mark.parametrize("options", [{"num_samples": 0}, {"num_draws": -1}, {"batch_size": 0}])
def test_numbers_must_be_positive(incomplete, options):
    with pytest.raises(pv.RequestError, match="must be positive"):
        pv.impute(*incomplete, **options)
