"""Speed of training and of evaluation, side by side with their peers: each in a process of its own, taking turns.

    python experiments/benchmark.py train --rounds 5 --out experiments/results
    python experiments/benchmark.py evaluate --rounds 5 --out experiments/results
    python experiments/benchmark.py scaling --out experiments/results
    python experiments/benchmark.py profile --out experiments/results
    python experiments/benchmark.py train --device cuda ...

Training is an epoch of 60,000 images of 28x28, 784-400-50, ReLU, Bernoulli, Adam 1e-3, batches of 128, the images in memory
as bytes and binarized at each presentation ("static": binarized beforehand). Evaluation is 300 images with 5,000 samples each,
compiling included.
Medians over the rounds; ratios are within a round. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

LATENT_DIM, HIDDEN, BATCH = 50, 400, 128
IMAGES, SCORED, SAMPLES = 60_000, 300, 5_000
PAUSE = 0.3
"""Seconds between turns, for the threads of the last one to fall asleep."""

Turn = Callable[[], object]


def training_images(device: str) -> torch.Tensor:
    """As sparse as MNIST: four fifths black."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 1, 28, 28), dtype=torch.uint8)
    for rows in images.split(1000):
        rows *= torch.rand(rows.shape) > 0.8
    return images.to(device)


def new_vae(device: str = "cpu", latent_dim: int = LATENT_DIM) -> Any:
    import pyro_vae as pv

    encoder, decoder = pv.MLP((1, 28, 28), (2, latent_dim), (HIDDEN,)), pv.MLP((latent_dim,), (1, 1, 28, 28), (HIDDEN,))
    return pv.VAE(pv.StandardNormal(latent_dim), pv.DiagonalNormal(encoder), decoder, pv.Bernoulli()).to(device)


def ours(
    engine: str,
    static: bool = False,
    precision: str = "float32",
    batch: int = BATCH,
    latent_dim: int = LATENT_DIM,
    objective: Callable[[], Any] | None = None,
) -> Callable[[str], Turn]:
    def make(device: str) -> Turn:
        from pyro.infer import Trace_ELBO
        from torch.optim import Adam

        import pyro_vae as pv
        from pyro_vae.precision import products

        vae, images = new_vae(device, latent_dim), training_images(device)
        images = (images > 127).float() if static else images
        svi = pv.SVI(
            vae.model,
            vae.guide,
            lambda params: Adam(params, lr=1e-3, fused=True),
            (objective or Trace_ELBO)(),
            mean=True,
            prepare=lambda index: (images[index] if static else pv.data.to_pixels(images[index], "binary"),),
            engine=engine,  # type: ignore[arg-type]
            say=print,
        )

        def epoch() -> float:
            with products(precision):  # type: ignore[arg-type]
                for index in torch.randperm(len(images), device=device).split(batch):
                    svi.update(index)
            return svi.read_total()

        return epoch

    return make


def pyro_svi(objective: str, validation: bool) -> Callable[[str], Turn]:
    def make(device: str) -> Turn:
        import pyro
        from pyro import infer

        import pyro_vae as pv

        vae, images = new_vae(device), training_images(device)
        svi = infer.SVI(vae.model, vae.guide, pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 1e-3}), getattr(infer, objective)())

        def epoch() -> float:
            with pyro.validation_enabled(validation):
                order = torch.randperm(len(images), device=device)
                batches = (order[: len(images) // BATCH * BATCH] if "Jit" in objective else order).split(BATCH)
                return sum(svi.step(pv.data.to_pixels(images[index], "binary")) for index in batches)

        return epoch

    return make


def by_hand(compiled: bool, static: bool = False) -> Callable[[str], Turn]:
    def make(device: str) -> Turn:
        from torch import nn
        from torch.nn import functional
        from torch.optim import Adam

        images = training_images(device)
        images = (images > 127).float() if static else images
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT_DIM)).to(device)
        decoder = nn.Sequential(nn.Linear(LATENT_DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 784)).to(device)
        optimizer = Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)

        def step(index: torch.Tensor) -> torch.Tensor:
            x = images[index] if static else (torch.rand(len(index), 1, 28, 28, device=device) < images[index] / 255).float()
            loc, log_scale = encoder(x).chunk(2, -1)
            z = loc + log_scale.exp() * torch.randn_like(loc)
            distortion = functional.binary_cross_entropy_with_logits(decoder(z), x.flatten(1), reduction="sum")
            rate = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
            loss = (distortion + rate) / len(x)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return loss.detach()

        run = torch.compile(step) if compiled else step

        def epoch() -> float:
            total = torch.zeros((), device=device)
            for index in torch.randperm(len(images), device=device).split(BATCH):
                total += run(index)
            return total.item()

        return epoch

    return make


