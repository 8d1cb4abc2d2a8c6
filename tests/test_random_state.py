"""The random state is saved and restored, of torch, NumPy and Python."""

import random

import numpy as np
import torch

from pyro_vae.engine.random_state import forked_rng, random_state, set_random_state

CPU = torch.device("cpu")


def draw():
    numbers = [torch.rand(2), torch.randn(3), random.random(), random.gauss(0, 1)]
    return [*numbers, np.random.rand(), np.random.randn()]  # noqa: NPY002


def same(a, b):
    return all(np.array_equal(one, other) for one, other in zip(a, b, strict=True))


def test_the_same_numbers_follow():
    draw()  # an odd number of normal draws, of which half of a pair is kept
    state = random_state(CPU)
    first = draw()
    assert not same(first, draw())
    set_random_state(state, CPU)
    assert same(first, draw())


def test_a_state_is_tensors_and_plain_values(tmp_path):
    """It can be loaded without pickled classes."""
    torch.save(random_state(CPU), tmp_path / "state.pt")
    first = draw()
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True), CPU)
    assert same(first, draw())


def test_a_forked_generator_is_restored():
    state = random_state(CPU)
    expected = draw()
    set_random_state(state, CPU)
    with forked_rng():
        draw()
        torch.manual_seed(9)
    assert same(draw(), expected)
