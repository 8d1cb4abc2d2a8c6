"""The images of `views` are the ones that they say."""

from __future__ import annotations

import pytest
import torch

import pyro_vae as pv
from pyro_vae.evaluation.codes import codes
from pyro_vae.reporting import views

SHAPE = (1, 4, 5)


def make(latent_dim=2, prior=None, likelihood=None):
    prior, likelihood = prior or pv.StandardNormal(latent_dim), likelihood or pv.Bernoulli()
    encoder = pv.MLP(SHAPE, (2, latent_dim), hidden=(8,))
    decoder = pv.MLP((latent_dim,), (likelihood.num_params, *SHAPE), hidden=(8,))
    return pv.VAE(prior, encoder, pv.DiagonalNormal(), decoder, likelihood)


def hierarchical():
    encoder, decoder = pv.MLP(SHAPE, (2, 2), hidden=(8,)), pv.MLP((2,), (1, *SHAPE), hidden=(8,))
    parts = pv.StandardNormal(3), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli()
    return pv.HierarchicalVAE(*parts, latent_dim=2, prior_dim=3, hidden=(8,))


@pytest.fixture
def x():
    return torch.bernoulli(torch.full((6, *SHAPE), 0.3))


def last_layer(vae):
    return next(
        layer for layer in reversed(vae.encoder.layers) if isinstance(layer, torch.nn.Linear)
    )


def means(vae, z):
    with torch.no_grad():
        return vae.decode(z).mean


def test_bytes_become_grey_values():
    grey = views.to_grey(make(likelihood=pv.Categorical()), torch.tensor([0.0, 51.0, 255.0]))
    torch.testing.assert_close(grey, torch.tensor([0.0, 0.2, 1.0]))


def test_samples_are_means_or_draws():
    vae = make()
    mean, draws = views.samples(vae, 7), views.samples(vae, 7, mean=False)
    assert mean.shape == draws.shape == (7, *SHAPE)
    assert ((mean > 0) & (mean < 1)).all()
    assert ((draws == 0) | (draws == 1)).all()


def test_many_samples_take_small_passes(monkeypatch):
    vae, rows = make(), []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: rows.append(len(z)) or decode(z))
    assert len(views.samples(vae, 2001)) == 2001
    assert views.decode_mean(vae, torch.zeros(3, 700, 2)).shape == (3, 700, *SHAPE)
    assert max(rows) <= 1000


def test_reconstructions_stand_beside_their_images(x):
    pairs = views.reconstructions(make(), x)
    torch.testing.assert_close(pairs[:, 0], x)
    assert pairs[:, 1].shape == x.shape
    assert ((pairs[:, 1] > 0) & (pairs[:, 1] < 1)).all()


def test_interpolations_go_from_image_to_image(x):
    vae, (first, second) = make(3), x.chunk(2)
    made = views.interpolations(vae, x, steps=5)
    assert made.shape == (3, 7, *SHAPE)
    torch.testing.assert_close(made[:, 0], first)
    torch.testing.assert_close(made[:, -1], second)
    start, end = codes(vae, first).loc, codes(vae, second).loc
    for step in range(5):
        torch.testing.assert_close(made[:, 1 + step], means(vae, start + step / 4 * (end - start)))


def test_traversals_change_one_dimension(x):
    vae = make(3)
    values = torch.tensor([-2.0, 0.0, 2.0])
    made = views.traversals(vae, x, 1, values)
    torch.testing.assert_close(made[:, 0], x)
    for step, value in enumerate(values.tolist(), start=1):
        z = codes(vae, x).loc.clone()
        z[:, 1] = value
        torch.testing.assert_close(made[:, step], means(vae, z))


def test_active_dimensions_come_by_decreasing_activity(x):
    vae = make(3)
    with torch.no_grad():
        weight = last_layer(vae).weight.unflatten(0, (2, 3))[0]
        weight[0] = 0
        weight[2] *= 100
        weight[1] *= 20
    assert views.active_dimensions(vae, x) == [2, 1]
    with torch.no_grad():
        weight *= 1e-3
    assert len(views.active_dimensions(vae, x)) == 1


def test_the_range_of_the_codes_is_that_of_draws_from_the_posterior():
    vae = make(2)
    x = torch.bernoulli(torch.full((2000, *SHAPE), 0.3))
    loc, scale = codes(vae, x)
    low, high = views.code_range(vae, x)
    draws = loc + scale * torch.randn_like(loc)
    share_outside = ((draws < low) | (draws > high)).double().mean(0)
    assert ((share_outside > 0.003) & (share_outside < 0.02)).all()


def test_few_images_take_the_range_of_the_prior(x):
    low, high = views.code_range(shifted(), x)
    assert low[0] > 3
    assert high[1] > 1


def test_views_set_the_model_to_evaluation_mode(x):
    for view in (
        lambda vae: views.samples(vae, 2),
        lambda vae: views.manifold(vae, 2),
        lambda vae: views.reconstructions(vae, x),
    ):
        vae = make()
        vae.train()
        view(vae)
        assert not vae.training


@pytest.mark.parametrize("dimension", [-1, 3])
def test_a_missing_dimension_is_refused(x, dimension):
    with pytest.raises(pv.RequestError, match="0 to 2"):
        views.traversals(make(3), x, dimension, torch.zeros(2))


def test_the_manifold_grows_to_the_right_and_upwards():
    vae = make()
    images, z = views.manifold(vae, 4)
    levels = torch.tensor([0.125, 0.375, 0.625, 0.875])
    exact = torch.special.ndtri(levels)
    error = (levels * (1 - levels) / views.PRIOR_DRAWS).sqrt() / torch.distributions.Normal(
        0.0, 1.0
    ).log_prob(exact).exp()
    assert ((z - exact).abs() < 5 * error).all()
    for row, column in ((0, 3), (2, 1)):
        torch.testing.assert_close(
            images[row, column], means(vae, torch.stack([z[0, column], z[1, 3 - row]])[None])[0]
        )


def shifted():
    prior = pv.priors.Normal(2)
    prior.loc.data, prior.log_scale.data = torch.tensor([5.0, -3.0]), torch.tensor([-1.0, 1.0])
    return make(prior=prior)


MODELS = [
    shifted,
    lambda: make(prior=pv.GaussianMixture(2, 3)),
    lambda: make(prior=pv.StudentT(2)),
    hierarchical,
]


@pytest.mark.parametrize("model", MODELS)
def test_the_manifold_is_spaced_by_the_quantiles_of_any_prior(model, monkeypatch):
    """Of the codes that the decoder reads: in a hierarchy the prior is over another space."""
    vae, drawn = model(), []
    _, z = views.manifold(vae, 5)
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: drawn.append(z) or decode(z))
    vae.sample(20_000)
    below = (drawn[0] < z.T[:, None]).double().mean(1)
    assert (below - torch.tensor([[0.1], [0.3], [0.5], [0.7], [0.9]])).abs().max() < 0.03


def test_the_manifold_needs_two_dimensions():
    with pytest.raises(pv.RequestError, match="latent_dim=2"):
        views.manifold(make(3))
