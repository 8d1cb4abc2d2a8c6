import numpy as np
import pytest
import torch
from families import POSTERIORS
from scipy import stats

import pyro_vae as pv

SEEDED = torch.Generator().manual_seed(0)
PARAMS = torch.randn(5, 6, 3, generator=SEEDED).double()
Z = torch.randn(5, 3, generator=SEEDED).double()


def test_diagonal_normal_against_scipy():
    q = pv.DiagonalNormal()(PARAMS[:, :2])
    expected = stats.norm.logpdf(Z.numpy(), PARAMS[:, 0].numpy(), PARAMS[:, 1].exp().numpy()).sum(
        -1
    )
    torch.testing.assert_close(q.log_prob(Z), torch.from_numpy(expected))


def against_scipy(q, loc, covariance):
    for i in range(5):
        expected = stats.multivariate_normal(loc[i].numpy(), covariance[i]).logpdf(Z[i].numpy())
        assert q.log_prob(Z)[i].item() == pytest.approx(expected)


def test_low_rank_normal_against_scipy():
    q = pv.LowRankNormal(3, rank=2)(PARAMS[:, :4])
    columns = PARAMS[:, 2:4].numpy()
    scales = [np.diag(np.exp(s)) for s in PARAMS[:, 1].numpy()]
    covariance = [s @ (np.eye(3) + w.T @ w) @ s for s, w in zip(scales, columns, strict=True)]
    against_scipy(q, PARAMS[:, 0], covariance)


def test_full_rank_normal_against_scipy():
    q = pv.FullRankNormal(3)(PARAMS[:, :4])
    lower = [
        np.diag(np.exp(np.diag(a))) @ (np.eye(3) + np.tril(a, -1) / 3)
        for a in PARAMS[:, 1:4].numpy()
    ]
    against_scipy(q, PARAMS[:, 0], [a @ a.T for a in lower])


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("length", [1.0, 300.0])
def test_low_rank_normal_in_float32(rank, length):
    """Long columns make squares that cancel: 0.7 nats and more in float32."""
    posterior = pv.LowRankNormal(5, rank=rank)
    params = torch.randn(200, posterior.num_params, 5)
    params[:, 2:] *= length
    z = posterior(params).sample()
    exact = posterior(params.double()).log_prob(z.double())
    torch.testing.assert_close(posterior(params).log_prob(z).double(), exact, rtol=1e-5, atol=1e-3)
    q = posterior(params[:1])
    assert q.expand(torch.Size([7])).log_prob(z[:7]).dtype == torch.float32


def test_flow_posterior_is_the_change_of_variables():
    """log q(z) = log N(u; mu, sigma) - log |det dz / du|, differentiated automatically."""
    posterior = POSTERIORS["FlowPosterior"](3).double()
    loc, log_scale, features = PARAMS[0, :3]
    transform = posterior.transform(features).inv
    u = loc + log_scale.exp() * torch.randn(3).double()
    z, jacobian = transform(u), torch.autograd.functional.jacobian(transform, u)
    expected = (
        torch.distributions.Normal(loc, log_scale.exp()).log_prob(u).sum()
        - jacobian.det().abs().log()
    )
    torch.testing.assert_close(posterior(PARAMS[:1, :3]).log_prob(z[None])[0], expected)


def test_one_coupling_is_a_posterior_of_two_layers():
    """q(z2 | x) does not know z1, and q(z1 | x, z2) is Gaussian: check by quadrature over z1."""
    posterior = POSTERIORS["FlowPosterior, coupling"](2).double()
    params = PARAMS[:1, :3, :2]
    grid = torch.linspace(-40, 40, 20_001, dtype=torch.float64)
    z2 = torch.tensor(0.7, dtype=torch.float64)
    z = torch.stack([z2.expand(len(grid)), grid], -1)
    weights = posterior(params).log_prob(z[:, None])[:, 0].exp() * (grid[1] - grid[0])
    loc, log_scale = params[0, 0, 0], params[0, 1, 0]
    marginal = torch.distributions.Normal(loc, log_scale.exp()).log_prob(z2).exp()
    torch.testing.assert_close(weights.sum(), marginal)
    share = weights / weights.sum()
    mean = (share * grid).sum()
    centred = grid - mean
    variance = (share * centred.square()).sum()
    torch.testing.assert_close((share * centred**4).sum(), 3 * variance**2)


def test_flow_posterior_scores_its_own_draw_without_inverting():
    q = POSTERIORS["FlowPosterior"](3)(PARAMS[:, :3].float())
    z = q.rsample()
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", POSTERIORS)
def test_gradient_reaches_the_params(name):
    posterior = POSTERIORS[name](3)
    params = torch.randn(5, posterior.num_params, 3, requires_grad=True)
    q = posterior(params)
    z = q.rsample()
    (q.log_prob(z) + z.square().sum(-1)).sum().backward()
    used = params.grad != 0
    assert used[:, :2].all() or "FullRank" in name
    assert used.any(-1).all()


@pytest.mark.parametrize("rank", [0, 4])
def test_rank_is_between_1_and_latent_dim(rank):
    with pytest.raises(ValueError, match=f"rank={rank}"):
        pv.LowRankNormal(3, rank=rank)


def test_a_flow_needs_transforms():
    with pytest.raises(ValueError, match="transforms"):
        pv.FlowPosterior(3, transforms=0)
    with pytest.raises(ValueError, match="at least 2"):
        pv.FlowPosterior(1, flow="coupling")


def test_log_scales_are_clipped():
    q = pv.DiagonalNormal(log_scale_limits=(-3.0, 1.0))
    params = torch.tensor([[0.0, 0.0, 0.0], [-9.0, 0.5, 9.0]])
    assert q(params).stddev.log().tolist() == pytest.approx([-3.0, 0.5, 1.0])
    with pytest.raises(pv.RequestError, match="log_scale_limits"):
        pv.DiagonalNormal(log_scale_limits=(1.0, -3.0))
