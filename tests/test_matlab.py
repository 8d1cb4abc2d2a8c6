"""MATLAB files of the published layouts, written with scipy: upright, with splits and labels."""

import logging

import numpy as np
import pytest
import torch
from scipy.io import savemat

import pyro_vae as pv


def pictures(count, height=28, width=28, seed=0):
    """Upright images of 0 and 1 that differ."""
    return np.random.default_rng(seed).integers(0, 2, (count, height, width), dtype=np.uint8)


def by_columns(images):
    """Rows of values as MATLAB makes them with `images(:)'`: column after column."""
    return np.stack([image.ravel(order="F") for image in images])


def same(split, images):
    return torch.equal(split.x[:, 0], 255 * torch.from_numpy(images))


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO, "pyro_vae")
    return caplog


@pytest.fixture
def omniglot(tmp_path):
    """chardata.mat as Burda et al. (2016) distribute it: float64, one column per image."""
    train, test = pictures(24), pictures(6, seed=1)
    alphabets = np.arange(24) % 4
    savemat(
        tmp_path / "chardata.mat",
        {
            "data": by_columns(train).T.astype(float),
            "target": np.eye(4)[alphabets].T,
            "targetchar": np.arange(24)[None].astype(float),
            "testdata": by_columns(test).T.astype(float),
            "testtarget": np.eye(4)[alphabets[:6]].T,
            "testtargetchar": np.arange(6)[None].astype(float),
        },
        do_compression=True,
    )
    return tmp_path / "chardata.mat", train, test, alphabets


def test_omniglot_of_28x28(omniglot, logged):
    path, train, test, alphabets = omniglot
    data = pv.load_data(str(path))
    assert [len(split) for split in data.splits] == [22, 2, 6]
    assert torch.equal(data.test.x[:, 0], torch.from_numpy(test).float())
    assert data.test.labels.tolist() == alphabets[:6].tolist()
    held_in = torch.cat([data.train.x, data.validation.x])[:, 0]
    labels = torch.cat([data.train.labels, data.validation.labels])
    for image, label in zip(train, alphabets, strict=True):
        (index,) = (held_in == torch.from_numpy(image)).all((1, 2)).nonzero()
        assert labels[index] == label
    (line,) = [message for message in logged.messages if "Burda" in message]
    assert "24 training, 6 test images of shape (1, 28, 28) with labels" in line


@pytest.fixture
def silhouettes(tmp_path):
    """caltech101_silhouettes_28_split1.mat: one row per image, labels from 1."""
    names = np.array(["anchor", "Faces", "brain"], dtype=object)
    content = {"classnames": names[None]}
    parts = {}
    for seed, (part, count) in enumerate({"train": 30, "val": 7, "test": 9}.items()):
        parts[part] = pictures(count, seed=seed)
        labels = np.arange(count, dtype=np.uint8) % 3 + 1
        content[f"{part}_data"] = by_columns(parts[part])
        content[f"{part}_labels"] = labels[:, None]
    savemat(tmp_path / "split1.mat", content)
    return tmp_path / "split1.mat", parts, content


def test_caltech_silhouettes(silhouettes, logged):
    path, parts, _ = silhouettes
    data = pv.load_data(str(path))
    for split, part in zip(data.splits, ("train", "val", "test"), strict=True):
        assert same(split, parts[part])
        assert split.labels.tolist() == [i % 3 for i in range(len(split))]
    assert data.classes == ("anchor", "Faces", "brain")
    assert logged.messages.count("split1.mat: classes 0 = anchor, 1 = Faces, 2 = brain") == 1
    assert torch.equal(data.test.scored("binary"), data.test.x / 255)


def test_caltech_silhouettes_without_names(silhouettes, tmp_path):
    _, parts, content = silhouettes
    del content["classnames"]
    savemat(tmp_path / "unnamed.mat", content)
    data = pv.load_data(str(tmp_path / "unnamed.mat"))
    assert data.classes == ("1", "2", "3")
    assert data.test.labels.tolist() == [i % 3 for i in range(9)]
    assert same(data.train, parts["train"])


def test_all_caltech_silhouettes(tmp_path):
    images = pictures(36)
    labels = np.arange(36) % 2 + 1
    names = np.array(["anchor", "ant"], dtype=object)
    content = {"X": by_columns(images), "Y": labels[None], "classnames": names[None]}
    savemat(tmp_path / "all.mat", content)
    data = pv.load_data(str(tmp_path / "all.mat"))
    assert [len(split) for split in data.splits] == [27, 3, 6]
    for image, label in zip(data.test.x, data.test.labels, strict=True):
        (index,) = (255 * images == image.numpy()).all((1, 2)).nonzero()[0]
        assert data.classes[label] == names[labels[index] - 1]


