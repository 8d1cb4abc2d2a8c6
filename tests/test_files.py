import logging
import os
import socket
import zipfile

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli.main import main
from pyro_vae.data.datasets import load_data


def test_own_array(images):
    data = load_data(str(images))
    assert (data.shape, data.name) == ((1, 6, 5), "images.npz")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [45, 5, 10]
    original = np.load(images)
    for image, label in zip(data.test.x, data.test.labels, strict=True):
        (index,) = (original["images"] == image.numpy()[0]).all((1, 2)).nonzero()[0]
        assert original["labels"][index] == label


@pytest.mark.parametrize("shape", [(24, 4, 3), (24, 3, 4, 3), (24, 1, 4, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.bool_])
def test_arrays_of_every_kind(tmp_path, shape, dtype):
    array = (
        (np.random.default_rng(0).random(shape) * (255 if dtype == np.uint8 else 1))
        .round(2)
        .astype(dtype)
    )
    np.save(tmp_path / "a.npy", array)
    data = load_data(str(tmp_path / "a.npy"))
    assert data.shape == ((1, 4, 3) if len(shape) == 3 else shape[1:])
    assert data.train.x.dtype == (
        torch.float32 if dtype in (np.float32, np.float64) else torch.uint8
    )


BAD_ARRAYS = {
    "nan": (np.full((20, 4, 4), np.nan), "20 rows without any observed value"),
    "range": (np.full((20, 4, 4), 1.5), "float64 from 1.5 to 1.5"),
    "int64": (np.full((20, 4, 4), 300), "int64 from 300 to 300"),
    "one dimension": (np.zeros(20), r"vectors need \(N, D\): use x.reshape\(-1, 1\)"),
    "no_images": (np.zeros((0, 8, 8), dtype=np.uint8), "has shape"),
    "few": (np.zeros((11, 8, 8), dtype=np.uint8), "too few images"),
    "objects": (np.array([{}, {}], dtype=object), "holds Python objects: save np.stack"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_are_refused(tmp_path, name):
    array, message = BAD_ARRAYS[name]
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(pv.RequestError, match=message):
        load_data(str(tmp_path / "a.npy"))


def test_bad_files_are_refused(tmp_path):
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no image")
    np.savez(tmp_path / "other.npz", pictures=np.zeros((20, 4, 4)), more=np.zeros(3))
    np.savez(
        tmp_path / "labels.npz", images=np.zeros((20, 4, 4), dtype=np.uint8), labels=np.zeros(3)
    )
    for name, message in {
        "text.npy": "cannot be read as arrays",
        "notes.txt": "neither a folder",
        "empty": "holds no images",
        "broken": "cannot be read as an image",
        "other.npz": "arrays named pictures, more: a file needs images",
        "labels.npz": "one integer per image",
        "nowhere": "no data set or path",
    }.items():
        with pytest.raises(pv.RequestError, match=message):
            load_data(str(tmp_path / name))


def test_an_archive_over_the_limit_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((1000, 50, 50), dtype=np.uint8))
    monkeypatch.setattr("pyro_vae.data.files.BYTES", 1_000_000)
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    with pytest.raises(pv.RequestError, match="use fewer or smaller images"):
        pv.load_data(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("shape", [(20, 2, 5, 4), (20, 5, 7, 3), (20, 2, 6, 1), (20, 3, 9, 9)])
def test_small_images_are_not_mistaken_for_channels(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    assert pv.load_data(str(tmp_path / "a.npy")).shape == shape[1:]


def test_an_image_size_over_the_limit_is_refused(tmp_path, monkeypatch):
    with pytest.raises(pv.RequestError, match="image_size must be 1 to"):
        pv.load_data("digits", image_size=100_000)
    np.save(tmp_path / "a.npy", np.full((20_000, 2, 2), 9, dtype=np.uint8))
    monkeypatch.setattr("pyro_vae.data.files.BYTES", 2**33)
    with pytest.raises(pv.RequestError, match="GiB"):
        pv.load_data(str(tmp_path / "a.npy"), image_size=1000)


@pytest.mark.parametrize("shape", [(20, 8, 9, 3), (20, 5, 5, 3), (20, 9, 8, 1), (20, 8, 8, 4)])
def test_channels_last_are_converted(tmp_path, caplog, shape):
    caplog.set_level(logging.INFO, "pyro_vae")
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "last.npy", array)
    np.save(tmp_path / "first.npy", array.transpose(0, 3, 1, 2))
    last = load_data(str(tmp_path / "last.npy"))
    assert any("channels" in message and "last.npy" in message for message in caplog.messages)
    caplog.clear()
    first = load_data(str(tmp_path / "first.npy"))
    assert not any("channels" in message for message in caplog.messages)
    assert last.fingerprint == first.fingerprint


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_, np.float16])
def test_values_of_0_and_1_are_binary(tmp_path, dtype):
    array = np.random.default_rng(0).integers(0, 2, (20, 5, 5)).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    scored = [split.scored("binary") for split in load_data(str(tmp_path / "a.npy")).splits]
    assert torch.cat(scored).sum().item() == array.sum()


def test_a_warning_about_levels(tmp_path, caplog):
    np.save(tmp_path / "a.npy", np.arange(20 * 16).reshape(20, 4, 4) % 17)
    load_data(str(tmp_path / "a.npy"))
    assert "nearly black: if these are levels, use x / 16" in caplog.text


def binary(count, label=lambda i: i):
    """Images whose sum is their number, and labels."""
    images = np.stack([np.arange(64).reshape(8, 8) < i % 64 for i in range(count)])
    return images, np.array([label(i) for i in range(count)])


KINDS = ("images", "labels")


@pytest.mark.parametrize(
    ("keys", "sizes"),
    [
        (("x_train", "y_train", "x_test", "y_test"), (44, 4, 12)),
        (("X_train", "Y_train", "X_test", "Y_test"), (44, 4, 12)),
        (("train_images", "train_labels", "test_images", "test_labels"), (44, 4, 12)),
        (("x_train", "y_train", "x_test", "y_test", "x_val", "y_val"), (48, 5, 12)),
        (
            tuple(f"{part}_{kind}" for part in ("train", "test", "val") for kind in KINDS),
            (48, 5, 12),
        ),
        (("x_train", "y_train"), (36, 4, 8)),
    ],
)
def test_the_splits_of_a_file_are_kept(tmp_path, keys, sizes):
    arrays = []
    for count in (48, 12, 5):
        images, labels = binary(count, lambda i: i % 3)
        arrays += [images, labels[:, None]]
    np.savez(tmp_path / "a.npz", **dict(zip(keys, arrays, strict=False)))
    data = load_data(str(tmp_path / "a.npz"))
    assert tuple(map(len, data.splits)) == sizes
    if len(keys) > 2:
        assert torch.equal(data.test.x[:, 0] > 0, torch.from_numpy(arrays[2]))
        assert data.test.labels.tolist() == arrays[3].ravel().tolist()
        assert torch.equal(pv.load_images(str(tmp_path / "a.npz")).x, data.test.x)
    if len(keys) > 4:
        assert data.validation.labels.tolist() == arrays[5].ravel().tolist()
        with pytest.raises(pv.RequestError, match="leave out validation_size"):
            load_data(str(tmp_path / "a.npz"), validation_size=3)


@pytest.mark.parametrize(
    "names",
    [
        ("images", "test_images"),
        ("images", "x_train"),
        ("x_test", "y_test"),
        ("x_train", "test"),
        ("X", "y"),
        ("images", "val"),
        ("x_train", "X_train"),
        (),
    ],
)
def test_no_test_set_is_lost_or_merged(tmp_path, names):
    np.savez(tmp_path / "a.npz", **dict.fromkeys(names, binary(20)[0]))
    with pytest.raises(pv.RequestError, match=r"x_train, y_train, x_test and y_test"):
        load_data(str(tmp_path / "a.npz"))


LABELS = {
    "strings": (np.array(["b", "c", "a"]), ("a", "b", "c")),
    "bytes": (np.array([b"b", b"c", b"a"]), ("a", "b", "c")),
    "1 to 3": (np.array([2, 3, 1]), ("1", "2", "3")),
    "gaps": (np.array([10, 40, 0], dtype=np.uint16), ("0", "10", "40")),
    "a column": (np.array([[1], [2], [0]]), None),
    "one-hot": (np.eye(3)[[1, 2, 0]], None),
    "bool": (np.array([True, True, False]), None),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_every_kind(tmp_path, name, caplog):
    caplog.set_level(logging.INFO, "pyro_vae")
    labels, classes = LABELS[name]
    images = binary(60)[0]
    np.savez(tmp_path / "a.npz", images=images, labels=np.concatenate([labels] * 20))
    data = load_data(str(tmp_path / "a.npz"))
    expected = [0, 1] if name == "bool" else [0, 1, 2]
    assert data.train.labels.unique().tolist() == expected
    assert (data.classes, data.label_dim) == (classes, len(expected))
    messages = [message for message in caplog.messages if "classes 0 = " in message]
    assert len(messages) == (0 if classes is None else 1)
    for split in data.splits:
        sums = (split.x > 0).sum((1, 2, 3)) % 3  # an image's number, up to multiples of 3
        index = [1, 2, 0] if name != "bool" else [1, 1, 0]
        assert split.labels.tolist() == [index[i] for i in sums.tolist()]


BAD_LABELS = {
    "objects": (np.array(["a", "b"] * 10, dtype=object), r"labels.astype\(str\), or np.unique"),
    "floats": (np.arange(20.0), r"labels.astype\(int\)"),
    "real": (np.linspace(0, 1, 20), "real numbers as covariates"),
    "soft": (np.full((20, 3), 1 / 3), r"labels.argmax\(1\)"),
    "few": (np.zeros(3, int), "one integer per image"),
    "complex": (np.zeros(20, complex), "holds complex128"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_labels_are_refused_with_the_conversion(tmp_path, name):
    labels, message = BAD_LABELS[name]
    np.savez(tmp_path / "a.npz", images=binary(20)[0], labels=labels, allow_pickle=True)
    with pytest.raises(pv.RequestError, match=message):
        load_data(str(tmp_path / "a.npz"))


def test_covariates_of_one_dimension_are_refused_with_the_conversion(tmp_path):
    np.savez(tmp_path / "a.npz", images=binary(20)[0], covariates=np.arange(20.0))
    with pytest.raises(pv.RequestError, match=r"covariates.reshape\(-1, 1\)"):
        load_data(str(tmp_path / "a.npz"))


def refused(path, part):
    """Assert that the path is refused in one line that contains a part of it."""
    with pytest.raises(pv.RequestError) as caught:
        load_data(path if isinstance(path, str) else str(path))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert part in str(caught.value)


@pytest.mark.parametrize(
    "name", ["x" * 5000, "a/" * 3000, "nul\0byte", "new\nline", "\ud800", "", "\x1b[31mred"]
)
def test_impossible_paths_are_refused(name):
    refused(name, "no data set or path")


def test_a_loop_of_links(tmp_path):
    (tmp_path / "a.npz").symlink_to(tmp_path / "b.npz")
    (tmp_path / "b.npz").symlink_to(tmp_path / "a.npz")
    refused(tmp_path / "a.npz", "a.npz")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.png").symlink_to(tmp_path / "d" / "a.png")
    refused(tmp_path / "d", "a.png")


def special(path, kind):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_pipes_sockets_and_devices_are_refused(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket is at most 108 bytes
    (tmp_path / "d").mkdir()
    for name in ("x.npy", "x.npz", "x.png", "d/x.png"):
        special(type(tmp_path)(name), kind)
    for name in ("x.npy", "x.npz", "x.png"):
        refused(name, name)
    refused("d", "x.png")


def test_two_arrays_of_one_name(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 8, 8), dtype=np.uint8))
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(tmp_path / "a.npz", "a") as archive,
    ):
        archive.writestr("images.npy", archive.read("images.npy"))
    refused(tmp_path / "a.npz", "images")


def test_other_arrays_in_the_file_are_not_read(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 8, 8)), names=np.array([{}], dtype=object))
    assert load_data(str(tmp_path / "a.npz")).shape == (1, 8, 8)


