"""Moments of the posterior, and the active units that they give."""

from __future__ import annotations

import torch
from families import build, make_vae

import pyro_vae as pv
from pyro_vae.evaluation import codes as codes_module


def test_active_units(digits):
    """Two dimensions encode a pixel, two are constant; a mean may be estimated from draws."""

    class Means(torch.nn.Module):
        def forward(self, x):
            loc = x.flatten(1)[:, 18:22] * torch.tensor([1.0, 1.0, 0.0, 0.0])
            return torch.stack([loc, torch.full_like(loc, -1.0)], 1)

    class Opaque(pv.DiagonalNormal):
        def forward(self, params):
            q = super().forward(params)
            opaque = type(
                "Opaque",
                (type(q),),
                {"mean": property(lambda self: (_ for _ in ()).throw(NotImplementedError))},
            )
            q.__class__ = opaque
            return q

    x = digits.train.x[:1000].float() / 255
    for posterior in (pv.DiagonalNormal, Opaque):
        vae = build(
            digits, encoder=Means(), posterior=posterior(), likelihood=pv.Bernoulli(relaxed=True)
        )
        variances = pv.activity(vae, x)
        exact = x.flatten(1)[:, 18:20].var(0).double()
        torch.testing.assert_close(variances[:2], exact, rtol=0.1, atol=0.01)
        assert (variances[2:].abs() < 1e-3).all()


def test_codes_are_the_moments_of_the_guide_whatever_the_pass(digits, monkeypatch):
    vae = make_vae(posterior="FullRankNormal", latent_dim=3, shape=digits.shape)
    split = digits.test[:25]
    with torch.no_grad():
        q = vae.eval().q_z(split.scored("binary"))
    monkeypatch.setattr(codes_module, "IMAGES", 10)
    loc, scale = pv.codes(vae, split)
    torch.testing.assert_close(loc, q.mean)
    torch.testing.assert_close(scale, q.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt())


def test_moments_without_a_closed_form_are_estimated_from_draws(digits):
    """Of a flow they agree with many draws of their own."""
    vae = make_vae(posterior="FlowPosterior", latent_dim=2, shape=digits.shape)
    split = digits.test[:8]
    loc, scale = pv.codes(vae, split)
    with torch.no_grad():
        draws = vae.q_z(split.scored("binary")).sample(torch.Size([4000]))
    error = draws.std(0) / 10  # of the mean of 100 draws
    assert ((loc - draws.mean(0)).abs() < 5 * error).all()
    assert ((scale / draws.std(0)).log().abs() < 0.5).all()


def test_one_image_has_no_activity(vae, x):
    assert pv.activity(vae, x[:1]).tolist() == [0.0] * 3
    assert (pv.activity(vae, x) > 0).all()
