"""NumPy's files: `.npy`, and those layouts of `.npz` files that are common in the field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, product
from pathlib import Path

import numpy as np

from pyro_vae.data.files import Arrays, Contents, binary, check_bytes, refusing
from pyro_vae.errors import RequestError

# The splits of a file, and what they are called in the names of arrays and files.
PARTS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "t10k"),
}
# The names of a split's images and labels: of Keras, of MedMNIST, and a third that is common.
PAIRS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("{}_x", "{}_y"))
ADVICE = (
    "images (and labels or covariates), or x_train, y_train, x_test and y_test (and x_val, y_val)"
    " if it has a test set of its own"
)
# The factors of dSprites are color, shape, scale, orientation and the two positions.
SPRITE_FACTORS = 6
SPRITE_SHAPES = ("square", "ellipse", "heart")


def read_arrays(path: Path) -> Contents:
    """Read an `.npy` file of images, or an `.npz` file, with its own test set if it has one.

    Raises:
        RequestError: If the file is damaged, too large, or holds no images.
    """
    with (
        refusing(f"{path} cannot be read as arrays", "save it with numpy.save or numpy.savez"),
        path.open("rb") as file,
    ):
        check_bytes(path, path.stat().st_size)
        with _refusing_objects(str(path), "np.stack(x) for images"):
            loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return Contents("an array", {"train": Arrays(loaded, str(path))})
        check_bytes(path, sum(member.file_size for member in loaded.zip.infolist()))
        return understood(Archive(path, loaded))


class Archive:
    """The arrays of a file, each read when it is asked for; names are in lower case.

    Attributes:
        path: The file.
        names: The names of the arrays.
        listed: The names as the file has them.
        is_ambiguous: Whether two names differ in case alone.
    """

    def __init__(self, path: Path, loaded: Mapping[str, np.ndarray]) -> None:
        self.path = path
        self._loaded = loaded
        self._stored = {name.lower(): name for name in loaded}
        self.names = set(self._stored)
        self.listed = ", ".join(loaded) or "nothing"
        self.is_ambiguous = len(self._stored) < len(loaded)

    def get(self, name: str, conversion: str) -> np.ndarray:
        """An array; `conversion` is the advice if it holds Python objects, which are pickles."""
        stored = self._stored[name]
        with _refusing_objects(f"{self.path}: {stored}", conversion):
            return self._loaded[stored]

    def images(self, name: str) -> np.ndarray:
        return self.get(name, f"np.stack({name})")

    def labels(self, name: str) -> np.ndarray | None:
        """The array of labels, or None if there is none of this name."""
        if name not in self.names:
            return None
        return self.get(name, f"{name}.astype(str), or np.unique({name}, return_inverse=True)[1]")

    def covariates(self, name: str) -> np.ndarray | None:
        """The array of covariates, or None if there is none of this name."""
        if name not in self.names:
            return None
        return self.get(name, f"{name}.astype(float)")

    def observed(self) -> np.ndarray | None:
        """Which values of the images are observed, or None if the file does not tell."""
        if "observed" not in self.names:
            return None
        return self.get("observed", "observed.astype(bool)")

    def title(self, name: str) -> str:
        """What messages call an array."""
        return f"{self.path}: {self._stored[name]}"


def understood(archive: Archive) -> Contents:
    """What the names of the arrays say of a file.

    Raises:
        RequestError: If the names are of no layout that is known.
    """
    contents = _splits(archive) or _images(archive) or _sprites(archive) or _single(archive)
    if contents is None or archive.is_ambiguous:
        raise RequestError(
            f"{archive.path} holds arrays named {archive.listed}: a file needs {ADVICE}"
        )
    return contents


@contextmanager
def _refusing_objects(name: str, conversion: str) -> Iterator[None]:
    """Refuse arrays of Python objects, which are pickles."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Object arrays cannot be loaded"):
            raise
        raise RequestError(f"{name} holds Python objects: save {conversion}") from error


def _splits(archive: Archive) -> Contents | None:
    """A file with its own splits, as Keras and MedMNIST write it."""
    found: dict[str, tuple[str, str]] = {}
    for part, aliases in PARTS.items():
        for alias, (x, y) in product(aliases, PAIRS):
            if x.format(alias) in archive.names:
                found.setdefault(part, (x.format(alias), y.format(alias)))
    used = set(chain(*found.values()))
    left = archive.names - used
    if "train" not in found or "images" in left or any(map(_tells_of_a_split, left)):
        return None
    parts = {part: _pair(archive, x, y) for part, (x, y) in found.items()}
    if any(_is_multi_label(arrays.labels) for arrays in parts.values()):
        parts = {part: _multi_label(arrays) for part, arrays in parts.items()}
    stored = ", ".join(sorted(used & archive.names))
    return Contents(f"arrays {stored}", parts)


def _pair(archive: Archive, x: str, y: str) -> Arrays:
    return Arrays(archive.images(x), archive.title(x), archive.labels(y))


def _is_multi_label(labels: np.ndarray | None) -> bool:
    """Whether images may have several labels, or none: columns of 0 and 1 (ChestMNIST)."""
    if labels is None or labels.ndim != 2 or labels.shape[1] == 1:
        return False
    is_binary = labels.dtype.kind in "biu" and np.isin(labels, (0, 1)).all()
    return bool(is_binary and (labels.sum(1) != 1).any())


def _multi_label(arrays: Arrays) -> Arrays:
    """Labels that are no classes are covariates."""
    return Arrays(arrays.x, arrays.name, covariates=arrays.labels)


def _images(archive: Archive) -> Contents | None:
    """This package's own layout: `images`, with `labels`, `covariates` and `observed`, if any."""
    left = archive.names - {"images", "labels", "covariates", "observed"}
    if "images" not in archive.names or any(map(_tells_of_a_split, left)):
        return None
    arrays = Arrays(
        archive.images("images"),
        archive.title("images"),
        archive.labels("labels"),
        archive.covariates("covariates"),
        observed=archive.observed(),
    )
    return Contents("array images", {"train": arrays})


def _tells_of_a_split(name: str) -> bool:
    """Whether an array that is not understood may be a part of a test set."""
    aliases = set(chain(*PARTS.values()))
    return "test" in name or not aliases.isdisjoint(name.split("_"))


def _sprites(archive: Archive) -> Contents | None:
    """dSprites: the shapes are the labels, the values of all factors the covariates.

    `metadata` is a pickle, which is not read.
    """
    if not {"imgs", "latents_values", "latents_classes"} <= archive.names:
        return None
    images = archive.images("imgs")
    factors = archive.labels("latents_classes")
    arrays = Arrays(
        binary(images), archive.title("imgs"), covariates=archive.covariates("latents_values")
    )
    if factors is not None and factors.shape == (len(images), SPRITE_FACTORS):
        arrays = replace(arrays, labels=factors[:, 1], classes=SPRITE_SHAPES)
    return Contents("dSprites, shapes as labels and factors as covariates", {"train": arrays})


def _single(archive: Archive) -> Contents | None:
    """A single array of any name, as in the files of KMNIST."""
    if len(archive.names) != 1 or any(map(_tells_of_a_split, archive.names)):
        return None
    (name,) = archive.names
    return Contents("an array", {"train": Arrays(archive.images(name), archive.title(name))})
