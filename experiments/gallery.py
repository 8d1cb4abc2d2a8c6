"""A picture, command and score of each part: `python experiments/gallery.py --work DIR`.

Trains a VAE of `mnist5k` with each part, draws means of p(x | z) at 16 draws from the prior, and
writes `experiments/figures/gallery/NAME.png` and the page `docs/gallery.md`. Runs that are in DIR
already are not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import process_time
from typing import Any

import pyro
import torch
from torchvision.utils import make_grid, save_image

import pyro_vae as pv
from pyro_vae.cli.main import main

HERE = Path(__file__).parent
FIGURES = HERE / "figures" / "gallery"

TRAIN = "train --data mnist5k --epochs 30"
# The flags of each run. Those of the first are the defaults of all others.
PARTS = {
    "The default": [
        "--prior StandardNormal --posterior DiagonalNormal --likelihood Bernoulli",
    ],
    "Priors": [
        "--prior Normal",
        "--prior Laplace",
        "--prior StudentT",
        "--prior GaussianMixture",
        "--prior VampPrior",
        "--prior FlowPrior",
    ],
    "Posteriors": [
        "--posterior LowRankNormal",
        "--posterior FullRankNormal",
        "--posterior FlowPosterior",
    ],
    "Likelihoods": [
        "--likelihood ContinuousBernoulli",
        "--likelihood Beta",
        "--likelihood Binomial",
        "--likelihood DiscretizedLogistic",
    ],
    "Networks": [
        "--encoder Gated --decoder Gated",
        "--encoder Conv --decoder Conv",
    ],
    "Models": [
        "--model HierarchicalVAE",
        "--model ConditionalVAE",
    ],
}
IMAGES = 16


def name_of(flags: str) -> str:
    words = [word for word in flags.split() if not word.startswith("--")]
    return "_".join(dict.fromkeys(words)).lower()


def trained(flags: str, run: Path) -> dict[str, Any]:
    """The results of a run with these flags, which is trained if it is not there yet."""
    if not (run / "results.json").exists():
        command = f"{TRAIN} {flags} --report false --run_dir {run} --resume auto"
        start = process_time()
        if main(command.split()):
            raise SystemExit(f"failed: {command}")
        (run / "seconds").write_text(f"{process_time() - start:.0f}")
    results = json.loads((run / "results.json").read_text())
    return results | {"seconds": (run / "seconds").read_text()}


def draw(run: Path, picture: Path) -> None:
    """Draw means of p(x | z) at draws from the prior."""
    vae = pv.load_run(run)
    pyro.set_rng_seed(0)
    y = None
    if vae.needs_labels:
        y = torch.arange(IMAGES) % 10
    means = vae.likelihood.shown(vae.sample_mean(IMAGES, y))
    picture.parent.mkdir(exist_ok=True)
    save_image(make_grid(1 - means, nrow=8, padding=1, pad_value=1.0), picture)


def score(results: dict[str, Any], key: str) -> str:
    """A value with its standard error, or nothing if the likelihood has none."""
    if key not in results:
        return ""
    return f"{results[key]['mean']:.1f} ± {results[key]['standard_error']:.1f}"


def entry(flags: str, work: Path) -> str:
    """The part of the page about these flags."""
    name = name_of(flags)
    results = trained(flags, work / name)
    draw(work / name, FIGURES / f"{name}.png")
    facts = [f"ELBO {score(results, 'elbo')}"]
    if log_likelihood := score(results, "log_likelihood"):
        facts.append(f"log p(x) {log_likelihood}")
    facts.append(f"{results['seconds']} CPU seconds")
    return f"""```sh
pyro-vae {TRAIN} {flags}
```

![Sixteen means of p(x | z)](../experiments/figures/gallery/{name}.png)

{"; ".join(facts)}
"""


HEAD = """# Gallery

Each picture shows means of p(x | z) at 16 draws from the prior, after the command above it, with
seed 0. The values are in nats per test image ± standard error over 833 images, with K = 1,000
samples for log p(x). Compare them only within one kind of pixels: binary ones, or grey values.
Priors change what is drawn. Posteriors hardly do; see their values instead.

`python experiments/gallery.py --work DIR` made this page with version 0.3.0.dev0, torch 2.14.1, on
one core of an AMD EPYC (Zen 5), 2026-11-30.
"""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    work = parser.parse_args().work
    page = [HEAD]
    for group, parts in PARTS.items():
        page.append(f"## {group}\n")
        page += [entry(flags, work) for flags in parts]
    (HERE.parent / "docs" / "gallery.md").write_text("\n".join(page))
