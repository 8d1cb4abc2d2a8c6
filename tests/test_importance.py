import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from statistics_ import assert_mean

import pyro_vae as pv
from pyro_vae.engine.importance import log_likelihood, log_weights, terms
from pyro_vae.engine.programs import Batch
from pyro_vae.evaluation.metrics import score

X = torch.tensor([[0.3], [-1.2], [2.0], [0.0]])


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[..., None], 0.5).to_event(1), obs=x)


def exact_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, 0] / 1.25, 0.2**0.5))


def poor_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, 0] / 2, 0.8))


EXACT = dist.Normal(0.0, 1.25**0.5).log_prob(X[:, 0])


def test_the_exact_posterior_gives_log_p_at_every_sample():
    weights = log_weights(model, exact_guide, X, num_samples=7)
    assert weights.shape == (7, 4)
    torch.testing.assert_close(weights, EXACT.expand(7, 4))


def test_a_poor_guide_gives_log_p_within_its_error():
    weights = log_weights(model, poor_guide, X, num_samples=200_000).double()
    ratios = (weights - EXACT).exp()
    error = ratios.std(0) / ratios.shape[0] ** 0.5
    assert ((ratios.mean(0) - 1).abs() < 5 * error).all()
    assert (error < 0.01).all()


def test_the_mean_is_the_elbo_in_closed_form():
    t = terms(model, poor_guide, Batch(X), num_samples=100_000)
    loc, scale = X[:, 0] / 2, 0.8
    kl = 0.5 * (loc**2 + scale**2 - 1) - math.log(scale)
    reconstruction = -0.5 * ((X[:, 0] - loc) ** 2 + scale**2) / 0.25 - 0.5 * math.log(
        2 * math.pi * 0.25
    )
    for drawn, exact in ((t.kl, kl), (t.reconstruction, reconstruction)):
        assert ((drawn.mean(0) - exact).abs() < 5 * drawn.std(0) / 100_000**0.5).all()


def test_two_latent_sites_and_two_observations():
    def hierarchy(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x[:, 0])
            pyro.sample("y", dist.Normal(a, 1.0), obs=2 * x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x[:, 0], 1.0))
            pyro.sample("b", dist.Normal((a + x[:, 0]) / 2, 0.5**0.5))

    data = torch.stack([X[:, 0], 2 * X[:, 0]], 1)
    covariance = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    exact = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(data)
    ratios = (log_weights(hierarchy, guide, X, num_samples=200_000).double() - exact).exp()
    assert ((ratios.mean(0) - 1).abs() < 5 * ratios.std(0) / 200_000**0.5).all()


@pytest.mark.parametrize("program", [0, 1])
def test_scales_are_ignored(program):
    programs = [model, exact_guide]
    programs[program] = poutine.scale(programs[program], scale=7.0)
    torch.testing.assert_close(log_weights(*programs, X, num_samples=3), EXACT.expand(3, 4))


def test_subsampling_is_ignored():
    def part_of_a_large_set(x):
        with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(x[:, 0] / 1.25, 0.2**0.5))

    torch.testing.assert_close(
        log_weights(part_of_a_large_set, guide, X, num_samples=3), EXACT.expand(3, 4)
    )


def test_masks_are_applied():
    def masked(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=torch.tensor([True, True, True, False])):
                pyro.sample("x", dist.Normal(z[..., None], 0.5).to_event(1), obs=x)

    t = terms(masked, exact_guide, Batch(X), num_samples=3)
    assert (t.reconstruction[:, 3] == 0).all()
    assert (t.reconstruction[:, :3] != 0).all()


def test_deterministic_sites_are_ignored():
    def with_note(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("twice", 2 * z, event_dim=0)
            pyro.sample("x", dist.Normal(z[..., None], 0.5).to_event(1), obs=x)

    torch.testing.assert_close(
        log_weights(with_note, exact_guide, X, num_samples=3), EXACT.expand(3, 4)
    )


def outside_the_plate(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 0.5), obs=x[:, 0])


def outside_guide(x):
    pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))


def other_site(x):
    with pyro.plate("data", len(x)):
        pyro.sample("other", dist.Normal(0.0, 1.0))


