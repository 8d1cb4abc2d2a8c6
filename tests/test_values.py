"""Pixels, labels and covariates as users bring them: converted, or refused with the conversion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data.split import to_pixels
from pyro_vae.data.values import as_covariates, as_labels, with_channels

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
    "NaN": (NAN, r"x holds 1 values that are NaN.*(np|torch).nan_to_num\(x\)"),
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


LABELS = {
    "integers": np.array([3, 0, 7]),
    "small": np.array([3, 0, 7], dtype=np.int8),
    "unsigned": np.array([3, 0, 7], dtype=np.uint64),
    "a column": np.array([[3], [0], [7]]),
    "one-hot codes": np.eye(8)[[3, 0, 7]],
    "one-hot bools": torch.eye(8, dtype=torch.bool)[[3, 0, 7]],
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_every_form_are_the_same(name):
    labels, names = as_labels(LABELS[name], 3, "labels")
    assert labels.dtype == torch.int64
    assert labels.tolist() == [3, 0, 7]
    assert names is None


@pytest.mark.parametrize("names", [["b", "a", "b"], [b"b", b"a", b"b"], [["b"], ["a"], ["b"]]])
def test_names_become_numbers_in_alphabetical_order(names):
    labels, classes = as_labels(np.array(names), 3, "labels")
    assert [classes[number] for number in labels] == ["b", "a", "b"]
    assert classes == ("a", "b")


@pytest.mark.parametrize(
    ("labels", "advice"),
    [
        (np.array([0.0, 1.0, 2.0]), r"labels.astype\(int\)$"),
        (np.array([0.1, 0.5, 2.0]), "as covariates$"),
        (np.array([[0.2, 0.8]] * 3), r"labels.argmax\(1\)"),
        (np.zeros((3, 2, 2)), "reshape"),
        (np.arange(4), r"shape \(3,\)$"),
        (np.array(["a", "b"]), r"shape \(3,\)$"),
        (np.array(1), r"shape \(3,\)$"),
    ],
)
def test_other_labels_are_refused_with_the_conversion(labels, advice):
    with pytest.raises(pv.RequestError, match=advice):
        as_labels(labels, 3, "labels")


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bool])
def test_covariates_become_float32(dtype):
    given = torch.tensor([[1, 0], [0, 1]]).to(dtype)
    covariates = as_covariates(given, 2, "covariates")
    assert covariates.dtype == torch.float32
    assert covariates.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    "given", [torch.zeros(2), torch.zeros(3, 1), torch.zeros(2, 0), torch.full((2, 1), torch.inf)]
)
def test_other_covariates_are_refused(given):
    with pytest.raises(pv.RequestError, match=r"^covariates has"):
        as_covariates(given, 2, "covariates")


@pytest.mark.parametrize(
    ("shape", "moved"),
    [
        ((5, 28, 28), (5, 1, 28, 28)),
        ((5, 28, 28, 3), (5, 3, 28, 28)),
        ((5, 9, 30, 4), (5, 4, 9, 30)),
        ((5, 2, 2, 3), (5, 3, 2, 2)),
        ((5, 3, 28, 28), (5, 3, 28, 28)),
        ((5, 1, 28, 1), (5, 1, 28, 1)),
        ((5, 2, 9, 3), (5, 2, 9, 3)),
    ],
)
def test_where_the_channels_are(shape, moved):
    """A last dimension of 3 is width where the first two are no height and width."""
    x = torch.arange(np.prod(shape)).reshape(shape)
    found = with_channels(x, "x")
    assert found.shape == moved
    assert torch.equal(found.flatten().sort().values, x.flatten())
    if len(shape) == 4 and moved != shape:
        assert all(torch.equal(found[:, channel], x[..., channel]) for channel in range(moved[1]))
