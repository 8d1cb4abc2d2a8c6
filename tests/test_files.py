import logging
import os
import socket
import struct
import subprocess
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

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


def folder(path, sizes=((8, 6),), mode="L", classes=("",), count=14):
    for kind in classes:
        (path / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new(mode, sizes[i % len(sizes)], i).save(path / kind / f"{i}.png")
    return str(path)


def test_a_flat_folder(tmp_path):
    data = load_data(folder(tmp_path / "flat"))
    assert data.shape == (1, 6, 8)
    assert data.train.labels is None


def test_a_folder_of_classes(tmp_path):
    data = load_data(folder(tmp_path / "classes", mode="RGB", classes=("cat", "dog")))
    assert data.shape == (3, 6, 8)
    assert set(torch.cat([data.train.labels, data.test.labels]).tolist()) == {0, 1}


def test_mixed_sizes_are_resized_when_asked(tmp_path):
    path = folder(tmp_path / "mixed", sizes=((8, 6), (5, 5)))
    with pytest.raises(
        pv.RequestError, match="mixes images of 5x5 and 8x6 pixels: give image_size"
    ):
        load_data(path)
    assert load_data(path, image_size=7).shape == (1, 7, 7)


def test_images_of_more_than_8_bits_are_refused(tmp_path):
    for mode, array in {
        "I;16": np.zeros((4, 4), dtype=np.uint16),
        "F": np.zeros((4, 4), dtype=np.float32),
    }.items():
        (tmp_path / mode).mkdir()
        Image.fromarray(array).save(tmp_path / mode / "a.tiff")
        with pytest.raises(pv.RequestError, match=f"a.tiff is of mode {mode}: save it with 8 bits"):
            load_data(str(tmp_path / mode))


def test_transparent_pixels_are_white(tmp_path):
    for i in range(14):
        Image.new("RGBA", (4, 4), (0, 0, 0, 0 if i % 2 else 255)).save(tmp_path / f"{i}.png")
    (tmp_path / "._0.png").write_text("left by another system")
    data = load_data(str(tmp_path))
    assert data.shape == (3, 4, 4)
    assert data.train.x.float().mean().item() == pytest.approx(127.5, abs=40)
    assert set(data.train.x.unique().tolist()) == {0, 255}


BAD_ARRAYS = {
    "nan": (np.full((20, 4, 4), np.nan), "nan"),
    "range": (np.full((20, 4, 4), 1.5), "float64 from 1.5 to 1.5"),
    "int64": (np.full((20, 4, 4), 300), "int64 from 300 to 300"),
    "flat": (np.zeros((20, 16), dtype=np.uint8), r"--image_shape 4 4, or image_shape=\(4, 4\)"),
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
    np.savez(tmp_path / "other.npz", pictures=np.zeros((20, 4, 4)))
    np.savez(
        tmp_path / "labels.npz", images=np.zeros((20, 4, 4), dtype=np.uint8), labels=np.zeros(3)
    )
    for name, message in {
        "text.npy": "cannot be read as arrays",
        "notes.txt": "neither a folder",
        "empty": "holds no images",
        "broken": "cannot be read as an image",
        "other.npz": "arrays named pictures: a file needs images",
        "labels.npz": "one integer per image",
        "nowhere": "no data set or path",
    }.items():
        with pytest.raises(pv.RequestError, match=message):
            load_data(str(tmp_path / name))


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(12):
        Image.new("L", (4, 4), index).save(tmp_path / "images" / f"{index}.png")
    Image.new("L", (4, 4), 99).save(tmp_path / "secret.png")
    (tmp_path / "images" / "inside.png").symlink_to(tmp_path / "images" / "3.png")
    assert len(pv.load_data(str(tmp_path / "images")).train) == 10
    (tmp_path / "images" / "outside.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(pv.RequestError, match=r"outside\.png"):
        pv.load_data(str(tmp_path / "images"))


def test_a_decompression_bomb_is_refused(tmp_path):
    """20,000 x 20,000 pixels in a file of 50 kB: refused by its header, before it is unpacked."""
    data = zlib.compress(bytes(20_000 // 8 + 1) * 20_000, 9)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0),
        b"IDAT": data,
        b"IEND": b"",
    }
    packed = [
        struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c))
        for name, c in chunks.items()
    ]
    (tmp_path / "giant.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    with pytest.raises(pv.RequestError, match=r"giant\.png"):
        pv.load_data(str(tmp_path))


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


def test_names_of_folders_are_kept(tmp_path, caplog):
    caplog.set_level(logging.INFO, "pyro_vae")
    data = load_data(folder(tmp_path / "pets", classes=("dog", "cat")))
    assert data.classes == data.test.classes == data.test[:2].to("cpu").classes == ("cat", "dog")
    assert caplog.messages.count("pets: classes 0 = cat, 1 = dog") == 1
    assert pv.load_images(str(tmp_path / "pets")).classes == ("cat", "dog")


def test_photos_are_turned_upright(tmp_path):
    upright = Image.new("L", (6, 4))
    upright.putpixel((0, 0), 255)
    for i in range(12):
        exif = upright.getexif()
        exif[0x0112] = 6  # stored a quarter turn anticlockwise
        stored = upright.transpose(Image.Transpose.ROTATE_90)
        stored.save(tmp_path / f"{i}.jpg", exif=exif, quality=100)
    data = load_data(str(tmp_path))
    assert data.shape == (1, 4, 6)
    assert data.train.x[0, 0].argmax() == 0


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_colours_become_rgb(tmp_path, mode):
    for i in range(12):
        Image.new("RGB", (4, 4), (250, 10, 10)).convert(mode).save(tmp_path / f"{i}.jpg")
    colour = load_data(str(tmp_path)).train.x.float().mean((0, 2, 3))
    torch.testing.assert_close(colour, torch.tensor([250.0, 10.0, 10.0]), atol=4, rtol=0)


def test_palettes_become_rgb(tmp_path):
    for i in range(12):
        Image.new("RGB", (4, 4), (250, 10, 90)).quantize(4).save(tmp_path / f"{i}.png")
    assert load_data(str(tmp_path)).train.x[0, :, 0, 0].tolist() == [250, 10, 90]


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


def test_a_newline_in_the_name_of_an_image(tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"no image")
    refused(tmp_path, "b.png")


@pytest.fixture
def nested(tmp_path):
    """Two classes and 1,500 nested folders, which Python's own functions cannot remove."""
    path = folder(tmp_path / "top", classes=("a", "b"))

    def nest(name):
        here = os.open(path, os.O_RDONLY)
        for _ in range(1500):
            os.mkdir(name, dir_fd=here)
            there = os.open(name, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = there
        os.close(here)
        return path

    yield nest
    subprocess.run(["rm", "-rf", path], check=True)


def test_folders_nested_1500_deep(nested):
    """Paths of 10,000 characters are too long for the system."""
    refused(nested("nested"), "cannot be read")


def test_folders_nested_1500_deep_with_short_names(nested):
    assert set(load_data(nested("n")).train.labels.tolist()) == {0, 1}


def test_hidden_folders_are_left_out(tmp_path):
    path = folder(tmp_path / "top", classes=("cat", "dog", ".ipynb_checkpoints"))
    data = load_data(path)
    assert sum(len(split) for split in (data.train, data.validation, data.test)) == 28
    assert set(data.train.labels.tolist()) == {0, 1}


def test_a_class_folder_that_is_a_link_is_refused(tmp_path):
    path = folder(tmp_path / "top", classes=("cat", "dog"))
    os.symlink(folder(tmp_path / "elsewhere"), tmp_path / "top" / "eel")
    refused(path, "eel")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_other_formats_are_not_read(tmp_path, suffix):
    """An EPS file is a program for Ghostscript."""
    (tmp_path / f"x{suffix}").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    refused(tmp_path, "cannot be read as an image")


@pytest.mark.parametrize(
    "suffix", [".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"]
)
def test_each_format(tmp_path, suffix):
    for i in range(12):
        Image.new("L", (6, 5), 200).save(tmp_path / f"{i}{suffix}")
    assert load_data(str(tmp_path)).shape[1:] == (5, 6)


def test_a_folder_over_the_limit_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = folder(tmp_path / "many", mode="RGB", sizes=((100, 100),))
    monkeypatch.setattr("pyro_vae.data.files.BYTES", 14 * 100 * 100 * 3 - 1)
    monkeypatch.setattr(
        ImageFile.ImageFile, "load", lambda image: pytest.fail("an image was decoded")
    )
    refused(path, "GiB")


def test_the_limit_applies_to_the_resized_images(tmp_path, monkeypatch):
    path = folder(tmp_path / "many", sizes=((100, 100), (90, 80)))
    monkeypatch.setattr("pyro_vae.data.files.BYTES", 100_000)
    assert load_data(path, image_size=8).shape == (1, 8, 8)


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


def test_grey_pngs_of_16_bits_are_scaled(tmp_path, caplog):
    caplog.set_level(logging.INFO, "pyro_vae")
    levels = np.linspace(0, 65535, 12 * 35).round().reshape(12, 5, 7).astype(np.uint16)
    for i, level in enumerate(levels):
        Image.fromarray(level).save(tmp_path / f"{i:02}.png")
    data = load_data(str(tmp_path))
    assert (data.shape, data.train.x.dtype) == ((1, 5, 7), torch.uint8)
    bytes_ = torch.cat([split.x for split in data.splits]).flatten().sort().values
    expected = torch.from_numpy(levels.astype(float).ravel() / 257)
    torch.testing.assert_close(bytes_.double(), expected, atol=0.5, rtol=0)
    assert f"{tmp_path.name}: 16 bits per pixel are scaled to 8" in caplog.messages
