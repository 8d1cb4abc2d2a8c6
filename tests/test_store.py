"""Files are replaced whole or not at all, and arrays come back."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import StorageError
from pyro_vae.runs import store
from pyro_vae.runs.store import npz, read, write


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content_alone(tmp_path, monkeypatch, failing):
    path = write(tmp_path / "a" / "file", b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.os if failing == "fsync" else store.Path, failing, full)
        with pytest.raises(StorageError, match="No space left on device"):
            write(path, b"new")
    assert [*path.parent.iterdir()] == [path]
    assert path.read_bytes() == b"old"
    assert write(path, b"new").read_bytes() == b"new"


def test_a_link_is_replaced_and_what_a_killed_process_left_is_removed(tmp_path):
    precious, path = tmp_path / "precious", tmp_path / "file"
    precious.write_bytes(b"precious")
    path.symlink_to(precious)
    (tmp_path / ".file.tmp").symlink_to(precious)
    write(path, b"new")
    assert not path.is_symlink()
    assert (path.read_bytes(), precious.read_bytes()) == (b"new", b"precious")
    assert sorted(os.listdir(tmp_path)) == ["file", "precious"]


def test_only_regular_files_within_the_limit_are_read(tmp_path):
    path = write(tmp_path / "file", b"12345")
    assert read(path) == read(path, 5) == b"12345"
    with pytest.raises(pv.RequestError, match="more than 4 bytes"):
        read(path, 4)
    with pytest.raises(pv.RequestError, match="does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(pv.RequestError, match="not a regular file"):
        read(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(pv.RequestError, match="not a regular file"):
        read(tmp_path / "dangling")


def test_arrays_come_back_as_numpy_reads_them():
    given = {"a": torch.arange(6).reshape(2, 3), "b": np.array(["x", "yz"]), "c": None}
    with np.load(io.BytesIO(npz(given))) as loaded:
        assert sorted(loaded) == ["a", "b"]
        assert loaded["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert loaded["b"].tolist() == ["x", "yz"]


def test_objects_are_not_written():
    with pytest.raises(ValueError, match="allow_pickle"):
        npz({"a": np.array([{}], dtype=object)})
