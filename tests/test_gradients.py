"""Gradients that are clipped or normalized, and the optimizer's state without denormals."""

from __future__ import annotations

import pytest
import torch
from families import build
from torch.optim import SGD, Adam

import pyro_vae as pv
from pyro_vae.training import fit as fit_module
from pyro_vae.training.gradients import FLUSH_STEPS, SMALLEST_STATE, change_gradients, flush


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
    """Some pixels are rarely above zero: their gradients are zero for many steps.

    Averages that fall by 0.1 per step become denormal in 40 of them, not in 800 as Adam's.
    """

    def counts(steps):
        monkeypatch.setattr(fit_module, "FLUSH_STEPS", steps)
        few = pv.Data("few", digits.train[:320], digits.validation[:20], digits.test)
        training = pv.fit(
            build(few),
            few,
            epochs=10,
            batch_size=32,
            optimizer=lambda params: Adam(params, betas=(0.1, 0.999)),
            engine="traced",
        )
        return [denormals(training) for _ in training]

    assert counts(2) == [0] * 10
    assert max(counts(10**9)) > 0


def test_flushing_is_often_enough_for_adam_and_changes_nothing_else():
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = Adam([weight])
    weight.grad = torch.tensor([1.0, 1e-28, -1e-28, 0.0])
    optimizer.step()
    flush(optimizer)
    first, second = (optimizer.state[weight][name] for name in ("exp_avg", "exp_avg_sq"))
    assert first.tolist() == pytest.approx([0.1, 1e-29, -1e-29, 0.0], rel=1e-5, abs=0)
    assert second.tolist() == pytest.approx([1e-3, 0.0, 0.0, 0.0], rel=1e-5, abs=0)
    first.mul_(0.01)
    flush(optimizer)
    assert first.tolist() == pytest.approx([1e-3, 0.0, 0.0, 0.0], rel=1e-5, abs=0)
    assert torch.finfo(torch.float32).tiny < SMALLEST_STATE * 0.9**FLUSH_STEPS


@pytest.mark.parametrize("norm", [1.0, 100.0])
def test_the_clipped_norm_is_of_all_parameters_together(norm):
    """Of gradients 3 and 4 it is 5: at a limit of 1 they become 0.6 and 0.8."""
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = SGD([{"params": params[:1]}, {"params": params[1:]}], lr=1.0)
    change_gradients(optimizer, norm, normalize=False)
    for param, slope in zip(params, (3.0, 4.0), strict=True):
        param.grad = torch.full((1,), slope)
    optimizer.step()
    factor = min(1.0, norm / 5)
    assert [param.item() for param in params] == pytest.approx([-3 * factor, -4 * factor])


def test_a_gradient_of_zero_stays_zero_and_a_missing_one_missing():
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizer = SGD(params, lr=1.0)
    change_gradients(optimizer, None, normalize=True)
    params[0].grad, params[1].grad = torch.tensor([3.0, 4.0]), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), torch.tensor([0.4, 0.2]))
    assert params[1].tolist() == params[2].tolist() == [1.0, 1.0]
    assert params[2].grad is None
