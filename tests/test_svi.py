import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch.optim import SGD, Adam

import pyro_vae as pv


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO, RenyiELBO])
def test_steps_equal_those_of_pyros_svi(vae, x, objective):
    twin = copy.deepcopy(vae)
    vae, twin, x = vae.double(), twin.double(), x.double()
    ours = pv.SVI(vae.model, vae.guide, lambda params: Adam(params, lr=0.01), objective(num_particles=2))
    pyros = pyro.infer.SVI(twin.model, twin.guide, pyro.optim.Adam({"lr": 0.01}), objective(num_particles=2))
    for step in range(20):
        pyro.set_rng_seed(step)
        first = ours.step(x)
        pyro.set_rng_seed(step)
        assert first == pytest.approx(pyros.step(x), rel=1e-10)
    for a, b in zip(vae.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_mean_divides_loss_and_gradient(vae, x):
    twin = copy.deepcopy(vae)
    for one, mean in ((vae, False), (twin, True)):
        pyro.set_rng_seed(0)
        one.loss = pv.SVI(one.model, one.guide, lambda params: SGD(params, lr=0.0), Trace_ELBO(), mean=mean).step(x)
    assert vae.loss / len(x) == pytest.approx(twin.loss)
    for a, b in zip(vae.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad / len(x), b.grad)


def test_existing_gradients_are_ignored(vae, x):
    twin = copy.deepcopy(vae)
    for param in vae.parameters():
        param.grad = torch.full_like(param, 100.0)
    for one in (vae, twin):
        pyro.set_rng_seed(0)
        pv.SVI(one.model, one.guide, lambda params: SGD(params, lr=0.1), Trace_ELBO(num_particles=2)).step(x)
    for a, b in zip(vae.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_evaluate_loss_takes_no_step(vae, x):
    svi = pv.SVI(vae.model, vae.guide, Adam, Trace_ELBO(), mean=True)
    before = [param.clone() for param in vae.parameters()]
    pyro.set_rng_seed(5)
    loss = svi.evaluate_loss(x)
    pyro.set_rng_seed(5)
    assert loss == pytest.approx(svi.step(x))
    assert not all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


def test_parameters_that_appear_late_are_trained():
    calls = []

    def model(x):
        calls.append(1)
        loc = pyro.param("loc", torch.tensor(0.0)) + (pyro.param("late", torch.tensor(0.0)) if len(calls) > 3 else 0)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    svi = pv.SVI(model, lambda x: None, lambda params: SGD(params, lr=0.1), Trace_ELBO())
    for _ in range(6):
        svi.step(torch.ones(3))
    assert pyro.param("late").item() != 0


def test_constrained_parameters_are_trained_unconstrained():
    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    svi = pv.SVI(model, lambda x: None, lambda params: Adam(params, lr=0.1), Trace_ELBO())
    for _ in range(300):
        svi.step(torch.tensor([-0.1, 0.1]))
    assert pyro.param("scale").item() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_users_validation_setting_is_restored(vae, x, enabled):
    svi = pv.SVI(vae.model, vae.guide, Adam, Trace_ELBO())
    with pyro.validation_enabled(enabled):
        for _ in range(2):
            svi.step(x)
            assert pyro.infer.util.is_validation_enabled() == enabled


def test_the_first_step_is_validated(vae, x):
    with pytest.raises(ValueError, match="within the support"):
        pv.SVI(vae.model, vae.guide, Adam, Trace_ELBO()).step(x / 2)


def line(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def test_pyros_optimizers_are_refused():
    with pytest.raises(pv.RequestError, match="torch"):
        pv.SVI(line, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())


def test_an_unknown_engine_is_refused(vae):
    with pytest.raises(pv.RequestError, match="turbo"):
        pv.SVI(vae.model, vae.guide, Adam, Trace_ELBO(), engine="turbo")


def test_a_graph_takes_no_lists():
    with pytest.raises(pv.RequestError, match="pass tensors"):
        pv.SVI(lambda x: None, lambda x: None, Adam, Trace_ELBO(), engine="traced").step([1.0])
