"""The explorer's posteriors are those of closed forms, its images those of the codes."""

from __future__ import annotations

import pyro
import pytest
import torch
from families import SHAPE, make_vae
from pages import random_split

from pyro_vae.engine.importance import log_likelihood
from pyro_vae.engine.programs import Batch
from pyro_vae.evaluation.batch import scored
from pyro_vae.reporting import explorer, views
from pyro_vae.testing import LinearGaussianVAE


@pytest.fixture(scope="module")
def exact():
    """A model whose posterior is exact, its images, and their posteriors in the explorer."""
    pyro.set_rng_seed(0)
    vae = LinearGaussianVAE(SHAPE, 2)
    x = vae.sample(3)
    return vae, x, explorer.explored_posteriors(vae, Batch(x, None))


def last_layer(vae):
    return next(
        layer for layer in reversed(vae.encoder.layers) if isinstance(layer, torch.nn.Linear)
    )


def log_area(grid):
    return ((grid.z0[1] - grid.z0[0]) * (grid.z1[1] - grid.z1[0])).double().log()


def test_the_exact_posterior_is_that_of_the_closed_form(exact):
    vae, x, posteriors = exact
    for n, posterior in enumerate(posteriors):
        assert posterior.log_likelihood == pytest.approx(vae.log_p(x)[n].item(), abs=2e-3)
        expected = (
            vae.exact_posterior(x[n : n + 1]).log_prob(posterior.grid.points[:, None]).squeeze(1)
        )
        torch.testing.assert_close(
            (posterior.exact - posterior.log_likelihood).float(), expected, atol=5e-3, rtol=1e-3
        )


def test_densities_integrate_to_one_on_the_grid_that_is_shown(exact):
    for posterior in exact[2]:
        for density in (
            posterior.exact - posterior.log_likelihood,
            posterior.guide,
            posterior.best,
        ):
            assert (
                density.double().logsumexp(0) + log_area(posterior.grid)
            ).exp().item() == pytest.approx(1, abs=0.03)


def test_the_elbos_are_those_of_the_closed_form_and_below_log_p(exact):
    vae, x, posteriors = exact
    for n, posterior in enumerate(posteriors):
        error = posterior.draws.log_weights.std().item() / 1000**0.5
        assert posterior.elbo == pytest.approx(vae.elbo(x)[n].item(), abs=5 * error)
        assert posterior.elbo - 5 * error < posterior.best_elbo < posterior.log_likelihood + 0.05


def test_the_first_draws_have_their_own_bound_and_weights(exact):
    draws = exact[2][0].draws
    estimates, weights = draws.estimates(16), draws.weights(16)
    assert estimates["bound"] == pytest.approx(log_likelihood(draws.log_weights[:16, None]).item())
    assert weights.sum().item() == pytest.approx(1)
    assert estimates["effective"] == pytest.approx(1 / weights.square().sum().item())
    assert list(draws.curve) == [2**i for i in range(9)]


def test_log_weights_are_of_the_draws_that_are_shown(exact):
    vae, x, posteriors = exact
    draws = posteriors[0].draws
    prior, likelihood = explorer.log_joint(vae, Batch(x[:1], None), draws.z)
    expected = prior + likelihood - vae.q_z(x[:1]).log_prob(draws.z[:, None]).squeeze(1)
    torch.testing.assert_close(draws.log_weights.float(), expected, atol=1e-3, rtol=1e-4)


def test_the_plane_decodes_its_codes():
    vae = make_vae(latent_dim=2)
    plane = explorer.decoded_plane(vae, scored(vae, random_split()))
    assert plane.images.shape == (21 * 21, *SHAPE)
    z = torch.stack([plane.grid.z0[4], plane.grid.z1[7]])[None]
    with torch.no_grad():
        torch.testing.assert_close(plane.images[7 * 21 + 4], vae.p_x(z).mean[0])
    torch.testing.assert_close(plane.log_prior, vae.prior().log_prob(plane.fine.points))


def test_traversals_and_interpolations_are_of_the_chosen_images():
    vae = make_vae(latent_dim=3)
    with torch.no_grad():  # the second dimension collapses, the third varies most
        last_layer(vae).weight.unflatten(0, (2, 3))[0, 1] = 0
        last_layer(vae).weight.unflatten(0, (2, 3))[0, 2] *= 20
    batch = scored(vae, random_split(200))
    made = explorer.paths(vae, batch, [2, 0])
    assert made.dimensions == [2, 0]
    z = vae.q_z(batch.x[:6]).mean.detach().clone()
    z[:, 2] = made.ranges[1, 0]
    with torch.no_grad():
        torch.testing.assert_close(made.traversals[:6, 0, -1], vae.p_x(z).mean)
        place = made.pairs.index((1, 3))
        ends = vae.p_x(vae.q_z(batch.x[[1, 3]]).mean).mean
        unchanged = vae.p_x(vae.q_z(batch.x[:6]).mean).mean
    torch.testing.assert_close(made.interpolations[place, [0, -1]], ends)
    torch.testing.assert_close(made.unchanged[:6], unchanged)


def test_traversals_reach_as_far_as_the_codes():
    """Not from -3 to 3 whatever the codes."""
    vae = make_vae(latent_dim=3)
    with torch.no_grad():
        last_layer(vae).bias.unflatten(0, (2, 3))[0, 0] = 500.0
        last_layer(vae).weight.unflatten(0, (2, 3))[0, 0] *= 20
    batch = scored(vae, random_split(200))
    ranges = views.code_range(vae, batch)
    assert ((ranges[:, 0] > 400) & (ranges[:, 0] < 600)).all()
    made = explorer.paths(vae, batch, [0, 1])
    torch.testing.assert_close(made.ranges[:, 0], ranges[:, 0], atol=1, rtol=0)
    assert made.dimensions[0] == 0
