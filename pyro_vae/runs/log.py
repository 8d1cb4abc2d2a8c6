"""The log of a run, metrics.jsonl: one record for each epoch, as JSON lines."""

from __future__ import annotations

import json
import math
import os
from logging import getLogger
from typing import Any, cast, get_type_hints

from pyro_vae.errors import RequestError
from pyro_vae.runs.folder import Run
from pyro_vae.runs.store import read, unused, write, writing
from pyro_vae.training.fit import Record

logger = getLogger("pyro_vae")

# Limits of the file, far above those that runs write: about 450 bytes for each epoch.
BYTES = 2**26
LINES = 2**17
LARGEST = 1e300


def add_record(run: Run, record: Record) -> None:
    """Append a record.

    Raises:
        StorageError: If it cannot be written.
    """
    file = run.metrics_file
    with writing(file), file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")


def read_records(run: Run) -> list[Record]:
    """The records, in order. Damaged lines are skipped, with a warning."""
    file = run.metrics_file
    if not os.path.lexists(file):
        return []
    try:
        content = read(file, BYTES)
        if content.count(b"\n") > LINES:
            raise RequestError(f"{file} has more than {LINES:,} lines")
    except RequestError as error:
        logger.warning("%s; its records are lost", error)
        return []
    lines = content.decode(errors="replace").split("\n")[:-1]
    records = []
    for line in lines:
        record = _record(line)
        if record is not None:
            records.append(record)
    if len(records) < len(lines):
        logger.warning("%s: ignoring %d damaged lines", file, len(lines) - len(records))
    return records


def keep_records(run: Run, epochs: int) -> None:
    """Drop the records after an epoch: it is the last with a checkpoint.

    Raises:
        StorageError: If they cannot be written.
    """
    file = run.metrics_file
    kept = [record for record in read_records(run) if record["epoch"] <= epochs]
    if file.is_dir():
        with writing(file):
            file.rename(unused(file.with_suffix(".damaged")))
    write_records(run, kept)


def write_records(run: Run, records: list[Record]) -> None:
    """Replace all records.

    Raises:
        StorageError: If they cannot be written.
    """
    lines = [json.dumps(record) + "\n" for record in records]
    write(run.metrics_file, "".join(lines).encode())


def _record(line: str) -> Record | None:
    """A line of the file, if it holds the numbers of a record."""
    try:
        content = json.loads(line)
        record = {name: content[name] for name in _KINDS}
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    for name, kind in _KINDS.items():
        if not _is_valid(record[name], kind):
            return None
    return cast(Record, record)


def _is_valid(value: Any, kind: type) -> bool:
    if kind is int:
        return type(value) is int and 0 <= value < 2**53
    if type(value) is int:
        return abs(value) < 2**53
    return type(value) is float and math.isfinite(value) and abs(value) <= LARGEST


_KINDS = get_type_hints(Record)
