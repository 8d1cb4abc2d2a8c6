"""Which values are missing: as NaN, or by an array of those that are observed."""

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data.missing import hide_at_random, split_missing


def test_nan_and_an_array_of_observed_values_say_the_same():
    x = torch.rand(5, 1, 2, 3)
    observed = torch.rand(x.shape) < 0.7
    observed[:, 0, 0, 0] = True
    by_nan = pv.Split(x.masked_fill(~observed, torch.nan))
    by_array = pv.Split(x, observed=observed)
    for split in (by_nan, by_array):
        assert torch.equal(split.observed, observed)
        scored = split.scored("unit")
        assert torch.equal(scored.isnan(), ~observed)
        assert torch.equal(scored[observed], x[observed])
    assert torch.equal(by_nan.x, by_array.x)


def test_bytes_keep_their_type():
    x = torch.randint(256, (4, 1, 3, 3), dtype=torch.uint8)
    observed = torch.ones_like(x, dtype=torch.bool)
    observed[1, 0, 2, 2] = False
    split = pv.Split(x, observed=observed.numpy())
    assert split.x.dtype == torch.uint8
    assert split.scored("byte").isnan().nonzero().tolist() == [[1, 0, 2, 2]]
    assert split[2:].observed.all()


def test_nothing_missing_is_no_mask():
    x = torch.rand(3, 1, 2, 2)
    assert pv.Split(x, observed=torch.ones(x.shape, dtype=torch.bool)).observed is None
    assert pv.Split(x).with_missing(0.0).observed is None


def test_channels_that_are_last_are_moved_in_both():
    x = torch.rand(2, 9, 9, 3)
    x[0, 4, 5, 2] = torch.nan
    split = pv.Split(x)
    assert split.x.shape == (2, 3, 9, 9)
    assert (~split.observed).nonzero().tolist() == [[0, 2, 4, 5]]


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_values_are_hidden_at_random(fraction):
    x = torch.zeros(2000, 1, 5, 5)
    observed = hide_at_random(x, fraction, seed=3)
    share = 1 - observed.double().mean()
    # At 0.9, one value of the 0.9**25 = 7 % of rows without any stays observed.
    expected = fraction - fraction**25 / 25
    assert share.item() == pytest.approx(expected, abs=4 * (0.25 / x.numel()) ** 0.5)
    assert observed.flatten(1).any(1).all()
    assert torch.equal(observed, hide_at_random(x, fraction, seed=3))
    assert not torch.equal(observed, hide_at_random(x, fraction, seed=4))


def test_hidden_values_do_not_depend_on_the_noise(digits):
    """Otherwise the pixels that become white would be those that are missing."""
    data = digits.with_missing(0.5)
    for split in (data.validation, data.test):
        low = split.noise < 0.5
        share = (low & split.observed).double().sum() / low.sum()
        assert share.item() == pytest.approx(0.5, abs=4 * (0.25 / low.sum().item()) ** 0.5)


def test_splits_differ_in_what_is_missing(digits):
    data = digits.with_missing(0.3)
    rows = len(data.validation)
    assert not torch.equal(data.train.observed[:rows], data.validation.observed)
    assert data.fingerprint != digits.fingerprint
    assert data.with_missing(0.2, seed=1).train.observed.sum() < data.train.observed.sum()


@pytest.mark.parametrize("kind", ["binary", "unit", "dequantized", "byte"])
def test_a_completed_split_has_its_units(kind):
    x = torch.randint(256, (6, 1, 4, 4), dtype=torch.uint8)
    if kind == "binary":
        x = torch.where(x < 128, 0, 255).to(torch.uint8)
    split = pv.Split(x).with_missing(0.4)
    values = pv.Split(x).with_fixed_noise().scored(kind)
    if kind == "dequantized":
        values = (x + 0.5) / 256
    completed = split.completed(values, kind)
    assert completed.observed is None
    assert torch.equal(completed.x, x)


def test_completed_floats_stay_floats():
    x = torch.rand(3, 1, 4, 4)
    completed = pv.Split(x).with_missing(0.5).completed((255 * x + 0.5) / 256, "dequantized")
    torch.testing.assert_close(completed.x, x)


def test_rows_without_a_value_are_refused():
    x = torch.rand(5, 1, 2, 2)
    x[3] = torch.nan
    with pytest.raises(pv.RequestError, match="1 rows without any observed value, such as row 3"):
        pv.Split(x)


@pytest.mark.parametrize(
    "observed", [torch.ones(5, 1, 2, 3), torch.full((5, 1, 2, 2), 0.5), np.zeros((5, 4), bool)]
)
def test_an_array_that_does_not_fit_is_refused(observed):
    with pytest.raises(pv.RequestError, match="observed has shape"):
        pv.Split(torch.rand(5, 1, 2, 2), observed=observed)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 50])
def test_an_impossible_share_is_refused(digits, fraction):
    with pytest.raises(pv.RequestError, match="from 0 to less than 1"):
        digits.with_missing(fraction)


def test_values_of_complete_floats_are_kept_as_they_are():
    x = torch.rand(3, 4)
    values, observed = split_missing(x, None, "x")
    assert values is x
    assert observed is None


@pytest.mark.parametrize("shape", [(30, 8, 8), (30, 9, 9, 3), (30, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_files_tell_what_is_missing(tmp_path, shape, dtype):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 200, shape).astype(dtype)
    if dtype == np.float32:
        x /= 255
    observed = rng.random(shape) < 0.8
    observed[:, 0] = True
    np.savez(tmp_path / "x.npz", images=x, observed=observed)
    split = pv.load_images(str(tmp_path / "x.npz"))
    kind = "unit" if len(shape) > 2 else "real"
    np.testing.assert_array_equal(split.scored(kind).isnan(), ~like(observed, split.x))
    assert split.x.dtype == torch.from_numpy(x).dtype


def like(observed, x):
    if observed.ndim == 4:
        observed = observed.transpose(0, 3, 1, 2)
    return observed.reshape(x.shape)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float32, torch.uint8])
def test_completed_vectors_have_their_type(dtype):
    x = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 1]]).to(dtype)
    if dtype in (torch.int32, torch.uint8):
        x = 100 * x
    observed = torch.tensor([[True, False, True]]).expand(3, 3)
    split = pv.Split(x, observed=observed)
    values = x.float() + 0.2
    completed = split.completed(values, "count" if dtype != torch.float32 else "real")
    assert completed.x.dtype == split.x.dtype
    if dtype == torch.float32:
        torch.testing.assert_close(completed.x[:, 1], values[:, 1])
    else:
        assert torch.equal(completed.x.float(), x.float())
