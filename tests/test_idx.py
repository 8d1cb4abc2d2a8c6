"""The files of MNIST are read where they are, and damaged ones are named."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from idx_files import FILES, IMAGES, LABELS, TEST, idx, idx_folder

import pyro_vae as pv
from pyro_vae.data.datasets import load_data


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