def part_of_the_rows(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
        pyro.sample("x", dist.Normal(z, 0.5), obs=x[:, 0])


def one_latent(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        ((model, other_site), "only one of them has other, z"),
        ((part_of_the_rows, one_latent), "plate data holds a part of its rows"),
    ],
)
def test_unsupported_programs_are_refused(programs, message):
    with pytest.raises(pv.RequestError, match=message):
        log_weights(*programs, X, num_samples=2)


def test_a_site_outside_the_plate_gives_one_weight_for_all_rows():
    """The same model, written in a plate and without one."""
    pyro.set_rng_seed(0)
    weights = log_weights(outside_the_plate, outside_guide, X, num_samples=5)
    pyro.set_rng_seed(0)
    rows = log_weights(in_a_plate, in_a_plate_guide, X, num_samples=5)
    assert weights.shape == (5,)
    torch.testing.assert_close(weights, rows.sum(1))


def in_a_plate(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x[:, 0])


def in_a_plate_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def serial(x):
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
        pyro.sample(f"x{i}", dist.Normal(z, 0.5), obs=x[i, 0])


def serial_guide(x):
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z{i}", dist.Normal(x[i, 0] / 1.25, 0.2**0.5))


def test_a_plate_that_is_a_loop_gives_one_weight():
    weights = log_weights(serial, serial_guide, X, num_samples=3)
    torch.testing.assert_close(weights, EXACT.sum().expand(3))


def test_weights_of_rows_are_those_of_one_run_in_a_plate_bit_for_bit(vae, x):
    """One run of each program, whose random numbers are all that is drawn."""
    pyro.set_rng_seed(3)
    weights = log_weights(vae.model, vae.guide, x, num_samples=4)
    state = torch.get_rng_state()
    pyro.set_rng_seed(3)
    with pyro.plate("samples", 4, dim=-2):
        guide = poutine.trace(vae.guide).get_trace(x)
        model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    nodes = model.nodes
    kl = guide.nodes["z"]["fn"].log_prob(nodes["z"]["value"]) - nodes["z"]["fn"].log_prob(
        nodes["z"]["value"]
    )
    assert torch.equal(weights, nodes["x"]["fn"].log_prob(x) - kl)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("num_samples", [0, -1])
def test_no_samples_are_refused(num_samples):
    with pytest.raises(ValueError, match="num_samples must be positive"):
        score(model, exact_guide, (X,), num_samples, 100)
    with pytest.raises(ValueError, match="num_samples must be positive"):
        log_weights(model, exact_guide, X, num_samples=num_samples)


def test_agrees_with_pyros_elbo_and_renyi(vae, x):
    """Given the same draws: Pyro's vectorized particles lie in a plate to the left, as ours do."""
    pyro.set_rng_seed(3)
    weights = log_weights(vae.model, vae.guide, x, num_samples=5)
    elbo = Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    renyi = RenyiELBO(alpha=0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    pyro.set_rng_seed(3)
    assert -elbo.loss(vae.model, vae.guide, x) == pytest.approx(
        weights.mean(0).sum().item(), rel=1e-5
    )
    pyro.set_rng_seed(3)
    assert -renyi.loss(vae.model, vae.guide, x) == pytest.approx(
        log_likelihood(weights).sum().item(), rel=1e-5
    )


def test_gradients_reach_model_and_guide(vae, x):
    log_likelihood(log_weights(vae.model, vae.guide, x, num_samples=5)).sum().backward()
    assert all(param.grad.abs().sum() > 0 for param in vae.parameters())


def test_programs_in_a_plate_need_not_broadcast():
    """A concatenation along a dimension counted from the left, which a plate of samples shifts."""

    def start(x):
        return torch.cat((x, x.new_zeros(len(x), 1)), 1).mean(1, keepdim=True)

    def concatenating(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(start(x), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(torch.cat((a, x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(b[..., :1], 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(start(x), 1.0).to_event(1))
            pyro.sample("b", dist.Normal(torch.cat((a, x), 1), 1.0).to_event(1))

    weights = log_weights(concatenating, guide, X, num_samples=1000)
    assert weights.shape == (1000, 4)
    exact = dist.Normal(start(X)[:, 0], 2.25**0.5).log_prob(X[:, 0])
    assert_mean((weights - exact).exp(), 1.0)