def numpyro_epoch(static: bool) -> Callable[[str], Turn]:
    """As in NumPyro's example: the whole epoch in one jitted loop; but with logits, and ReLU as everywhere here."""

    def make(device: str) -> Turn:
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        from jax.example_libraries import stax
        from numpyro.infer import SVI, Trace_ELBO

        images = jnp.asarray(training_images("cpu").flatten(1).numpy())
        images = (images > 127).astype(jnp.float32) if static else images
        dense = [stax.Dense(HIDDEN), stax.Relu]
        head = [stax.FanOut(2), stax.parallel(stax.Dense(LATENT_DIM), stax.serial(stax.Dense(LATENT_DIM), stax.Exp))]
        encoder, decoder = stax.serial(*dense, *head), stax.serial(*dense, stax.Dense(784))

        def model(x: Any) -> None:
            decode = numpyro.module("decoder", decoder, (BATCH, LATENT_DIM))
            with numpyro.plate("images", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(0, 1).expand([LATENT_DIM]).to_event(1))
                numpyro.sample("x", dist.BernoulliLogits(decode(z)).to_event(1), obs=x)

        def guide(x: Any) -> None:
            encode = numpyro.module("encoder", encoder, (BATCH, 784))
            loc, scale = encode(x)
            with numpyro.plate("images", x.shape[0]):
                numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

        svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
        key = jax.random.PRNGKey(0)
        state = svi.init(key, jnp.zeros((BATCH, 784)))
        steps = IMAGES // BATCH

        @jax.jit
        def epoch(state: Any, key: Any) -> tuple[Any, Any]:
            order = jax.random.permutation(key, IMAGES)

            def step(i: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
                state, total = carry
                x = images[jax.lax.dynamic_slice_in_dim(order, i * BATCH, BATCH)]
                x = x if static else jax.random.bernoulli(jax.random.fold_in(key, i), x / 255.0).astype(jnp.float32)
                state, loss = svi.update(state, x)
                return state, total + loss

            return jax.lax.fori_loop(0, steps, step, (state, 0.0))

        held = {"state": state, "key": key}

        def turn() -> float:
            held["key"], own = jax.random.split(held["key"])
            held["state"], total = epoch(held["state"], own)
            return float(total)

        return turn

    return make


def matrix_products(training: bool, chosen: bool) -> Callable[[str], Turn]:
    """The matrix products alone, of random numbers: three a layer, forwards, for the weights and for the inputs.

    By torch's own choice of library, or by that which pyro_vae has found to be faster and as exact.
    """

    def make(device: str) -> Turn:
        sizes = [(784, HIDDEN), (HIDDEN, 2 * LATENT_DIM), (LATENT_DIM, HIDDEN), (HIDDEN, 784)]
        rows = BATCH if training else SAMPLES // 5
        weights = [torch.randn(*size, device=device) for size in sizes]
        outputs = [torch.randn(rows, size[1], device=device) for size in sizes]
        inputs = [torch.randn(rows, size[0], device=device) for size in sizes]

        def step() -> None:
            for index, (weight, a, b) in enumerate(zip(weights, inputs, outputs, strict=True)):
                torch.mm(a, weight)
                torch.mm(a.T, b)
                if index:
                    torch.mm(b, weight.T)

        def decode() -> None:
            torch.mm(inputs[2], weights[2])
            torch.mm(inputs[3], weights[3])

        def turn() -> None:
            from pyro_vae.precision import products

            with products("float32") if chosen else nullcontext():
                for _ in range(IMAGES // BATCH if training else SCORED * 5):
                    step() if training else decode()

        return turn

    return make


def our_evaluation(engine: str) -> Callable[[str], Turn]:
    def make(device: str) -> Turn:
        from pyro_vae.scores import score

        vae, x = new_vae(device).eval(), (training_images(device)[:SCORED] > 127).float()
        return lambda: score(vae.model, vae.guide, x, SAMPLES, engine=engine)  # type: ignore[arg-type]

    return make


def plain_evaluation(device: str) -> Turn:
    """PyTorch by hand, a thousand samples at a time."""
    from torch.distributions import Normal
    from torch.nn import functional

    vae, x = new_vae(device).eval(), (training_images(device)[:SCORED] > 127).float()

    @torch.no_grad()
    def turn() -> torch.Tensor:
        found = []
        for image in x:
            loc, log_scale = vae.posterior.encoder(image[None]).unbind(-2)
            q, p, parts = Normal(loc, log_scale.exp()), Normal(0.0, 1.0), []
            for _ in range(SAMPLES // 1000):
                z = q.sample(torch.Size([1000]))[:, 0]
                logits = vae.decoder(z).flatten(1)
                pixels = image.flatten().expand_as(logits)
                cross = functional.binary_cross_entropy_with_logits(logits, pixels, reduction="none").sum(-1)
                parts.append((p.log_prob(z) - q.log_prob(z)).sum(-1) - cross)
            found.append(torch.cat(parts).logsumexp(0))
        return torch.stack(found)

    return turn


def renyi_evaluation(device: str) -> Turn:
    """Pyro's own, a thousand samples of an image at a time: its bound needs all samples of an image at once for K = 5,000."""
    import pyro
    from pyro.infer import RenyiELBO

    vae, x = new_vae(device).eval(), (training_images(device)[:SCORED] > 127).float()
    renyi = RenyiELBO(alpha=0, num_particles=1000, vectorize_particles=True, max_plate_nesting=1)

    def turn() -> float:
        with pyro.validation_enabled(False):
            return sum(renyi.loss(vae.model, vae.guide, image[None]) for image in x for _ in range(SAMPLES // 1000))

    return turn


CONTESTANTS: dict[str, dict[str, Callable[[str], Turn]]] = {
    "train": {
        "pyro_vae, compiled": ours("compiled"),
        "pyro_vae, traced": ours("traced"),
        "pyro_vae, eager": ours("eager"),
        "pyro_vae, compiled, bf16": ours("compiled", precision="bf16"),
        "pyro_vae, compiled, static": ours("compiled", static=True),
        "Pyro SVI": pyro_svi("Trace_ELBO", validation=True),
        "Pyro SVI, validation off": pyro_svi("Trace_ELBO", validation=False),
        "Pyro SVI, JitTrace_ELBO": pyro_svi("JitTrace_ELBO", validation=False),
        "PyTorch by hand": by_hand(compiled=False),
        "PyTorch by hand, compiled": by_hand(compiled=True),
        "NumPyro, jitted epoch": numpyro_epoch(static=False),
        "NumPyro, jitted epoch, static": numpyro_epoch(static=True),
        "matrix products alone": matrix_products(training=True, chosen=False),
        "matrix products alone, the faster library": matrix_products(training=True, chosen=True),
    },
    "evaluate": {
        "pyro_vae, compiled": our_evaluation("compiled"),
        "pyro_vae, traced": our_evaluation("traced"),
        "pyro_vae, eager": our_evaluation("eager"),
        "PyTorch by hand": plain_evaluation,
        "Pyro RenyiELBO": renyi_evaluation,
        "matrix products alone": matrix_products(training=False, chosen=False),
        "matrix products alone, the faster library": matrix_products(training=False, chosen=True),
    },
}


REFERENCES = ("pyro_vae, compiled", "matrix products alone", "matrix products alone, the faster library")


def serve(make: Callable[[str], Turn], device: str) -> None:
    """A contestant's process: warm up, then take a turn for each line that comes in."""
    channel, sys.stdout = sys.stdout, sys.stderr
    start = time.perf_counter()
    turn = make(device)
    turn()
    print(json.dumps({"first": time.perf_counter() - start}), file=channel, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        turn()
        if device == "cuda" and torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mib": peak}), file=channel, flush=True)


class Contestant:
    def __init__(self, task: str, name: str, device: str) -> None:
        argv = [sys.executable, __file__, task, "--contestant", name, "--device", device]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.name = name

    def answer(self) -> dict[str, float] | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def turn(self) -> dict[str, float] | None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()

    def complaint(self) -> str:
        _, err = self.process.communicate()
        return (err.strip().splitlines() or ["no reason given"])[-1]


def compare(task: str, rounds: int, device: str, chosen: list[str] | None) -> dict[str, Any]:
    """Turns of all contestants, one after the other, round by round."""
    contestants = []
    for name in chosen or CONTESTANTS[task]:
        contestant = Contestant(task, name, device)
        first = contestant.answer()
        if first is None:
            print(f"left out: {name} ({contestant.complaint()})", flush=True)
        else:
            contestants.append((contestant, first["first"]))
    turns: dict[str, list[dict[str, float]]] = {contestant.name: [] for contestant, _ in contestants}
    for _ in range(rounds):
        for contestant, _ in contestants:
            time.sleep(PAUSE)
            taken = contestant.turn()
            assert taken is not None, contestant.complaint()
            turns[contestant.name].append(taken)
    for contestant, _ in contestants:
        contestant.process.communicate()
    return {name: summary(name, turns, first) for (contestant, first) in contestants for name in [contestant.name]}


def summary(name: str, turns: dict[str, list[dict[str, float]]], first: float) -> dict[str, Any]:
    seconds = [turn["seconds"] for turn in turns[name]]
    ratios = {
        other: median(a["seconds"] / b["seconds"] for a, b in zip(turns[name], turns[other], strict=True))
        for other in REFERENCES
        if other in turns
    }
    return {
        "seconds": median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "ratio": ratios,
        "first_turn_seconds": first,
        "peak_mib": max(turn["peak_mib"] for turn in turns[name]),
    }


def scaling(device: str, engine: str) -> dict[str, Any]:
    """Seconds a step over the batch size, the latent dimensions and the samples of an importance-weighted bound."""
    import pyro_vae as pv

    global IMAGES
    IMAGES = 1 << 14
    found: dict[str, dict[int, float]] = {"batch": {}, "latent_dim": {}, "K": {}}
    for batch in (32, 128, 512, 2048, 4096):
        found["batch"][batch] = seconds_a_step(ours(engine, batch=batch)(device), batch)
    for latent_dim in (2, 10, 50, 200):
        found["latent_dim"][latent_dim] = seconds_a_step(ours(engine, latent_dim=latent_dim)(device), BATCH)
    for k in (1, 5, 20, 50):
        found["K"][k] = seconds_a_step(ours(engine, objective=partial(pv.ImportanceWeightedELBO, k))(device), BATCH)
    return found


def seconds_a_step(epoch: Turn, batch: int) -> float:
    epoch()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        epoch()
        times.append(time.perf_counter() - start)
    return median(times) / -(-IMAGES // batch)


def profile(device: str, engine: str, out: Path) -> None:
    """Where the time of a hundred steps goes, operation by operation, kernel by kernel."""
    global IMAGES
    IMAGES = 100 * BATCH
    epoch = ours(engine)(device)
    epoch()
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        epoch()
    key = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=70)
    (out / f"profile-{device}.txt").write_text(table + "\n")
    print(table)


def draw_scaling(found: dict[str, dict[int, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    from pyro_vae.plots import COLOURS

    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, 3), found.items(), strict=True):
        sizes = [int(size) for size in values]
        axes.loglog(sizes, [1 / seconds for seconds in values.values()], color=COLOURS[0], marker="o", label="steps")
        images = [(size if name == "batch" else BATCH) / seconds for size, seconds in zip(sizes, values.values(), strict=True)]
        axes.loglog(sizes, images, color=COLOURS[1], marker="s", label="images")
        axes.set(xlabel={"batch": "batch size", "latent_dim": "latent dimensions", "K": "samples K"}[name], ylabel="per second")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def machine(device: str) -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in ("pyro", "numpyro", "jax"):
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            continue
    model = next((line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")), platform.processor())
    named = torch.cuda.get_device_name() if device == "cuda" else f"{model}, {os.cpu_count()} cores"
    return {"date": time.strftime("%Y-%m-%d"), "machine": named, "threads": str(torch.get_num_threads()), **versions}


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def report(rows: dict[str, Any]) -> None:
    print(
        "| contestant | seconds (range) | to pyro_vae, compiled | to the products | to the faster | first turn, s | peak MiB |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, row in rows.items():
        ratios = [f"{row['ratio'][key]:.2f}" if key in row["ratio"] else "" for key in REFERENCES]
        span = f"{row['seconds']:.2f} ({row['fastest']:.2f} to {row['slowest']:.2f})"
        print(f"| {name} | {span} | {' | '.join(ratios)} | {row['first_turn_seconds']:.1f} | {row['peak_mib']:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["train", "evaluate", "scaling", "profile"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--contestants", nargs="+")
    parser.add_argument("--engine", default="compiled")
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        serve(CONTESTANTS[args.task][args.contestant], args.device)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if args.task == "profile":
        profile(args.device, args.engine, args.out)
        return
    if args.task == "scaling":
        rows = scaling(args.device, args.engine)
        draw_scaling(rows, args.out / f"scaling-{args.device}.png")
        print(json.dumps(rows, indent=2))
    else:
        rows = compare(args.task, args.rounds, args.device, args.contestants)
        report(rows)
    found = {**machine(args.device), "task": args.task, "rounds": args.rounds, "rows": rows}
    (args.out / f"{args.task}-{args.device}.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
