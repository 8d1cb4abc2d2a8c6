"""The precision of matrix products and convolutions of float32 tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from logging import getLogger
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

logger = getLogger("pyro_vae")

Precision = Literal["float32", "tf32", "bf16"]
AnyPrecision = Literal["auto", "float32", "tf32", "bf16"]

# Relative error that float32 products stay below; tf32 has about 3e-4, bf16 about 3e-3.
ROUNDING = 1e-6

_current: Precision = "float32"


@contextmanager
def products(precision: Precision = "float32") -> Iterator[None]:
    """Set the precision of matrix products and convolutions of float32 tensors in a `with` block.

    "float32" is accurate to rounding, with the fastest backend that passes an accuracy check.
    "tf32" and "bf16" allow lower precision where the hardware supports it: tf32 on CUDA for both;
    bf16 on CPUs with AVX512_BF16 or AMX.

    On a CPU, bf16 is for the layers of networks (linear layers, convolutions and their gradients)
    in the losses of `SVI`: see `rounded`.
    """
    global _current
    outside = _current
    before = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    setting = _float32()
    if precision == "tf32":
        setting = "high"
    elif precision == "bf16" and torch.cuda.is_available():
        setting = "medium"
    torch.set_float32_matmul_precision(setting)
    # True by default, whatever the precision of matrix products.
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    _current = precision
    try:
        yield
    finally:
        _current = outside
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions


def pick_precision(asked: AnyPrecision, device: torch.device) -> Precision:
    """The precision that is asked for; it is logged if it is another one.

    "auto" is bf16 on a CPU that has instructions for it, and float32 elsewhere. On a CPU without
    them, "bf16" is float32, because it would be slower.

    Arguments:
        asked: The precision, or "auto".
        device: Where the layers are computed.
    """
    if asked in ("float32", "tf32"):
        return asked
    if device.type == "cuda":
        if asked == "bf16":
            return "bf16"
        picked: Precision = "float32"
        reason = "auto is float32 on CUDA"
    elif has_bf16():
        picked = "bf16"
        reason = "the processor has instructions for bf16"
    else:
        picked = "float32"
        reason = "the processor has no instructions for bf16 (AVX512_BF16 or AMX)"
    if picked != asked:
        logger.info("training in %s: %s", picked, reason)
    return picked


def has_bf16() -> bool:
    """Whether this processor has instructions for products of bf16 numbers: AVX512_BF16 or AMX."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def rounds_to_bf16() -> bool:
    """Whether a `rounded` function computes layers in bf16: in a block `products("bf16")`."""
    return _current == "bf16" and has_bf16()


def rounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which computes the layers of networks in the precision of `products` on a CPU.

    In bf16 the inputs and weights of a layer are rounded once, and kept for its gradient. The
    products add up in float32 and are rounded, and the bias is added in float32. Everything else
    stays float32: activations, log-densities (also those by matrix products), sums, the gradients
    of parameters.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not rounds_to_bf16():
            return function(*args, **kwargs)
        with _Bf16Layers():
            return function(*args, **kwargs)

    return call


class _Bf16Layers(TorchFunctionMode):
    """Replaces the functions of layers that modules call; autograd then has gradients in bf16."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in LAYERS and args and _is_float32_on_cpu(args[0]):
            return _layer(func, *args, **kwargs)
        return func(*args, **kwargs)


# The functions of layers, and the dimensions of their results to the right of the bias's.
LAYERS: dict[Any, int] = {
    functional.linear: 0,
    functional.conv1d: 1,
    functional.conv2d: 2,
    functional.conv3d: 3,
    functional.conv_transpose1d: 1,
    functional.conv_transpose2d: 2,
    functional.conv_transpose3d: 3,
}


def _is_float32_on_cpu(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x.device.type == "cpu"


def _layer(
    func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    result: Tensor = func(x.bfloat16(), weight.bfloat16(), None, *args, **kwargs).float()
    if bias is None:
        return result
    return result + bias.reshape(-1, *[1] * LAYERS[func])


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
