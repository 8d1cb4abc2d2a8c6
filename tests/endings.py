"""How a training ends in the tests: quickly, unless a test is about its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pyro_vae.cli import train
from pyro_vae.evaluation.metrics import evaluate

QUICK = {
    "score": lambda vae, data, recipe: evaluate(vae, data.test, 10, min(1000, len(data.test))),
    "draw": lambda vae, data, run, figure_format: [],
    "save_report": lambda run, vae, test: [],
}
WHOLE = {name: getattr(train, name) for name in QUICK}
REPORTED = {"save_report": train.save_report}


@contextmanager
def ending(how: dict[str, Any]) -> Iterator[None]:
    """Training ends in one of these ways in a `with` block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in how.items():
            patch.setattr(train, name, value)
        yield
