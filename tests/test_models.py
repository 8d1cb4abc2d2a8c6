"""Each program of experiments/models has the same losses under Pyro's SVI and ours, traced."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "experiments" / "models"
MODELS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "speed")


@pytest.fixture
def largest_difference(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import speed

    yield speed.largest_difference
    for name in ("speed", *MODELS):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", MODELS)
def test_losses_equal_those_of_pyros_svi(largest_difference, name):
    assert largest_difference(name, "traced", steps=4) < 1e-8
