"""Read what the user's path holds: a file, a folder of images, or a folder of files by split."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from itertools import chain
from pathlib import Path

from pyro_vae.data.arrays import PARTS, read_arrays
from pyro_vae.data.files import Arrays, Contents, Parts, Shape
from pyro_vae.data.folders import IMAGE_SUFFIXES, image_files, read_folder
from pyro_vae.data.hdf5 import read_hdf5
from pyro_vae.data.host import is_mapped, map_array
from pyro_vae.data.idx import is_idx, read_idx_file
from pyro_vae.data.matlab import read_matlab
from pyro_vae.data.text import read_amat, read_csv
from pyro_vae.errors import RequestError

logger = logging.getLogger("pyro_vae")

HDF5 = (".h5", ".hdf5", ".h5ad")
SUFFIXES = (".npy", ".npz", ".amat", ".csv", ".mat", *HDF5)
# What the files of images and of labels are called.
IMAGES = {"images", "imgs", "image", "img"}
LABELS = {"labels", "label", "targets", "target", "y"}
# The splits in messages.
WORDS = {"train": "training", "validation": "validation", "test": "test"}


def read_path(path: Path, size: int | None, image_shape: Shape | None) -> Parts:
    """Read the images of a file or folder, and say what was understood.

    Arguments:
        path: A file that exists, or a folder.
        size: Height and width to resize the images of a folder to.
        image_shape: The shape of images that are stored as rows of values.

    Raises:
        RequestError: If they are not understood, damaged or too large.
    """
    if path.is_dir() and image_files(path):
        return _read_images(path, size)
    if path.is_dir():
        contents = _read_set(path)
    elif is_mapped(path):
        return _logged(path, "an array on disk", Parts(map_array(path, image_shape)))
    else:
        contents = _with_labels(path, read_file(path))
    parts = Parts(**{part: each.split(image_shape) for part, each in contents.parts.items()})
    return _logged(path, contents.layout, parts)


def _read_images(path: Path, size: int | None) -> Parts:
    """The images of a folder, with its splits if its folders are train, test and the like."""
    folders = _folders_by_split(path)
    if not folders:
        return _logged(path, "a folder of images", Parts(read_folder(path, size)))
    parts = Parts(**{part: read_folder(folder, size) for part, folder in folders.items()})
    names = ", ".join(folders[part].name for part in WORDS if part in folders)
    return _logged(path, f"folders of images {names}", parts)


def _folders_by_split(path: Path) -> dict[str, Path]:
    """The folders of the splits; none if the folders are classes, or there are none.

    Raises:
        RequestError: If there are folders of splits, and others.
    """
    found: dict[str, Path] = {}
    others = []
    for each in sorted(path.iterdir()):
        if each.name.startswith(".") or not (each.is_dir() or each.suffix in IMAGE_SUFFIXES):
            continue
        parts = [part for part, aliases in PARTS.items() if each.name.lower() in aliases]
        if parts and parts[0] not in found and each.is_dir() and not each.is_symlink():
            found[parts[0]] = each
        else:
            others.append(each.name)
    if "train" not in found or len(found) == 1:
        return {}
    if others:
        names = " and ".join(found[part].name for part in WORDS if part in found)
        raise RequestError(
            f"{path} holds the folders {names}, which are splits, but also {others[0]}: move it"
            " elsewhere"
        )
    return found


def is_data_file(path: Path) -> bool:
    """Whether the name is that of a file that `read_file` reads."""
    return path.suffix.lower() in SUFFIXES or is_idx(path)


def read_file(path: Path) -> Contents:
    """The arrays of one file.

    Raises:
        RequestError: If they are not understood, damaged or too large.
    """
    suffix = path.suffix.lower()
    if suffix == ".amat":
        return read_amat(path)
    if suffix == ".csv":
        return read_csv(path)
    if suffix == ".mat":
        return read_matlab(path)
    if suffix in HDF5:
        return read_hdf5(path)
    if is_idx(path):
        return read_idx_file(path)
    return read_arrays(path)


def _logged(path: Path, layout: str, parts: Parts) -> Parts:
    """The same parts, after a message about them."""
    train, *others = parts
    counts = f"{len(train):,}"
    if any(others):
        named = zip(WORDS.values(), parts, strict=True)
        counts = ", ".join(f"{len(part):,} {word}" for word, part in named if part)
    counts += f" {train.noun}s"
    extras = [name for name in ("labels", "covariates") if getattr(train, name) is not None]
    text = " ".join([f"of shape {tuple(train.x.shape[1:])}", *(f"with {x}" for x in extras)])
    logger.info("%s: %s: %s %s", path.name, layout, counts, text)
    return parts


def _read_set(folder: Path) -> Contents:
    """A folder of files for each split, such as train-images and train-labels.

    Raises:
        RequestError: If the names do not tell the splits, or files do not fit together.
    """
    files = _data_files(folder)
    found: dict[str, dict[str, Path]] = {}
    for file in files:
        part, kind = _part(file), _kind(file)
        if part is None:
            continue
        other = found.setdefault(part, {}).setdefault(kind, file)
        if other is not file and f"{other.name}.gz" != file.name:
            raise RequestError(
                f"{folder} holds two files of {WORDS[part]} {kind}, {other.name} and {file.name}:"
                " keep one data set in a folder"
            )
    if "images" not in found.get("train", {}):
        raise RequestError(_nothing(folder, files))
    parts = {}
    for part, kinds in found.items():
        if "images" not in kinds:
            raise RequestError(
                f"{folder} holds {kinds['labels'].name}, but no {WORDS[part]} images: add them, or"
                " remove it"
            )
        parts[part] = _whole(kinds["images"])
        if "labels" in kinds:
            parts[part] = _labelled(parts[part], kinds["labels"])
    used = chain.from_iterable(kinds.values() for kinds in found.values())
    names = sorted(file.name for file in used)
    return Contents(f"files {', '.join(names)}", parts)


def _nothing(folder: Path, files: list[Path]) -> str:
    if not files:
        return f"{folder} holds no images: it needs files ending in " + ", ".join(
            sorted([*IMAGE_SUFFIXES, *SUFFIXES])
        )
    listed = ", ".join(file.name for file in files[:5])
    return (
        f"{folder} holds {listed}, but no file that is named as training images, such as"
        " train-images.npz or x_train.npy: rename the files, or give the path of one of them"
    )


def _data_files(folder: Path) -> list[Path]:
    """The files of a folder that may hold arrays; an unpacked one before its packed twin."""
    paths = sorted(folder.iterdir())
    return [
        path
        for path in paths
        if not path.name.startswith(".") and is_data_file(path) and path.is_file()
    ]


def _words(file: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", file.name.lower()))


def _part(file: Path) -> str | None:
    """The split that a file's name tells of."""
    parts = [part for part, aliases in PARTS.items() if not _words(file).isdisjoint(aliases)]
    return parts[0] if len(parts) == 1 else None


