"""Messages are one line, and the shared checks name the parameter."""

from typing import Literal

import pytest

from pyro_vae.errors import RequestError, check_choice, check_count, check_positive, first_line


def test_a_message_is_one_printable_line():
    """Pyro's shapes are dropped, and what would move a terminal's cursor is escaped."""
    assert str(RequestError("no\nTrace Shapes:\n x 3")) == "no"
    assert str(RequestError("a\nb\x1b[2J\t\u00e9")) == "a\\nb\\x1b[2J\\t\u00e9"
    assert isinstance(RequestError("no"), ValueError)


def test_the_first_line_of_an_error():
    assert first_line(ValueError("\n one \ntwo")) == "one "
    assert first_line(KeyError()) == "KeyError"


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan")])
def test_what_is_not_positive(value):
    check_positive(first=1, second=0.5, third=None)
    with pytest.raises(RequestError, match=f"^scale must be positive, but is {value}$"):
        check_positive(rank=1, scale=value)


@pytest.mark.parametrize("value", [0, -1, 2.0, "3"])
def test_what_is_no_count(value):
    check_count(first=1, second=None)
    with pytest.raises(
        RequestError, match=f"^epochs must be a positive integer, but is {value!r}$"
    ):
        check_count(epochs=value)


def test_what_is_no_choice():
    check_choice("size", "small", Literal["small", "large"])
    with pytest.raises(RequestError, match=r"^size must be one of small, large, but is 'huge'$"):
        check_choice("size", "huge", Literal["small", "large"])
