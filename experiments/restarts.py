"""Kill random workers of a job that restarts itself, and compare it with an undisturbed one.

    python experiments/restarts.py --kills 100

The job has two processes. The kills come in turn while the workers train and while they start.
Parameters, random state, metrics and results must be equal bit for bit. Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from robustness import contents, finish

# Seconds within which the launcher must have replaced a lost worker.
LIMIT = 30


class Job:
    """Two processes that train, started by `torchrun`.

    Attributes:
        restarted: The longest time from a kill to the start of new processes, in seconds.
    """

    def __init__(self, folder: Path, flags: Sequence[str], restarts: int) -> None:
        self.folder, self.seen, self.restarted = folder, set[int](), 0.0
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
        ]
        training = ["-m", "pyro_vae.train", "--run_dir", str(folder), "--resume", "auto", *flags]
        argv = [*torchrun, "--max-restarts", str(restarts), *training]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def workers(self) -> list[int]:
        """The processes of the present attempt, once all exist; none if the job has ended."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while self.process.poll() is None:
            with suppress(FileNotFoundError):
                new = sorted({int(pid) for pid in children.read_text().split()} - self.seen)
                if len(new) == 2:
                    return new
            time.sleep(0.01)
        return []

    def wait_for_an_epoch(self) -> None:
        before = self._records()
        while self._records() == before and self.process.poll() is None:
            time.sleep(0.01)

    def _records(self) -> int:
        file = self.folder / "metrics.jsonl"
        return file.stat().st_size if file.exists() else 0

    def kill(self, generator: random.Random, training: bool) -> bool:
        """Kill a worker while it trains or starts, and wait for new ones; False at the end."""
        workers = self.workers()
        if training:
            self.wait_for_an_epoch()
            time.sleep(generator.uniform(0, 0.3))
        else:
            time.sleep(generator.uniform(0, 5))
        if self.process.poll() is not None:
            return False
        os.kill(generator.choice(workers), signal.SIGKILL)
        killed = time.monotonic()
        self.seen |= set(workers)
        self.workers()
        self.restarted = max(self.restarted, time.monotonic() - killed)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            "--data",
            "digits",
            "--device",
            "cpu",
            "--latent_dim",
            "4",
            "--epochs",
            str(20 * args.kills),
        ]
        whole, killed = (Job(Path(folder, name), flags, args.kills) for name in ("whole", "killed"))
        kills = sum(
            killed.kill(generator, training=number % 2 == 0) for number in range(args.kills)
        )
        for job in (whole, killed):
            finish(job.process)
        same = contents(whole.folder) == contents(killed.folder)
    print(f"{kills} kills, restarted within {killed.restarted:.1f} s; equal bit for bit: {same}")
    sys.exit(not (same and kills == args.kills and killed.restarted < LIMIT))


if __name__ == "__main__":
    main()
