"""The checks find what they say that they find."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.testing import CheckError, check_likelihood, check_posterior, check_prior


class Broken(pv.Prior):
    def __init__(self, make):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.make = make

    def forward(self):
        return self.make(self.scale)


class Unnormalized(dist.Normal):
    def log_prob(self, value):
        return super().log_prob(value) + 0.2


class OtherDraws(dist.Normal):
    def rsample(self, sample_shape=()):
        return 1.3 * super().rsample(torch.Size(sample_shape))

    sample = rsample


PRIORS = {
    "the event_shape must be": lambda scale: dist.Normal(0.0, scale),
    "must return a distribution of Pyro": lambda scale: torch.distributions.MultivariateNormal(0 * scale, scale.diag()),
    "batch_shape and event_shape must be": lambda scale: dist.Normal(torch.zeros(3, 2), scale).to_event(1),
    "no gradient reaches scale": lambda scale: dist.Normal(torch.zeros(2), 1.0).to_event(1),
    "the density does not fit the samples": lambda scale: Unnormalized(torch.zeros(2), scale).to_event(1),
    "the density does not fit the samples, or": lambda scale: OtherDraws(torch.zeros(2), scale).to_event(1),
    "is not finite": lambda scale: dist.Normal(torch.zeros(2), scale * float("inf"), validate_args=False).to_event(1),
}


@pytest.mark.parametrize("message", PRIORS)
def test_broken_priors(message):
    with pytest.raises(CheckError, match=message):
        check_prior(Broken(PRIORS[message]))


def test_an_unregistered_tensor():
    class Forgetful(pv.Prior):
        def __init__(self):
            super().__init__()
            self.scale, self.loc = nn.Parameter(torch.ones(2)), torch.zeros(2)

        def forward(self):
            return dist.Normal(self.loc.clone(), 1 + 0 * self.scale.float()).to_event(1)

    with pytest.raises(CheckError, match=r"after .double\(\) samples are torch.float32"):
        check_prior(Forgetful())


def test_a_gross_error_in_many_dimensions():
    class WithoutConstants(pv.Prior):
        def forward(self):
            p = dist.Normal(torch.zeros(8), 1.0)
            p.log_prob = lambda z: -0.5 * z.square()
            return p.to_event(1)

    with pytest.raises(CheckError, match="the density does not fit"):
        check_prior(WithoutConstants())


class Other(dist.TorchDistribution):
    """Draws that are as wide as those of a normal, with the density of one that is wider."""

    arg_constraints, support, has_rsample = {}, torch.distributions.constraints.real_vector, False

    def __init__(self, dim, factor):
        super().__init__(torch.Size(), torch.Size([dim]))
        self.factor = factor

    def sample(self, sample_shape=()):
        return torch.randn(*sample_shape, *self.event_shape)

    def log_prob(self, value):
        return dist.Normal(0.0, self.factor).log_prob(value).sum(-1)


@pytest.mark.parametrize("factor", [0.1, 0.3, 0.5, 0.9, 1.1])
@pytest.mark.parametrize("dim", [1, 2, 5, 10])
def test_a_small_error_of_the_scale(dim, factor):
    with pytest.raises(CheckError, match="the density does not fit"):
        check_prior(Fixed(lambda: Other(dim, factor)))


class Fixed(pv.Prior):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self):
        return self.make()


RIGHT = {
    "Cauchy": lambda dim: dist.Cauchy(torch.zeros(dim), 1.0),
    "StudentT": lambda dim: dist.StudentT(1.0, torch.zeros(dim), 2.0),
    "Laplace": lambda dim: dist.Laplace(torch.ones(dim), 2.0),
    "Gumbel": lambda dim: dist.Gumbel(torch.zeros(dim), 1.0),
    "Gamma": lambda dim: dist.Gamma(torch.full((dim,), 0.5), 1.0),
    "Beta": lambda dim: dist.Beta(torch.full((dim,), 0.5), 0.5),
    "LogNormal": lambda dim: dist.LogNormal(torch.zeros(dim), 2.0),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("dim", [1, 3, 6, 20])
def test_heavy_tails_and_bounds_are_no_error(name, dim):
    check_prior(Fixed(lambda: RIGHT[name](dim).to_event(1)))


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: dist.Bernoulli(torch.full((3,), 0.5)).to_event(1), "is discrete"), (lambda: torch.zeros(3), "returns a Tensor")],
)
def test_what_is_no_density_is_said_in_words(make, message):
    with pytest.raises(CheckError, match=message):
        check_prior(Fixed(make))


def test_a_posterior_with_the_wrong_encoder():
    with pytest.raises(CheckError, match="the encoder must give"):
        check_posterior(pv.DiagonalNormal(pv.MLP((1, 4, 4), (3, 2))), torch.rand(2, 1, 4, 4))


class OwnLikelihood(pv.Likelihood):
    pixels = "unit"

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, params):
        return self.make(params.squeeze(-4)).to_event(3)


LIKELIHOODS = {
    "integrates to 1.22": lambda loc: Unnormalized(loc, 1.0),
    "the samples do not fit the density": lambda loc: OtherDraws(loc, 1.0),
    "no gradient reaches params": lambda loc: dist.Normal(0 * loc.detach(), 1.0),
    "batch_shape and event_shape must be": lambda loc: dist.Normal(loc, 1.0).to_event(1),
}


@pytest.mark.parametrize("message", LIKELIHOODS)
def test_broken_likelihoods(message):
    with pytest.raises(CheckError, match=message):
        check_likelihood(OwnLikelihood(LIKELIHOODS[message]))


def test_unknown_pixels():
    likelihood = OwnLikelihood(lambda loc: dist.Normal(loc, 1.0))
    likelihood.pixels = "colour"
    with pytest.raises(CheckError, match="pixels must be one of"):
        check_likelihood(likelihood)


def test_bytes_that_are_not():
    likelihood = OwnLikelihood(lambda loc: dist.Normal(loc, 1.0))
    likelihood.pixels = "byte"
    with pytest.raises(CheckError, match="but samples others"):
        check_likelihood(likelihood)


def test_a_check_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_prior(pv.StandardNormal(2))
    assert torch.equal(torch.rand(3), expected)
