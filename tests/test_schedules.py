import math

import pytest
import torch
from families import own

import pyro_vae as pv
from pyro_vae.schedules import Constant, Cosine, Cyclical, Linear, Sigmoid, value_at

SCHEDULES = {
    "Constant": lambda: Constant(4.0),
    "Linear": lambda: Linear(steps=10),
    "Cosine": lambda: Cosine(steps=10),
    "Sigmoid": lambda: Sigmoid(steps=10),
    "Cyclical": lambda: Cyclical(steps=10),
}


def test_every_schedule_is_here():
    assert set(SCHEDULES) == own(pv.Schedule)


@pytest.mark.parametrize("name", SCHEDULES)
def test_strictly_positive_from_the_first_step_on(name):
    assert all(0 < value_at(SCHEDULES[name](), step) <= 4 for step in [*range(200), 10**9])


@pytest.mark.parametrize("make", [Linear, Cosine, Sigmoid])
def test_ramps_rise_from_almost_nothing_to_the_end(make):
    ramp = make(steps=1000, end=3.0)
    values = [ramp(step) for step in range(1500)]
    assert values == sorted(values)
    assert values[0] < 0.03
    assert values[999] == pytest.approx(3.0, rel=0.01)
    assert ramp(10**6) == pytest.approx(3.0)
    assert ramp(499) == pytest.approx(1.5, rel=1e-9)


def test_formulas():
    assert Constant(4.0)(10**6) == 4.0
    assert Cosine(steps=8)(1) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)
    assert Sigmoid(steps=10, steepness=4.0)(0) == pytest.approx(1 / (1 + math.exp(1.6)))
    assert [Cyclical(steps=4, cycles=2, rise=1.0)(step) for step in range(9)] == [0.25, 0.5, 0.75, 1, 0.25, 0.5, 0.75, 1, 1]


def test_a_length_in_epochs():
    assert Linear(epochs=10, steps_per_epoch=430).steps == 4300
    assert Cyclical(epochs=0.5, steps_per_epoch=430).steps == 215


@pytest.mark.parametrize("make", [Linear, Cosine, Sigmoid, Cyclical])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either in epochs or in steps"),
        ({"epochs": 1, "steps": 1}, "either in epochs or in steps"),
        ({"epochs": 1}, "needs steps_per_epoch too"),
        ({"steps": 0}, "at least one step"),
        ({"epochs": 0.001, "steps_per_epoch": 10}, "at least one step"),
        ({"steps": 5, "end": 0}, "positive"),
        ({"steps": 5, "end": float("nan")}, "positive"),
    ],
)
def test_impossible_ramps(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(0), "value must be positive"),
        (lambda: Constant(float("inf")), "value must be positive"),
        (lambda: Constant(float("nan")), "value must be positive"),
        (lambda: Sigmoid(steps=5, steepness=0), "steepness must be positive"),
        (lambda: Cyclical(steps=5, cycles=0), "cycles, rise and end must be positive"),
        (lambda: Cyclical(steps=5, rise=1.5), "rise at most 1"),
    ],
)
def test_impossible_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [Linear, Cosine, Sigmoid])
def test_a_long_ramp_starts_over_zero_in_float32_too(kind):
    assert torch.tensor(kind(steps=10**12, end=1e-20)(0)) > 0
    assert torch.tensor(value_at(Constant(1e-50), 0)) > 0
