"""The precision of matrix products and convolutions of float32 tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bf16"]

# Relative error that float32 products stay below; tf32 has about 3e-4, bf16 about 3e-3.
ROUNDING = 1e-6


@contextmanager
def products(precision: Precision = "float32") -> Iterator[None]:
    """Set the precision of matrix products and convolutions of float32 tensors in a `with` block.

    "tf32" and "bf16" allow lower precision where the hardware supports it: bf16 on CPUs with matrix
    units, tf32 on CUDA for both. "float32" is accurate to rounding, with the fastest backend that
    passes an accuracy check.
    """
    before = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    settings = {"float32": _float32(), "tf32": "high", "bf16": "medium"}
    torch.set_float32_matmul_precision(settings[precision])
    # True by default, whatever the precision of matrix products.
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions


@cache
def _float32() -> str:
    """The fastest accurate setting.

    On CPUs without bf16 units "medium" computes in float32, and may use a faster library.
    """
    if torch.cuda.is_available():
        return "highest"
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        exact = all(_is_exact(*shape) for shape in SHAPES)
    finally:
        torch.set_float32_matmul_precision(before)
    return "medium" if exact else "highest"


# Rows, inner dimension and columns of the products that are checked.
SHAPES = [(128, 784, 400), (784, 128, 400), (1024, 1024, 1024), (16, 50, 400)]


def _is_exact(rows: int, inner: int, columns: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, inner, generator=generator)
    b = torch.randn(columns, inner, generator=generator)
    exact = a.double() @ b.double().T
    found = [a @ b.T, torch.addmm(torch.zeros(columns), a, b.T), a @ b.T.contiguous()]
    return all((one - exact).norm() < ROUNDING * exact.norm() for one in found)
