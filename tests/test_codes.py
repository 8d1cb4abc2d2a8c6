"""Moments of the posterior, and the active units that they give."""

from __future__ import annotations

import torch
from families import build

import pyro_vae as pv


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
