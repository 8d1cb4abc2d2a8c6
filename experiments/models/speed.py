"""Speed of SVI for models that are not VAEs: Pyro's SVI, its JIT, and pyro_vae.SVI.

    python experiments/models/speed.py --out experiments/results

Each module beside this one is a model. The losses of `pyro.infer.SVI` and of `pyro_vae.SVI` are
compared with equal noise: in float64 traced, in float32 also compiled. Then the contestants take
turns in one process with one thread, each with parameters of its own, in float32. All have Adam
from torch, Pyro's through `pyro.optim`. Times are those of the processor; ratios are medians of the
ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import pyro
import torch
from pyro import infer
from torch.optim import Adam

import pyro_vae as pv

MODELS = [
    path.stem
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if path.stem != Path(__file__).stem
]
ENGINES = ("traced", "compiled")
LEARNING_RATE = 1e-3
Step = Callable[[], float]


class Contestant:
    """One SVI with parameters of its own, which are the same at the start for each."""

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        with pyro.get_param_store().scope() as self.params:
            pyro.set_rng_seed(0)
            model, guide, loss, self.args = import_module(name).problem()
            loss.loss(model, guide, *self.args)  # automatic guides are made by their first call
            self.svi = make(model, guide, loss)

    def steps(self, count: int) -> list[float]:
        with pyro.get_param_store().scope(self.params) as self.params:
            return [self.svi.step(*self.args) for _ in range(count)]

    def losses(self, count: int) -> list[float]:
        """The losses of steps with noise of their own."""
        pyro.set_rng_seed(1)
        return self.steps(count)

    def milliseconds(self, count: int) -> float:
        """Per step, of the processor: other work on the machine does not count."""
        start = time.process_time()
        self.steps(count)
        return 1000 * (time.process_time() - start) / count


def pyros(model: Any, guide: Any, loss: Any) -> Any:
    return infer.SVI(model, guide, pyro.optim.PyroOptim(Adam, {"lr": LEARNING_RATE}), loss)


def jitted(model: Any, guide: Any, loss: Any) -> Any:
    jit = getattr(infer, f"Jit{type(loss).__name__}")
    return pyros(
        model, guide, jit(max_plate_nesting=loss.max_plate_nesting, ignore_jit_warnings=True)
    )


def ours(model: Any, guide: Any, loss: Any, engine: Any) -> Any:
    return pv.SVI(model, guide, partial(Adam, lr=LEARNING_RATE, fused=True), loss, engine=engine)


CONTESTANTS: dict[str, Callable[..., Any]] = {
    "pyro": pyros,
    "jit": jitted,
    **{engine: partial(ours, engine=engine) for engine in ENGINES},
}


def largest_difference(name: str, engine: str, steps: int = 10) -> float:
    """The largest relative difference of losses to Pyro's SVI, with equal noise in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        theirs, found = (
            Contestant(name, CONTESTANTS[which]).losses(steps) for which in ("pyro", engine)
        )
    finally:
        torch.set_default_dtype(before)
    return difference(theirs, found)


def difference(theirs: list[float], found: list[float]) -> float:
    return max(abs(a - b) / abs(a) for a, b in zip(theirs, found, strict=True))


def measure(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "difference": {"traced, float64": largest_difference(name, "traced")},
        "first_steps_seconds": {},
    }
    contestants, losses = {}, {}
    for which, make in CONTESTANTS.items():
        start = time.perf_counter()
        try:
            contestant = Contestant(name, make)
            losses[which] = contestant.losses(3)
        except Exception as error:
            row[f"{which}_failed"] = str(error).strip().splitlines()[0]
            continue
        row["first_steps_seconds"][which] = time.perf_counter() - start
        row["difference"][which] = difference(losses["pyro"], losses[which])
        contestants[which] = contestant
    row["engine"] = contestants["compiled"].svi.engine
    counts = {
        which: max(3, int(1000 * seconds / each.milliseconds(3)))
        for which, each in contestants.items()
    }
    turns = [
        {which: each.milliseconds(counts[which]) for which, each in contestants.items()}
        for _ in range(rounds)
    ]
    row["milliseconds"] = {which: median(turn[which] for turn in turns) for which in contestants}
    row["speedup"] = {
        which: median(turn["pyro"] / turn[which] for turn in turns) for which in contestants
    }
    return row


def line(name: str, row: dict[str, Any]) -> str:
    times = [
        f"{row['milliseconds'][which]:.2f}" if which in row["milliseconds"] else "fails"
        for which in CONTESTANTS
    ]
    ratios = [f"{row['speedup'][which]:.1f}" for which in ENGINES]
    rest = [f"{row['difference'][which]:.0e}" for which in ("traced, float64", "compiled")]
    rest.append(f"{row['first_steps_seconds']['compiled']:.1f}")
    return f"| [`{name}`](models/{name}.py) | {' | '.join((*times, *ratios, *rest))} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    columns = (
        "Pyro SVI, ms",
        "JIT",
        "traced",
        "compiled",
        "Pyro / traced",
        "Pyro / compiled",
        "float64",
        "float32",
        "first steps, s",
    )
    print(f"| model | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
    rows = {}
    for name in args.models:
        rows[name] = measure(name, args.rounds, args.seconds)
        print(line(name, rows[name]), flush=True)
    print(
        {
            which: round(median(row["speedup"][which] for row in rows.values()), 2)
            for which in ENGINES
        }
    )
    if args.out:
        versions = {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "pyro": pyro.__version__,
        }
        found = {"date": time.strftime("%Y-%m-%d"), **versions, "rounds": args.rounds, "rows": rows}
        (args.out / "models-cpu.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