def _kind(file: Path) -> str:
    """Whether a file holds images or labels, by its name."""
    return "images" if _words(file).isdisjoint(LABELS) else "labels"


def _with_labels(path: Path, contents: Contents) -> Contents:
    """The same contents with the labels of a second file: train-labels.npz of train-images.npz."""
    words = _words(path)
    if words.isdisjoint(IMAGES) or contents.parts["train"].labels is not None:
        return contents
    for file in _data_files(path.parent):
        if _kind(file) == "labels" and _same(_words(file) - LABELS, words - IMAGES):
            parts = {**contents.parts, "train": _labelled(contents.parts["train"], file)}
            return Contents(f"{contents.layout}, labels from {file.name}", parts)
    return contents


def _same(words: set[str], others: set[str]) -> bool:
    """Whether two names agree; those of IDX files also tell the number of dimensions."""
    return {word for word in words ^ others if not word.startswith("idx")} <= {"gz"}


def _whole(file: Path) -> Arrays:
    """The arrays of a file that is one split."""
    parts = read_file(file).parts
    if len(parts) > 1:
        raise RequestError(f"{file} has splits of its own: give its path instead of the folder's")
    return parts["train"]


def _labelled(images: Arrays, file: Path) -> Arrays:
    labels = _whole(file).x
    if len(labels) != len(images.x):
        raise RequestError(
            f"{file} has {len(labels):,} labels for {len(images.x):,} images: replace it"
        )
    return replace(images, labels=labels)
