"""Files are replaced whole or not at all, and YAML is read in a strict subset."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import StorageError
from pyro_vae.runs import store
from pyro_vae.runs.store import YAML_BYTES, dump_yaml, npz, parse_yaml, read, read_yaml, write


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


CONTENT = {
    "small": 1e-5,
    "large": 1e300,
    "negative": -0.25,
    "whole": 3.0,
    "count": -7,
    "on": True,
    "nothing": None,
    "text": "a: b # c",
    "like a number": "1e-3",
    "like a date": "2020-01-01",
    "like a bool": "yes",
    "nested": {"list": [1, [2.5, "x"]], "empty": {}},
    "unicode": "\u00e4\u2028",
}


@pytest.mark.parametrize("dump", [dump_yaml, json.dumps])
def test_what_is_written_is_read_back(dump):
    read_back = parse_yaml(dump(CONTENT))
    assert read_back == CONTENT
    assert [type(value) for value in read_back.values()] == [type(v) for v in CONTENT.values()]


@pytest.mark.parametrize(
    "text", ["1e-3", "1E5", "-2e+10", ".5", "1.", "+.5e1", "1e3", "12.5E-1", "1_0.5"]
)
def test_numbers_are_those_of_python(text):
    assert parse_yaml(text) == float(text)
    assert type(parse_yaml(text)) is float


def test_numbers_that_are_not_finite():
    assert parse_yaml("[.inf, -.INF]") == [float("inf"), -float("inf")]
    assert np.isnan(parse_yaml(".nan"))


REFUSED = {
    "an alias": "a: &a 1\nb: *a",
    "a bomb": "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]",
    "a tag": "a: !!python/object/apply:os.getcwd []",
    "a set": "!!set {a}",
    "depth": "[" * 21 + "]" * 21,
    "a long value": "a: " + "x" * 5000,
    "a long text": "# " + "x" * YAML_BYTES,
    "a mapping as a key": "{a: 1}: 2",
    "an open bracket": "[1, 2",
    "two documents": "a: 1\n---\nb: 2",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_yaml_is_refused_in_one_line(name, tmp_path):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (of any text)
        parse_yaml(REFUSED[name])
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    path = write(tmp_path / "c.yaml", REFUSED[name].encode())
    with pytest.raises(pv.RequestError, match=r"c\.yaml"):
        read_yaml(path)


@pytest.mark.parametrize("content", [b"- 1", b"text", b"", b"\xff\xfe"])
def test_a_file_without_options_is_refused(content, tmp_path):
    with pytest.raises(pv.RequestError, match=r"c\.yaml"):
        read_yaml(write(tmp_path / "c.yaml", content))
