"""Kill a training at random moments and compare the result bit for bit with an undisturbed one; watch its memory.

    python experiments/robustness.py kill --kills 200
    python experiments/robustness.py soak --epochs 300
    python experiments/robustness.py fits --fits 100

`kill` and `soak` run `python -m pyro_vae.train` on the digits; `fits` calls `pv.fit`. `soak` and `fits` need Linux.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

import pyro_vae as pv
from pyro_vae.engine.graphs import Engine


def train(folder: Path, *flags: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "pyro_vae.train", "--run_dir", str(folder), *flags]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, stderr = process.communicate()
    if process.returncode:
        sys.exit(f"training exited with {process.returncode}: {stderr.decode()}")


def contents(folder: Path) -> tuple[Any, ...]:
    """What two equal runs have in common: metrics, checkpoints and results, without the times."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [
        {key: value for key, value in record.items() if "second" not in key} for record in records
    ]
    checkpoints = [
        plain(torch.load(folder / name, weights_only=True)) for name in ("checkpoint.pt", "best.pt")
    ]
    return metrics, checkpoints, (folder / "results.json").read_text()


def plain(content: Any) -> Any:
    """Lists and numbers instead of tensors, which can be compared with `==`."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return content.tolist() if isinstance(content, torch.Tensor) else content


def train_with_kills(folder: Path, flags: list[str], seconds: float, most: int) -> tuple[int, int]:
    """Train to the end through at most `most` kills.

    Returns:
        The number of kills, and how many of them came while a file was being written.
    """
    kills, while_writing = 0, 0
    process = train(folder, *flags)
    while kills < most:
        time.sleep(random.uniform(0, seconds))
        if process.poll() is not None and (folder / "results.json").exists():
            break
        process.kill()
        process.wait()
        kills, while_writing = kills + 1, while_writing + bool(list(folder.glob(".*.tmp")))
        process = train(folder, *flags)
    finish(process)
    return kills, while_writing


def kill(kills: int, engine: str, epochs: int, longest: float | None) -> None:
    flags = [
        "--data",
        "digits",
        "--epochs",
        str(epochs),
        "--device",
        "cpu",
        "--engine",
        engine,
        "--resume",
        "auto",
    ]
    flags += ["--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", str(epochs)]
    done, runs, while_writing = 0, 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        undisturbed, folder = Path(temporary) / "undisturbed", Path(temporary) / "run"
        finish(
            train(folder, *flags)
        )  # compiles, so that the next one is as fast as those that are killed
        shutil.rmtree(folder)
        start = time.perf_counter()
        finish(train(undisturbed, *flags))
        seconds = time.perf_counter() - start
        while done < kills:
            count, writing = train_with_kills(folder, flags, longest or seconds, kills - done)
            done, runs, while_writing = done + count, runs + 1, while_writing + writing
            assert contents(folder) == contents(undisturbed), (
                "the resumed run differs from the undisturbed one"
            )
            shutil.rmtree(folder)
            print(f"{done} kills in {runs} runs, all equal to the undisturbed run", flush=True)
    print(f"{engine}: {while_writing} of {done} kills came while a file was being written")


def soak(epochs: int, engine: str) -> None:
    """Train, and report the memory after each epoch and its slope after the first tenth of the epochs."""
    memory: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        flags = ["--data", "digits", "--epochs", str(epochs), "--device", "cpu", "--engine", engine]
        process = train(folder, *flags)
        while process.poll() is None and max(memory, default=0) < epochs:
            time.sleep(0.02)
            memory[epochs_recorded(folder)] = resident_mib(process.pid)
        finish(process)
    after = sorted(epoch for epoch in memory if epoch > epochs // 10)
    slope = np.polyfit(after, [memory[epoch] for epoch in after], 1)[0] * 1024
    print(
        f"{engine}: {memory[1]:.0f} MiB after epoch 1, {memory[after[-1]]:.0f} after {after[-1]}; {slope:+.2f} KiB per epoch"
    )


def epochs_recorded(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def resident_mib(pid: int) -> float:
    """Memory of a process, as Linux counts it."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def fits(count: int, engine: Engine) -> None:
    """Fit models one after the other in this process, and report its memory and Pyro's parameter store."""
    data, memory = pv.load_data("digits"), []
    for _ in range(count):
        encoder, decoder = pv.MLP(data.shape, (2, 20)), pv.MLP((20,), (1, *data.shape))
        vae = pv.VAE(pv.StandardNormal(20), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli())
        deque(pv.fit(vae, data, epochs=1, engine=engine), 0)
        del encoder, decoder, vae
        gc.collect()
        memory.append(resident_mib(os.getpid()))
    slope = np.polyfit(range(count // 10, count), memory[count // 10 :], 1)[0]
    print(
        f"{engine}: {memory[0]:.0f} MiB after fit 1, {memory[-1]:.0f} after {count}; {slope:+.3f} MiB per fit"
    )
    print(f"{len(pyro.get_param_store())} entries in the parameter store")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["kill", "soak", "fits"])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument(
        "--seconds",
        type=float,
        help="longest time until a kill; by default that of an undisturbed run",
    )
    parser.add_argument("--fits", type=int, default=100)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--engine", default="eager", choices=["eager", "traced", "compiled"])
    args = parser.parse_args()
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, Pyro {pyro.__version__}")
    if args.command == "kill":
        kill(args.kills, args.engine, args.epochs or 40, args.seconds)
    elif args.command == "fits":
        fits(args.fits, args.engine)
    else:
        soak(args.epochs or 300, args.engine)


if __name__ == "__main__":
    main()
