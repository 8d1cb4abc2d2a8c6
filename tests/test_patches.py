"""Patches hold for the time of a `with` block."""

import pyro
import pyro.distributions as dist
import pyro.infer.trace_elbo
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_vae.engine.patches import tensor_losses, without_validation


def model(x):
    pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)


def guide(x):
    pass


@pytest.mark.parametrize("fails", [False, True])
def test_losses_are_tensors_inside_and_numbers_outside(fails):
    before = pyro.infer.trace_elbo.torch_item
    x = torch.tensor(2.0)
    expected = Trace_ELBO().loss(model, guide, x)
    assert isinstance(expected, float)
    try:
        with tensor_losses(Trace_ELBO):
            loss = Trace_ELBO().loss(model, guide, x)
            assert isinstance(loss, torch.Tensor)
            assert loss.item() == expected
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert pyro.infer.trace_elbo.torch_item is before


def test_nan_warns_outside_only():
    x = torch.tensor(torch.nan)
    with pyro.validation_enabled(False):
        with tensor_losses(Trace_ELBO):
            Trace_ELBO().loss(model, guide, x)
        with pytest.warns(UserWarning, match="NaN"):
            Trace_ELBO().loss(model, guide, x)


def test_distributions_made_before_do_not_validate_inside():
    coin = dist.Bernoulli(0.5, validate_args=True)
    with without_validation():
        assert coin.expand([2]).log_prob(torch.tensor([0.5, 1.0])).shape == (2,)
        assert dist.Normal(0.0, -1.0).scale == -1
    with pytest.raises(ValueError, match="support"):
        coin.log_prob(torch.tensor(0.5))
