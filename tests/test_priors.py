import math

import pytest
import torch
from families import POSTERIORS, SHAPE, make_vamp_prior
from scipy import stats

import pyro_vae as pv
from pyro_vae import priors

Z = torch.linspace(-4, 4, 30, dtype=torch.float64).reshape(10, 3)


def close(prior, expected):
    prior = prior.double()
    assert (prior().batch_shape, prior().event_shape) == ((), (3,))
    torch.testing.assert_close(
        prior().log_prob(Z), torch.from_numpy(expected(Z.numpy())).sum(-1), rtol=1e-7, atol=1e-7
    )


def test_standard_normal_against_scipy():
    close(pv.StandardNormal(3), stats.norm.logpdf)


def test_student_t_against_scipy():
    close(pv.StudentT(3, df=4.0), stats.t(4).logpdf)


def test_laplace_has_variance_one():
    close(priors.Laplace(3), stats.laplace(scale=0.5**0.5).logpdf)
    assert stats.laplace(scale=0.5**0.5).var() == pytest.approx(1)


def test_normal_against_scipy():
    prior = priors.Normal(3)
    prior.loc.data, prior.log_scale.data = torch.randn(3), torch.randn(3)
    close(
        prior,
        stats.norm(
            prior.loc.detach().double().numpy(), prior.log_scale.detach().double().exp().numpy()
        ).logpdf,
    )


def test_gaussian_mixture_against_scipy():
    prior = pv.GaussianMixture(3, components=2).double()
    for param in prior.parameters():
        param.data = torch.randn_like(param)
    weights = prior.logits.softmax(0).detach().numpy()
    loc, scale = prior.loc.detach().numpy(), prior.log_scale.exp().detach().numpy()
    density = sum(
        w * stats.norm.pdf(Z.numpy(), m, s).prod(-1)
        for w, m, s in zip(weights, loc, scale, strict=True)
    )
    torch.testing.assert_close(prior().log_prob(Z), torch.from_numpy(density).log())


@pytest.mark.parametrize("name", POSTERIORS)
def test_vamp_prior_against_a_mixture_by_hand(name):
    prior = make_vamp_prior(name, 3).double()
    prior.inputs.data = torch.randn_like(prior.inputs)
    parts = [prior.posterior(prior.encoder(u.clamp(0, 1)[None])).log_prob(Z) for u in prior.inputs]
    torch.testing.assert_close(prior().log_prob(Z), torch.stack(parts).logsumexp(0) - math.log(4))


def test_vamp_prior_trains_the_encoder_and_the_pseudo_inputs():
    prior = make_vamp_prior("DiagonalNormal", 3)
    prior().log_prob(torch.zeros(1, 3)).sum().backward()
    assert all(param.grad.abs().sum() > 0 for param in [*prior.encoder.parameters(), prior.inputs])


def test_vamp_prior_starts_from_data():
    x = torch.rand(9, *SHAPE)
    prior = make_vamp_prior("DiagonalNormal", 3, components=9, start="data").double()
    prior.initialize(x)
    assert prior.inputs.dtype == torch.float64
    assert sorted(map(tuple, prior.inputs.flatten(1).tolist())) == sorted(
        map(tuple, x.flatten(1).tolist())
    )


def test_vamp_prior_starts_from_noise_as_in_the_paper():
    inputs = make_vamp_prior("DiagonalNormal", 3, components=1000).inputs
    assert inputs.mean().item() == pytest.approx(0.05, abs=5 * 0.01 / inputs.numel() ** 0.5)
    assert inputs.std().item() == pytest.approx(0.01, rel=0.05)


def test_flow_prior_starts_near_its_base():
    z = pv.FlowPrior(2, transforms=2)().sample((2000,))
    assert z.std(0).max() < 3


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: pv.GaussianMixture(3, components=0), "components"),
        (lambda: make_vamp_prior("DiagonalNormal", 3, components=-1), "components"),
        (
            lambda: make_vamp_prior("DiagonalNormal", 3, components=6, start="data").initialize(
                torch.zeros(5, *SHAPE)
            ),
            "components",
        ),
        (lambda: pv.StudentT(3, df=0.0), "df"),
        (lambda: pv.FlowPrior(3, transforms=0), "transforms"),
        (lambda: pv.FlowPrior(1, flow="coupling"), "coupling"),
        (lambda: pv.FlowPrior(2, flow="maf"), "flow"),
        (lambda: make_vamp_prior("DiagonalNormal", 3, start="images"), "start"),
    ],
)
def test_impossible_options_are_named(make, parameter):
    with pytest.raises(ValueError, match=parameter):
        make()


def test_frozen_pseudo_inputs_are_left_as_they_are():
    prior = make_vamp_prior("DiagonalNormal", 3, components=4, start="data").requires_grad_(False)
    before = prior.inputs.clone()
    prior.initialize(torch.rand(9, *SHAPE))
    assert torch.equal(prior.inputs, before)
