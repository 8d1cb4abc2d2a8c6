import logging
from dataclasses import replace

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


BYTES = torch.arange(64 * 4).remainder(256).to(torch.uint8).reshape(4, 1, 8, 8)


def test_a_slice_is_not_converted_again():
    """Black images with one pixel of value 1 are bytes if the others are."""
    x = BYTES.clone()
    x[0] = 0
    x[0, 0, 0, 0] = 1
    split = pv.Split(x)[:1].with_fixed_noise().to("cpu").only(torch.tensor([0])).subset(1)
    assert split.x.max() == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": torch.arange(3)}, "one integer per image"),
        ({"labels": torch.arange(4.0)}, r"labels.long\(\)"),
        ({"covariates": torch.arange(4.0)}, r"covariates.reshape\(-1, 1\)"),
        ({"covariates": torch.full((4, 1), torch.nan)}, "NaN or infinite"),
        ({"noise": torch.rand(4, 8, 8)}, "noise has shape"),
        ({"labels": torch.arange(4), "classes": ("a", "b")}, "names of 2 classes"),
    ],
)
def test_other_fields_are_checked(fields, message):
    with pytest.raises(pv.RequestError, match=message):
        pv.Split(BYTES, **fields)


def labelled(labels, classes=None):
    labels = torch.as_tensor(labels)
    return pv.Split(torch.rand(len(labels), 1, 4, 4), labels, classes=classes)


def test_classes_are_those_of_training(caplog):
    caplog.set_level(logging.INFO, "pyro_vae")
    data = pv.Data("few", labelled([10, 40, 0]), labelled([40]), labelled([0, 10]))
    assert (data.label_dim, data.classes) == (3, ("0", "10", "40"))
    assert [split.labels.tolist() for split in data.splits] == [[1, 2, 0], [2], [0, 1]]
    assert caplog.messages == ["few: classes 0 = 0, 1 = 10, 2 = 40"]
    again = data.map(lambda split: split).to("cpu")
    assert (again.classes, again.label_fingerprint) == (data.classes, data.label_fingerprint)
    assert len(caplog.messages) == 1


def test_an_absent_class_is_not_counted():
    data = pv.Data("few", labelled([0, 2, 0], ("cat", "dog", "eel")), *[labelled([0])] * 2)
    with pytest.raises(pv.RequestError, match="no training images of the classes 0"):
        _ = data.label_dim  # the other splits have a class called 0
    held_out = labelled([2], ("cat", "dog", "eel"))
    data = pv.Data("few", labelled([0, 2, 0], held_out.classes), held_out, held_out)
    assert (data.label_dim, data.classes) == (2, ("cat", "eel"))
    assert data.test.labels.tolist() == [1]


def test_classes_that_training_lacks_come_last_and_are_refused_for_labels():
    data = pv.Data("few", labelled([1, 3]), labelled([3]), labelled([0, 3]))
    assert data.classes == ("1", "3", "0")
    assert data.test.labels.tolist() == [2, 1]
    with pytest.raises(pv.RequestError, match="no training images of the classes 0; use"):
        _ = data.label_dim


def test_classes_of_a_model_number_new_images():
    split = labelled([0, 1, 0], ("cat", "dog")).with_classes(("ant", "dog", "cat"))
    assert split.labels.tolist() == [2, 1, 2]
    assert split.class_names() == ["dog", "cat"]
    with pytest.raises(pv.RequestError, match="unknown classes: eel"):
        labelled([0], ("eel",)).with_classes(("cat",))


def test_unknown_labels_are_no_class():
    data = pv.Data("few", labelled([-1, 5, 7]), labelled([5, -1]), labelled([7]))
    assert data.classes == ("5", "7")
    assert data.train.labels.tolist() == [-1, 0, 1]
    assert data.validation.labels.tolist() == [0, -1]
    assert data.train.class_names() == ["5", "7"]
    assert data.label_dim == 2
    assert data.train.labelled().labels.tolist() == [0, 1]
    assert data.test.labelled() is data.test


@pytest.mark.parametrize(
    ("labels", "classes", "problem"),
    [
        ([-1, -1], None, "all training labels of few are unknown"),
        ([-1, 0], ("cat", "dog"), "all training labels of the classes dog are unknown"),
        ([-1, 1], None, "all training labels of the classes 0 are unknown"),
    ],
)
def test_a_class_without_any_label_is_refused(labels, classes, problem):
    held_out = labelled([-1, 0] if classes is None else [-1, -1], classes)
    data = pv.Data("few", labelled(labels, classes), held_out, held_out)
    with pytest.raises(pv.RequestError, match=problem):
        _ = data.label_dim


def test_labels_below_minus_one_are_refused():
    with pytest.raises(pv.RequestError, match="value -2, but classes are numbered from 0: use -1"):
        labelled([-2, 1])


def test_hidden_labels_are_balanced_and_depend_on_the_seed_only(digits):
    data = digits.with_labels(30, seed=4)
    kept = data.train.labels
    assert kept[kept >= 0].bincount().tolist() == [3] * 10
    assert torch.equal(kept[kept >= 0], digits.train.labels[kept >= 0])
    assert torch.equal(kept, digits.with_labels(30, seed=4).train.labels)
    assert not torch.equal(kept, digits.with_labels(30, seed=5).train.labels)
    assert torch.equal(data.test.labels, digits.test.labels)
    assert data.fingerprint == digits.fingerprint
    assert data.label_fingerprint != digits.label_fingerprint


@pytest.mark.parametrize(
    ("count", "problem"),
    [(5, "such as labels=10"), (105, "such as labels=100"), (2000, "asks for 200 of each class")],
)
def test_numbers_of_labels_that_cannot_be_kept(digits, count, problem):
    with pytest.raises(pv.RequestError, match=problem):
        digits.with_labels(count)


def test_no_labels_cannot_be_hidden():
    with pytest.raises(pv.RequestError, match="the data have none"):
        pv.Split(BYTES).with_labels(10)


def test_images_of_different_shapes_are_refused():
    with pytest.raises(pv.RequestError, match=r"shape \(1, 8, 8\), but those of test \(1, 4, 4\)"):
        pv.Data("mixed", pv.Split(BYTES), pv.Split(BYTES), labelled([0]))


def test_held_out_splits_made_by_hand_have_fixed_noise(digits):
    parts = [replace(split, noise=None) for split in digits.splits]
    data = pv.Data("by hand", *parts)
    assert data.train.noise is None
    for split, loaded in zip(data.splits[1:], digits.splits[1:], strict=True):
        assert torch.equal(split.scored("binary"), loaded.scored("binary"))


def test_noise_is_fixed_once(digits):
    split = replace(digits.test, noise=None)
    first, second = split.with_fixed_noise(), split.with_fixed_noise()
    assert torch.equal(first.scored("binary"), second.scored("binary"))
    assert first.with_fixed_noise() is first
    assert torch.equal(first[5:9].scored("binary"), first.scored("binary")[5:9])


def test_tensors_in_place_of_splits_are_refused():
    x = torch.zeros(4, 1, 4, 4)
    for other in (x, x.numpy(), (x, None)):
        with pytest.raises(pv.RequestError, match="validation must be a Split"):
            pv.Data("zeros", pv.Split(x), other, pv.Split(x))
