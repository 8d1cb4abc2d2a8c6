"""A graph that no longer computes what the programs do is given up, with a warning."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.optim import SGD

import pyro_vae as pv
from pyro_vae.engine.agreement import difference

LOSS = torch.tensor(2.0)
GRAD = torch.ones(3)


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ([LOSS * 1.001, GRAD, None], "loss"),
        ([LOSS, GRAD * 1.001, None], "gradient of a"),
        ([LOSS, None, None], "gradient of a"),
        ([LOSS], "gradient of a"),
        ([LOSS, GRAD, GRAD], "gradient of b"),
        ([LOSS * torch.nan, GRAD, None], "loss"),
        ([LOSS, GRAD * torch.nan, None], "gradient of a"),
    ],
)
def test_a_difference_is_named(found, word):
    assert word in difference(["a", "b"], [LOSS, GRAD, None], found)


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ([LOSS, GRAD, None], [LOSS * (1 + 1e-7), GRAD * (1 - 1e-7), None]),
        ([LOSS, GRAD, None], [LOSS, GRAD]),
        # What is not finite in the programs is reported as such, not as a difference.
        ([LOSS * torch.nan, GRAD * torch.inf, None], [LOSS, GRAD, None]),
    ],
)
def test_no_difference(expected, found):
    assert difference(["a", "b"], expected, found) is None


class Annealed:
    """A regression on a constant, whose weight of the prior changes."""

    def __init__(self):
        self.factor = 0.0

    def __call__(self, x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.poutine.scale(scale=max(self.factor, 1e-9)):
            pyro.sample("prior", dist.Normal(0.0, 1.0), obs=loc)
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def trained(engine, steps, change):
    """The losses of the steps, and the engine at the end."""
    pyro.clear_param_store()
    model = Annealed()
    svi = pv.SVI(model, lambda x: None, partial(SGD, lr=0.1), Trace_ELBO(), engine=engine)
    losses = []
    for step in range(steps):
        change(model, step)
        losses.append(svi.step(torch.tensor(3.0)))
    return losses, svi.engine


def anneal(model, step):
    model.factor = min(1.0, step / 50)


@pytest.mark.parametrize("engine", ["traced", "auto"])
def test_state_that_python_changes_between_steps(engine, monkeypatch, caplog):
    """The mean of the posterior is 1.5, that without a prior 3."""
    monkeypatch.setattr("pyro_vae.engine.graphs.TRACED_STEPS", 10)
    monkeypatch.setattr("pyro_vae.engine.svi.TRACED_STEPS", 10)
    losses, used = trained(engine, 100, anneal)
    assert used == "eager"
    assert pyro.param("loc").item() == pytest.approx(1.5, rel=1e-3)
    expected, _ = trained("eager", 100, anneal)
    assert losses[-1] == pytest.approx(expected[-1], rel=1e-4)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "the loss is" in record.getMessage()


def test_a_change_after_many_steps(caplog):
    def change(model, step):
        model.factor = float(step >= 400)

    _, used = trained("traced", 800, change)
    assert used == "eager"
    assert pyro.param("loc").item() == pytest.approx(1.5, rel=1e-3)
    assert "at step 513; they agreed at step 257" in caplog.text


def test_a_counter_of_the_program():
    """It changes at every call: the graph differs as soon as it is made."""

    class Counting(Annealed):
        def __call__(self, x):
            self.factor += 0.1
            super().__call__(x)

    svi = pv.SVI(Counting(), lambda x: None, partial(SGD, lr=0.1), Trace_ELBO(), engine="traced")
    for _ in range(2):
        svi.step(torch.tensor(3.0))
    assert svi.engine == "eager"


def test_a_parameter_that_appears_without_a_new_argument():
    names = ["a"]

    def model(x):
        loc = sum(pyro.param(name, torch.tensor(0.0)) for name in names)
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    svi = pv.SVI(model, lambda x: None, partial(SGD, lr=0.1), Trace_ELBO(), engine="traced")
    for step in range(40):
        svi.step(torch.tensor(3.0))
        if step == 20:
            names.append("b")
    assert svi.engine == "eager"
    assert pyro.param("b").item() != 0


def test_comparisons_change_no_step():
    """Neither the random numbers, nor running sums and buffers."""
    sums = torch.zeros(())

    def model(x):
        sums.add_(torch.rand(()))
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("q", torch.zeros(len(x))), 1.0))

    results = []
    for engine in ("eager", "traced"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        sums.zero_()
        svi = pv.SVI(model, guide, partial(SGD, lr=0.01), Trace_ELBO(), engine=engine)
        losses = [svi.step(torch.ones(3)) for _ in range(20)]
        results.append([*losses, sums.item(), torch.rand(()).item()])
        assert svi.engine == engine
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_a_comparison_waits_for_arguments_that_have_a_graph():
    """Every second call, in which the first would take place, has another type and no graph."""
    model = Annealed()
    svi = pv.SVI(model, lambda x: None, partial(SGD, lr=0.1), Trace_ELBO(), engine="traced")
    for step in range(80):
        model.factor = float(step >= 40)
        x = torch.full((), 3.0)
        svi.step(x.double() if step > 2 and step % 2 else x)
    assert svi.engine == "eager"
