"""Images per second of one process and of two, which share each batch.

    python experiments/scaling.py --data_dir data --rounds 3

A 784-400-50 VAE of MNIST; each process has one thread. The settings take turns, so that a drift of
the machine's speed affects all. Ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from statistics import median

import pyro
import torch

import pyro_vae as pv
from pyro_vae.engine import distributed

EPOCHS, REDUCTIONS = 3, 50


def work(args: argparse.Namespace) -> None:
    """Print the images per second of the last epoch, and the milliseconds of summing gradients."""
    with distributed.process_group(torch.device("cpu")):
        pyro.set_rng_seed(0)
        data = pv.load_data("mnist", args.data_dir)
        encoder = pv.MLP(data.shape, (2, 50), hidden=(args.hidden,))
        decoder = pv.MLP((50,), (1, *data.shape), hidden=(args.hidden,))
        vae = pv.VAE(pv.StandardNormal(50), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli())
        *_, last = pv.fit(
            vae, data, epochs=EPOCHS, batch_size=args.batch_size, seed=0, engine=args.engine
        )
        grads = [torch.zeros_like(param) for param in vae.parameters()]
        start = time.perf_counter()
        for _ in range(REDUCTIONS):
            distributed.all_reduce(grads)
        if distributed.is_main_process():
            print(last["images_per_second"], 1000 * (time.perf_counter() - start) / REDUCTIONS)


def measure(args: argparse.Namespace, processes: int, batch_size: int) -> list[float]:
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    options = {
        "data_dir": args.data_dir,
        "hidden": args.hidden,
        "engine": args.engine,
        "batch_size": batch_size,
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    argv = [*launcher, __file__, "--worker", *flags]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    return [float(value) for value in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=400)
    parser.add_argument("--engine", default="compiled", choices=["eager", "traced", "compiled"])
    parser.add_argument("--batch_size", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--worker", action="store_true")
    args = parser.parse_args()
    if args.worker:
        (args.batch_size,) = args.batch_size
        work(args)
        return
    for batch_size in args.batch_size:
        rounds = [
            [measure(args, processes, batch_size) for processes in (1, 2)]
            for _ in range(args.rounds)
        ]
        one, two = (median(turn[i][0] for turn in rounds) for i in (0, 1))
        ratio = median(turn[1][0] / turn[0][0] for turn in rounds)
        reduction = median(turn[1][1] for turn in rounds)
        print(
            f"batch {batch_size}: {one:,.0f} and {two:,.0f} images/s, ratio {ratio:.2f}", end="; "
        )
        print(f"summing the gradients takes {reduction:.2f} ms", flush=True)


if __name__ == "__main__":
    main()
