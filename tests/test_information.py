"""The information that codes carry, against exact values."""

import math

import pytest
import torch
from families import make_hierarchical, make_oracle, make_vae
from statistics_ import assert_likely
from torch import nn
from torch.distributions import Normal

import pyro_vae as pv
from pyro_vae.evaluation.information import information
from pyro_vae.networks import Linear


class Fixed(nn.Module):
    """An encoder that looks up the parameters of an image; its first pixel is the index."""

    def __init__(self, params):
        super().__init__()
        self.params = nn.Parameter(params)

    def forward(self, x):
        return self.params[x.flatten(1)[:, 0].long()]


def known_posteriors():
    """A VAE with three one-dimensional posteriors that overlap, and their parameters."""
    params = torch.tensor([[[-1.0], [-0.5]], [[0.5], [-1.0]], [[0.8], [0.0]]])
    return fixed(params), params


def fixed(params):
    decoder, likelihood = Linear((1,), (1, 1, 1, 2)), pv.likelihoods.Normal()
    return pv.VAE(pv.StandardNormal(1), Fixed(params), pv.DiagonalNormal(), decoder, likelihood)


def test_information_by_quadrature():
    """Three posteriors, each seen a thousand times, so that the error is small."""
    vae, params = known_posteriors()
    z = torch.linspace(-12, 12, 20_001).double()
    width = z[1] - z[0]
    densities = torch.stack(
        [Normal(m.double(), s.double().exp()).log_prob(z) for m, s in params.squeeze(-1)]
    )
    aggregate = densities.logsumexp(0) - math.log(3)
    shared = (densities.exp() * (densities - aggregate)).sum(1).mul(width).mean()
    marginal = (aggregate.exp() * (aggregate - Normal(0.0, 1.0).log_prob(z))).sum() * width
    x = torch.zeros(3000, 1, 1, 2)
    x[:, 0, 0, 0] = torch.arange(3000) % 3
    found = information(vae, x, num_images=3000)
    assert found.num_images == 3000
    assert_likely(
        (torch.tensor(found.mutual_information) - shared) / found.mutual_information_error
    )
    assert_likely((torch.tensor(found.marginal_kl) - marginal) / found.marginal_kl_error)
    assert found.mutual_information_error < 0.02
    assert found.mutual_information < math.log(3)


def test_the_ceiling_of_mutual_information():
    """It is log N for N posteriors that do not overlap."""
    params = torch.stack([100.0 * torch.arange(8.0), torch.full((8,), -3.0)], 1)[..., None]
    vae = fixed(params)
    x = torch.zeros(8, 1, 1, 2)
    x[:, 0, 0, 0] = torch.arange(8)
    assert information(vae, x).mutual_information == pytest.approx(math.log(8), abs=1e-4)


@pytest.mark.parametrize("posterior", ["FlowPosterior", "FullRankNormal"])
def test_information_of_any_posterior(digits, posterior):
    found = information(
        make_vae(posterior=posterior, shape=digits.shape), digits.test.subset(50), num_images=40
    )
    assert -0.5 < found.mutual_information <= math.log(50)


def test_the_errors_of_one_image_are_none(vae, x):
    found = information(vae, x[:1])
    assert found.mutual_information_error is found.marginal_kl_error is None


def test_the_mean_posterior_is_of_all_images():
    """Codes of 100 random images under the posteriors of 3,000: the ceiling is log 3,000."""
    vae = make_oracle(shape=(1, 2, 3), exact=True).float().eval()
    x = vae.sample(3000).detach()
    weight, _ = vae.decoder.parameters()
    exact = torch.logdet(torch.eye(2) + weight.T @ weight / vae.variance).item() / 2
    found = information(vae, x, num_images=500)
    assert (found.num_images, found.num_codes) == (3000, 500)
    assert found.ceiling == pytest.approx(math.log(3000))
    assert abs(found.mutual_information - exact) < 4 * found.mutual_information_error + 0.1
    assert abs(found.marginal_kl) < 4 * found.marginal_kl_error + 0.1
    assert not found.saturated
    few = information(vae, x[:10])
    assert few.saturated
    assert few.mutual_information < math.log(10) + 1e-4


def test_codes_are_of_random_images():
    """The first half of the images has one posterior, the second half another."""
    vae, _ = known_posteriors()
    x = torch.zeros(400, 1, 1, 2)
    x[200:, 0, 0, 0] = 1
    found = information(vae, x, num_images=200)
    whole = information(vae, x, num_images=400)
    assert found.marginal_kl == pytest.approx(whole.marginal_kl, abs=4 * found.marginal_kl_error)
    assert found.marginal_kl_error > whole.marginal_kl_error


def test_information_needs_one_latent_site(x):
    with pytest.raises(pv.RequestError, match="only latent site is z"):
        information(make_hierarchical(), x)
