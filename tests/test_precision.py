import pytest
import torch

import pyro_vae as pv
from pyro_vae.engine.precision import ROUNDING, products


def test_float32_is_exact_to_rounding():
    """With every library: the error of bf16 is 3e-3, that of tf32 is 3e-4."""
    with products("float32"):
        for rows, inner, columns in [(128, 784, 400), (1, 50, 400), (300, 400, 784), (777, 33, 5)]:
            a, b = torch.randn(rows, inner), torch.randn(inner, columns)
            exact = a.double() @ b.double()
            assert (a @ b - exact).norm() < 2 * ROUNDING * exact.norm()


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_the_users_setting_is_restored(before):
    torch.set_float32_matmul_precision(before)
    try:
        for precision, inside in {
            "float32": ("highest", "medium"),
            "tf32": ("high",),
            "bf16": ("medium",),
        }.items():
            with products(precision):
                assert torch.get_float32_matmul_precision() in inside
                assert torch.backends.cudnn.allow_tf32 == (precision != "float32")
            assert torch.get_float32_matmul_precision() == before
            assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_the_precision_applies_to_training_only(digits, precision):
    seen = {True: set(), False: set()}

    class Spy(torch.nn.Linear):
        def forward(self, x):
            seen[self.training].add(torch.get_float32_matmul_precision())
            return super().forward(x)

    encoder = torch.nn.Sequential(torch.nn.Flatten(), Spy(64, 6), torch.nn.Unflatten(1, (2, 3)))
    decoder = pv.MLP((3,), (1, *digits.shape))
    vae = pv.VAE(pv.StandardNormal(3), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli())
    training = pv.fit(vae, digits, epochs=1, precision=precision)
    for modes in seen.values():
        modes.clear()
    (record,) = training
    assert seen[True] == {{"tf32": "high", "bf16": "medium"}[precision]}
    with products("float32"):
        assert seen[False] == {torch.get_float32_matmul_precision()}
    assert record["validation_elbo"] == pytest.approx(-31, abs=4)
