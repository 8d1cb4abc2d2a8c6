"""Densities of programs of any structure: sums over sites by hand, and Pyro's own."""

import logging
from itertools import pairwise, product

import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import CONJUGATE, REAL, mixture, mixture_guide, mixture_log_p, one
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.infer.importance import vectorized_importance_weights
from pyro.ops.indexing import Vindex
from statistics_ import assert_mean

import pyro_vae as pv
from pyro_vae.engine.joint import ONE_BY_ONE, Joint
from pyro_vae.engine.structure import find_structure


@pytest.mark.parametrize("name", CONJUGATE)
def test_the_exact_posterior_gives_log_p_at_every_sample(name):
    case = CONJUGATE[name]()
    weights = pv.log_weights(case.model, case.exact, *case.args, num_samples=7)
    assert weights.shape == (7,)
    torch.testing.assert_close(weights, torch.full_like(weights, case.log_p))


@pytest.mark.parametrize("name", CONJUGATE)
def test_the_weights_of_another_guide_have_the_mean_p(name):
    case = CONJUGATE[name]()
    weights = pv.log_weights(case.model, case.wide, *case.args, num_samples=20_000)
    assert_mean((weights - case.log_p).exp(), 1.0)
    assert abs(pv.log_likelihood(weights).item() - case.log_p) < 5 * pv.monte_carlo_error(weights)
    assert pv.monte_carlo_error(weights) < 0.05
    assert pv.pareto_k(weights).shape == ()
    assert pv.pareto_k(weights) < 0.7
    assert 1000 < pv.effective_sample_size(weights) < 20_000
    assert pv.k_curve(weights)[1].item() == pytest.approx(weights.mean().item())


def test_assignments_of_a_mixture_are_summed_out():
    weights = pv.log_weights(mixture, mixture_guide, REAL, num_samples=20_000)
    assert_mean((weights - mixture_log_p(REAL)).exp(), 1.0)


START = torch.tensor([0.3, 0.7], dtype=torch.float64)
MOVES = torch.tensor([[0.9, 0.1], [0.4, 0.6]], dtype=torch.float64)


@pytest.mark.parametrize("marked", [True, False])
def test_a_hidden_markov_model_is_summed_out(marked):
    """Against the sum over all paths; Pyro recycles dimensions in `pyro.markov`."""

    def model(x):
        z = pyro.sample("z_0", dist.Categorical(START))
        for t in pyro.markov(range(1, len(x) + 1)):
            z = pyro.sample(f"z_{t}", dist.Categorical(Vindex(MOVES)[z]))
            pyro.sample(f"x_{t}", dist.Normal(z.double(), 1.0), obs=x[t - 1])

    paths = []
    for path in product((0, 1), repeat=len(REAL) + 1):
        probability = START[path[0]].log()
        for t, (a, b) in enumerate(pairwise(path)):
            probability = probability + MOVES[a, b].log() + dist.Normal(b, 1.0).log_prob(REAL[t])
        paths.append(probability)
    expected = torch.stack(paths).logsumexp(0)
    if marked:
        model = config_enumerate(model)
    weights = pv.log_weights(model, lambda x: None, REAL, num_samples=3)
    torch.testing.assert_close(weights, expected.expand(3))


def words(x):
    """Rows with words in each; every word has a kind, which is summed out."""
    with pyro.plate("rows", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(one(0.0).expand(1), 1.0))
        with pyro.plate("words", x.shape[1], dim=-1):
            kind = pyro.sample("kind", dist.Categorical(START))
            pyro.sample("x", dist.Normal(z + 2 * kind, 1.0), obs=x)


def words_guide(x):
    with pyro.plate("rows", len(x), dim=-2):
        pyro.sample("z", dist.Normal(x.mean(1, keepdim=True) / 2, 0.9))


def test_nested_plates_and_sums_have_a_weight_for_each_row():
    """Against quadrature over the latent of each row."""
    x = torch.tensor([[0.3, 2.0], [-1.0, 1.0], [0.5, 0.2]], dtype=torch.float64)
    z = torch.linspace(-8, 8, 2001, dtype=torch.float64)[:, None, None, None]
    likelihood = dist.Normal(z + 2 * torch.arange(2.0), 1.0).log_prob(x[..., None]) + START.log()
    joint = likelihood.logsumexp(-1).sum(-1) + dist.Normal(0.0, 1.0).log_prob(z[..., 0, 0])
    exact = joint.logsumexp(0) + torch.tensor(16 / 2000).log()
    weights = pv.log_weights(words, words_guide, x, num_samples=4000)
    assert weights.shape == (4000, 3)
    assert_mean((weights - exact).exp(), 1.0)


