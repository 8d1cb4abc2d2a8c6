"""What annotations say of plain values, for the spellings that signatures have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.runs.annotations import (
    converted,
    describe,
    hints,
    is_callable,
    items,
    known_for,
    lists_code,
    members,
    names_code,
    parameters,
    result,
    union,
)

MODULES = Callable[[], nn.Module]


class Own:
    def __init__(
        self,
        latent_dim: int,
        sizes: tuple[int, ...] = (),
        activation: MODULES | None = None,
        schedule: pv.Schedule | None = None,
    ) -> None:
        pass


def test_options_are_the_parameters_that_are_not_supplied():
    assert list(parameters(Own, {"latent_dim", "encoder"})) == ["sizes", "activation", "schedule"]
    assert hints(Own)["activation"] == MODULES | None
    assert hints(int) == {}


def test_annotations_of_every_optimizer_of_torch_are_read():
    """They name types that torch imports for type checkers only."""
    assert {"lr", "betas"} <= hints(torch.optim.Adam).keys()
    assert "lr_lambda" in hints(torch.optim.lr_scheduler.LambdaLR)


@pytest.mark.parametrize("hint", [int | None, Optional[int], Union[int, None]])  # noqa: UP007, UP045
def test_spellings_of_a_union(hint):
    assert members(hint) == (int, type(None))
    assert members(union(members(hint))) == (int, type(None))


def test_members_of_a_type_alone():
    assert members(list[int]) == (list[int],)


@pytest.mark.parametrize("hint", [list[str], tuple[str, ...], Sequence[str], Iterable[str]])
def test_items_of_a_list(hint):
    assert items((hint, type(None))) == (str,)
    assert items((int,)) == (Any,)


def test_what_a_callable_returns():
    assert is_callable(MODULES)
    assert not is_callable(nn.Module)
    assert result(MODULES) is nn.Module
    assert result(int) is int


CODE = {"class_path": "my_module.A", "init_args": {}}


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("torch.nn.Tanh", MODULES, True),
        ("my_module.f", MODULES | None, True),
        ("Linear", pv.Schedule, True),
        (CODE, pv.Schedule, True),
        (CODE, str, True),  # never taken for data
        ("text", str, False),
        ("text", str | MODULES, False),
        ("relu", Literal["relu", "tanh"], False),
        ("here", Path | None, False),
        ("3", int, False),
        (3, MODULES, False),
        ({"a": 1}, pv.Schedule, False),
    ],
)
def test_what_names_code(value, hint, expected):
    assert names_code(value, members(hint)) is expected
    assert lists_code([1, value], (list[hint],)) is expected
    assert not lists_code(value, (list[hint],))


def test_classes_that_a_parameter_may_name_without_trust():
    assert known_for((pv.Schedule,))["Linear"] is pv.schedules.Linear
    assert known_for((MODULES, type(None)))["torch.nn.Tanh"] is nn.Tanh
    assert "torch.nn.Tanh" not in known_for((pv.Schedule,))
    assert known_for((int, str)) == {}


def test_lists_become_tuples_and_text_paths_only_where_asked():
    assert converted([1, 2], (tuple[int, int], type(None))) == (1, 2)
    assert converted([1, 2], (list[int],)) == [1, 2]
    assert converted("a", (Path,)) == Path("a")
    assert converted("a", (str,)) == "a"


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int | None, "an integer"),
        (float | bool, "a number or true or false"),
        (Literal["a", "b"], "one of a, b"),
        (MODULES, "an import path, such as torch.nn.Tanh"),
        (tuple[float, float], "a list of 2 values"),
        (tuple[int, ...], "a list such as [2, 3]"),
        (pv.Schedule, "Schedule"),
    ],
)
def test_types_in_words(hint, text):
    assert describe(members(hint)) == text
