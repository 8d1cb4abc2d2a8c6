"""The precision of matrix products of float32 tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bf16"]

ROUNDING = 1e-6
"""Products in float32 are off by less, relative to their norm; those in tf32 by some 3e-4, those in bf16 by some 3e-3."""


@contextmanager
def products(precision: Precision = "float32") -> Iterator[None]:
    """Have torch take the products of float32 tensors in a precision, on the CPU and on CUDA; the user's setting is restored.

    "tf32" and "bf16" allow these where the hardware is faster at them: torch has bf16 products on CPUs with matrix units, and
    takes tf32 for them on CUDA. "float32" is exact to rounding, by whichever of torch's libraries is the faster.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision({"float32": _float32(), "tf32": "high", "bf16": "medium"}[precision])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def _float32() -> str:
    """The fastest setting that is exact: on CPUs without matrix units "medium" is, and may be twice as fast as "highest"."""
    if torch.cuda.is_available():
        return "highest"
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        return "medium" if all(_is_exact(*shape) for shape in SHAPES) else "highest"
    finally:
        torch.set_float32_matmul_precision(before)


SHAPES = [(128, 784, 400), (784, 128, 400), (1024, 1024, 1024), (16, 50, 400)]


def _is_exact(rows: int, inner: int, columns: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((rows, inner), (columns, inner)))
    exact = a.double() @ b.double().T
    found = [a @ b.T, torch.addmm(torch.zeros(columns), a, b.T), a @ b.T.contiguous()]
    return all((one - exact).norm() < ROUNDING * exact.norm() for one in found)