def clustered_rows(x):
    """Each row has a cluster, which is summed out and moves the prior of its latent."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(START))
        z = pyro.sample("z", dist.Normal(2.0 * k, one(1.0)))
        pyro.sample("x", dist.Normal(z, 0.8), obs=x)


def one_cluster(x):
    k = pyro.sample("k", dist.Categorical(START))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(2.0 * k, one(1.0)))
        pyro.sample("x", dist.Normal(z, 0.8), obs=x)


def one_cluster_and_latent(x):
    k = pyro.sample("k", dist.Categorical(START))
    z = pyro.sample("z", dist.Normal(2.0 * k, one(1.0)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 0.8), obs=x)


def latent_of_each_row(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.4 + 0.6 * x, 1.0))


def latent_of_all_rows(x):
    pyro.sample("z", dist.Normal(0.4 + 0.6 * x.mean(), 0.8))


def by_cluster(*covariance):
    """log p(REAL) and the cluster, for each cluster."""
    means = 2 * torch.arange(2.0).double()[:, None].expand(2, len(REAL))
    return dist.MultivariateNormal(means, *covariance).log_prob(REAL) + START.log()


def by_row_and_cluster():
    means = 2 * torch.arange(2.0).double()[:, None]
    return dist.Normal(means, 1.64**0.5).log_prob(REAL) + START.log()[:, None]


ALONE = torch.eye(len(REAL)).double()


@pytest.mark.parametrize(
    ("model", "guide", "parts"),
    [
        (clustered_rows, latent_of_each_row, by_row_and_cluster()),
        (one_cluster, latent_of_each_row, by_cluster(1.64 * ALONE)),
        (one_cluster_and_latent, latent_of_all_rows, by_cluster(0.64 * ALONE + 1)),
    ],
)
def test_a_latent_may_depend_on_a_site_that_is_summed_out(model, guide, parts):
    """Against the closed form for each cluster, and Pyro's ELBO with the same draws."""
    exact = parts.logsumexp(0)
    weights = pv.log_weights(model, guide, REAL, num_samples=20_000)
    assert weights.shape == (20_000, *exact.shape)
    assert_mean((weights - exact).exp(), 1.0)
    pyro.set_rng_seed(3)
    ours = pv.log_weights(model, guide, REAL, num_samples=1).sum()
    pyro.set_rng_seed(3)
    pyros = -TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(model), guide, REAL)
    assert ours.item() == pytest.approx(pyros)


def test_a_single_row_has_a_weight_of_its_own():
    exact = by_row_and_cluster()[:, :1].logsumexp(0)
    weights = pv.log_weights(clustered_rows, latent_of_each_row, REAL[:1], num_samples=20_000)
    assert weights.shape == (20_000, 1)
    assert_mean((weights - exact).exp(), 1.0)


def test_a_chain_of_states_with_latents_is_summed_out():
    """Against Pyro's ELBO with the same draws; only the model is in `pyro.markov`."""

    @config_enumerate
    def model(x):
        k = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            k = pyro.sample(f"k_{t}", dist.Categorical(Vindex(MOVES)[k]))
            z = pyro.sample(f"z_{t}", dist.Normal(2.0 * k, one(1.0)))
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[t])

    def guide(x):
        for t in range(len(x)):
            pyro.sample(f"z_{t}", dist.Normal(x[t], 1.0))

    pyro.set_rng_seed(3)
    ours = pv.log_weights(model, guide, REAL, num_samples=1)
    pyro.set_rng_seed(3)
    pyros = -TraceEnum_ELBO(max_plate_nesting=0).loss(model, guide, REAL)
    assert ours.item() == pytest.approx(pyros)


def schools(effect, error):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effect)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("effect", dist.Normal(mu + tau * eta, error), obs=effect)


SCHOOLS = (torch.tensor([28.0, 8.0, -3.0]), torch.tensor([15.0, 10.0, 16.0]))


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal, AutoDelta])
def test_pyros_elbo_with_the_same_draws(make):
    guide = make(schools)
    guide(*SCHOOLS)
    pyro.set_rng_seed(3)
    weights = pv.log_weights(schools, guide, *SCHOOLS, num_samples=5)
    assert weights.shape == (5,)
    elbo = Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    pyro.set_rng_seed(3)
    assert weights.mean().item() == pytest.approx(-elbo.loss(schools, guide, *SCHOOLS), rel=1e-5)


