"""Every objective and every function that Pyro's SVI accepts as a loss."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.gp.kernels import RBF
from pyro.infer import (
    EnergyDistance,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.infer.autoguide import AutoNormal
from pyro.infer.util import torch_item

import pyro_vae as pv
from pyro_vae.engine.losses import as_numbers, as_tensor, has_tensor_loss


def line(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def regression(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    with pyro.plate("data", 8):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def both_losses(model, make_guide, make_objective, engine, *args):
    """The losses of Pyro's SVI and of ours, from the first step."""
    losses = []
    for make in (pyro.infer.SVI, partial(pv.SVI, engine=engine)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = make(model, make_guide(model), pyro.optim.Adam({"lr": 0.1}), make_objective())
        losses.append([svi.step(*args) for _ in range(6)])
    return losses


OBJECTIVES = {
    "EnergyDistance": EnergyDistance,
    "TraceTailAdaptive_ELBO": lambda: TraceTailAdaptive_ELBO(
        num_particles=3, vectorize_particles=True
    ),
    "Trace_MMD": lambda: Trace_MMD(kernel=RBF(1), num_particles=3, vectorize_particles=True),
    "ReweightedWakeSleep": lambda: ReweightedWakeSleep(num_particles=3),
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "TraceEnum_ELBO": lambda: TraceEnum_ELBO(strict_enumeration_warning=False),
    "RenyiELBO": lambda: RenyiELBO(num_particles=3),
}


@pytest.mark.parametrize("engine", ["eager", "traced"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_of_pyro(objective, engine):
    pyros, ours = both_losses(regression, AutoNormal, OBJECTIVES[objective], engine, torch.randn(8))
    for theirs, found in zip(pyros, ours, strict=True):
        assert found == pytest.approx(theirs, rel=1e-5)
        assert type(found) is type(theirs)


def observed(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


@pytest.mark.parametrize("engine", ["eager", "traced"])
@pytest.mark.parametrize("model", [observed, lambda x: None])
@pytest.mark.parametrize(
    "objective", [Trace_ELBO, TraceGraph_ELBO, lambda: TraceEnum_ELBO(max_plate_nesting=1)]
)
@pytest.mark.filterwarnings("ignore:.*found no sample sites:UserWarning")
def test_programs_without_parameters(model, objective, engine):
    pyros, ours = both_losses(
        model, lambda model: lambda x: None, objective, engine, torch.randn(8)
    )
    assert ours == pytest.approx(pyros)


class OwnGradient(Trace_ELBO):
    """Inherits a tensor loss that has another gradient."""

    def loss_and_grads(self, model, guide, *args):
        loss = 2 * self.differentiable_loss(model, guide, *args)
        loss.backward()
        return loss.item()


class Halved(Trace_ELBO):
    """An objective outside Pyro, with Pyro's function that reads a loss."""

    def _differentiable_loss_particle(self, model_trace, guide_trace):
        loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        return torch_item(loss) / 2, surrogate / 2


def test_an_objective_of_a_user_may_read_its_loss_as_pyros_do(caplog):
    pyros, ours = both_losses(line, lambda _: lambda x: None, Halved, "traced", torch.ones(3))
    assert ours == pytest.approx(pyros)
    assert "eager" not in caplog.text


def test_an_inherited_tensor_loss_is_not_used(caplog):
    pyros, ours = both_losses(line, lambda _: lambda x: None, OwnGradient, "traced", torch.ones(3))
    assert ours == pytest.approx(pyros)
    assert "OwnGradient has no differentiable_loss" in caplog.text


def test_a_function_of_loss_and_gradients():
    def loss_and_grads(model, guide, x):
        loss = Trace_ELBO().differentiable_loss(model, guide, x)
        (2 * loss).backward()
        return loss.item()

    losses = []
    for make in (pyro.infer.SVI, partial(pv.SVI, engine="traced")):
        pyro.clear_param_store()
        loss = Trace_ELBO().loss
        svi = make(line, lambda x: None, pyro.optim.SGD({"lr": 0.1}), loss, loss_and_grads)
        losses.append(
            [svi.step(torch.ones(3)) for _ in range(4)] + [svi.evaluate_loss(torch.ones(3))]
        )
    assert losses[0] == pytest.approx(losses[1])


def simple(model, guide, x):
    q = poutine.trace(guide).get_trace(x)
    return q.log_prob_sum() - poutine.trace(poutine.replay(model, q)).get_trace(x).log_prob_sum()


def penalized(model, guide, x):
    return Trace_ELBO().differentiable_loss(model, guide, x) + pyro.param("loc").square()


@pytest.mark.parametrize("loss", [simple, penalized, Trace_ELBO().differentiable_loss])
def test_the_loss_may_be_a_function(loss, caplog):
    losses = []
    for make in (partial(pv.SVI, engine="eager"), partial(pv.SVI, engine="traced"), pyro.infer.SVI):
        pyro.clear_param_store()
        svi = make(line, lambda x: None, pyro.optim.Adam({"lr": 0.1}), loss=loss)
        losses.append([svi.step(torch.ones(3)) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[2])
    assert losses[1] == pytest.approx(losses[2])
    assert "eager" not in caplog.text


@pytest.mark.parametrize(
    ("objective", "has_one"),
    [(Trace_ELBO, True), (TraceEnum_ELBO, True), (TraceGraph_ELBO, False), (OwnGradient, False)],
)
def test_tensor_losses(objective, has_one):
    assert has_tensor_loss(objective()) == has_one


@pytest.mark.parametrize("loss", [1.5, (1.5, -2.0)])
def test_losses_keep_their_form(loss):
    assert as_numbers(as_tensor(loss)) == loss
