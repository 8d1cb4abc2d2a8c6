"""What is odd about the parameters of two programs is reported in their first call."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule
from torch import nn
from torch.optim import Adam

import pyro_vae as pv
from pyro_vae.engine.parameters import Parameters


def test_parameters_are_collected_by_name_without_earlier_gradients():
    pyro.param("a", torch.zeros(2)).grad = torch.ones(2)
    with Parameters() as seen:
        values = [pyro.param(name, torch.zeros(2)) for name in "aba"]
    assert values[0] is next(iter(seen.params.values()))
    assert list(seen.names.values()) == ["a", "b"]
    assert values[0].grad is None


def make_regression(dim):
    def regression(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)

    return regression


def train_guide(guide, model, steps=2):
    svi = pv.SVI(model, guide, partial(Adam, lr=0.1), Trace_ELBO())
    for _ in range(steps):
        svi.step(torch.ones(3))


def test_a_guide_that_starts_at_another_ones_values_is_reported(caplog):
    model = make_regression(2)
    train_guide(AutoNormal(model), model)
    assert not caplog.text
    second = AutoNormal(model)
    train_guide(second, model)
    assert caplog.text.count("pyro.clear_param_store()") == 1
    assert "AutoNormal.locs.z, AutoNormal.scales.z start at" in caplog.text
    # The same guide is trained further, and one that starts anew after the store is cleared.
    train_guide(second, model)
    pyro.clear_param_store()
    train_guide(AutoNormal(model), model)
    assert caplog.text.count("pyro.clear_param_store()") == 1


@pytest.mark.parametrize("make_guide", [AutoNormal, AutoMultivariateNormal])
def test_a_guide_that_does_not_fit_another_ones_values_names_the_store(make_guide):
    train_guide(make_guide(make_regression(2)), make_regression(2))
    model = make_regression(3)
    with pytest.raises(pv.RequestError, match=r"pyro\.clear_param_store\(\)") as raised:
        train_guide(make_guide(model), model)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is not None


def test_an_error_of_a_function_that_finds_stored_values_has_a_note():
    def wrong(x):
        pyro.param("loc", torch.zeros(3))
        raise ValueError("mine")

    pyro.param("loc", torch.zeros(2))
    with pytest.raises(ValueError, match=r"^mine") as raised:
        train_guide(lambda x: None, wrong)
    assert "pyro.clear_param_store()" in "".join(raised.value.__notes__)


class Frozen(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0), requires_grad=False)

    def forward(self, x):
        pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)


def test_frozen_parameters_are_trained_with_a_warning(caplog):
    """As Pyro does: https://github.com/pyro-ppl/pyro/issues/3438."""
    locs = []
    for make in (pyro.infer.SVI, pv.SVI):
        pyro.clear_param_store()
        model = Frozen()
        svi = make(model, lambda x: None, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
        for _ in range(3):
            svi.step(torch.tensor(1.0))
        locs.append(model.loc.item())
    assert locs[0] == locs[1] != 0
    assert caplog.text.count("do not require a gradient: loc;") == 1
