"""Train on an array that is larger than the memory that the process may use.

    python experiments/large.py --gib 8 --limit 2

Makes the array in a temporary folder. The limit holds for all memory but that of mapped files.
Needs Linux.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIDE = 64
FLAGS = [
    "--latent_dim",
    "8",
    "--encoder",
    "MLP",
    "--encoder.hidden",
    "[64]",
    "--decoder",
    "MLP",
    "--decoder.hidden",
    "[64]",
]


def make_array(path: Path, gib: float) -> None:
    """Images of one ellipse each, written in parts."""
    count, generator = int(gib * 2**30 / SIDE**2), np.random.default_rng(0)
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (count, SIDE, SIDE))
    row, column = np.mgrid[:SIDE, :SIDE] / SIDE
    for start in range(0, count, 4096):
        a, b, x, y = generator.uniform(
            [[0.02], [0.02], [0.3], [0.3]], [[0.1], [0.1], [0.7], [0.7]], (4, 4096)
        )[..., None, None]
        part = (255 * ((column - x) ** 2 / a + (row - y) ** 2 / b < 0.5)).astype(np.uint8)
        array[start : start + 4096] = part[: count - start]


def peak_memory(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """The largest memory of a process until its end, in GiB: its own, and mapped files."""
    own = mapped = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        sizes = {
            line.split(":")[0]: int(line.split()[1])
            for line in status.splitlines()
            if line.startswith("Rss")
        }
        own, mapped = max(own, sizes.get("RssAnon", 0)), max(mapped, sizes.get("RssFile", 0))
        time.sleep(0.2)
    return own / 2**20, mapped / 2**20


def limited(gib: float) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30),) * 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=8, help="size of the array")
    parser.add_argument(
        "--limit", type=float, default=2, help="GiB of memory that the process may use"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        make_array(path, args.gib)
        start = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "pyro_vae.train",
            "--data",
            str(path),
            "--run_dir",
            f"{folder}/run",
            "--epochs",
            "1",
        ]
        process = subprocess.Popen([*command, *FLAGS], preexec_fn=lambda: limited(args.limit))
        own, mapped = peak_memory(process)
        print(f"exit code {process.returncode} after {time.perf_counter() - start:.0f} s")
        print(f"largest memory: {own:.2f} GiB of its own, {mapped:.2f} GiB of mapped files")


if __name__ == "__main__":
    main()
