"""MATLAB files: Omniglot (Burda et al., 2016), Caltech-101 silhouettes, Frey faces, and EMNIST."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.data.files import Arrays, Contents, binary, check_bytes, refusing
from pyro_vae.errors import RequestError

# Height and width of the Frey faces.
FREY_SHAPE = (28, 20)


def read_matlab(path: Path) -> Contents:
    """Read a `.mat` file of one of the known layouts.

    Raises:
        RequestError: If it is damaged, too large, or of another layout.
    """
    from scipy.io import loadmat, whosmat

    with (
        refusing(f"{path} cannot be read as a .mat file", "save it as an .npz file"),
        path.open("rb") as file,
    ):
        check_bytes(path, path.stat().st_size)
        sizes = [int(np.prod(shape, dtype=float)) for _, shape, _ in whosmat(file)]
        check_bytes(path, 8 * sum(sizes))
        file.seek(0)
        loaded = loadmat(file)
        variables = {name: value for name, value in loaded.items() if not name.startswith("__")}
        contents = (
            _omniglot(variables, path)
            or _silhouettes(variables, path)
            or _all_silhouettes(variables, path)
            or _frey_faces(variables, path)
            or _emnist(variables, path)
        )
        if contents is None:
            listed = ", ".join(variables) or "nothing"
            raise RequestError(
                f"{path} holds variables named {listed}, which is no known layout: save the images"
                " as an .npz file, np.savez(path, images=x)"
            )
        return contents


def _upright(rows: np.ndarray) -> np.ndarray:
    """Square images whose columns MATLAB stored one after the other, shape (N, side, side)."""
    side = round(rows.shape[1] ** 0.5)
    return rows.reshape(len(rows), side, side).transpose(0, 2, 1)


def _omniglot(variables: dict[str, Any], path: Path) -> Contents | None:
    """chardata.mat: one column per image, and one-hot alphabets."""
    names = {"train": ("data", "target"), "test": ("testdata", "testtarget")}
    if not {"data", "testdata"} <= variables.keys():
        return None
    parts = {}
    for part, (x, y) in names.items():
        labels = variables[y].T if y in variables else None
        parts[part] = Arrays(_upright(variables[x].T), f"{path}: {x}", labels)
    return Contents("Omniglot of 28x28 (Burda et al.), alphabets as labels", parts)


def _silhouettes(variables: dict[str, Any], path: Path) -> Contents | None:
    """caltech101_silhouettes_28_split1.mat: one row per image, and labels from 1."""
    names = {"train": "train", "validation": "val", "test": "test"}
    if not {f"{name}_data" for name in names.values()} <= variables.keys():
        return None
    parts = {}
    for part, name in names.items():
        images = _upright(binary(variables[f"{name}_data"]))
        labels = variables.get(f"{name}_labels")
        parts[part] = _classified(images, labels, variables, f"{path}: {name}_data")
    return Contents("Caltech-101 silhouettes with their splits", parts)


def _all_silhouettes(variables: dict[str, Any], path: Path) -> Contents | None:
    """caltech101_silhouettes_28.mat: all images, without splits."""
    if not {"X", "Y", "classnames"} <= variables.keys():
        return None
    images = _upright(binary(variables["X"]))
    arrays = _classified(images, variables["Y"], variables, f"{path}: X")
    return Contents("Caltech-101 silhouettes", {"train": arrays})


def _classified(
    images: np.ndarray, labels: np.ndarray | None, variables: dict[str, Any], name: str
) -> Arrays:
    """Images with labels from 1, which are numbers of names in `classnames`."""
    if labels is None:
        return Arrays(images, name)
    numbers = labels.ravel().astype(np.int64)
    if "classnames" not in variables:
        return Arrays(images, name, numbers)
    classes = tuple(str(cell.item()) for cell in variables["classnames"].ravel())
    return Arrays(images, name, numbers - 1, classes=classes)


def _frey_faces(variables: dict[str, Any], path: Path) -> Contents | None:
    """frey_rawface.mat: one column per image, whose rows are stored one after the other."""
    if variables.keys() != {"ff"} or len(variables["ff"]) != FREY_SHAPE[0] * FREY_SHAPE[1]:
        return None
    images = variables["ff"].T.reshape(-1, *FREY_SHAPE)
    return Contents("Frey faces", {"train": Arrays(images, f"{path}: ff")})


def _emnist(variables: dict[str, Any], path: Path) -> Contents | None:
    """emnist-letters.mat and its relatives: a struct of structs, and codes of the characters.

    A row of `mapping` is a label and the characters that it stands for, one or two.
    """
    if variables.keys() != {"dataset"}:
        return None
    dataset = variables["dataset"]
    if not {"train", "test", "mapping"} <= set(dataset.dtype.names or ()):
        return None
    rows = dataset["mapping"].item().astype(int).tolist()
    names = {label: "".join(map(chr, codes)) for label, *codes in rows}
    parts = {}
    for part in ("train", "test"):
        stored = dataset[part].item()
        images, labels = (stored[name].item() for name in ("images", "labels"))
        characters = np.array([names[label] for label in labels.ravel().tolist()])
        parts[part] = Arrays(_upright(images), f"{path}: dataset.{part}", characters)
    return Contents("EMNIST with its test set, characters as labels", parts)
