"""Speed of training and evaluation, compared with other libraries.

    python experiments/benchmark.py train --rounds 5 --out experiments/results
    python experiments/benchmark.py evaluate --rounds 3 --out experiments/results
    python experiments/benchmark.py scaling --out experiments/results
    python experiments/benchmark.py profile --out experiments/results
    python experiments/benchmark.py train --device cuda ...

Training: one epoch of 60,000 images of 28x28 pixels, 784-400-50, ReLU, Bernoulli, Adam 1e-3,
batches of 128. The images are in memory as bytes and are binarized at each presentation ("static":
beforehand). Evaluation: 300 images with 5,000 samples each, including compilation.

Each contestant runs in its own process. They take turns, so that a drift of the machine's speed
affects all of them. Seconds are medians over the rounds; ratios are medians of the ratios within a
round. Libraries that are not installed are left out.
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
PAUSE = 0.3  # seconds between turns, until the threads of the last one sleep

# The libraries are imported by the contestants that use them, so that each one's peak memory and
# first turn are its own.
Turn = Callable[[], object]


def training_images(device: str, count: int = IMAGES) -> torch.Tensor:
    """Random bytes, four fifths of them 0, about as sparse as MNIST."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8)
    for rows in images.split(1000):
        rows *= torch.rand(rows.shape) > 0.8
    return images.to(device)


def test_images(device: str) -> torch.Tensor:
    return (training_images(device)[:SCORED] > 127).float()


def new_vae(device: str, latent_dim: int = LATENT_DIM) -> Any:
    import pyro_vae as pv

    encoder, decoder = (
        pv.MLP((1, 28, 28), (2, latent_dim), (HIDDEN,)),
        pv.MLP((latent_dim,), (1, 1, 28, 28), (HIDDEN,)),
    )
    return pv.VAE(
        pv.StandardNormal(latent_dim), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli()
    ).to(device)


def our_epoch(
    device: str,
    engine: Any = "compiled",
    static: bool = False,
    precision: Any = "float32",
    batch: int = BATCH,
    latent_dim: int = LATENT_DIM,
    num_particles: int | None = None,
    count: int = IMAGES,
) -> Turn:
    """One epoch of `pv.SVI`; with `num_particles`, of the importance-weighted bound."""
    from pyro.infer import Trace_ELBO

    import pyro_vae as pv
    from pyro_vae.data.split import to_pixels
    from pyro_vae.engine.precision import products

    vae, images = new_vae(device, latent_dim), training_images(device, count)
    images = (images > 127).float() if static else images
    svi = pv.SVI(
        vae.model,
        vae.guide,
        partial(torch.optim.Adam, lr=1e-3, fused=True),
        pv.ImportanceWeightedELBO(num_particles) if num_particles else Trace_ELBO(),
        mean=True,
        prepare=lambda index: (images[index] if static else to_pixels(images[index], "binary"),),
        engine=engine,
    )

    def epoch() -> float:
        with products(precision), vae.treating_missing(False):
            for index in torch.randperm(count, device=device).split(batch):
                svi.update(index)
        return svi.total.item()

    return epoch


def pyro_epoch(device: str, objective: str = "Trace_ELBO", validation: bool = False) -> Turn:
    """One epoch of `pyro.infer.SVI`."""
    import pyro
    from pyro import infer

    from pyro_vae.data.split import to_pixels

    vae, images = new_vae(device), training_images(device)
    svi = infer.SVI(
        vae.model,
        vae.guide,
        pyro.optim.PyroOptim(torch.optim.Adam, {"lr": 1e-3}),
        getattr(infer, objective)(),
    )
    # Pyro's JIT would compile a smaller last batch on its own.
    used = IMAGES // BATCH * BATCH if "Jit" in objective else IMAGES

    def epoch() -> float:
        with pyro.validation_enabled(validation):
            batches = torch.randperm(IMAGES, device=device)[:used].split(BATCH)
            return sum(svi.step(to_pixels(images[index], "binary")) for index in batches)

    return epoch


