"""Pixels, labels and covariates as users bring them: converted, or refused with the conversion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import build

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


BAD = {
    "scaled": (torch.rand(600, 8, 8) * 255, r"float32 from \S+ to 25\S+, .*: use x / 255"),
    "whole": (BYTES.float(), r"float32 from 0 to 255, .*: use x.to\(torch.uint8\)"),
    "array": (BYTES.double().numpy(), r"float64 from 0 to 255, .*: use x.astype\(np.uint8\)"),
    "centred": (torch.linspace(-1, 1, 64).reshape(1, 8, 8), r"-1 to 1, .*: use \(x \+ 1\) / 2"),
    "rounded": (torch.tensor([[[0.0, 1.00001]]]), r"use x.clip\(0, 1\)"),
    "16 bits": (torch.arange(2**16).reshape(1, 256, 256), "int64 from 0 to 65535, .*: use x / 655"),
    "standardized": (torch.randn(5, 8, 8), r"use \(x - x.min\(\)\) / \(x.max\(\) - x.min\(\)\)"),
    "infinite": (1 / (BYTES[:, :, 0] > 0), "float32 from 1 to inf, .*: use finite numbers"),
    "negative": (BYTES.long() - 1, "int64 from -1 to 254"),
    "complex": (BYTES + 0j, "complex64"),
    "one dimension": (torch.rand(9), r"shape \(9,\), .*: use x.reshape\(-1, 1\)"),
    "no values": (torch.rand(9, 0), "has shape"),
    "vectors beyond float32": (np.full((2, 3), 1e300), "infinite in float32: use finite"),
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


VECTORS = {
    "bools": (torch.eye(3).bool(), torch.bool),
    "0 and 1": (np.eye(3, dtype=np.int64), torch.bool),
    "small counts": (np.array([[0, 255]], dtype=np.uint16), torch.uint8),
    "counts": (torch.tensor([[0, 256, 2**24]]), torch.int32),
    "larger integers": (torch.tensor([[0, 2**25]]), torch.float32),
    "negative integers": (np.array([[-1, 5]], dtype=np.int8), torch.float32),
    "float64": (np.array([[-0.5, 1e9]]), torch.float32),
    "whole floats": (torch.tensor([[0.0, 1.0]]), torch.float32),
    "volumes": (torch.rand(2, 1, 2, 3, 4), torch.float32),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_keep_their_values(name):
    values, dtype = VECTORS[name]
    split = pv.Split(values)
    assert split.x.dtype == dtype
    expected = torch.as_tensor(values if isinstance(values, torch.Tensor) else values.astype(float))
    torch.testing.assert_close(split.x.double(), expected.double())
    assert torch.equal(split.scored("real"), split.x.float())
    assert repr(split).startswith(f"Split({len(values)} rows of shape ")


COUNTS = np.array([[0, 3, 1000], [2, 0, 0]])
SCORED = {
    "counts": (COUNTS, "count", COUNTS),
    "whole floats as counts": (COUNTS.astype(float), "count", COUNTS),
    "bools as counts": (COUNTS > 0, "count", COUNTS > 0),
    "images as counts": (BYTES, "count", BYTES),
    "images as reals": (BYTES, "real", BYTES),
    "bytes": (np.array([[0, 255, 7]]), "byte", np.array([[0, 255, 7]])),
    "binary": (COUNTS > 0, "binary", COUNTS > 0),
    "0.0 and 1.0": ((COUNTS > 0).astype(float), "binary", COUNTS > 0),
    "units": (np.array([[0.25, 1.0]]), "unit", np.array([[0.25, 1.0]])),
}


@pytest.mark.parametrize("name", SCORED)
def test_kinds_that_vectors_are_scored_as(name):
    x, pixels, expected = SCORED[name]
    scored = pv.Split(x).scored(pixels)
    assert scored.dtype == torch.float32
    assert torch.equal(scored, torch.as_tensor(expected).float())


REFUSED = {
    "reals as counts": ([[-3.2, 7.0]], "count", r"values from -3.2 to 7: .* Normal\(kind='real'\)"),
    "negative counts": ([[-3, 7]], "count", "integers, but x holds values from -3 to 7: use a"),
    "fractions": ([[0.5, 7.0]], "count", "counts need non-negative integers"),
    "images of fractions": (torch.full((1, 1, 4, 4), 0.5), "count", "counts need non-negative"),
    "large counts": ([[0.0, 2.0**25]], "count", r"counts up to 16,777,216, but x holds 33,554,432"),
    "more than bytes": (COUNTS, "byte", "counts up to 255, but x holds 1,000"),
    "counts as binary": (COUNTS, "binary", "cannot score counts from 0 to 1000: use .*Negative"),
    "counts as units": (COUNTS, "unit", "cannot score counts"),
    "reals as units": ([[0.0, 1.5]], "unit", r"needs 0 to 1, .* use a likelihood on reals"),
    "reals as pixels": ([[-1.0, 1.5]], "dequantized", "needs 0 to 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_kinds_that_vectors_are_not_scored_as(name):
    x, pixels, message = REFUSED[name]
    with pytest.raises(pv.RequestError, match=message) as caught:
        pv.Split(torch.as_tensor(x)).scored(pixels)
    assert "\n" not in str(caught.value)


def test_a_likelihood_that_cannot_score_the_training_data_is_refused():
    """Before the first step, also where only training data are beyond the largest count."""
    data = pv.Data("k", pv.Split(COUNTS[[0] * 9]), pv.Split(COUNTS[1:]), pv.Split(COUNTS[1:]))
    vae = build(data, likelihood=pv.Binomial(16))
    with pytest.raises(pv.RequestError, match="counts up to 16, but x holds 1,000"):
        pv.fit(vae, data, epochs=1)
    with pytest.raises(pv.RequestError, match="counts up to 16"):
        pv.evaluate(vae, data.train)
    with pytest.raises(pv.RequestError, match="a likelihood on binary values cannot score counts"):
        pv.fit(build(data), data, epochs=1)


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
