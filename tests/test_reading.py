"""Folders of files by split, and files whose labels are in a second file."""

import gzip
import logging
import struct

import numpy as np
import pytest
import torch
from PIL import Image

import pyro_vae as pv

COUNTS = {"train": 24, "test": 6}


def arrays(part):
    generator = np.random.default_rng(COUNTS[part])
    images = generator.integers(0, 256, (COUNTS[part], 7, 7), dtype=np.uint8)
    return images, np.arange(COUNTS[part], dtype=np.uint8) % 3


def check(data):
    """Assert that the splits are those of `arrays`, with their labels."""
    images, labels = arrays("test")
    assert torch.equal(data.test.x[:, 0], torch.from_numpy(images))
    assert data.test.labels.tolist() == labels.tolist()
    images, labels = arrays("train")
    for split in (data.train, data.validation):
        for image, label in zip(split.x, split.labels, strict=True):
            (index,) = (images == image.numpy()).all((1, 2)).nonzero()[0]
            assert label == labels[index]
    assert [len(split) for split in data.splits] == [22, 2, 6]
    assert data.test.noise is not None


@pytest.fixture
def kmnist(tmp_path):
    """As KMNIST is distributed: four files with one array `arr_0` each."""
    for part in COUNTS:
        images, labels = arrays(part)
        np.savez_compressed(tmp_path / f"kmnist-{part}-imgs.npz", images)
        np.savez_compressed(tmp_path / f"kmnist-{part}-labels.npz", labels)
    return tmp_path


def test_a_folder_of_pairs_keeps_its_splits(kmnist, caplog):
    caplog.set_level(logging.INFO, "pyro_vae")
    data = pv.load_data(str(kmnist))
    check(data)
    (line,) = [message for message in caplog.messages if "kmnist-train-imgs.npz" in message]
    assert "24 training, 6 test images of shape (1, 7, 7) with labels" in line
    assert torch.equal(pv.load_images(str(kmnist)).x, data.test.x)
    torch.manual_seed(99)
    assert torch.equal(pv.load_data(str(kmnist)).test.noise, data.test.noise)


def test_one_file_of_a_pair_finds_its_labels(kmnist):
    data = pv.load_data(str(kmnist / "kmnist-train-imgs.npz"))
    images, labels = arrays("train")
    assert sum(map(len, data.splits)) == 24
    for image, label in zip(data.test.x, data.test.labels, strict=True):
        (index,) = (images == image.numpy()).all((1, 2)).nonzero()[0]
        assert label == labels[index]
    (kmnist / "kmnist-train-labels.npz").unlink()
    assert pv.load_data(str(kmnist / "kmnist-train-imgs.npz")).train.labels is None


def idx(array):
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("kind", ["packed", "unpacked", "both"])
def test_a_folder_of_idx_files(tmp_path, kind):
    for part, name in (("train", "train"), ("test", "t10k")):
        images, labels = arrays(part)
        for file, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = tmp_path / f"{name}-{file}-ubyte"
            if kind != "packed":
                path.write_bytes(idx(array))
            if kind != "unpacked":
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
    check(pv.load_data(str(tmp_path)))
    alone = next(tmp_path.glob("t10k-images*"))
    assert pv.load_images(str(alone)).labels.tolist() == arrays("test")[1].tolist()


@pytest.mark.parametrize("name", ["emnist-letters", "kmnist"])
def test_the_images_of_emnist_are_transposed(tmp_path, name):
    """Its labels of letters are from 1."""
    images, labels = arrays("train")
    is_emnist = name.startswith("emnist")
    stored = images.transpose(0, 2, 1) if is_emnist else images
    for part in ("train", "test"):
        files = {f"{part}-images-idx3": stored, f"{part}-labels-idx1": labels + 1}
        for file, array in files.items():
            content = gzip.compress(idx(np.ascontiguousarray(array)))
            (tmp_path / f"{name}-{file}-ubyte.gz").write_bytes(content)
    data = pv.load_data(str(tmp_path))
    assert torch.equal(data.test.x[:, 0], torch.from_numpy(images))
    assert (data.test.labels.tolist(), data.classes) == (labels.tolist(), ("1", "2", "3"))
    alone = pv.load_images(str(tmp_path / f"{name}-test-images-idx3-ubyte.gz"))
    assert torch.equal(alone.x, data.test.x)


