"""The inference gap, against closed forms."""

import math

import pyro
import pytest
import torch
from families import make_hierarchical, make_oracle, make_vae
from folded import folded

import pyro_vae as pv
from pyro_vae.evaluation.gap import inference_gap, likelihood_regret
from pyro_vae.networks import Linear


def test_the_gap_of_amortization_alone():
    """The family contains the exact posterior, so the whole gap is the encoder's."""
    vae, x = make_oracle(shape=(1, 2, 3)).float(), torch.randn(6, 1, 2, 3)
    gap = inference_gap(vae, x, num_samples=4000, steps=800, rounds=1)
    assert gap.approximation.abs().max() < 0.05
    exact = (vae.log_p(x) - vae.elbo(x)).detach().double()
    torch.testing.assert_close(gap.amortization, exact, rtol=0.1, atol=0.1)
    torch.testing.assert_close(
        gap.log_likelihood, vae.log_p(x).detach().double(), atol=0.05, rtol=0
    )


def test_the_gap_of_approximation_in_closed_form():
    """The best diagonal Gaussian for a posterior of precision L is off in closed form.

    It is (sum log L_ii - log det L) / 2. As a proposal it has weights of finite variance as long as
    the correlation in L is below 1 / 2.
    """
    exact, x = make_oracle(shape=(1, 2, 3)).float(), torch.randn(6, 1, 2, 3)
    exact.decoder.layers[1].weight.data = torch.eye(6, 2) @ torch.tensor([[1.0, 0.5], [0.0, 0.8]])
    vae = pv.VAE(
        exact.prior, Linear((1, 2, 3), (2, 2)), pv.DiagonalNormal(), exact.decoder, exact.likelihood
    )
    precision = exact.exact_posterior(x).precision_matrix[0]
    expected = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
    gap = inference_gap(vae, x, num_samples=4000, steps=1500, rounds=1, learning_rate=0.01)
    assert expected > 0.05
    assert gap.approximation.mean().item() == pytest.approx(expected, abs=0.03)
    assert (gap.amortization > 0).all()


def test_the_regret_is_the_gap_of_amortization():
    """The family contains the exact posterior."""
    vae, x = make_oracle(shape=(1, 2, 3)).float(), torch.randn(6, 1, 2, 3)
    exact = (vae.log_p(x) - vae.elbo(x)).detach().double()
    regret = likelihood_regret(vae, x, num_samples=2000, steps=300)
    torch.testing.assert_close(regret, exact, rtol=0.1, atol=0.15)


def test_the_gap_does_not_change_the_model(vae, x):
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    q = vae.eval().encode(x).mean
    inference_gap(vae, x, num_samples=10, steps=5, num_temperatures=3)
    assert torch.equal(vae.encode(x).mean, q)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert all(param.grad is None for param in vae.parameters())


def test_the_gap_where_the_prior_shares_the_encoder(x):
    """The prior keeps its encoder while the guide's posterior is optimized."""
    gap = inference_gap(make_vae("VampPrior"), x, num_samples=500, steps=200, rounds=1)
    assert gap.amortization.mean() > -0.05
    assert gap.log_likelihood.isfinite().all()


def test_the_gap_of_a_hierarchical_vae(x):
    """The parameters of q(z | x) are optimized; the guide's second layer is used as it is."""
    vae = make_hierarchical()
    gap = inference_gap(vae, x, num_samples=10_000, rounds=2, num_temperatures=20)
    assert gap.amortization.mean() > 0
    with torch.no_grad():
        expected = pv.log_likelihood(pv.log_weights(vae.model, vae.guide, x, num_samples=20_000))
    assert gap.log_likelihood.mean().item() == pytest.approx(expected.mean().item(), abs=0.15)


def test_the_gap_needs_reparameterized_draws(x):
    class Poisson(pv.Posterior):
        num_params = 1

        def forward(self, params):
            return pyro.distributions.Poisson(params[..., 0, :].exp()).to_event(1)

    encoder, decoder = pv.MLP((1, 4, 4), (1, 2)), pv.MLP((2,), (1, 1, 4, 4))
    vae = pv.VAE(pv.StandardNormal(2), encoder, Poisson(), decoder, pv.Bernoulli())
    with pytest.raises(pv.RequestError, match="reparameterized"):
        inference_gap(vae, x)


def test_the_gap_does_not_depend_on_the_batch_size(vae, x):
    """Up to Monte Carlo noise."""
    options = {"num_samples": 300, "steps": 100, "rounds": 1, "num_temperatures": 5}
    whole = inference_gap(vae, x, **options)
    parts = inference_gap(vae, x, **options, batch_size=30)
    assert whole.elbo.shape == parts.elbo.shape == (len(x),)
    torch.testing.assert_close(whole.local_elbo, parts.local_elbo, atol=0.3, rtol=0)


def test_no_gap_is_left_where_the_family_holds_the_posterior():
    """A full-rank Gaussian in eight dimensions, far from where the encoder starts."""
    vae = make_oracle(8, shape=(1, 3, 4)).float().eval()
    x = vae.sample(10).detach()
    gap = inference_gap(vae, x, num_samples=200, num_temperatures=5)
    assert (vae.log_p(x).double() - vae.elbo(x).double()).mean() > 1
    assert (vae.log_p(x).double() - gap.local_elbo).abs().max() < 0.02
    assert gap.method == "is"
    assert gap.approximation.abs().max() < 0.02


def test_log_p_is_the_best_estimate_at_hand():
    """The guide knows one of eight modes, with a small k-hat; annealing finds the others."""
    vae, x = folded(3), 1 + 2 * torch.rand(6, 1, 1, 3)
    gap = inference_gap(vae, x, num_samples=500, rounds=2, num_temperatures=100)
    assert gap.method == "ais"
    assert gap.approximation.mean() == pytest.approx(3 * math.log(2), abs=0.7)
    assert gap.summary()["share_of_images_with_k_hat_over_0.7"] < 0.5


def test_two_dimensions_are_integrated():
    vae, x = make_oracle(shape=(1, 2, 3)).float(), torch.randn(6, 1, 2, 3)
    gap = inference_gap(vae, x, num_samples=50, steps=5, rounds=1)
    assert gap.method == "quadrature"
    torch.testing.assert_close(gap.log_likelihood, vae.log_p(x).double(), atol=2e-3, rtol=0)
    summary = gap.summary()
    assert summary["total"]["num_samples"] == 50
    assert summary["total"]["mean"] == pytest.approx(
        (vae.log_p(x) - vae.elbo(x)).mean().item(), rel=0.2
    )


def test_the_search_starts_from_the_exact_posterior_too():
    """An encoder far from the posterior, and few steps: from the encoder's alone it stops early."""
    exact, x = make_oracle(shape=(1, 2, 3)).float(), torch.randn(2, 1, 2, 3)
    encoder = Linear((1, 2, 3), (2, 2))
    layer = next(part for part in encoder.modules() if isinstance(part, torch.nn.Linear))
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([8.0, 8.0, 0.0, 0.0]))
    vae = pv.VAE(exact.prior, encoder, pv.DiagonalNormal(), exact.decoder, exact.likelihood)
    gap = inference_gap(vae, x, num_samples=500, steps=20, rounds=1)
    assert gap.amortization.min() > 10
    assert gap.approximation.max() < 1