def test_an_array_file_over_the_limit_is_refused(tmp_path):
    """A sparse file: it takes no room on the disk."""
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (2**36, 8, 8)}
        )
        file.truncate(2**42 + 1000)
    refused(tmp_path / "a.npy", "GiB")


def test_a_header_larger_than_its_data(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w") as archive,
        archive.open("images.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (2**36, 8, 8)}
        )
    refused(tmp_path / "a.npz", "a.npz")


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff("],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_files_without_an_array_are_refused(tmp_path, content, suffix):
    (tmp_path / f"a{suffix}").write_bytes(content)
    refused(tmp_path / f"a{suffix}", f"a{suffix}")


@pytest.mark.parametrize(
    "bad", ["labels=-1", "labels=1000000", "covariates=nan", "covariates=(12,)"]
)
def test_bad_labels_in_a_file(bad, tmp_path, capfd):
    arrays = {
        "labels=-1": {"labels": np.full(40, -1)},
        "labels=1000000": {"labels": np.arange(40) * 1_000_000},
        "covariates=nan": {"covariates": np.full((40, 2), np.nan)},
        "covariates=(12,)": {"covariates": np.zeros(40)},
    }
    np.savez(tmp_path / "data.npz", images=np.zeros((40, 4, 4), np.uint8), **arrays[bad])
    assert main(["train", "--data", str(tmp_path / "data.npz"), "--model", "ConditionalVAE"]) == 2
    _, err = capfd.readouterr()
    assert bad.split("=")[0] in err
    assert len(err.splitlines()) == 1
