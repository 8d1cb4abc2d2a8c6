"""Compare families, objectives and schedules on the same test images, over several seeds.

    python experiments/compare.py train --group priors --epochs 10 --data_dir DIR
    python experiments/compare.py report
    python experiments/compare.py product --data digits

`train` stores the ELBO and the importance-weighted log-likelihood of each test image for every run,
and skips runs that are stored already. `report` prints the tables of experiments/README.md, with
paired errors of the differences.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np

import pyro_vae as pv
from pyro_vae.cli.options import parse_training
from pyro_vae.evaluation.metrics import score_images
from pyro_vae.runs.build import build_model, build_training

IMAGES, SAMPLES = 1000, 500

# A Categorical has 256 outputs per pixel, which a fully connected last layer would multiply.
SMALL = "--decoder Conv"

# The network of Burda et al. (2016).
BURDA = "--latent_dim 50 --batch_size 100 " + " ".join(
    f"--{end} MLP --{end}.hidden [200,200] --{end}.activation torch.nn.Tanh"
    for end in ("encoder", "decoder")
)

# A deep decoder makes posterior collapse likely.
DEEP = (
    "--latent_dim 20 --encoder MLP --encoder.hidden [400,400,400]"
    " --decoder MLP --decoder.hidden [400,400,400,400]"
)

NORMAL = "--likelihood pyro_vae.likelihoods.Normal"
LAPLACE = "--likelihood pyro_vae.likelihoods.Laplace"
LOGISTIC = f"--likelihood DiscretizedLogistic {SMALL}"
SEVERAL = f"{BURDA} --objective Trace_ELBO --objective.vectorize_particles true"

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
        "Normal, scale 0.1": f"{NORMAL} --likelihood.scale 0.1",
        "Laplace, scale 0.1": f"{LAPLACE} --likelihood.scale 0.1",
        "ContinuousBernoulli": "--likelihood ContinuousBernoulli",
    },
    "dequantized": {
        "Normal, learned scale": f"{NORMAL} --likelihood.learned scalar",
        "Normal, scale per pixel": f"{NORMAL} --likelihood.learned pixel",
        "Laplace, learned scale": f"{LAPLACE} --likelihood.learned scalar",
        "Beta": "--likelihood Beta",
    },
    "byte": {
        "Binomial": f"--likelihood Binomial {SMALL}",
        "Categorical": f"--likelihood Categorical {SMALL}",
        "DiscretizedLogistic": LOGISTIC,
        "DiscretizedLogistic, 3": f"{LOGISTIC} --likelihood.components 3",
    },
    "objectives": {
        "ELBO, K = 1": BURDA,
        "ELBO, K = 5": f"{SEVERAL} --objective.num_particles 5",
        "ELBO, K = 50": f"{SEVERAL} --objective.num_particles 50",
        "sticking the landing, K = 1": f"{BURDA} --objective StickingTheLandingELBO",
        "closed-form KL, K = 1": f"{BURDA} --objective TraceMeanField_ELBO",
        "IWAE, K = 5": f"{BURDA} --objective ImportanceWeightedELBO",
        "IWAE, K = 50": f"{BURDA} --objective ImportanceWeightedELBO --objective.num_particles 50",
        "DReG, K = 5": f"{BURDA} --objective DReGELBO",
        "DReG, K = 50": f"{BURDA} --objective DReGELBO --objective.num_particles 50",
    },
    "schedules": {
        "Constant": DEEP,
        "Linear": f"{DEEP} --beta Linear --beta.epochs 5",
        "Cosine": f"{DEEP} --beta Cosine --beta.epochs 5",
        "Sigmoid": f"{DEEP} --beta Sigmoid --beta.epochs 5",
        "Cyclical": f"{DEEP} --beta Cyclical --beta.epochs 2 --beta.cycles 4",
        "free bits, 0.25 per dimension": f"{DEEP} --objective FreeBitsELBO",
        "free bits, 0.25 per dimension, and Linear": (
            f"{DEEP} --objective FreeBitsELBO --beta Linear --beta.epochs 5"
        ),
        "capacity of 25 nats": (
            f"{DEEP} --objective CapacityELBO --objective.gamma 10 --objective.capacity Linear"
            " --objective.capacity.end 25 --objective.capacity.steps 2000"
        ),
    },
}


Run = dict[str, np.ndarray]


def run_all(args: argparse.Namespace) -> None:
    for seed, group in itertools.product(args.seeds, args.group):
        for name, flags in GROUPS[group].items():
            file = path(args.out, group, name, seed)
            if not file.exists():
                data = f"--data {args.data} --data_dir {args.data_dir}"
                options = f"--epochs {args.epochs} --engine {args.engine} --seed {seed}"
                run = train(f"{data} {options} {flags}")
                file.parent.mkdir(parents=True, exist_ok=True)
                np.savez(file, allow_pickle=False, **run)
                print(f"{group}, {name}, seed {seed}", flush=True)


def train(flags: str) -> Run:
    """The ELBO and log p(x) of each test image, and what the table says of the training."""
    vae, data, training = build_training(parse_training(flags.split()).recipe)
    records = list(training)
    scores = score_images(vae, data.test.subset(min(IMAGES, len(data.test))), SAMPLES)
    return {
        "elbo": scores.elbo.numpy(),
        "log_p": scores.log_likelihood.numpy(),
        "seconds": np.array(sum(record["seconds"] for record in records)),
        "epochs": np.array(len(records)),
        "active_units": np.array(records[-1]["active_units"]),
        "kl": np.array(records[-1]["validation_kl"]),
    }


def path(out: Path, group: str, name: str, seed: int) -> Path:
    return out / group / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}.npz"


def report(out: Path) -> None:
    for group, rows in GROUPS.items():
        runs = {
            name: {
                seed: np.load(file)
                for seed in range(10)
                if (file := path(out, group, name, seed)).exists()
            }
            for name in rows
        }
        first = next(iter(rows))
        if not runs[first]:
            continue
        columns = (
            "ELBO",
            "log p(x)",
            f"difference to {first}",
            "seeds, lowest to highest",
            "KL",
            "active",
            "s per epoch",
        )
        print(f"\n| {group} | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
        for name, by_seed in runs.items():
            seeds = [seed for seed in by_seed if seed in runs[first]]
            if seeds:
                print(
                    line(
                        name,
                        [by_seed[seed] for seed in seeds],
                        [runs[first][seed] for seed in seeds],
                    )
                )


def line(name: str, runs: list[Run], base: list[Run]) -> str:
    """A row of the table, over the seeds that the run and the base have in common."""
    elbo, log_p = (np.mean([run[key] for run in runs]) for key in ("elbo", "log_p"))
    by_seed = sorted(run["log_p"].mean() for run in runs)
    kl, active = (
        ", ".join(f"{run[key]:.{digits}f}" for run in runs)
        for key, digits in (("kl", 1), ("active_units", 0))
    )
    cells = [
        f"{elbo:.2f}",
        f"{log_p:.2f}",
        difference(runs, base) if runs[0] is not base[0] else "",
        f"{len(runs)}: {by_seed[0]:.2f} to {by_seed[-1]:.2f}",
        kl,
        active,
        f"{np.median([run['seconds'] / run['epochs'] for run in runs]):.1f}",
    ]
    return f"| {name} | {' | '.join(cells)} |"


def difference(runs: list[Run], base: list[Run]) -> str:
    """The mean difference in log p(x), and its standard error over the test images.

    Runs of one seed are paired, image by image, then averaged over the seeds: the error is that of
    these trained models on other test images. It does not include the variation between seeds.
    """
    gain = np.mean(
        [run["log_p"] - other["log_p"] for run, other in zip(runs, base, strict=True)], axis=0
    )
    return f"{gain.mean():+.2f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.2f}"


def product(data: pv.Data) -> None:
    """Train each prior with each posterior and likelihood for one step, sample and score."""
    few = pv.Data(data.name, data.train[:128], data.validation[:16], data.test[:16])
    bases: tuple[type, ...] = (pv.Prior, pv.Posterior, pv.Likelihood)
    families = [[f"{cls.__module__}.{cls.__name__}" for cls in concrete(base)] for base in bases]
    for prior, posterior, likelihood in itertools.product(*families):
        flags = f"--prior {prior} --posterior {posterior} --likelihood {likelihood} --latent_dim 3"
        flags += (
            " --prior.components 20" if prior.endswith(("VampPrior", "GaussianMixture")) else ""
        )
        vae = build_model(parse_training(flags.split()).recipe, few.shape)
        (record,) = pv.fit(vae, few, epochs=1)
        log_p = pv.evaluate(vae, few.test, num_samples=5)["log_likelihood"]["mean"]
        images = [vae.sample_mean(4), vae.reconstruct_mean(few.test.scored(vae.pixels))]
        assert np.isfinite(
            [record["loss"], log_p, *(image.sum().item() for image in images)]
        ).all(), flags
    sizes = " x ".join(str(len(names)) for names in families)
    print(f"{sizes} combinations: each trained, sampled and scored")


def concrete(base: type) -> list[type]:
    """The subclasses of a class, at any depth, that can be instantiated."""
    children: list[type] = base.__subclasses__()
    found = [cls for child in children for cls in (child, *concrete(child))]
    return [cls for cls in found if not getattr(cls, "__abstractmethods__", None)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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


if __name__ == "__main__":
    main()
