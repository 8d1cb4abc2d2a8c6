"""Pixels, labels and covariates as users bring them: converted, or refused with the conversion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data.split import to_pixels

BYTES = torch.arange(64 * 4).remainder(256).to(torch.uint8).reshape(4, 1, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floats_become_float32(dtype):
    x = (BYTES > 100).to(dtype)
    split = pv.Split(x)
    assert split.x.dtype == torch.float32
    assert torch.equal(split.scored("binary"), x.float())


@pytest.mark.parametrize(
    "x",
    [BYTES.long(), BYTES.int(), BYTES.numpy().astype(np.uint16), BYTES.numpy().astype(">i8")],
    ids=["int64", "int32", "uint16", "big-endian"],
)
def test_integers_become_bytes(x):
    assert torch.equal(pv.Split(x).x, BYTES)
    assert pv.Split(x).x.dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_0_and_1_are_binary(dtype):
    x = torch.rand(50, 1, 8, 8) < 0.5
    for split in (pv.Split(x.to(dtype)), pv.Split(x.numpy()), pv.Split(x.to(dtype)[:, 0])):
        assert torch.equal(split.scored("binary"), x.float())
        assert torch.equal(split[:10].scored("unit"), x[:10].float())
    assert torch.equal(to_pixels(x, "binary"), x.float())


NAN = torch.full((3, 1, 4, 4), 0.5)


NAN[1, 0, 2, 2] = torch.nan


BAD = {
    "scaled": (torch.rand(600, 8, 8) * 255, r"float32 from \S+ to 25\S+, .*: use x / 255"),
    "whole": (BYTES.float(), r"float32 from 0 to 255, .*: use x.to\(torch.uint8\)"),
    "array": (BYTES.double().numpy(), r"float64 from 0 to 255, .*: use x.astype\(np.uint8\)"),
    "centred": (torch.linspace(-1, 1, 64).reshape(1, 8, 8), r"-1 to 1, .*: use \(x \+ 1\) / 2"),
    "rounded": (torch.tensor([[[0.0, 1.00001]]]), r"use x.clip\(0, 1\)"),
    "16 bits": (torch.arange(2**16).reshape(1, 256, 256), "int64 from 0 to 65535, .*: use x / 655"),
    "standardized": (torch.randn(5, 8, 8), r"use \(x - x.min\(\)\) / \(x.max\(\) - x.min\(\)\)"),
    "NaN": (NAN, r"x holds 1 values that are NaN.*nan_to_num\(x\)"),
    "infinite": (1 / (BYTES[:, :, 0] > 0), "float32 from 1 to inf, .*: use finite numbers"),
    "negative": (BYTES.long() - 1, "int64 from -1 to 254"),
    "complex": (BYTES + 0j, "complex64"),
    "flat": (torch.rand(9, 784), r"shape \(9, 784\), .*: use x.reshape\(-1, 28, 28\)"),
    "flat colours": (torch.rand(9, 3072), r"use x.reshape\(-1, 3, 32, 32\)"),
    "too many dimensions": (torch.rand(2, 1, 1, 4, 4), "has shape"),
    "no pixels": (torch.rand(2, 0, 4), "has shape"),
    "a list": ([[1.0]], "x is of type list"),
    "strings": (np.array([[["a"]]]), "x holds <U1: use numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_values_are_refused_with_the_conversion(name):
    x, message = BAD[name]
    with pytest.raises(pv.RequestError, match=message) as caught:
        pv.Split(x)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["scaled", "whole", "centred", "16 bits", "standardized"])
def test_the_conversion_that_is_advised_helps(name):
    x, _ = BAD[name]
    with pytest.raises(pv.RequestError) as caught:
        pv.Split(x)
    advice = str(caught.value).rpartition(": use ")[2]
    assert len(pv.Split(eval(advice, {"x": x, "torch": torch}))) == len(x)
