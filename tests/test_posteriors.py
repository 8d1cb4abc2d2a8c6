import numpy as np
import pytest
import torch
from families import POSTERIORS, SHAPE
from scipy import stats
from torch import nn

import pyro_vae as pv

PARAMS, Z = torch.randn(5, 6, 3).double(), torch.randn(5, 3).double()


def test_diagonal_normal_against_scipy():
    q = pv.DiagonalNormal(nn.Identity()).distribution(PARAMS[:, :2])
    expected = stats.norm.logpdf(Z.numpy(), PARAMS[:, 0].numpy(), PARAMS[:, 1].exp().numpy()).sum(-1)
    torch.testing.assert_close(q.log_prob(Z), torch.from_numpy(expected))


def against_scipy(q, loc, covariance):
    for i in range(5):
        expected = stats.multivariate_normal(loc[i].numpy(), covariance[i]).logpdf(Z[i].numpy())
        assert q.log_prob(Z)[i].item() == pytest.approx(expected)


def test_low_rank_normal_against_scipy():
    q = pv.LowRankNormal(nn.Identity(), 3, rank=2).distribution(PARAMS[:, :4])
    columns = PARAMS[:, 2:4].numpy()
    scales = [np.diag(np.exp(s)) for s in PARAMS[:, 1].numpy()]
    covariance = [s @ (np.eye(3) + w.T @ w) @ s for s, w in zip(scales, columns, strict=True)]
    against_scipy(q, PARAMS[:, 0], covariance)


def test_full_rank_normal_against_scipy():
    q = pv.FullRankNormal(nn.Identity(), 3).distribution(PARAMS[:, :4])
    lower = [np.diag(np.exp(np.diag(a))) @ (np.eye(3) + np.tril(a, -1) / 3) for a in PARAMS[:, 1:4].numpy()]
    against_scipy(q, PARAMS[:, 0], [a @ a.T for a in lower])


def test_flow_posterior_is_the_change_of_variables():
    """log q(z) = log N(u; mu, sigma) - log |det dz / du|, with the determinant by automatic differentiation."""
    posterior = POSTERIORS["FlowPosterior"](3).double()
    params = posterior.encoder(torch.rand(1, *SHAPE).double()).detach()
    loc, log_scale, features = params[0]
    transform = posterior.transform(features).inv
    u = loc + log_scale.exp() * torch.randn(3).double()
    z, jacobian = transform(u), torch.autograd.functional.jacobian(transform, u)
    expected = torch.distributions.Normal(loc, log_scale.exp()).log_prob(u).sum() - jacobian.det().abs().log()
    torch.testing.assert_close(posterior.distribution(params).log_prob(z[None])[0], expected)
    assert (jacobian.triu(1).abs().max() < 1e-9) or (jacobian.tril(-1).abs().max() < 1e-9) or jacobian.det().abs() > 0


def test_flow_posterior_scores_its_own_draw_without_inverting():
    q = POSTERIORS["FlowPosterior"](3)(torch.rand(4, *SHAPE))
    z = q.rsample()
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", POSTERIORS)
def test_forward_is_the_distribution_at_the_encoders_outputs(name):
    posterior, x = POSTERIORS[name](3), torch.rand(4, *SHAPE)
    z = torch.randn(4, 3)
    torch.testing.assert_close(posterior(x).log_prob(z), posterior.distribution(posterior.encoder(x)).log_prob(z))


@pytest.mark.parametrize("name", POSTERIORS)
def test_gradient_reaches_the_params(name):
    posterior = POSTERIORS[name](3)
    params = posterior.encoder(torch.rand(5, *SHAPE)).detach().requires_grad_()
    q = posterior.distribution(params)
    z = q.rsample()
    (q.log_prob(z) + z.square().sum(-1)).sum().backward()
    used = params.grad != 0
    assert used[:, :2].all() or "FullRank" in name
    assert used.any(-1).all()


@pytest.mark.parametrize("rank", [0, 4])
def test_low_rank_normal_refuses(rank):
    with pytest.raises(ValueError, match="rank must be 1 to 3"):
        pv.LowRankNormal(nn.Identity(), 3, rank=rank)


def test_flow_posterior_refuses():
    with pytest.raises(ValueError, match="transforms must be positive"):
        pv.FlowPosterior(nn.Identity(), 3, transforms=0)
