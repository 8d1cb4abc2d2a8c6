"""The forecast of active units, against probabilistic PCA and the exact ELBO."""

from __future__ import annotations

import pytest
import torch
from families import make_conditional, make_hierarchical

import pyro_vae as pv
from pyro_vae.evaluation.forecast import forecast, predicted_active_units
from pyro_vae.networks import Linear
from pyro_vae.testing import LinearGaussianVAE, probabilistic_pca

VALUES = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25, 0.1])


def data_of(values=VALUES, count=400):
    """Images whose covariance has exactly these eigenvalues, about a mean that is not zero."""
    draws = torch.randn(count, len(values)).double()
    white, _ = torch.linalg.qr(draws - draws.mean(0))
    rotation, _ = torch.linalg.qr(torch.randn(len(values), len(values)).double())
    x = white * (count * values.double()).sqrt() @ rotation.T + 3
    return x.reshape(count, 1, 1, -1)


@pytest.mark.parametrize(
    ("scale", "beta", "expected"),
    [(0.1, 1, 5), (0.6, 1, 4), (1.2, 1, 2), (1.2, 3, 0), (0.6, 3, 2), (5, 1, 0)],
)
def test_the_count_of_eigenvalues(scale, beta, expected):
    assert predicted_active_units(data_of(), 5, scale, beta) == expected


@pytest.mark.parametrize(("scale", "beta"), [(0.9, 1.0), (0.5, 3.0)])
def test_against_the_optimum_of_the_exact_elbo(scale, beta):
    """Columns of the decoder that are not zero after training of all parameters in closed form."""
    x = data_of(VALUES[:4])
    torch.manual_seed(0)
    vae = LinearGaussianVAE((1, 1, 4), 4, scale).double()
    optimizer = torch.optim.LBFGS(
        vae.parameters(), max_iter=150, line_search_fn="strong_wolfe", tolerance_change=1e-12
    )

    def loss():
        optimizer.zero_grad()
        value = -vae.elbo(x, beta).mean()
        value.backward()
        return value

    optimizer.step(loss)
    weight, _ = vae.decoder.parameters()
    found = torch.linalg.svdvals(weight.detach()).square()
    expected = (VALUES[:4].double() - beta * scale**2).clamp(min=0)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
    # The guide has a full covariance, so that the active directions need not be coordinates.
    active = torch.linalg.eigvalsh(torch.cov(vae.encode(x).mean.detach().T)) > 0.01
    assert predicted_active_units(x, 4, scale, beta) == int(active.sum()) < 4


def test_fewer_images_than_dimensions():
    x = data_of()[:4]
    values = torch.linalg.eigvalsh(torch.cov(x.flatten(1).T, correction=0))
    expected = int((values > 0.5).sum())
    assert predicted_active_units(x, 6, 0.5**0.5) == expected > 0


def test_a_learned_noise_leaves_all_dimensions_active():
    """Its scale is that of probabilistic PCA."""
    x = data_of()
    assert predicted_active_units(x, 3) == 3
    ppca = probabilistic_pca(torch.cov(x.flatten(1).T, correction=0), 3)
    assert predicted_active_units(x, 3, scale=ppca.scale) == 3


@pytest.mark.parametrize("beta", [0.5, 1.3, 1.7, 2.5, 4.0, 9.0])
def test_a_learned_noise_at_any_beta(beta):
    """The threshold minimizes the loss over the noise, found on a grid."""
    threshold = torch.logspace(-3, 1.5, 20_001).double()[:, None]
    values = VALUES.double()
    unused = threshold.log() + values / threshold
    best = torch.where(threshold < values, values.log() + 1, unused)[:, :3]
    loss = best.sum(1) + unused[:, 3:].sum(1) - 6 * (1 - 1 / beta) * threshold[:, 0].log()
    expected = int((values[:3] > threshold[loss.argmin()]).sum())
    assert predicted_active_units(data_of(), 3, beta=beta) == expected


def vae_of(likelihood):
    shape = (1, 1, 6)
    encoder, decoder = Linear(shape, (2, 4)), Linear((4,), (likelihood.num_params, *shape))
    return pv.VAE(pv.StandardNormal(4), encoder, pv.DiagonalNormal(), decoder, likelihood)


def test_which_models_have_a_forecast():
    split = pv.Split((data_of() / 20 + 0.3).clamp(0, 1).float())
    assert forecast(vae_of(pv.likelihoods.Normal(0.05)), split, 1.0) in (2, 3, 4)
    assert forecast(vae_of(pv.likelihoods.Normal(10.0)), split, 1.0) == 0
    assert forecast(vae_of(pv.likelihoods.Normal(0.1, learned="scalar")), split, 1.0) == 4
    assert forecast(vae_of(pv.likelihoods.Normal(0.1, learned="pixel")), split, 1.0) is None
    assert forecast(vae_of(pv.Bernoulli()), split, 1.0) is None
    assert forecast(make_hierarchical(), split, 1.0) is None
    assert forecast(make_conditional(likelihood="Normal"), split, 1.0) is None


def test_reals_are_standardized():
    """In units of their own scale they have the variances of their correlations."""
    likelihood = pv.likelihoods.Normal(1.1, learned="no", kind="real", data_shape=(6,))
    x = (data_of() * torch.tensor([1.0, 10, 100, 1e3, 1e4, 1e5])).reshape(-1, 6).float()
    likelihood.initialize(x)
    encoder, decoder = pv.MLP((6,), (2, 4)), pv.MLP((4,), (1, 6))
    vae = pv.VAE(pv.StandardNormal(4), encoder, pv.DiagonalNormal(), decoder, likelihood)
    values = torch.linalg.eigvalsh(torch.corrcoef(x.double().T))
    assert forecast(vae, pv.Split(x), 1.0) == int((values > 1.21).sum()) > 0
    x[3, 2] = torch.nan
    assert forecast(vae, pv.Split(x), 1.0) is None


def test_one_image_has_no_covariance():
    with pytest.raises(pv.RequestError, match="at least two images"):
        predicted_active_units(data_of()[:1], 2, 1.0)
