"""HDF5 files as h5py writes them, and AnnData's in the layout that anndata 0.12 writes."""

import h5py
import numpy as np
import pytest
import scipy.sparse
import torch

import pyro_vae as pv

IMAGES = np.random.default_rng(0).integers(0, 256, (36, 4, 4), dtype=np.uint8)
COUNTS = np.random.default_rng(1).poisson(0.8, (36, 16)).astype(np.float32)
CELLS = np.array(["B", "T", "NK"])[np.arange(36) % 3]


def write(path, arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return str(path)


def rows_of(split, known, names):
    """Assert that each row of a split is one of those known, with its label."""
    classes = split.classes or tuple(map(str, range(3)))
    for row, label in zip(split.x.flatten(1).numpy(), split.labels.tolist(), strict=True):
        matching = (known.reshape(36, -1) == row).all(1)
        assert classes[label] in set(names[matching].astype(str))


def test_arrays_by_name(tmp_path):
    strings = CELLS.astype(h5py.string_dtype())
    data = pv.load_data(write(tmp_path / "a.h5", {"images": IMAGES, "labels": strings}))
    assert (data.shape, data.classes) == ((1, 4, 4), ("B", "NK", "T"))
    for split in data.splits:
        rows_of(split, IMAGES, CELLS)


def test_groups_keep_their_splits(tmp_path):
    arrays = {"train/images": IMAGES, "test/images": IMAGES[:5], "train/labels": np.arange(36) % 3}
    arrays |= {"test/labels": np.arange(5) % 3, "note": np.zeros(3)}
    data = pv.load_data(write(tmp_path / "a.hdf5", arrays))
    assert [len(split) for split in data.splits] == [33, 3, 5]
    assert torch.equal(data.test.x[:, 0], torch.from_numpy(IMAGES[:5]))


def test_dsprites_as_hdf5(tmp_path):
    factors = np.stack([np.arange(36) % 3 * (n == 1) for n in range(6)], 1)
    arrays = {"imgs": IMAGES // 128, "latents/classes": factors, "latents/values": factors / 3}
    data = pv.load_data(write(tmp_path / "dsprites.hdf5", arrays))
    assert (data.classes, data.train.covariates.shape) == (("square", "ellipse", "heart"), (27, 6))


def test_a_single_array_and_a_folder_of_them(tmp_path):
    """As the files of PatchCamelyon are called."""
    data = pv.load_data(write(tmp_path / "split_train_x.h5", {"x": IMAGES}))
    assert sum(map(len, data.splits)) == 36
    write(tmp_path / "split_test_x.h5", {"x": IMAGES[:7]})
    assert [len(split) for split in pv.load_data(str(tmp_path)).splits] == [33, 3, 7]


def cells(path, matrix, column, name="layers/counts"):
    """An `.h5ad` file; `column` writes the column of labels."""
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"] = "anndata"
        file["X"] = np.log1p(COUNTS)
        if isinstance(matrix, np.ndarray):
            file[name] = matrix
        else:
            group = file.create_group(name)
            group.attrs.update({"encoding-type": f"{matrix.format}_matrix", "shape": matrix.shape})
            for part in ("data", "indices", "indptr"):
                group[part] = getattr(matrix, part)
        obs = file.create_group("obs")
        obs["_index"] = [f"cell{n}" for n in range(36)]
        column(obs)
    return str(path)


def categorical(obs):
    names, codes = np.unique(CELLS, return_inverse=True)
    group = obs.create_group("cell_type")
    group["categories"] = names.astype(h5py.string_dtype())
    group["codes"] = codes.astype(np.int8)


def strings(obs):
    obs["label"] = CELLS.astype(h5py.string_dtype())


def numbers(obs):
    obs["labels"] = np.arange(36) % 3


@pytest.mark.parametrize("column", [categorical, strings, numbers])
@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_matrix, scipy.sparse.csc_matrix])
def test_cells_of_anndata(tmp_path, form, column):
    path = cells(tmp_path / "a.h5ad", form(COUNTS), column)
    data = pv.load_data(path, image_shape=(4, 4))
    names = np.arange(36) % 3 if column is numbers else CELLS
    for split in data.splits:
        assert not split.x.is_floating_point()
        rows_of(split, COUNTS, names)


def test_cells_without_counts_or_labels(tmp_path):
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file["X"] = COUNTS / 9
        file.create_group("obs")
    data = pv.load_data(str(tmp_path / "a.h5ad"), image_shape=(4, 4))
    assert data.train.labels is None
    kept = torch.cat([split.x for split in data.splits]).flatten(1).sum(1).sort().values
    torch.testing.assert_close(kept, torch.from_numpy(COUNTS / 9).sum(1).sort().values)


BAD = {
    "other names": {"a": IMAGES, "b": IMAGES},
    "a test set alone": {"x_test": IMAGES},
    "nothing": {},
    "shape": {"images": np.zeros(36)},
}


@pytest.mark.parametrize("name", BAD)
def test_other_files_are_refused(tmp_path, name, refused):
    path = write(tmp_path / "a.h5", BAD[name])
    line = refused("train", "--data", path, "--run_dir", tmp_path / "r")
    assert "a.h5" in line
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["a.h5", "a.hdf5", "a.h5ad"])
@pytest.mark.parametrize("content", [b"", b"PK", b"\x89HDF\r\n\x1a\n" + bytes(600)])
def test_damaged_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(pv.RequestError, match="cannot be read as an HDF5 file") as caught:
        pv.load_data(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_large_arrays_are_refused_before_they_are_read(tmp_path):
    """An array without values takes no space in the file."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", (2**40, 28, 28), np.uint8, chunks=(1, 28, 28))
    sparse = scipy.sparse.csr_matrix((36, 2**40), dtype=np.float32)
    for path in (str(tmp_path / "a.h5"), cells(tmp_path / "a.h5ad", sparse, strings)):
        with pytest.raises(pv.RequestError, match="GiB"):
            pv.load_data(path)


def test_links_to_other_files_are_not_followed(tmp_path):
    write(tmp_path / "secret.h5", {"images": IMAGES})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = h5py.ExternalLink("secret.h5", "/images")
    with pytest.raises(pv.RequestError, match="arrays named nothing"):
        pv.load_data(str(tmp_path / "a.h5"))


def test_it_needs_h5py(tmp_path, monkeypatch, refused):
    path = write(tmp_path / "a.h5", {"images": IMAGES})
    monkeypatch.setattr("pyro_vae.data.hdf5.find_spec", lambda name: None)
    assert "pip install 'pyro_vae[hdf5]'" in refused("train", "--data", path)
