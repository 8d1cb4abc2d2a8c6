import pytest
import torch

import pyro_vae as pv
from pyro_vae.data.split import to_pixels


def test_binarization_does_not_depend_on_the_batch(digits):
    whole = digits.test.scored("binary")
    assert torch.equal(digits.test[40:50].scored("binary"), whole[40:50])
    subset = digits.test.subset(17)
    positions = [(digits.test.x == image).flatten(1).all(1).nonzero()[0, 0] for image in subset.x]
    assert torch.equal(subset.scored("binary"), whole[torch.stack(positions)])
    assert torch.equal(subset.x, digits.test.subset(17).x)


def test_pixels_have_the_right_mean_and_range():
    byte = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1).expand(256, 1, 100, 100)
    assert torch.equal(to_pixels(byte, "unit"), byte / 255)
    assert torch.equal(to_pixels(byte, "byte"), byte.float())
    binary = to_pixels(byte, "binary")
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert (binary[0].max(), binary[255].min()) == (0, 1)
    share = torch.arange(256) / 255
    assert (
        (binary.mean((1, 2, 3)) - share).abs() <= 5 * (share * (1 - share) / 10_000).sqrt() + 1e-6
    ).all()
    dequantized = to_pixels(byte, "dequantized") * 256
    assert (dequantized >= byte).all()
    assert (dequantized <= byte.float() + 1).all()
    assert (dequantized - byte).mean().item() == pytest.approx(
        0.5, abs=5 / (12 * byte.numel()) ** 0.5
    )


def test_training_pixels_are_redrawn(digits):
    assert not torch.equal(digits.train.scored("binary"), digits.train.scored("binary"))


def test_floats_cannot_be_scored_as_bytes():
    with pytest.raises(pv.RequestError, match="save them as uint8"):
        to_pixels(torch.rand(2, 1, 3, 3), "byte")


@pytest.mark.parametrize("text", [repr, str])
def test_repr_is_one_short_line(digits, text):
    line = text(digits)
    assert "\n" not in line
    assert len(line) < 120
    assert all(word in line for word in ("digits", "1349", "149", "299", "(1, 8, 8)"))
    assert "299" in text(digits.test)
    assert len(text(digits.test)) < 120
    assert "tensor" not in line + text(digits.test)


def test_the_fingerprint_depends_on_the_images(digits):
    assert digits.fingerprint == pv.load_data("digits").fingerprint
    assert digits.fingerprint != pv.load_data("digits", binarization="static").fingerprint


def test_unknown_kinds_of_pixels_are_refused():
    with pytest.raises(pv.RequestError, match="pixels must be one of"):
        to_pixels(torch.rand(2, 1, 3, 3), "grey")
