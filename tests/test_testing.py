"""The checks accept correct parts and find the errors of others."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.testing import (
    CheckError,
    check_likelihood,
    check_posterior,
    check_prior,
    probabilistic_pca,
)


class Unnormalized(dist.Normal):
    def log_prob(self, value):
        return super().log_prob(value) + 0.2


class OtherDraws(dist.Normal):
    def rsample(self, sample_shape=()):
        return 1.3 * super().rsample(torch.Size(sample_shape))

    sample = rsample


class OtherMean(dist.Normal):
    mean = torch.tensor(0.1)


class Learned(pv.Prior):
    def __init__(self, make):
        super().__init__()
        self.scale, self.make = nn.Parameter(torch.ones(2)), make

    def forward(self):
        return self.make(self.scale)


ZEROS = torch.zeros(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda scale: dist.Normal(0.0, scale), "event_shape"),
        (lambda scale: dist.Normal(torch.zeros(3, 2), scale).to_event(1), "batch_shape"),
        (
            lambda scale: torch.distributions.MultivariateNormal(0 * scale, scale.diag()),
            "a distribution of Pyro",
        ),
        (lambda scale: torch.zeros(2), "returns a Tensor"),
        (lambda scale: dist.Bernoulli(scale / 2).to_event(1), "discrete"),
        (lambda scale: dist.Normal(ZEROS, 1.0).to_event(1), "no gradient reaches scale"),
        (
            lambda scale: dist.Normal(ZEROS, scale * float("inf"), validate_args=False).to_event(1),
            "not finite",
        ),
        (lambda scale: Unnormalized(ZEROS, scale).to_event(1), "does not fit the samples"),
        (lambda scale: OtherDraws(ZEROS, scale).to_event(1), "does not fit the samples"),
    ],
)
def test_wrong_priors(make, message):
    with pytest.raises(CheckError, match=message):
        check_prior(Learned(make))


def test_an_unregistered_tensor():
    class Forgetful(pv.Prior):
        def __init__(self):
            super().__init__()
            self.scale, self.loc = nn.Parameter(torch.ones(2)), torch.zeros(2)

        def forward(self):
            return dist.Normal(self.loc.clone(), 1 + 0 * self.scale.float()).to_event(1)

    with pytest.raises(CheckError, match="register every tensor"):
        check_prior(Forgetful())


class Other(dist.TorchDistribution):
    """Draws of one distribution with the density of another."""

    arg_constraints, has_rsample = {}, False
    support = property(lambda self: self.drawn.support)

    def __init__(self, drawn, claimed):
        super().__init__(drawn.batch_shape, drawn.event_shape)
        self.drawn, self.claimed = drawn, claimed

    def sample(self, sample_shape=()):
        return self.drawn.sample(sample_shape)

    def log_prob(self, value):
        return self.claimed.log_prob(value)


class Fixed(pv.Prior):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self):
        return self.make()


def assert_found(drawn, claimed):
    with pytest.raises(CheckError, match="does not fit the samples"):
        check_prior(Fixed(lambda: Other(drawn, claimed)))


DISTRIBUTIONS = {
    "Normal": lambda dim, scale=1.0: dist.Normal(torch.zeros(dim), scale),
    "Cauchy": lambda dim, scale=1.0: dist.Cauchy(torch.zeros(dim), scale),
    "StudentT": lambda dim, scale=1.0: dist.StudentT(1.0, torch.zeros(dim), 2 * scale),
    "Laplace": lambda dim, scale=1.0: dist.Laplace(torch.ones(dim), 2 * scale),
    "Gumbel": lambda dim, scale=1.0: dist.Gumbel(torch.zeros(dim), scale),
    "Gamma": lambda dim, scale=1.0: dist.Gamma(torch.full((dim,), 0.5 * scale), 1.0),
    "Beta": lambda dim, scale=1.0: dist.Beta(torch.full((dim,), 0.5 * scale), 0.5),
    "LogNormal": lambda dim, scale=1.0: dist.LogNormal(torch.zeros(dim), 2 * scale),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("dim", [1, 3, 6, 20])
def test_heavy_tails_and_bounds_are_no_error(name, dim):
    check_prior(Fixed(lambda: DISTRIBUTIONS[name](dim).to_event(1)))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("dim", [1, 3, 6, 10])
def test_a_scale_that_is_ten_percent_off(name, dim):
    for factor in (0.9, 1.1):
        assert_found(
            DISTRIBUTIONS[name](dim).to_event(1), DISTRIBUTIONS[name](dim, factor).to_event(1)
        )


@pytest.mark.parametrize("factor", [0.1, 0.3, 0.5, 0.9, 1.1])
@pytest.mark.parametrize("dim", [1, 2, 5, 10])
def test_a_wrong_scale(dim, factor):
    assert_found(
        DISTRIBUTIONS["Normal"](dim).to_event(1), DISTRIBUTIONS["Normal"](dim, factor).to_event(1)
    )


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_wrong_weight_of_a_mode(dim):
    def mixture(weight):
        parts = dist.Normal(torch.tensor([-3.0, 3.0])[:, None].expand(2, dim), 1.0).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(torch.tensor([weight, 1 - weight])), parts)

    assert_found(mixture(0.5), mixture(0.6))


@pytest.mark.parametrize("dim", [2, 5, 10])
def test_a_correlation_that_the_density_ignores(dim):
    covariance = 0.7 * torch.eye(dim) + 0.3
    assert_found(
        dist.MultivariateNormal(torch.zeros(dim), covariance),
        DISTRIBUTIONS["Normal"](dim).to_event(1),
    )


@pytest.mark.parametrize("dim", [2, 8, 20])
def test_a_density_without_its_constant(dim):
    class WithoutConstant(dist.Normal):
        def log_prob(self, value):
            return -0.5 * value.square()

    assert_found(
        DISTRIBUTIONS["Normal"](dim).to_event(1), WithoutConstant(torch.zeros(dim), 1.0).to_event(1)
    )


class OwnPosterior(pv.Posterior):
    num_params = 2

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, params):
        loc, log_scale = params.unbind(-2)
        return self.make(loc, log_scale.exp())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda loc, scale: dist.Normal(loc, scale), "batch_shape"),
        (
            lambda loc, scale: dist.Normal(loc.detach(), scale.detach()).to_event(1),
            "no gradient reaches params",
        ),
        (lambda loc, scale: OtherDraws(loc, scale).to_event(1), "does not fit the samples"),
    ],
)
def test_wrong_posteriors(make, message):
    with pytest.raises(CheckError, match=message):
        check_posterior(OwnPosterior(make))


class OwnLikelihood(pv.Likelihood):
    def __init__(self, make, pixels="unit"):
        super().__init__()
        self.make, self.pixels = make, pixels

    def forward(self, params):
        return self.make(params.squeeze(-4)).to_event(3)


class EvenLevels(dist.Binomial):
    def sample(self, sample_shape=()):
        return 2 * (super().sample(torch.Size(sample_shape)) / 2).round()


@pytest.mark.parametrize(
    ("make", "pixels", "message"),
    [
        (lambda loc: Unnormalized(loc, 1.0), "unit", "integrates to 1.22"),
        (lambda loc: OtherMean(loc, 1.0), "unit", "mean"),
        (lambda loc: OtherDraws(loc, 1.0), "unit", "do not fit the density"),
        (lambda loc: EvenLevels(255, logits=loc), "byte", "do not fit the density"),
        (lambda loc: dist.Poisson(250 + loc.exp()), "byte", "integrates to"),
        (lambda loc: dist.Normal(0 * loc.detach(), 1.0), "unit", "no gradient reaches params"),
        (lambda loc: dist.Normal(loc, 1.0).to_event(1), "unit", "batch_shape"),
        (lambda loc: dist.Normal(loc, 1.0), "colour", "pixels must be one of"),
        (lambda loc: dist.Normal(loc, 1.0), "byte", "not integers"),
    ],
)
def test_wrong_likelihoods(make, pixels, message):
    with pytest.raises(CheckError, match=message):
        check_likelihood(OwnLikelihood(make, pixels))


class Dispersed(pv.Likelihood):
    """A scale for each pixel; that of the last one may be wrong in the density."""

    pixels = "unit"

    def __init__(self, shape, error=1.0, positive=False):
        super().__init__()
        self.log_scale = nn.Parameter(torch.linspace(-1, 0, torch.Size(shape).numel()).view(shape))
        wrong = torch.ones(shape)
        wrong[..., -1] = error
        self.register_buffer("wrong", wrong)
        self.positive = positive

    def forward(self, params):
        scale = self.log_scale.exp()
        if self.positive:
            return dist.Exponential(params.squeeze(-4).exp() * scale).to_event(3)
        return Rescaled(params.squeeze(-4), scale, self.wrong).to_event(3)


class Rescaled(dist.Normal):
    def __init__(self, loc, scale, factor):
        self.factor = factor
        super().__init__(loc, scale)

    def expand(self, batch_shape, _instance=None):
        return Rescaled(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.factor)

    def log_prob(self, value):
        return dist.Normal(self.loc, self.scale * self.factor).log_prob(value)


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 10, 10)])
def test_parameters_of_each_pixel(shape):
    check_likelihood(Dispersed(shape), shape)
    with pytest.raises(CheckError, match="do not fit the density"):
        check_likelihood(Dispersed(shape, error=1.3), shape)


def test_a_pixel_on_half_a_line():
    check_likelihood(Dispersed((1, 1, 2), positive=True), (1, 1, 2))


def test_every_message_says_what_to_do():
    """In one line: what is wrong, then the advice."""
    for likelihood in (
        OwnLikelihood(lambda loc: Unnormalized(loc, 1.0)),
        Dispersed((1, 2, 3), 1.3),
    ):
        with pytest.raises(CheckError, match=r"^[^;\n]+; [^;\n]+$"):
            check_likelihood(likelihood)


def test_a_check_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_prior(pv.StandardNormal(2))
    assert torch.equal(torch.rand(3), expected)


def test_probabilistic_pca_against_its_own_density():
    """The closed form is the density's value at its own maximum, and no worse than near it."""
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.normal(size=(500, 6)) @ generator.normal(size=(6, 6)))
    covariance = torch.cov(x.T, correction=0)
    found = probabilistic_pca(covariance, 2)
    values, vectors = torch.linalg.eigh(covariance)
    weight = vectors[:, -2:] * (values[-2:] - found.scale**2).sqrt()

    def mean_density(factor, scale):
        c = factor**2 * weight @ weight.T + scale**2 * torch.eye(6)
        return torch.distributions.MultivariateNormal(x.mean(0), c).log_prob(x).mean().item()

    assert mean_density(1.0, found.scale) == pytest.approx(found.log_likelihood)
    assert all(
        mean_density(*at) < found.log_likelihood
        for at in [(1.02, found.scale), (1.0, 1.02 * found.scale)]
    )
