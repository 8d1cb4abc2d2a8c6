"""YAML is read in a strict subset, and what is written is read back."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pyro_vae as pv
from pyro_vae.runs.store import write
from pyro_vae.runs.strict_yaml import dump_yaml, parse_yaml, read_yaml

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
    "a long text": "# " + "x" * 2**17,
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
