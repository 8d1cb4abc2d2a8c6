"""Annealing of programs of any structure against exact marginal likelihoods."""

import logging
from math import erf

import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import CONJUGATE, REAL, mixture, mixture_log_p, one
from statistics_ import assert_mean

import pyro_vae as pv
from pyro_vae.evaluation.annealing import until_it_stops_rising

QUICK = {"num_chains": 100, "num_temperatures": 6}


@pytest.mark.parametrize(
    ("name", "engine"),
    [*((name, "eager") for name in CONJUGATE), ("dirichlet_categorical", "traced")],
)
def test_the_weights_have_the_mean_p(name, engine):
    case = CONJUGATE[name]()
    weights = pv.annealed_log_weights(case.model, *case.args, **QUICK, engine=engine)
    assert weights.shape == (100,)
    assert_mean((weights - case.log_p).exp(), 1.0)
    assert pv.monte_carlo_error(weights) < 0.3


def test_more_temperatures_give_less_variance():
    case = CONJUGATE["dirichlet_categorical"]()
    few, many = (
        pv.annealed_log_weights(case.model, *case.args, num_chains=50, num_temperatures=number)
        for number in (2, 25)
    )
    assert many.std() < 0.6 * few.std()


def test_assignments_of_a_mixture_are_summed_out():
    weights = pv.annealed_log_weights(mixture, REAL, **QUICK)
    assert_mean((weights - mixture_log_p(REAL)).exp(), 1.0)


def test_a_discrete_parent_of_a_continuous_site():
    """The prior of the continuous site is itself a mixture."""

    def model(x):
        with pyro.plate("data", len(x)):
            kind = pyro.sample("kind", dist.Bernoulli(one(0.3)))
            z = pyro.sample("z", dist.Normal(3 * kind, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    exact = torch.logaddexp(
        one(0.7).log() + dist.Normal(0.0, 2**0.5).log_prob(REAL),
        one(0.3).log() + dist.Normal(3.0, 2**0.5).log_prob(REAL),
    )
    weights = pv.annealed_log_weights(model, REAL, **QUICK)
    assert weights.shape == (100, 4)
    assert_mean((weights - exact).exp(), 1.0)


def test_bounded_latents_of_rows():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(one(0.0), 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def cdf(value):
        return 0.5 * (1 + erf(value / 2**0.5))

    exact = torch.tensor([cdf(v) - cdf(v - 1) for v in REAL.tolist()]).log()
    weights = pv.annealed_log_weights(model, REAL, **QUICK)
    assert weights.shape == (100, 4)
    assert_mean((weights - exact).exp(), 1.0)


def test_the_support_may_depend_on_other_sites():
    """A uniform variable below another one, both seen with noise."""

    def model(x):
        top = pyro.sample("top", dist.LogNormal(one(0.0), 0.5))
        low = pyro.sample("low", dist.Uniform(one(0.0), top))
        pyro.sample("x", dist.Normal(torch.stack([top, low]), 0.5).to_event(1), obs=x)

    x = torch.tensor([1.5, 0.4], dtype=torch.float64)
    top = torch.linspace(0.01, 8, 1500, dtype=torch.float64)[:, None]
    share = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    likelihood = dist.Normal(top, 0.5).log_prob(x[0]) + dist.Normal(share * top, 0.5).log_prob(x[1])
    prior = dist.LogNormal(0.0, 0.5).log_prob(top)
    exact = (likelihood + prior).exp().mean() * (8 - 0.01)
    weights = pv.annealed_log_weights(model, x, **QUICK)
    assert_mean((weights - exact.log()).exp(), 1.0, slack=1e-3)


def test_temperatures_double_until_the_estimate_settles():
    def model(x):
        z = pyro.sample("z", dist.Normal(one(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 3.0), obs=x)

    x = one(1.0)
    weights = pv.annealed_log_weights(model, x, num_temperatures=None, engine="traced")
    exact = dist.Normal(0.0, 10**0.5).log_prob(x)
    assert pv.monte_carlo_error(weights) <= 0.1
    assert abs(pv.log_likelihood(weights) - exact) < 0.3


@pytest.mark.parametrize("settles", [100, 400, 10**6])
def test_the_rule_of_doubling(settles, caplog):
    """An estimate that rises by a nat each time, until it settles."""
    asked = []

    def run(temperatures):
        asked.append(temperatures)
        level = torch.tensor(float(min(temperatures, settles))).log2()
        return level + 0.01 * torch.randn(10)

    with caplog.at_level(logging.WARNING, "pyro_vae"):
        until_it_stops_rising(run)
    assert asked == [50 * 2**i for i in range(len(asked))]
    if settles == 10**6:
        assert asked[-1] == 12_800
        assert "has not settled" in caplog.text
    else:
        assert asked[-1] == 2 * settles
        assert not caplog.messages


def test_a_wide_estimate_has_not_settled():
    asked = []

    def run(temperatures):
        asked.append(temperatures)
        return 100 / temperatures * torch.randn(16)

    until_it_stops_rising(run)
    assert asked[-1] > 200


def branching(x):
    z = pyro.sample("z", dist.Normal(one(0.0), 1.0))
    if z > 100:
        z = z + 1
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_programs_that_do_not_broadcast_run_chain_by_chain_with_a_warning(caplog):
    log_p = CONJUGATE["normal_normal"]().log_p
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        weights = pv.annealed_log_weights(branching, REAL, num_chains=20, num_temperatures=2)
    assert "one chain after another" in caplog.text
    assert_mean((weights - log_p).exp(), 1.0)


def counted(x):
    z = pyro.sample("z", dist.Poisson(2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def only_discrete(x):
    z = pyro.sample("z", dist.Bernoulli(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def part(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 100, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (counted, "z is discrete with too many values"),
        (only_discrete, "no continuous latent site"),
        (part, "holds a part of its rows"),
    ],
)
def test_unsupported_models_are_refused(model, message):
    with pytest.raises(pv.RequestError, match=message):
        pv.annealed_log_weights(model, torch.zeros(3), **QUICK)
