import torch
from scipy import stats
from torch import nn

from pyro_vae.posteriors import DiagonalNormal


def test_diagonal_normal_against_scipy():
    params, z = torch.randn(5, 2, 3).double(), torch.randn(5, 3).double()
    q = DiagonalNormal(nn.Identity()).distribution(params)
    assert (q.batch_shape, q.event_shape) == ((5,), (3,))
    expected = stats.norm.logpdf(z.numpy(), params[:, 0].numpy(), params[:, 1].exp().numpy()).sum(-1)
    torch.testing.assert_close(q.log_prob(z), torch.from_numpy(expected))


def test_forward_is_the_distribution_at_the_encoders_outputs():
    encoder = nn.Unflatten(1, (2, 3))
    posterior = DiagonalNormal(encoder)
    x = torch.randn(4, 6)
    torch.testing.assert_close(posterior(x).mean, posterior.distribution(encoder(x)).mean)


def test_gradient_reaches_the_params():
    params = torch.randn(5, 2, 3, requires_grad=True)
    DiagonalNormal(nn.Identity()).distribution(params).rsample().square().sum().backward()
    assert (params.grad != 0).all()
