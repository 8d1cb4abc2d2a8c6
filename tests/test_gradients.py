"""Gradients that are clipped or normalized, and the optimizer's state without denormals."""

from __future__ import annotations

import pytest
import torch
from families import build
from torch.optim import SGD

import pyro_vae as pv
from pyro_vae.training import fit as fit_module


def test_gradients_are_clipped(digits):
    """Plain gradient descent moves at most by the learning rate times the norm."""
    vae = build(digits)
    options = {"optimizer": lambda params: SGD(params, lr=0.5), "clip_grad_norm": 0.01}
    training = pv.fit(vae, digits, epochs=1, batch_size=1349, **options)
    before = torch.cat([param.detach().flatten().clone() for param in vae.parameters()])
    list(training)
    after = torch.cat([param.detach().flatten() for param in vae.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.005, rel=1e-3)


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_gradients_are_normalized(digits, engine):
    """One step of plain gradient descent moves every tensor by the learning rate."""
    vae = build(digits)
    options = {
        "optimizer": lambda params: SGD(params, lr=0.5),
        "normalize_gradients": True,
        "engine": engine,
    }
    training = pv.fit(vae, digits, epochs=1, batch_size=1349, **options)
    before = [param.detach().clone() for param in vae.parameters()]
    next(training)
    assert [
        (a - b).norm().item() for a, b in zip(vae.parameters(), before, strict=True)
    ] == pytest.approx([0.5] * len(before))


def denormals(training):
    """Number of denormal elements in the optimizer's averages of gradients."""
    averages = torch.cat(
        [state["exp_avg"].flatten() for state in training.loop.optimizer.state.values()]
    )
    return ((averages != 0) & (averages.abs() < torch.finfo(torch.float32).tiny)).sum().item()


def test_the_optimizers_state_has_no_denormals(digits, monkeypatch):
    """Some pixels are rarely above zero: their gradients are zero for hundreds of steps."""
    training = pv.fit(build(digits), digits, epochs=20, batch_size=32, engine="traced")
    assert [denormals(training) for _ in training] == [0] * 20
    monkeypatch.setattr(fit_module, "FLUSH_STEPS", 10**9)
    training = pv.fit(build(digits), digits, epochs=20, batch_size=32, engine="traced")
    assert max(denormals(training) for _ in training) > 0
