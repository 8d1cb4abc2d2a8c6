"""A run folder: its files, how it is made and opened, and its lock."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from filelock import FileLock, Timeout

from pyro_vae.errors import RequestError
from pyro_vae.runs.store import write, writing

Which = Literal["last", "best"]

CHECKPOINTS: dict[Which, str] = {"last": "checkpoint.pt", "best": "best.pt"}

# What a run writes before config.yaml.
UNFINISHED = {".lock", "checkpoint.pt", ".checkpoint.pt.tmp", ".config.yaml.tmp"}


@dataclass(frozen=True)
class Run:
    """A folder with config.yaml, metrics.jsonl, checkpoint.pt, best.pt, results.json and figures/.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def create(cls, path: Path) -> Run:
        """A new run folder, or one whose run was killed before it had a config.yaml.

        Raises:
            ValueError: If the folder holds anything else.
            StorageError: If it cannot be made.
        """
        if "\0" in str(path) or (os.path.lexists(path) and not os.path.isdir(path)):
            raise RequestError(f"{path} is not a folder; use another run_dir")
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            names = {file.name for file in path.iterdir()}
        if not names <= UNFINISHED:
            raise RequestError(f"{path} exists already; use another run_dir, or remove it")
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run folder.

        Raises:
            ValueError: If it is not one, or contains links, through which files outside it would
                be written.
        """
        run = cls(Path(path))
        if not run.exists():
            raise RequestError(
                f"config.yaml not found in {path}; give the run_dir of a training run"
            )
        try:
            links = [file for file in run.path.iterdir() if _is_link(file)]
        except OSError as error:
            raise RequestError(f"{path} cannot be read ({error.strerror or error})") from error
        if links:
            copy = f"cp -rL {quote(str(path))} COPY"
            raise RequestError(
                f"{links[0]} is a link, which run folders may not contain; copy the folder with the"
                f" files themselves: {copy}"
            )
        return run

    def exists(self) -> bool:
        """Whether the folder holds a run."""
        try:
            return os.path.isfile(self.recipe_file)
        except ValueError:  # a NUL in the name
            return False

    @property
    def recipe_file(self) -> Path:
        """The file of the recipe; with it, the folder holds a run."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """The file with a record for each epoch."""
        return self.path / "metrics.jsonl"

    def checkpoint_file(self, which: Which | int) -> Path:
        """The file of the last or best checkpoint, or of an epoch that was kept."""
        if isinstance(which, int):
            return self.path / "epochs" / f"{which:04}.pt"
        return self.path / CHECKPOINTS[which]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in the folder.

        Raises:
            ValueError: If another process does.
            StorageError: If the lock cannot be written.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        with writing(self.path / ".lock"):
            try:
                lock.acquire()
            except Timeout as error:
                raise RequestError(
                    f"another process trains in {self.path}; wait for it, or use another run_dir"
                ) from error
        try:
            yield
        finally:
            lock.release()

    def save_results(self, results: Mapping[str, Any], name: str = "results") -> Path:
        """Write metrics as JSON and return the path.

        Raises:
            StorageError: If they cannot be written.
        """
        return write(self.path / f"{name}.json", (json.dumps(results, indent=2) + "\n").encode())


def _is_link(file: Path) -> bool:
    """Whether writing to a file of a run folder would write elsewhere."""
    return file.is_symlink() or (file.name == ".lock" and file.stat().st_nlink > 1)


def check_writable(folder: Path) -> None:
    """Check that files can be written in a folder, before minutes are spent on their content.

    Raises:
        ValueError: If they cannot.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        copy = f"cp -rL {quote(str(folder))} COPY"
        raise RequestError(
            f"no file can be written in {folder} ({error.strerror or error}); use a copy: {copy}"
        ) from error
