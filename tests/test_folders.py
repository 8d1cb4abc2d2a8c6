"""Folders of image files: what is read of them, and what is refused."""

from __future__ import annotations

import logging
import os
import struct
import subprocess
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

import pyro_vae as pv
from pyro_vae.data.datasets import load_data


def refused(path, part):
    """Assert that the path is refused in one line that contains a part of it."""
    with pytest.raises(pv.RequestError) as caught:
        load_data(path if isinstance(path, str) else str(path))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert part in str(caught.value)


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
