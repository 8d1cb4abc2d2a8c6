"""Annealed chains of Hamiltonian transitions from a start to a target, and their log-weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LEAPFROGS = 10
FIRST_STEP = 0.2
# Target share of accepted proposals, optimal for Hamiltonian Monte Carlo in many dimensions
# (Neal, 2011).
ACCEPTANCE = 0.65
# Share of the temperatures that does not adapt, because the spread of a few chains is noisy.
FIXED = 0.2


class State(NamedTuple):
    """Positions, `(chains, groups, D)`, with log p_0, log p - log p_0, and their gradients.

    A group is a row, or the whole program.
    """

    position: Tensor
    start: Tensor
    ratio: Tensor
    start_slope: Tensor
    ratio_slope: Tensor

    def density(self, beta: Tensor) -> Tensor:
        return self.start + beta * self.ratio

    def slope(self, beta: Tensor) -> Tensor:
        return self.start_slope + beta[:, None] * self.ratio_slope


def slopes(start: Tensor, ratio: Tensor, position: Tensor) -> list[Tensor]:
    """The fields of a state after its position, from densities with a gradient."""
    (start_slope,) = torch.autograd.grad(start.sum(), position, retain_graph=True)
    (ratio_slope,) = torch.autograd.grad(ratio.sum(), position)
    return [start.detach(), ratio.detach(), start_slope, ratio_slope]


class Schedule(NamedTuple):
    """The temperatures of each group, `(T + 1, groups)`, and the strides, `(T, groups, D)`.

    A stride is the size of a leapfrog step in each dimension, after a rise of the temperature.
    """

    betas: Tensor
    strides: Tensor


class Chains:
    """Chains from a start to a target, for several groups at once.

    Arguments:
        draw: Returns the positions of a number of chains, drawn from the start.
        at: Returns the state at positions.
        num_temperatures: Number of temperatures, and of transitions.
        done: Is called after each transition.
    """

    def __init__(
        self,
        draw: Callable[[int], Tensor],
        at: Callable[[Tensor], State],
        num_temperatures: int,
        done: Callable[[], object],
    ) -> None:
        self.draw = draw
        self.at = at
        ramp = torch.linspace(-4, 4, num_temperatures + 1, dtype=torch.float64).sigmoid()
        self.ramp = (ramp - ramp[0]) / (ramp[-1] - ramp[0])
        self.done = done

    def adapt(self, num_chains: int) -> tuple[Schedule, Tensor]:
        """A schedule along a sigmoid, and the spreads for `evened`, from a run of a few chains."""
        state = self.at(self.draw(num_chains))
        betas = self.ramp.to(state.start)[:, None].expand(-1, state.start.shape[1])
        step = torch.full_like(state.start[0], FIRST_STEP)
        strides = []
        spreads = [state.ratio.std(0)]
        for beta in betas[1:]:
            scale = state.position.std(0)
            strides.append(step[:, None] * torch.where(scale > 0, scale, 1.0))
            state, accepted = self._transition(state, beta, strides[-1])
            rate = accepted.to(step).mean(0)
            step = step * torch.where(rate > ACCEPTANCE, 1.1, 0.9)
            spreads.append(state.ratio.std(0))
        return Schedule(betas, torch.stack(strides)), torch.stack(spreads)

    def forward(self, num_chains: int, schedule: Schedule) -> Tensor:
        """Log-weights of chains from the start to the target, shape `(num_chains, groups)`."""
        state = self.at(self.draw(num_chains))
        log_weights = torch.zeros_like(state.start, dtype=torch.float64)
        for rise, beta, stride in _transitions(schedule):
            log_weights += rise * state.ratio
            state, _ = self._transition(state, beta, stride)
        return log_weights

    def backward(self, position: Tensor, schedule: Schedule) -> Tensor:
        """Log-weights of chains from the target to the start, with the sign of `forward`."""
        state = self.at(position)
        log_weights = torch.zeros_like(state.start, dtype=torch.float64)
        for rise, beta, stride in reversed(_transitions(schedule)):
            state, _ = self._transition(state, beta, stride)
            log_weights += rise * state.ratio
        return log_weights

    def _transition(self, state: State, beta: Tensor, stride: Tensor) -> tuple[State, Tensor]:
        """A Hamiltonian transition for the density at beta, and where it was accepted."""
        momentum = torch.randn_like(state.position)
        new_momentum = momentum
        new = state
        for _ in range(LEAPFROGS):
            new_momentum = new_momentum + stride / 2 * new.slope(beta)
            new = self.at(new.position + stride * new_momentum)
            new_momentum = new_momentum + stride / 2 * new.slope(beta)
        kinetic = 0.5 * (new_momentum.square() - momentum.square()).sum(-1)
        log_ratio = new.density(beta) - state.density(beta) - kinetic
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        self.done()
        kept = []
        for a, b in zip(new, state, strict=True):
            where = accepted
            if a.ndim > 2:
                where = accepted[..., None]
            kept.append(torch.where(where, a, b))
        return State(*kept), accepted


def _transitions(schedule: Schedule) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The rise of the temperature before each transition, the temperature and the strides."""
    betas = schedule.betas
    return list(zip(betas.diff(dim=0), betas[1:], schedule.strides, strict=True))


def evened(pilot: Schedule, spreads: Tensor) -> Schedule:
    """Temperatures between which the log-weights change by about equal standard deviations.

    Arguments:
        pilot: The schedule of a first run.
        spreads: The standard deviation of the ratio over its chains, shape `(T + 1, groups)`.
    """
    spreads = spreads.nan_to_num(0.0, 0.0)
    lengths = (spreads[1:] + spreads[:-1]) / 2 * pilot.betas.diff(dim=0)
    covered = torch.cat([torch.zeros_like(lengths[:1]), lengths.cumsum(0)])
    total = covered[-1].clamp(min=torch.finfo(covered.dtype).tiny)
    even = torch.linspace(0, 1, len(covered)).to(covered)[:, None].expand_as(covered)
    position = (1 - FIXED) * covered / total + FIXED * even
    right = torch.searchsorted(position.T.contiguous(), even.T.contiguous()).T
    right = right.clamp(1, len(even) - 1)
    low = position.gather(0, right - 1)
    weight = (even - low) / (position.gather(0, right) - low)
    betas = torch.lerp(pilot.betas.gather(0, right - 1), pilot.betas.gather(0, right), weight)
    betas[0] = 0.0
    betas[-1] = 1.0
    index = (right - 1)[1:, :, None].expand_as(pilot.strides)
    return Schedule(betas, pilot.strides.gather(0, index))
