"""The layouts of `.npz` files that are common in the field, and rows of values."""

import logging

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli.main import main

ROWS = np.random.default_rng(0).integers(0, 256, (36, 64), dtype=np.uint8)


def rows(path, array=ROWS):
    np.save(path, array)
    return str(path)


@pytest.fixture
def sprites(tmp_path):
    """As dSprites is distributed: `metadata` is an array of objects."""
    factors = np.stack(np.meshgrid([0], [0, 1, 2], [0, 1], [0, 1], [0, 1, 2], [0]), -1)
    factors = factors.reshape(-1, 6)
    values = factors * [1, 1, 0.1, np.pi / 20, 1 / 31, 1 / 31] + [1, 1, 0.5, 0, 0, 0]
    images = np.random.default_rng(0).integers(0, 2, (len(factors), 8, 8), dtype=np.uint8)
    np.savez_compressed(
        tmp_path / "dsprites.npz",
        metadata=np.array({"author": "the authors"}, dtype=object),
        imgs=images,
        latents_classes=factors,
        latents_values=values,
    )
    return tmp_path / "dsprites.npz", images, factors, values


def test_dsprites(sprites):
    path, images, factors, values = sprites
    data = pv.load_data(str(path))
    assert data.classes == ("square", "ellipse", "heart")
    assert [len(split) for split in data.splits] == [27, 3, 6]
    for split in data.splits:
        for image, label, covariates in zip(split.x, split.labels, split.covariates, strict=True):
            (index,) = (255 * images == image.numpy()).all((1, 2)).nonzero()[0]
            assert label == factors[index, 1]
            torch.testing.assert_close(covariates, torch.from_numpy(values[index]).float())
        assert torch.equal(split.y, split.covariates)


def test_of_dsprites_the_metadata_are_never_unpickled(tmp_path, sprites):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was read",)

    path, images, factors, values = sprites
    np.savez(
        path,
        metadata=np.array(Trap(), dtype=object),
        imgs=images,
        latents_classes=factors,
        latents_values=values,
    )
    assert len(pv.load_data(str(path)).test) == 6


def test_the_shapes_of_dsprites_can_be_conditioned_on(sprites, tmp_path):
    data = pv.load_data(str(sprites[0]), condition_on="labels")
    assert (data.label_dim, data.train.covariates) == (3, None)
    assert pv.load_images(str(sprites[0]), condition_on="labels").y.dtype == torch.int64
    assert pv.load_data(str(sprites[0]), condition_on="covariates").label_dim == 6
    argv = ["--data", sprites[0], "--model", "ConditionalVAE", "--epochs", "1", "--latent_dim", "2"]
    for asked, size in ((["--condition_on", "labels"], 3), ([], 6)):
        run = tmp_path / f"run{size}"
        assert main(["train", *map(str, argv), *asked, "--run_dir", str(run)]) == 0
        assert pv.load_run(run).label_dim == size
        assert main(["evaluate", str(run), "--num_samples", "3", "--check_images", "0"]) == 0
        options = ["--data", str(sprites[0]), "--num_samples", "3", "--check_images", "0"]
        assert main(["evaluate", str(run), *options]) == 0


def test_what_the_data_lack_cannot_be_conditioned_on(tmp_path, refused, images):
    line = refused("train", "--data", images, "--condition_on", "covariates", "--run_dir", tmp_path)
    assert "condition_on=covariates, but" in line
    assert "without covariates" in line
    path = rows(tmp_path / "a.npy")
    with pytest.raises(pv.RequestError, match="without labels"):
        pv.load_data(path, image_shape=(8, 8), condition_on="labels")
    with pytest.raises(pv.RequestError, match="condition_on must be one of labels, covariates"):
        pv.load_data(str(images), condition_on="noise")


def test_a_single_array_needs_no_name(tmp_path):
    images = ROWS.reshape(36, 8, 8)
    prints = {pv.load_data(rows(tmp_path / "a.npy", images)).fingerprint}
    for name in ("arr_0", "faces"):
        np.savez(tmp_path / "a.npz", **{name: images})
        prints.add(pv.load_data(str(tmp_path / "a.npz")).fingerprint)
    assert len(prints) == 1


def test_several_labels_per_image_are_covariates(tmp_path):
    """ChestMNIST: columns of 0 and 1, of which none or several are 1."""
    marks = np.random.default_rng(0).integers(0, 2, (36, 5), dtype=np.uint8)
    images = ROWS.reshape(36, 8, 8)
    arrays = {"train_images": images, "train_labels": marks, "val_images": images[:6]}
    arrays |= {"val_labels": np.eye(5)[[0, 1, 2, 3, 4, 0]].astype(np.uint8)}
    arrays |= {"test_images": images[:6], "test_labels": marks[:6]}
    np.savez(tmp_path / "chest.npz", **arrays)
    data = pv.load_data(str(tmp_path / "chest.npz"))
    assert (data.label_dim, data.train.labels, data.validation.labels) == (5, None, None)
    assert torch.equal(data.test.covariates, torch.from_numpy(marks[:6]).float())


def test_rows_are_images_of_the_shape_that_is_asked_for(tmp_path):
    data = pv.load_data(rows(tmp_path / "cat.npy"), image_shape=(8, 8))
    as_images = pv.load_data(rows(tmp_path / "same.npy", ROWS.reshape(-1, 8, 8)))
    assert data.fingerprint == as_images.fingerprint
    assert pv.load_data(rows(tmp_path / "cat.npy"), image_shape=[4, 16]).shape == (1, 4, 16)
    assert pv.load_data(rows(tmp_path / "cat.npy"), image_shape=(1, 8, 8)).shape == (1, 8, 8)
    assert pv.load_data(rows(tmp_path / "cat.npy"), image_shape=(4, 4, 4)).shape == (4, 4, 4)
    small = pv.load_data(rows(tmp_path / "cat.npy"), image_shape=(8, 8), image_size=4)
    assert small.shape == (1, 4, 4)


