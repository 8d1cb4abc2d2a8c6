"""Helpers for tests of run folders: commands that succeed, and what equal runs share."""

from __future__ import annotations

import json

import torch

from pyro_vae.cli.main import main
from pyro_vae.runs.checkpoints import read_content


def equal(one, other):
    """Whether two values of checkpoints are the same, to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def contents(folder):
    """All that a run leaves but its times and pictures."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if "second" not in key} for line in lines]
    states = [read_content(folder / name) for name in ("checkpoint.pt", "best.pt")]
    return [
        metrics,
        states,
        (folder / "results.json").read_text(),
        (folder / "config.yaml").read_text(),
    ]


def epochs(folder):
    return [
        json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def trained(*argv):
    assert main([*map(str, argv)]) == 0


class Hostile:
    """Opens a file for writing when it is unpickled."""

    def __reduce__(self):
        return (open, ("ran", "w"))
