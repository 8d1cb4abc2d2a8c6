import torch
from scipy import stats

from pyro_vae.priors import StandardNormal


def test_standard_normal_against_scipy():
    prior = StandardNormal(3).double()
    z = torch.randn(5, 3).double()
    assert (prior().batch_shape, prior().event_shape) == ((), (3,))
    torch.testing.assert_close(prior().log_prob(z), torch.from_numpy(stats.norm.logpdf(z.numpy()).sum(-1)))


def test_standard_normal_has_no_parameters_and_no_state():
    assert not list(StandardNormal(3).parameters())
    assert not StandardNormal(3).state_dict()
