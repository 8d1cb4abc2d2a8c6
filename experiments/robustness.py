"""Kills a training at random moments until it has been killed often enough, and compares it bit for bit; watches its memory.

python experiments/robustness.py kill --kills 200
python experiments/robustness.py soak --epochs 300
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from pyro_vae.cli import parse, train_parser
from pyro_vae.runs import new_run
from pyro_vae.train import prepare


def contents(folder: Path) -> tuple[Any, ...]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if "second" not in key} for line in lines]
    sums = [torch.load(folder / name, weights_only=True)["checksum"] for name in ("checkpoint.pt", "best.pt")]
    return metrics, sums, (folder / "results.json").read_text()


def train(folder: Path, *flags: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "pyro_vae.train", "--run_dir", str(folder), *flags]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, err = process.communicate()
    if process.returncode:
        sys.exit(f"a run failed with {process.returncode}: {err.decode()}")


def one_run(folder: Path, flags: list[str], seconds: float, left: int) -> tuple[int, list[str]]:
    """Train to the end through at most `left` kills; the number of kills, and in what state each left the folder."""
    states: list[str] = []
    process = train(folder, *flags)
    while len(states) < left:
        time.sleep(random.uniform(0, seconds))
        if process.poll() is not None and (folder / "results.json").exists():
            break
        process.kill()
        process.wait()
        states.append("while writing" if list(folder.glob("*.tmp")) else "else")
        begun = (folder / "checkpoint.pt").exists()
        if not begun:
            shutil.rmtree(folder, ignore_errors=True)
        process = train(folder, *(["--resume"] if begun else flags))
    finish(process)
    return len(states), states


def kill(kills: int, engine: str, epochs: int) -> None:
    flags = ["--data", "digits", "--epochs", str(epochs), "--device", "cpu", "--engine", engine]
    killed, runs, states = 0, 0, list[str]()
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        start = time.perf_counter()
        finish(train(whole, *flags))
        seconds = time.perf_counter() - start
        while killed < kills:
            folder = Path(temporary) / f"run{runs}"
            count, seen = one_run(folder, flags, seconds, kills - killed)
            killed, runs, states = killed + count, runs + 1, states + seen
            assert contents(folder) == contents(whole), "a resumed run is not the one that was never stopped"
            shutil.rmtree(folder)
            print(f"{killed} kills in {runs} runs, each then equal bit for bit to the run that was never stopped", flush=True)
    print(f"{engine}: {states.count('while writing')} of {killed} kills fell into the writing of a file")


def resident() -> float:
    """Memory of this process in MiB, as Linux counts it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def soak(epochs: int, engine: str) -> None:
    """Train, keep records and write checkpoints; the slope of the memory after the first tenth."""
    with tempfile.TemporaryDirectory() as temporary:
        config = parse(train_parser(), f"--data digits --epochs {epochs} --device cpu --engine {engine}".split())
        _, data, training = prepare(config)
        folder = new_run(Path(temporary) / "run", config)
        memory = []
        for record in training:
            folder.add_record(record)
            folder.save_checkpoint("last", training, data)
            memory.append(resident())
    rest = np.array(memory[epochs // 10 :])
    slope = np.polyfit(np.arange(len(rest)), rest, 1)[0] * 1024
    print(f"{engine}: {memory[0]:.0f} MiB after the first epoch, {memory[-1]:.0f} after {epochs}; {slope:+.2f} KiB an epoch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["kill", "soak"])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--engine", default="eager", choices=["eager", "traced", "compiled"])
    args = parser.parse_args()
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, Pyro {pyro.__version__}")
    if args.command == "kill":
        kill(args.kills, args.engine, args.epochs or 40)
    else:
        soak(args.epochs or 300, args.engine)


if __name__ == "__main__":
    main()