def plain_epoch(device: str, compiled: bool = False) -> Turn:
    """One epoch in plain PyTorch."""
    from torch import nn
    from torch.nn import functional

    images = training_images(device)
    encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT_DIM)
    ).to(device)
    decoder = nn.Sequential(nn.Linear(LATENT_DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 784)).to(
        device
    )
    optimizer = torch.optim.Adam(
        [*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True
    )

    def step(index: torch.Tensor) -> torch.Tensor:
        x = (torch.rand(len(index), 1, 28, 28, device=device) < images[index] / 255).float()
        loc, log_scale = encoder(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        distortion = functional.binary_cross_entropy_with_logits(
            decoder(z), x.flatten(1), reduction="sum"
        )
        rate = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        loss = (distortion + rate) / len(x)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    run = torch.compile(step) if compiled else step

    def epoch() -> float:
        total = torch.zeros((), device=device)
        for index in torch.randperm(IMAGES, device=device).split(BATCH):
            total += run(index)
        return total.item()

    return epoch


def numpyro_epoch(device: str, static: bool = False) -> Turn:
    """One epoch in a single jitted loop, as in NumPyro's example.

    It has logits and ReLU, as the other contestants.
    """
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.example_libraries import stax
    from numpyro.infer import SVI, Trace_ELBO

    images = jnp.asarray(training_images("cpu").flatten(1).numpy())
    images = (images > 127).astype(jnp.float32) if static else images
    dense = [stax.Dense(HIDDEN), stax.Relu]
    head = [
        stax.FanOut(2),
        stax.parallel(stax.Dense(LATENT_DIM), stax.serial(stax.Dense(LATENT_DIM), stax.Exp)),
    ]
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

    @jax.jit
    def epoch(state: Any, key: Any) -> tuple[Any, Any]:
        order = jax.random.permutation(key, IMAGES)

        def step(i: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, total = carry
            x = images[jax.lax.dynamic_slice_in_dim(order, i * BATCH, BATCH)]
            x = (
                x
                if static
                else jax.random.bernoulli(jax.random.fold_in(key, i), x / 255.0).astype(jnp.float32)
            )
            state, loss = svi.update(state, x)
            return state, total + loss

        return jax.lax.fori_loop(0, IMAGES // BATCH, step, (state, 0.0))

    key = jax.random.PRNGKey(0)
    state = svi.init(key, jnp.zeros((BATCH, 784)))

    def turn() -> float:
        nonlocal state, key
        key, own = jax.random.split(key)
        state, total = epoch(state, own)
        return float(total)

    return turn


def matrix_products(device: str, training: bool, fastest: bool = False) -> Turn:
    """The matrix products alone, of random numbers.

    In training there are three per layer; in evaluation, those of the decoder. They use torch's
    default backend, or the fastest backend that is accurate, which pyro_vae selects.
    """
    sizes = [(784, HIDDEN), (HIDDEN, 2 * LATENT_DIM), (LATENT_DIM, HIDDEN), (HIDDEN, 784)]
    rows = BATCH if training else SAMPLES // 5
    weights = [torch.randn(*size, device=device) for size in sizes]
    outputs = [torch.randn(rows, size[1], device=device) for size in sizes]
    inputs = [torch.randn(rows, size[0], device=device) for size in sizes]

    def train() -> None:
        for layer, (weight, a, b) in enumerate(zip(weights, inputs, outputs, strict=True)):
            torch.mm(a, weight)
            torch.mm(a.T, b)
            if layer:
                torch.mm(b, weight.T)

    def decode() -> None:
        torch.mm(inputs[2], weights[2])
        torch.mm(inputs[3], weights[3])

    step, steps = (train, IMAGES // BATCH) if training else (decode, SCORED * 5)

    def turn() -> None:
        from pyro_vae.engine.precision import products

        with products("float32") if fastest else nullcontext():
            for _ in range(steps):
                step()

    return turn


def our_evaluation(device: str, engine: Any = "compiled") -> Turn:
    import pyro_vae as pv
    from pyro_vae.evaluation.metrics import score_images

    vae, images = new_vae(device), pv.Split(test_images(device))
    return lambda: score_images(vae, images, SAMPLES, engine=engine)


@torch.no_grad()
def plain_evaluation(device: str) -> Turn:
    """PyTorch by hand, 1,000 samples of one image at a time."""
    from torch.distributions import Normal
    from torch.nn import functional

    vae, x = new_vae(device).eval(), test_images(device)

    def log_weights(image: torch.Tensor) -> torch.Tensor:
        loc, log_scale = vae.encoder(image[None]).unbind(-2)
        q, p = Normal(loc, log_scale.exp()), Normal(0.0, 1.0)
        z = q.sample(torch.Size([1000]))[:, 0]
        logits = vae.decoder(z).flatten(1)
        pixels = image.flatten().expand_as(logits)
        cross = functional.binary_cross_entropy_with_logits(logits, pixels, reduction="none").sum(
            -1
        )
        return (p.log_prob(z) - q.log_prob(z)).sum(-1) - cross

    @torch.no_grad()
    def turn() -> list[torch.Tensor]:
        return [
            torch.cat([log_weights(image) for _ in range(SAMPLES // 1000)]).logsumexp(0)
            for image in x
        ]

    return turn


def renyi_evaluation(device: str) -> Turn:
    """Pyro's RenyiELBO, 1,000 samples of one image at a time.

    With K = 5,000 it would need all of them in one pass.
    """
    import pyro
    from pyro.infer import RenyiELBO

    vae, x = new_vae(device).eval(), test_images(device)
    renyi = RenyiELBO(alpha=0, num_particles=1000, vectorize_particles=True, max_plate_nesting=1)

    def turn() -> float:
        with pyro.validation_enabled(False):
            return sum(
                renyi.loss(vae.model, vae.guide, image[None])
                for image in x
                for _ in range(SAMPLES // 1000)
            )

    return turn


REFERENCES = (
    "pyro_vae, compiled",
    "matrix products alone",
    "matrix products alone, the faster library",
)

CONTESTANTS: dict[str, dict[str, Callable[[str], Turn]]] = {
    "train": {
        "pyro_vae, compiled": our_epoch,
        "pyro_vae, traced": partial(our_epoch, engine="traced"),
        "pyro_vae, eager": partial(our_epoch, engine="eager"),
        "pyro_vae, compiled, bf16": partial(our_epoch, precision="bf16"),
        "pyro_vae, compiled, bf16, static": partial(our_epoch, precision="bf16", static=True),
        "pyro_vae, compiled, static": partial(our_epoch, static=True),
        "Pyro SVI": partial(pyro_epoch, validation=True),
        "Pyro SVI, validation off": pyro_epoch,
        "Pyro SVI, JitTrace_ELBO": partial(pyro_epoch, objective="JitTrace_ELBO"),
        "PyTorch by hand": plain_epoch,
        "PyTorch by hand, compiled": partial(plain_epoch, compiled=True),
        "NumPyro, jitted epoch": numpyro_epoch,
        "NumPyro, jitted epoch, static": partial(numpyro_epoch, static=True),
        "matrix products alone": partial(matrix_products, training=True),
        "matrix products alone, the faster library": partial(
            matrix_products, training=True, fastest=True
        ),
    },
    "evaluate": {
        "pyro_vae, compiled": our_evaluation,
        "pyro_vae, traced": partial(our_evaluation, engine="traced"),
        "pyro_vae, eager": partial(our_evaluation, engine="eager"),
        "PyTorch by hand": plain_evaluation,
        "Pyro RenyiELBO": renyi_evaluation,
        "matrix products alone": partial(matrix_products, training=False),
        "matrix products alone, the faster library": partial(
            matrix_products, training=False, fastest=True
        ),
    },
}


def serve(make: Callable[[str], Turn], device: str) -> None:
    """The process of a contestant: warm up, then take one turn for each line of stdin."""
    # What a library prints must not be read as an answer.
    channel = sys.stdout
    sys.stdout = sys.stderr
    start = time.perf_counter()
    turn = make(device)
    turn()
    print(json.dumps({"first": time.perf_counter() - start}), file=channel, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        turn()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mib": peak}), file=channel, flush=True)


class Contestant:
    """A process that runs `serve`."""

    def __init__(self, task: str, name: str, device: str) -> None:
        argv = [sys.executable, __file__, task, "--contestant", name, "--device", device]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline() if self.process.stdout else ""
        self.first = json.loads(line)["first"] if line else None
        self.turns: list[dict[str, float]] = []

    def turn(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.last_words()
        self.turns.append(json.loads(line))

    def last_words(self) -> str:
        """Wait for the process to end, and return the last line of its stderr."""
        _, stderr = self.process.communicate()
        return (stderr.strip().splitlines() or ["no message"])[-1]


def compare(task: str, rounds: int, device: str, names: list[str]) -> dict[str, Any]:
    """Let all contestants take turns, round by round."""
    contestants = {name: Contestant(task, name, device) for name in names}
    for name in [name for name, contestant in contestants.items() if contestant.first is None]:
        print(f"left out: {name} ({contestants.pop(name).last_words()})", flush=True)
    for _ in range(rounds):
        for contestant in contestants.values():
            time.sleep(PAUSE)
            contestant.turn()
    for contestant in contestants.values():
        contestant.last_words()
    return {name: summarize(contestant, contestants) for name, contestant in contestants.items()}


def summarize(contestant: Contestant, contestants: dict[str, Contestant]) -> dict[str, Any]:
    seconds = [turn["seconds"] for turn in contestant.turns]
    pairs = {
        name: zip(contestant.turns, contestants[name].turns, strict=True)
        for name in REFERENCES
        if name in contestants
    }
    return {
        "seconds": median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "ratio": {
            name: median(a["seconds"] / b["seconds"] for a, b in turns)
            for name, turns in pairs.items()
        },
        "first_turn_seconds": contestant.first,
        "peak_mib": max(turn["peak_mib"] for turn in contestant.turns),
    }


def report(rows: dict[str, Any]) -> None:
    columns = (
        "seconds (range)",
        "to pyro_vae, compiled",
        "to the products",
        "to the faster",
        "first turn, s",
        "peak MiB",
    )
    print(f"| contestant | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
    for name, row in rows.items():
        ratios = [f"{row['ratio'][key]:.2f}" if key in row["ratio"] else "" for key in REFERENCES]
        span = f"{row['seconds']:.2f} ({row['fastest']:.2f} to {row['slowest']:.2f})"
        print(f"| {name} | {span} | {' | '.join(ratios)} ", end="")
        print(f"| {row['first_turn_seconds']:.1f} | {row['peak_mib']:.0f} |")


def scaling(device: str, engine: str, out: Path) -> dict[str, Any]:
    """Seconds per step over the batch size, the latent dimensions and the samples of the bound."""
    epoch = partial(our_epoch, device, engine, count=1 << 14)
    found = {
        "batch": {
            batch: seconds_per_step(epoch(batch=batch), batch)
            for batch in (32, 128, 512, 2048, 4096)
        },
        "latent_dim": {dim: seconds_per_step(epoch(latent_dim=dim)) for dim in (2, 10, 50, 200)},
        "K": {k: seconds_per_step(epoch(num_particles=k)) for k in (1, 5, 20, 50)},
    }
    draw_scaling(found, out / f"scaling-{device}.png")
    print(json.dumps(found, indent=2))
    return found


def seconds_per_step(epoch: Turn, batch: int = BATCH) -> float:
    epoch()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        epoch()
        times.append(time.perf_counter() - start)
    return median(times) / -(-(1 << 14) // batch)


def draw_scaling(found: dict[str, dict[int, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    from pyro_vae.reporting.figures import COLOURS

    figure = Figure(figsize=(9, 3), layout="constrained")
    labels = {"batch": "batch size", "latent_dim": "latent dimensions", "K": "samples K"}
    for axes, (name, values) in zip(figure.subplots(1, 3), found.items(), strict=True):
        images = [
            (size if name == "batch" else BATCH) / seconds for size, seconds in values.items()
        ]
        axes.loglog(
            list(values),
            [1 / seconds for seconds in values.values()],
            color=COLOURS[0],
            marker="o",
            label="steps",
        )
        axes.loglog(list(values), images, color=COLOURS[1], marker="s", label="images")
        axes.set(xlabel=labels[name], ylabel="per second")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def profile(device: str, engine: str, out: Path) -> None:
    """The time of 100 steps by operation."""
    epoch = our_epoch(device, engine, count=100 * BATCH)
    epoch()
    activities = [
        torch.profiler.ProfilerActivity.CPU,
        *([torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []),
    ]
    with torch.profiler.profile(activities=activities) as profiler:
        epoch()
    key = f"self_{device}_time_total"
    table = profiler.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=70)
    (out / f"profile-{device}.txt").write_text(table + "\n")
    print(table)


def machine(device: str) -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in ("pyro", "numpyro", "jax"):
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            continue
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    named = torch.cuda.get_device_name() if device == "cuda" else f"{model}, {os.cpu_count()} cores"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": named,
        "threads": str(torch.get_num_threads()),
        **versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=["train", "evaluate", "scaling", "profile"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--contestants", nargs="+", help="some of the table's names; default all")
    parser.add_argument("--engine", default="compiled", help="of scaling and profile")
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
        rows = scaling(args.device, args.engine, args.out)
    else:
        rows = compare(
            args.task, args.rounds, args.device, args.contestants or list(CONTESTANTS[args.task])
        )
        report(rows)
    found = {**machine(args.device), "task": args.task, "rounds": args.rounds, "rows": rows}
    (args.out / f"{args.task}-{args.device}.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