def test_frey_faces(tmp_path):
    """frey_rawface.mat: one column per image, stored by rows."""
    faces = np.random.default_rng(0).integers(0, 256, (40, 28, 20), dtype=np.uint8)
    savemat(tmp_path / "frey_rawface.mat", {"ff": faces.reshape(40, 560).T})
    data = pv.load_data(str(tmp_path / "frey_rawface.mat"))
    assert data.shape == (1, 28, 20)
    loaded = torch.cat([split.x for split in data.splits])
    assert sorted(map(bytes, loaded.numpy())) == sorted(map(bytes, faces))


@pytest.mark.parametrize(("first", "codes"), [(1, ((65, 97), (66, 98), (67, 99))), (0, (48, 49))])
def test_emnist(tmp_path, first, codes):
    """A struct of structs; a row of an image has its columns, one after the other.

    The labels of letters are from 1, and each stands for an upper and a lower case.
    """
    mapping = np.array([(n, *np.atleast_1d(code)) for n, code in enumerate(codes, first)])
    content, parts = {"mapping": mapping.astype(float)}, {}
    for seed, (part, count) in enumerate({"train": 30, "test": 7}.items()):
        parts[part] = 255 * pictures(count, seed=seed)
        labels = np.arange(count, dtype=np.uint8)[:, None] % len(codes) + first
        writers = np.full((count, 1), 2372.0)
        images = by_columns(parts[part])
        content[part] = {"images": images, "labels": labels, "writers": writers}
    savemat(tmp_path / "emnist.mat", {"dataset": content}, do_compression=True)
    data = pv.load_data(str(tmp_path / "emnist.mat"))
    assert data.classes == (("Aa", "Bb", "Cc") if first else ("0", "1"))
    assert torch.equal(data.test.x[:, 0], torch.from_numpy(parts["test"]))
    assert data.test.labels.tolist() == [n % len(codes) for n in range(7)]
    for image, label in zip(data.train.x, data.train.labels, strict=True):
        (index,) = (parts["train"] == image.numpy()).all((1, 2)).nonzero()[0]
        assert label == index % len(codes)


BAD = {
    "other variables": ({"pictures": np.zeros((20, 4))}, "variables named pictures"),
    "nothing": ({}, "variables named nothing"),
    "not square": (
        {"data": np.zeros((783, 20)), "testdata": np.zeros((783, 20))},
        "cannot be read as a .mat file",
    ),
    "range": (
        {"data": np.full((784, 20), 3.5), "testdata": np.zeros((784, 20))},
        "data holds float64 from 3.5 to 3.5",
    ),
    "another struct": ({"dataset": {"images": np.zeros((784, 20))}}, "variables named dataset"),
    "a code that is missing": (
        {
            "dataset": {
                "train": {"images": np.zeros((20, 784)), "labels": np.ones((20, 1))},
                "test": {"images": np.zeros((20, 784)), "labels": np.ones((20, 1))},
                "mapping": np.array([[0, 48], [2, 50]]),
            }
        },
        "cannot be read as a .mat file",
    ),
    "other faces": ({"ff": np.zeros((500, 20))}, "variables named ff"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_files_are_refused(tmp_path, name, refused):
    content, message = BAD[name]
    savemat(tmp_path / "a.mat", content)
    assert message in refused("train", "--data", tmp_path / "a.mat", "--run_dir", tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0", b"\x89HDF\r\n\x1a\n" + bytes(600)])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(pv.RequestError, match=r"a\.mat cannot be read as a \.mat file") as caught:
        pv.load_data(str(tmp_path / "a.mat"))
    assert "\n" not in str(caught.value)


def test_a_packed_file_over_the_limit_is_refused(tmp_path, monkeypatch):
    savemat(tmp_path / "a.mat", {"ff": np.zeros((560, 9000))}, do_compression=True)
    monkeypatch.setattr("pyro_vae.data.files.BYTES", 1_000_000)
    assert (tmp_path / "a.mat").stat().st_size < 1_000_000
    with pytest.raises(pv.RequestError, match="GiB"):
        pv.load_data(str(tmp_path / "a.mat"))
