"""HDF5 files: arrays by name, and the cells of AnnData's `.h5ad` files. Needs h5py."""

from __future__ import annotations

from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.data.arrays import Archive, understood
from pyro_vae.data.files import LABELS, Arrays, Contents, check_bytes, refusing, whole
from pyro_vae.data.values import Classes
from pyro_vae.errors import RequestError

# Where AnnData files have counts; `X` is often normalized.
COUNTS = "layers/counts"


def read_hdf5(path: Path) -> Contents:
    """Read an `.h5ad` file of cells, or arrays that are named as in an `.npz` file.

    The array `images` of a group `train` counts as `train_images`.

    Raises:
        RequestError: If h5py is missing, or the file is damaged, too large, or of another layout.
    """
    if find_spec("h5py") is None:
        raise RequestError(
            f"{path} needs the package h5py: install it with pip install 'pyro_vae[hdf5]', or save"
            " the arrays as an .npz file"
        )
    import h5py

    with (
        refusing(f"{path} cannot be read as an HDF5 file", "save the arrays as an .npz file"),
        h5py.File(path) as file,
    ):
        if path.suffix == ".h5ad":
            return _cells(file, path)
        found: dict[str, Any] = {}
        file.visititems(found.__setitem__)  # leaves out links to other files
        stored = {name: item for name, item in found.items() if isinstance(item, h5py.Dataset)}
        check_bytes(path, sum(dataset.nbytes for dataset in stored.values()))
        arrays = {name.replace("/", "_"): _values(dataset) for name, dataset in stored.items()}
        return understood(Archive(path, arrays))


def _values(dataset: Any) -> np.ndarray:
    """The values of an array of HDF5; strings as NumPy's."""
    values = np.asarray(dataset)
    if values.dtype.kind == "O":
        return dataset.asstr()[()].astype(str)
    return values


def _cells(file: Any, path: Path) -> Contents:
    """The matrix of cells and genes, and the names of the cells' types.

    References:
        | https://anndata.readthedocs.io/en/stable/fileformat-prose.html
    """
    matrix = COUNTS if COUNTS in file else "X"
    x = whole(_matrix(file, matrix, path))
    layout, name = f"AnnData, {matrix}", f"{path}: {matrix}"
    columns = [column for column in LABELS if column in file["obs"]]
    if not columns:
        return Contents(layout, {"train": Arrays(x, name)})
    labels, classes = _column(file, f"obs/{columns[0]}")
    arrays = Arrays(x, name, labels, classes=classes)
    return Contents(f"{layout}, labels from {columns[0]}", {"train": arrays})


def _matrix(file: Any, name: str, path: Path) -> np.ndarray:
    """A dense matrix of an AnnData file, or a sparse one, which is a group of three arrays."""
    stored = file[name]
    if f"{name}/indptr" not in file:
        check_bytes(path, stored.nbytes)
        return np.asarray(stored)
    from scipy.sparse import csc_matrix, csr_matrix

    shape = tuple(stored.attrs["shape"].tolist())
    check_bytes(path, 4 * prod(shape))
    family = csc_matrix if stored.attrs["encoding-type"] == "csc_matrix" else csr_matrix
    parts = tuple(np.asarray(stored[part]) for part in ("data", "indices", "indptr"))
    return family(parts, shape, dtype=np.float32).toarray()


def _column(file: Any, name: str) -> tuple[np.ndarray, Classes | None]:
    """Labels, and the names of the classes if they are a group of codes and categories."""
    if f"{name}/codes" not in file:
        return _values(file[name]), None
    names = _values(file[f"{name}/categories"])
    return np.asarray(file[f"{name}/codes"]), tuple(names.astype(str).tolist())