def test_rows_in_a_file_with_its_own_test_set(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=ROWS, x_test=ROWS[:5] / 255)
    data = pv.load_data(str(tmp_path / "a.npz"), image_shape=(8, 8))
    assert torch.equal(data.test.x.flatten(1), torch.from_numpy(ROWS[:5] / 255).float())


def test_rows_without_a_shape_are_vectors(tmp_path, caplog):
    caplog.set_level("INFO", logger="pyro_vae")
    data = pv.load_data(rows(tmp_path / "a.npy"))
    assert (data.shape, data.train.x.dtype) == ((64,), torch.uint8)
    assert "a.npy: an array: 36 rows of shape (64,)" in caplog.messages
    assert "for images, --image_shape 8 8, or image_shape=(8, 8) in Python" in caplog.text
    np.savez(tmp_path / "a.npz", images=ROWS[:, :50] / 7 - 1, labels=np.arange(36) % 3)
    data = pv.load_data(str(tmp_path / "a.npz"))
    assert (data.shape, data.train.x.dtype, data.label_dim) == ((50,), torch.float32, 3)
    assert len(caplog.messages) == 3


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (["8", "9"], "rows of 64 values, but images of shape (8, 9) have 72; 64 values make"),
        (["64"], "image_shape must be height and width"),
        (["2", "2", "4", "4"], "image_shape must be height and width"),
        (["1", "2000"], "image_shape must be"),
        (["0", "64"], "image_shape must be"),
        (["8", "x"], "image_shape must be"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(tmp_path, refused, shape, message):
    path = rows(tmp_path / "a.npy")
    line = refused("train", "--data", path, "--run_dir", tmp_path / "r", "--image_shape", *shape)
    assert message in line
    assert not (tmp_path / "r").exists()


def test_the_shape_of_images_that_are_no_rows_is_refused(tmp_path, images):
    assert pv.load_data("digits", image_shape=(8, 8)).shape == (1, 8, 8)
    for name in ("digits", str(images)):
        with pytest.raises(pv.RequestError, match="image_shape is for images that are stored as"):
            pv.load_data(name, image_shape=(16, 4))


def test_a_run_on_rows_is_resumed_and_takes_new_rows(tmp_path, capfd, refused):
    path, run = rows(tmp_path / "a.npy"), str(tmp_path / "run")
    argv = ["train", "--latent_dim", "2", "--epochs", "1", "--run_dir", run]
    assert main([*argv, "--data", path, "--image_shape", "8", "8"]) == 0
    assert "a.npy: an array: 36 images of shape (1, 8, 8)" in capfd.readouterr().out
    assert main(["train", "--run_dir", run, "--resume", "--epochs", "2"]) == 0
    options = ["--num_samples", "3", "--check_images", "0"]
    assert main(["evaluate", run, *options]) == 0
    new = rows(tmp_path / "new.npy", ROWS[:7])
    assert main(["evaluate", run, *options, "--data", new]) == 0
    assert main(["evaluate", run, *options, "--data", "digits"]) == 0
    other = rows(tmp_path / "other.npy", ROWS[:, :36])
    line = refused("evaluate", run, "--data", other)
    assert "images of shape (8, 8) have 64; 36 values make images of shape (6, 6)" in line


def test_rows_on_disk(tmp_path, monkeypatch):
    path = rows(tmp_path / "a.npy")
    whole = pv.load_data(path, image_shape=(8, 8))
    monkeypatch.setattr("pyro_vae.data.files.BYTES", 2_400)
    mapped = pv.load_data(path, image_shape=(8, 8))
    assert type(mapped.train).__name__ == "HostSplit"
    for one, other in zip(whole.splits, mapped.splits, strict=True):
        assert torch.equal(one.x, other[:].x)
    vectors = pv.load_data(path)
    assert type(vectors.train).__name__ == "HostSplit"
    assert torch.equal(vectors.test.x, whole.test.x.flatten(1))


def test_wide_and_narrow_numbers_are_equal(tmp_path):
    images = ROWS.reshape(-1, 8, 8)
    prints = set()
    for dtype in (np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, ">i4"):
        prints.add(pv.load_data(rows(tmp_path / "a.npy", images.astype(dtype))).fingerprint)
    assert len(prints) == 1
    unit = (images / 255).astype(np.float32)
    narrow = pv.load_data(rows(tmp_path / "a.npy", unit))
    assert pv.load_data(rows(tmp_path / "a.npy", unit.astype(float))).fingerprint == (
        narrow.fingerprint
    )
    binary = [pv.load_data(rows(tmp_path / "a.npy", images > 99)).fingerprint]
    binary.append(pv.load_data(rows(tmp_path / "a.npy", (images > 99).astype(">u2"))).fingerprint)
    assert len(set(binary)) == 1


def test_what_was_understood_is_one_line(tmp_path, caplog):
    caplog.set_level(logging.INFO, "pyro_vae")
    images = ROWS.reshape(-1, 8, 8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.arange(36) % 3, x_test=images[:5])
    pv.load_data(str(tmp_path / "a.npz"))
    assert caplog.messages == [
        "a.npz: arrays x_test, x_train, y_train: 36 training, 5 test images of shape (1, 8, 8)"
        " with labels"
    ]