def test_pyros_importance_weights_with_the_same_draws():
    guide = AutoNormal(schools)
    guide(*SCHOOLS)
    pyro.set_rng_seed(3)
    ours = pv.log_weights(schools, guide, *SCHOOLS, num_samples=5)
    pyro.set_rng_seed(3)
    pyros, _, _ = vectorized_importance_weights(
        schools, guide, *SCHOOLS, num_samples=5, max_plate_nesting=1, normalized=False
    )
    torch.testing.assert_close(ours, pyros)


def test_pyros_enumeration_with_the_same_draws():
    pyro.set_rng_seed(3)
    ours = pv.log_weights(mixture, mixture_guide, REAL, num_samples=1)
    pyro.set_rng_seed(3)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    pyros = -elbo.loss(config_enumerate(mixture), mixture_guide, REAL)
    assert ours.item() == pytest.approx(pyros, rel=1e-6)


def test_masks_apply_and_scales_do_not():
    case = CONJUGATE["normal_normal"]()

    def masked(x):
        return poutine.mask(poutine.scale(case.model, scale=3.0), mask=one(0.0).bool())(x)

    def prior(x):
        pyro.sample("z", dist.Normal(one(0.0), 1.0))

    scaled = poutine.scale(case.model, scale=3.0)
    weights = pv.log_weights(scaled, case.exact, REAL, num_samples=2)
    torch.testing.assert_close(weights, torch.full_like(weights, case.log_p))
    masked_guide = poutine.mask(prior, mask=one(0.0).bool())
    assert (pv.log_weights(masked, masked_guide, REAL, num_samples=2) == 0).all()


def test_gradients_are_those_of_a_loop():
    loc = one(0.4).requires_grad_()
    case = CONJUGATE["linear_regression"]()

    def guide(x, y):
        pyro.sample("w", dist.Normal(loc.expand(2), 0.3).to_event(1))

    structure = find_structure(case.model, guide, case.args)
    slopes = []
    for means in (None, ONE_BY_ONE):
        pyro.set_rng_seed(0)
        joint = Joint(case.model, guide, case.args, structure, means)
        log_p, log_q = joint.log_densities(joint.draw(5), 5)
        slopes.append(torch.autograd.grad(pv.log_likelihood(log_p - log_q), loc)[0])
    torch.testing.assert_close(*slopes)


def branching(x):
    """Control flow by the value of a sample."""
    z = pyro.sample("z", dist.Normal(one(0.0), 1.0))
    scale = 1.0 if z > 0 else 2.0
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def mixing_samples(x):
    """In a plate of samples, the second site depends on all samples of the first."""
    a = pyro.sample("a", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
    pyro.sample("b", dist.Normal(a.sum(), 1.0))


def of_two(x):
    a = pyro.sample("a", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
    b = pyro.sample("b", dist.Normal(a.sum(), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)


def prior(x):
    pyro.sample("z", dist.Normal(one(0.0), 1.0))


def branching_log_p():
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    likelihood = dist.Normal(z, torch.where(z > 0, 1.0, 2.0)).log_prob(REAL).sum(1)
    joint = likelihood + dist.Normal(0.0, 1.0).log_prob(z[:, 0])
    return joint.logsumexp(0) + torch.tensor(16 / 4000).log()


def of_two_log_p():
    covariance = torch.eye(4, dtype=torch.float64) + 3
    return dist.MultivariateNormal(torch.zeros(4, dtype=torch.float64), covariance).log_prob(REAL)


@pytest.mark.parametrize(
    ("model", "guide", "log_p"),
    [(branching, prior, branching_log_p), (of_two, mixing_samples, of_two_log_p)],
)
def test_programs_that_do_not_broadcast_run_one_by_one_with_a_warning(model, guide, log_p, caplog):
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        weights = pv.log_weights(model, guide, REAL, num_samples=200)
    assert len([line for line in caplog.messages if "one by one" in line]) == 1
    assert_mean((weights - log_p()).exp(), 1.0)


def test_an_enumeration_that_fails_is_refused_in_one_line():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(START))
            table = torch.arange(2.0).expand(len(x), 2)
            pyro.sample("x", dist.Normal(table[torch.arange(len(x)), z.expand(4)], 1.0), obs=x)

    with pytest.raises(pv.RequestError, match="z cannot be summed out"):
        pv.log_weights(model, lambda x: None, REAL, num_samples=2)


def test_an_error_of_the_programs_stays_as_it_is():
    def wrong(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pv.log_weights(wrong, prior, REAL, num_samples=2)
