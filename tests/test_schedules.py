import math

import pytest
import torch
from families import SCHEDULES

import pyro_vae as pv
from pyro_vae.schedules import SMALLEST, Constant, Cosine, Cyclical, Linear, Sigmoid, value_at

STEPS_PER_EPOCH, EPOCHS = 43, 20
TOTAL = STEPS_PER_EPOCH * EPOCHS


def linear(step, steps, end):
    return end * min((step + 1) / steps, 1)


def cosine(step, steps, end):
    return end * (1 - math.cos(math.pi * min((step + 1) / steps, 1))) / 2


def sigmoid(step, steps, end):
    return end / (1 + math.exp(-10 * ((step + 1) / steps - 1 / 2)))


def cyclical(step, steps, end):
    return end * min(2 * (step % steps + 1) / steps, 1) if step < 4 * steps else end


FORMULAS = {Linear: linear, Cosine: cosine, Sigmoid: sigmoid, Cyclical: cyclical}
DEFAULT_LENGTH = {Linear: TOTAL // 2, Cosine: TOTAL // 2, Sigmoid: TOTAL // 2, Cyclical: TOTAL // 4}
each = pytest.mark.parametrize("kind", FORMULAS)


def assert_follows(schedule, steps, end=1.0):
    formula = FORMULAS[type(schedule)]
    every = range(0, 2 * TOTAL, 7)
    assert [schedule(step) for step in every] == pytest.approx(
        [formula(step, steps, end) for step in every], rel=1e-12
    )


@each
def test_a_length_in_steps(kind):
    assert_follows(kind(steps=100, end=3.0), 100, 3.0)


@each
def test_a_length_in_epochs(kind):
    schedule = kind(epochs=0.5, end=3.0)
    schedule.set_training_length(STEPS_PER_EPOCH, EPOCHS)
    assert_follows(schedule, round(0.5 * STEPS_PER_EPOCH), 3.0)


@each
def test_default_lengths(kind):
    """A warm-up over the first half; four cycles over all of it; by the length of the training."""
    schedule = kind()
    schedule.set_training_length(7, 3)
    schedule.set_training_length(STEPS_PER_EPOCH, EPOCHS)
    assert_follows(schedule, DEFAULT_LENGTH[kind])


@each
def test_the_length_of_the_training_does_not_change_a_length_in_steps(kind):
    schedule = kind(steps=100)
    schedule.set_training_length(STEPS_PER_EPOCH, EPOCHS)
    assert_follows(schedule, 100)


@each
def test_a_length_is_required(kind):
    for step in (0, 100):
        with pytest.raises(ValueError, match="steps"):
            kind()(step)


@pytest.mark.parametrize("name", SCHEDULES)
def test_fit_resolves_the_length(name, vae, x):
    images = pv.Split((255 * x).byte())
    data = pv.Data("small", images, images, images)
    records = list(
        pv.fit(vae, data, epochs=4, batch_size=2, beta=SCHEDULES[name](), engine="eager")
    )
    assert records[-1]["beta"] == pytest.approx(
        1.0 if name != "Sigmoid" else 1 / (1 + math.exp(-15))
    )


def test_options():
    assert Constant(4.0)(10**6) == 4.0
    assert Sigmoid(steps=10, steepness=4.0)(0) == pytest.approx(1 / (1 + math.exp(1.6)))
    assert [Cyclical(steps=4, cycles=2, rise=1.0)(step) for step in range(9)] == [
        0.25,
        0.5,
        0.75,
        1,
        0.25,
        0.5,
        0.75,
        1,
        1,
    ]


@pytest.mark.parametrize("name", SCHEDULES)
def test_strictly_positive_from_the_first_step_on(name):
    schedule = SCHEDULES[name]()
    schedule.set_training_length(10, 10)
    assert all(0 < value_at(schedule, step) <= 1 for step in [*range(200), 10**9])


@pytest.mark.parametrize("kind", [Linear, Cosine, Sigmoid])
def test_a_long_ramp_starts_above_zero_in_float32(kind):
    assert torch.tensor(kind(steps=10**12, end=1e-20)(0)) > 0
    assert value_at(Constant(1e-50), 0) == SMALLEST


@each
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epochs": 1, "steps": 1}, "epochs"),
        ({"steps": 0}, "steps"),
        ({"epochs": -1}, "epochs"),
        ({"steps": 5, "end": 0}, "end"),
        ({"steps": 5, "end": float("nan")}, "end"),
    ],
)
def test_impossible_lengths_are_named(kind, options, named):
    with pytest.raises(ValueError, match=named):
        kind(**options)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Constant(0), "value"),
        (lambda: Constant(float("inf")), "value"),
        (lambda: Constant(float("nan")), "value"),
        (lambda: Sigmoid(steps=5, steepness=0), "steepness"),
        (lambda: Cyclical(steps=5, cycles=0), "cycles"),
        (lambda: Cyclical(steps=5, rise=1.5), "rise"),
    ],
)
def test_impossible_options_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1"])
def test_an_impossible_value_is_refused_with_its_step(value):
    with pytest.raises(ValueError, match="step 3"):
        value_at(lambda step: value, 3)
