"""Every prior, posterior and likelihood with one network and one budget, over several seeds.

    python experiments/families.py train --group priors --seeds 0 1 2 --epochs 10 --data_dir DIR --out runs/families
    python experiments/families.py report --out runs/families
    python experiments/families.py product --data digits

Each run leaves the ELBO and the importance-weighted log-likelihood of each of the same test images, so that differences
have their paired standard error. What is there already is not run again.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import pyro
import torch

import pyro_vae as pv
from pyro_vae.cli import build, concrete, constructors, train_parser
from pyro_vae.data import to_pixels
from pyro_vae.importance import in_chunks, log_likelihood

COMMON = "--latent_dim 20 --batch_size 128"
SMALL = "--decoder Conv"
"""A network whose last layer does not multiply with the pixels: a Categorical has 256 outputs for each."""

IMAGES = 1000
SAMPLES = 500

GROUPS: dict[str, dict[str, str]] = {
    "priors": {
        "StandardNormal": "",
        "Normal": "--prior pyro_vae.priors.Normal",
        "Laplace": "--prior pyro_vae.priors.Laplace",
        "StudentT": "--prior StudentT",
        "GaussianMixture": "--prior GaussianMixture --prior.components 100",
        "VampPrior": "--prior VampPrior --prior.components 200",
        "VampPrior, from data": "--prior VampPrior --prior.components 200 --prior.start data",
        "FlowPrior, MAF": "--prior FlowPrior",
        "FlowPrior, coupling": "--prior FlowPrior --prior.flow coupling",
        "FlowPrior, NSF": "--prior FlowPrior --prior.flow NSF",
    },
    "posteriors": {
        "DiagonalNormal": "",
        "LowRankNormal": "--posterior LowRankNormal --posterior.rank 2",
        "FullRankNormal": "--posterior FullRankNormal",
        "FlowPosterior": "--posterior FlowPosterior",
    },
    "unit": {
        "Normal, scale 0.1": "--likelihood pyro_vae.likelihoods.Normal --likelihood.scale 0.1",
        "Laplace, scale 0.1": "--likelihood pyro_vae.likelihoods.Laplace --likelihood.scale 0.1",
        "ContinuousBernoulli": "--likelihood ContinuousBernoulli",
    },
    "dequantized": {
        "Normal, learned scale": "--likelihood pyro_vae.likelihoods.Normal --likelihood.learned scalar",
        "Normal, scale a pixel": "--likelihood pyro_vae.likelihoods.Normal --likelihood.learned pixel",
        "Laplace, learned scale": "--likelihood pyro_vae.likelihoods.Laplace --likelihood.learned scalar",
        "Beta": "--likelihood Beta",
    },
    "byte": {
        "Binomial": f"--likelihood Binomial {SMALL}",
        "Categorical": f"--likelihood Categorical {SMALL}",
        "DiscretizedLogistic": f"--likelihood DiscretizedLogistic {SMALL}",
        "DiscretizedLogistic, 3": f"--likelihood DiscretizedLogistic --likelihood.components 3 {SMALL}",
    },
}


def train(flags: str, seed: int, epochs: int, data: pv.Data) -> dict[str, np.ndarray]:
    config = train_parser().parse_args([*COMMON.split(), *flags.split()])
    parts = constructors(config)
    pyro.set_rng_seed(seed)
    vae = build(parts, config.latent_dim, data.shape)
    vae.initialize(to_pixels(data.train.images, vae.pixels))
    records = list(pv.fit(vae, data, epochs=epochs, batch_size=config.batch_size, optimizer=parts.optimizer))
    seconds = np.array(sum(record["seconds"] for record in records))
    images = data.test.subset(min(IMAGES, len(data.test)))
    return {**scores(vae, images), "seconds": seconds, "epochs": np.array(epochs)}


def product(data: pv.Data) -> None:
    """Every prior with every posterior with every likelihood: a step, samples, reconstructions and figures."""
    few = pv.Data(data.name, data.train[:128], data.validation[:16], data.test[:16])
    names = [[cls.__name__ for cls in concrete(base)] for base in (pv.Prior, pv.Posterior, pv.Likelihood)]
    modules = (pv.priors, pv.posteriors, pv.likelihoods)
    count = 0
    for triple in itertools.product(*names):
        paths = [f"{module.__name__}.{name}" for module, name in zip(modules, triple, strict=True)]
        flags = "--prior {} --posterior {} --likelihood {} --latent_dim 3".format(*paths)
        flags += " --prior.components 20" if triple[0] in ("VampPrior", "GaussianMixture") else ""
        parts = constructors(train_parser().parse_args(flags.split()))
        vae = build(parts, 3, few.shape)
        vae.initialize(to_pixels(few.train.images, vae.pixels))
        (record,) = pv.fit(vae, few, epochs=1)
        results = pv.evaluate(vae, few.test, num_samples=5)
        shown = [vae.sample(4), vae.reconstruct(few.test.scored(vae.pixels))]
        finite = [record["loss"], results["log_likelihood"]["mean"], *(image.sum().item() for image in shown)]
        assert np.isfinite(finite).all(), triple
        count += 1
    print(f"{count} combinations of {' x '.join(str(len(table)) for table in names)}: each trained, sampled and scored")


def scores(vae: pv.Model, images: pv.Split) -> dict[str, np.ndarray]:
    """The ELBO and log p(x) of each image."""
    vae.eval()
    weights = [part.log_weights for part in in_chunks(vae.model, vae.guide, images.scored(vae.pixels), SAMPLES)]
    elbo, log_p = (torch.cat(list(map(f, weights))).numpy() for f in (lambda w: w.mean(0), log_likelihood))
    return {"elbo": elbo, "log_p": log_p}


def report(out: Path) -> None:
    for group, rows in GROUPS.items():
        first = next(iter(rows))
        print(f"\n### {group}\n\n| {group} | ELBO | log p(x) | difference to {first} | seeds, lowest to highest | s an epoch |")
        print("|---|--:|--:|--:|--:|--:|")
        base = [load(out, group, first, seed) for seed in range(10)]
        for name in rows:
            runs = [load(out, group, name, seed) for seed in range(10)]
            line(name, [run for run in runs if run], [b for b, run in zip(base, runs, strict=True) if b and run])


def load(out: Path, group: str, name: str, seed: int) -> dict[str, np.ndarray] | None:
    file = path(out, group, name, seed)
    return dict(np.load(file)) if file.exists() else None


def path(out: Path, group: str, name: str, seed: int) -> Path:
    return out / group / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}.npz"


def line(name: str, runs: list[dict[str, np.ndarray]], base: list[dict[str, np.ndarray]]) -> None:
    """Means over the seeds; the paired error is over images, of the difference averaged over the seeds."""
    if not runs:
        return
    elbo, log_p = (np.mean([run[key] for run in runs]) for key in ("elbo", "log_p"))
    gain = np.mean([run["log_p"] - other["log_p"] for run, other in zip(runs, base, strict=True)], 0) if base else np.zeros(1)
    spread = sorted(run["log_p"].mean() for run in runs)
    seconds = np.median([run["seconds"] / run["epochs"] for run in runs])
    error = gain.std(ddof=1) / len(gain) ** 0.5 if gain.any() else 0.0
    difference = f"{gain.mean():+.2f} ± {error:.2f}" if gain.any() else ""
    print(f"| {name} | {elbo:.2f} | {log_p:.2f} | {difference} | {spread[0]:.2f} to {spread[-1]:.2f} | {seconds:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "report", "product"])
    parser.add_argument("--group", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--out", type=Path, default=Path("runs/families"))
    args = parser.parse_args()
    if args.command == "report":
        report(args.out)
    elif args.command == "product":
        product(pv.load_data(args.data, args.data_dir))
    else:
        run_all(args, pv.load_data(args.data, args.data_dir))


def run_all(args: argparse.Namespace, data: pv.Data) -> None:
    for seed, group in itertools.product(args.seeds, args.group):
        for name, flags in GROUPS[group].items():
            file = path(args.out, group, name, seed)
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                np.savez(file, allow_pickle=False, **train(flags, seed, args.epochs, data))
                print(f"{group}, {name}, seed {seed}", flush=True)


if __name__ == "__main__":
    main()
