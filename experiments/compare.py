"""Runs side by side, on the same test images: families, objectives and schedules, each over several seeds.

    python experiments/compare.py train --group priors --epochs 10 --data_dir DIR
    python experiments/compare.py report
    python experiments/compare.py product --data digits

Each run leaves the ELBO and the importance-weighted log-likelihood of each of the same test images, so that differences have
their paired standard error. What is there already is not run again.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np

import pyro_vae as pv
from pyro_vae.cli import build, concrete, constructors, parse, train_parser
from pyro_vae.data import to_pixels
from pyro_vae.diagnostics import score_images
from pyro_vae.train import prepare

SMALL = "--decoder Conv"
"""A network whose last layer does not multiply with the pixels: a Categorical has 256 outputs for each."""

BURDA = "--latent_dim 50 --batch_size 100 " + " ".join(
    f"--{end} MLP --{end}.hidden [200,200] --{end}.activation torch.nn.Tanh" for end in ("encoder", "decoder")
)
"""The network of Burda et al. (2016)."""

PRONE = "--latent_dim 20 --encoder MLP --encoder.hidden [400,400,400] --decoder MLP --decoder.hidden [400,400,400,400]"
"""A network prone to collapse: a deep decoder under a deep encoder."""

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
    "objectives": {
        "ELBO, K = 1": BURDA,
        "ELBO, K = 5": f"{BURDA} --objective Trace_ELBO --objective.num_particles 5 --objective.vectorize_particles true",
        "ELBO, K = 50": f"{BURDA} --objective Trace_ELBO --objective.num_particles 50 --objective.vectorize_particles true",
        "sticking the landing, K = 1": f"{BURDA} --objective StickingTheLandingELBO",
        "closed-form KL, K = 1": f"{BURDA} --objective TraceMeanField_ELBO",
        "IWAE, K = 5": f"{BURDA} --objective ImportanceWeightedELBO",
        "IWAE, K = 50": f"{BURDA} --objective ImportanceWeightedELBO --objective.num_particles 50",
        "DReG, K = 5": f"{BURDA} --objective DReGELBO",
        "DReG, K = 50": f"{BURDA} --objective DReGELBO --objective.num_particles 50",
    },
    "schedules": {
        "Constant": PRONE,
        "Linear": f"{PRONE} --beta Linear --beta.epochs 5",
        "Cosine": f"{PRONE} --beta Cosine --beta.epochs 5",
        "Sigmoid": f"{PRONE} --beta Sigmoid --beta.epochs 5",
        "Cyclical": f"{PRONE} --beta Cyclical --beta.epochs 2 --beta.cycles 4",
        "free bits, 0.25 a dimension": f"{PRONE} --objective FreeBitsELBO",
        "free bits, 0.25 a dimension, and Linear": f"{PRONE} --objective FreeBitsELBO --beta Linear --beta.epochs 5",
        "capacity of 25 nats": (
            f"{PRONE} --objective CapacityELBO --objective.gamma 10 --objective.capacity Linear"
            " --objective.capacity.end 25 --objective.capacity.steps 2000"
        ),
    },
}


def train(flags: str, args: argparse.Namespace, seed: int) -> dict[str, np.ndarray]:
    asked = f"--data {args.data} --data_dir {args.data_dir} --seed {seed} --epochs {args.epochs} --engine {args.engine} {flags}"
    vae, data, training = prepare(parse(train_parser(), asked.split()))
    records = list(training)
    images = data.test.subset(min(IMAGES, len(data.test)))
    seconds = sum(record["seconds"] for record in records)
    kept = {
        "seconds": seconds,
        "epochs": len(records),
        "active_units": records[-1]["active_units"],
        "kl": records[-1]["validation_kl"],
    }
    return {**scores(vae, images), **{name: np.array(value) for name, value in kept.items()}}


def scores(vae: pv.Model, images: pv.Split) -> dict[str, np.ndarray]:
    """The ELBO and log p(x) of each image."""
    found = score_images(vae, images, SAMPLES)
    return {"elbo": found.elbo.numpy(), "log_p": found.log_likelihood.numpy()}


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
        parts = constructors(parse(train_parser(), flags.split()))
        vae = build(parts, 3, few.shape)
        vae.initialize(to_pixels(few.train.images, vae.pixels))
        (record,) = pv.fit(vae, few, epochs=1)
        results = pv.evaluate(vae, few.test, num_samples=5)
        shown = [vae.sample(4), vae.reconstruct(few.test.scored(vae.pixels))]
        finite = [record["loss"], results["log_likelihood"]["mean"], *(image.sum().item() for image in shown)]
        assert np.isfinite(finite).all(), triple
        count += 1
    print(f"{count} combinations of {' x '.join(str(len(table)) for table in names)}: each trained, sampled and scored")


def report(out: Path) -> None:
    for group, rows in GROUPS.items():
        runs = {name: [load(out, group, name, seed) for seed in range(10)] for name in rows}
        if any(run for table in runs.values() for run in table):
            first = next(iter(rows))
            print(
                f"\n| {group} | ELBO | log p(x) | difference to {first} | seeds, lowest to highest | KL | active | s an epoch |"
            )
            print("|---|--:|--:|--:|--:|--:|--:|--:|")
            for name, table in runs.items():
                pairs = [(run, base) for run, base in zip(table, runs[first], strict=True) if run and base]
                line(name, [run for run, _ in pairs], [base for _, base in pairs])


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
    gain = np.mean([run["log_p"] - other["log_p"] for run, other in zip(runs, base, strict=True)], 0)
    spread = sorted(run["log_p"].mean() for run in runs)
    seconds = np.median([run["seconds"] / run["epochs"] for run in runs])
    difference = f"{gain.mean():+.2f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.2f}" if gain.any() else ""
    kl, active = (
        ", ".join(f"{run[key]:.{digits}f}" for run in runs) if key in runs[0] else ""
        for key, digits in (("kl", 1), ("active_units", 0))
    )
    seeds = f"{len(runs)}: {spread[0]:.2f} to {spread[-1]:.2f}"
    print(f"| {name} | {elbo:.2f} | {log_p:.2f} | {difference} | {seeds} | {kl} | {active} | {seconds:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "report", "product"])
    parser.add_argument("--group", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    args = parser.parse_args()
    if args.command == "report":
        report(args.out)
    elif args.command == "product":
        product(pv.load_data(args.data, args.data_dir))
    else:
        run_all(args)


def run_all(args: argparse.Namespace) -> None:
    for seed, group in itertools.product(args.seeds, args.group):
        for name, flags in GROUPS[group].items():
            file = path(args.out, group, name, seed)
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                np.savez(file, allow_pickle=False, **train(flags, args, seed))
                print(f"{group}, {name}, seed {seed}", flush=True)


if __name__ == "__main__":
    main()
