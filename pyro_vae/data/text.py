"""Numbers as text: Larochelle's `.amat` files, and `.csv` files as pandas and Kaggle write them."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.data.files import LABELS, Arrays, Contents, binary, check_bytes, refusing, whole
from pyro_vae.data.values import UNKNOWN
from pyro_vae.errors import RequestError

# Columns of Larochelle's binarized MNIST.
MNIST_WIDTH = 784


def read_amat(path: Path) -> Contents:
    """Read rows of numbers between spaces; 784 columns of 0 and 1 are images of 28x28.

    Raises:
        RequestError: If it is too large, or does not hold numbers alone.
    """
    with refusing(f"{path} cannot be read as rows of numbers", "remove or replace it"):
        check_bytes(path, 2 * path.stat().st_size)
        rows = whole(_loaded(path, np.float32, ndmin=2))
    pixels = binary(rows)
    if rows.shape[1] == MNIST_WIDTH and pixels.dtype == bool:
        images = pixels.reshape(-1, 28, 28)
        return Contents("binary images as text", {"train": Arrays(images, str(path))})
    return Contents("rows of numbers as text", {"train": Arrays(rows, str(path))})


def read_csv(path: Path) -> Contents:
    """Read numeric columns; one that is called as in `LABELS` has the labels.

    A first column without a name is the index that pandas writes, and is left out. An empty cell is
    a missing value, or an unknown label.

    Raises:
        RequestError: If it is too large, or other columns are not numeric.
    """
    with refusing(
        f"{path} cannot be read as a table",
        "remove text such as names of rows, leave missing cells empty, or call a column of classes"
        " label",
    ):
        check_bytes(path, 2 * path.stat().st_size)
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
        delimiter = max(",;\t", key=first.count)
        cells = next(csv.reader([first], delimiter=delimiter), [])
        names = [cell.strip().lower() for cell in cells]
        skipped = 0 if all(not name or _is_number(name) for name in names) else 1
        labelled = [column for column, name in enumerate(names) if name in LABELS]
        if len(labelled) > 1:
            raise RequestError(f"{path} has {len(labelled)} columns of labels: keep one of them")
        columns = [column for column in range(len(names)) if column not in labelled]
        if skipped and names[0] in ("", "unnamed: 0"):
            columns.remove(0)
        if not columns:
            raise ValueError("there are no columns of numbers")
        options = {
            "delimiter": delimiter,
            "skiprows": skipped,
            "encoding": "utf-8-sig",
            "comments": None,
            "quotechar": '"',
        }
        rows = _rows(path, usecols=columns, ndmin=2, **options)
        labels = None
        if labelled:
            labels = _numbers(_loaded(path, str, usecols=labelled, ndmin=1, **options))
    arrays = Arrays(whole(rows), str(path), labels)
    return Contents("a table", {"train": arrays})


def _loaded(path: Path, dtype: type, **options: Any) -> np.ndarray:
    """What NumPy reads; a file without numbers is an exception, not a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return np.loadtxt(path, dtype, **options)


def _rows(path: Path, **options: Any) -> np.ndarray:
    """Numbers, NaN where a cell is empty."""
    try:
        return _loaded(path, np.float32, **options)
    except ValueError:
        # Ten times slower than without a converter.
        return _loaded(path, np.float32, converters=_cell, **options)


def _cell(text: str) -> float:
    if not text.strip():
        return np.nan
    return float(text)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(labels: np.ndarray) -> np.ndarray:
    """Labels as integers if all of them are, where an empty cell is unknown."""
    filled = np.where(np.char.strip(labels) == "", str(UNKNOWN), labels)
    if not all(map(_is_number, filled)):
        return labels
    numbers = filled.astype(float)
    is_whole = bool((np.isfinite(numbers) & (numbers == numbers.round())).all())
    return numbers.astype(np.int64) if is_whole else numbers
