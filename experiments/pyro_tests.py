"""Pyro's own tests with `pv.SVI` in the place of `pyro.infer.SVI`: a plugin of pytest.

In a checkout of Pyro, with this folder on the path of Python:

    python -m pytest -p pyro_tests tests/infer/test_valid_models.py

Each test runs with Pyro's SVI and with ours, eager and traced, from equal seeds. Those that make an
SVI and pass with Pyro's must pass with ours, and leave equal values in Pyro's parameter store. The
numbers stand in the summary, for each file.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pytest
import torch

import pyro_vae as pv

PYROS = pyro.infer.SVI
RUNS: dict[str, Callable[..., Any]] = {
    "pyro": PYROS,
    "eager": partial(pv.SVI, engine="eager"),
    "traced": partial(pv.SVI, engine="traced"),
}
numbers: dict[str, Counter[str]] = {}


class Turn:
    """One run of a test.

    Arguments:
        run: One of `RUNS`.

    Attributes:
        made: How many SVIs the test has made.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self.made = 0


turn = Turn("pyro")


def new_svi(*args: Any, **kwargs: Any) -> Any:
    """What stands in the place of the class `pyro.infer.SVI`."""
    turn.made += 1
    return RUNS[turn.run](*args, **kwargs)


def pytest_collection_finish() -> None:
    """Put ours in the place of Pyro's wherever that is, also in `pyro.contrib`."""
    for name, module in list(sys.modules.items()):
        if module is None or name.startswith("pyro_vae") or name == __name__:
            continue
        for attribute, value in list(vars(module).items()):
            if value is PYROS:
                setattr(module, attribute, new_svi)


def pytest_itemcollected(item: Any) -> None:
    item.runtest = partial(in_turn, item, item.runtest)


def in_turn(item: pytest.Item, test: Callable[[], None]) -> None:
    """Run a test with each SVI."""
    counts = numbers.setdefault(item.path.name, Counter())
    expected = outcome(item, test, "pyro")
    if not turn.made:
        return
    counts["pyro"] += 1
    failures = []
    for run in ("eager", "traced"):
        try:
            found = outcome(item, test, run)
        except (Exception, pytest.fail.Exception, pytest.skip.Exception) as error:
            failures.append(f"{run}: {type(error).__name__}: {error}")
            continue
        counts[run] += 1
        try:
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
        except AssertionError as error:
            counts[f"{run}, other parameters"] += 1
            failures.append(f"{run}: {error}")
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)


def outcome(item: pytest.Item, test: Callable[[], None], run: str) -> dict[str, torch.Tensor]:
    """The values of Pyro's parameter store after a test."""
    global turn
    turn = Turn(run)
    pyro.clear_param_store()
    marker = item.get_closest_marker("init")
    pyro.set_rng_seed(marker.kwargs["rng_seed"] if marker else 0)
    test()
    values = pyro.get_param_store()._params
    return {name: value.detach().clone() for name, value in values.items()}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    total: Counter[str] = Counter()
    for counts in numbers.values():
        total.update(counts)
    for name, counts in [*sorted(numbers.items()), ("all", total)]:
        columns = ", ".join(f"{count} {what}" for what, count in counts.items())
        terminalreporter.write_line(f"{name}: {columns or 'none makes an SVI'}")