@pytest.mark.parametrize("names", [("x_{}", "y_{}"), ("X-{}", "Y-{}"), ("{}_x", "{}_labels")])
def test_a_folder_of_npy_files(tmp_path, names):
    for part in COUNTS:
        for name, array in zip(names, arrays(part), strict=True):
            np.save(tmp_path / f"{name.format(part)}.npy", array)
    check(pv.load_data(str(tmp_path)))


def test_a_folder_of_npy_files_with_a_validation_set(tmp_path):
    for part, count in {"train": 20, "valid": 5, "test": 6}.items():
        np.save(tmp_path / f"{part}.npy", np.full((count, 4, 4), count, dtype=np.uint8) * 9)
    data = pv.load_data(str(tmp_path))
    assert [len(split) for split in data.splits] == [20, 5, 6]
    assert [int(split.x[0, 0, 0, 0]) for split in data.splits] == [180, 45, 54]
    with pytest.raises(pv.RequestError, match="leave out validation_size"):
        pv.load_data(str(tmp_path), validation_size=3)


def remove(name):
    return lambda folder: (folder / name).unlink()


def add(name, array):
    return lambda folder: np.savez(folder / name, array)


DAMAGES = {
    "no training images": (remove("kmnist-train-imgs.npz"), "no file that is named as training"),
    "no test images": (remove("kmnist-test-imgs.npz"), "kmnist-test-labels.npz, but no test image"),
    "two sets": (add("k49-train-imgs.npz", np.zeros((20, 7, 7))), "two files of training images"),
    "few labels": (add("kmnist-test-labels.npz", np.arange(5)), "has 5 labels for 6 images"),
    "other size": (add("kmnist-test-imgs.npz", np.zeros((6, 5, 5))), "those of test (1, 5, 5)"),
    "no images": (
        add("kmnist-test-imgs.npz", np.zeros(6)),
        "kmnist-test-imgs.npz: arr_0 has shape",
    ),
    "damaged": (
        lambda folder: (folder / "kmnist-test-imgs.npz").write_bytes(b"PK"),
        "kmnist-test-imgs.npz cannot be read",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_folders_that_do_not_fit_together_are_refused(kmnist, tmp_path, name, refused):
    damage, message = DAMAGES[name]
    damage(kmnist)
    assert message in refused("train", "--data", kmnist, "--run_dir", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_file_with_splits_of_its_own_is_no_part_of_a_folder(tmp_path):
    np.savez(tmp_path / "train.npz", x_train=np.zeros((20, 4, 4)), x_test=np.zeros((20, 4, 4)))
    with pytest.raises(pv.RequestError, match="give its path instead of the folder's"):
        pv.load_data(str(tmp_path))
    assert len(pv.load_data(str(tmp_path / "train.npz")).test) == 20


def test_a_folder_of_one_file_is_told_its_path(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((20, 4, 4)))
    with pytest.raises(pv.RequestError, match=r"holds images.npy, .* give the path of one of"):
        pv.load_data(str(tmp_path))


def save_images(folder, count, level):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("L", (6, 5), level + i).save(folder / f"{i}.png")


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "Val", "Test")])
def test_folders_of_images_keep_their_splits(tmp_path, names, caplog):
    """As torchvision's ImageFolder expects them: train/cat/0.png."""
    caplog.set_level(logging.INFO, "pyro_vae")
    for count, name in enumerate(names):
        save_images(tmp_path / name / "cat", 12 + count, 100)
        save_images(tmp_path / name / "dog", 12 + count, 200)
    data = pv.load_data(str(tmp_path))
    sizes = [22, 2, 26] if len(names) == 2 else [24, 26, 28]
    assert [len(split) for split in data.splits] == sizes
    assert data.classes == ("cat", "dog")
    for split in data.splits:
        assert torch.equal(split.labels, (split.x[:, 0, 0, 0] >= 200).long())
    (line,) = [message for message in caplog.messages if "folders of images" in message]
    assert all(name in line for name in names)
    assert len(pv.load_images(str(tmp_path))) == sizes[-1]


def test_folders_beside_the_splits_are_refused(tmp_path, refused):
    for name in ("train", "test", "extra"):
        save_images(tmp_path / name, 12, 100)
    line = refused("train", "--data", tmp_path)
    assert "train and test, which are splits, but also extra" in line


def test_a_class_may_be_called_test(tmp_path):
    for name in ("test", "cat"):
        save_images(tmp_path / name, 12, 100)
    assert pv.load_data(str(tmp_path)).classes == ("cat", "test")
