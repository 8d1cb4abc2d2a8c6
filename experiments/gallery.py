"""One picture, command and figure for each part: `python experiments/gallery.py --work DIR`.

Trains a VAE of `mnist5k` with each part, draws means of p(x | z) at 16 draws from the prior, and
writes `experiments/figures/gallery/NAME.png` and the page `docs/gallery.md`. Runs that are in DIR
already are not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import pyro
import torch
from torchvision.utils import make_grid, save_image

import pyro_vae as pv
from pyro_vae.cli.main import main

HERE = Path(__file__).parent
FIGURES = HERE / "figures" / "gallery"

PARTS = {
    "Priors": [
        "--prior StandardNormal",
        "--prior Normal",
        "--prior Laplace",
        "--prior StudentT",
        "--prior GaussianMixture",
        "--prior VampPrior",
        "--prior FlowPrior",
    ],
    "Posteriors": [
        "--posterior DiagonalNormal",
        "--posterior LowRankNormal",
        "--posterior FullRankNormal",
        "--posterior FlowPosterior",
    ],
    "Likelihoods": [
        "--likelihood Bernoulli",
        "--likelihood ContinuousBernoulli",
        "--likelihood Normal --likelihood.learned scalar",
        "--likelihood Laplace --likelihood.learned scalar",
        "--likelihood Beta",
        "--likelihood Binomial",
        "--likelihood DiscretizedLogistic",
    ],
    "Networks": [
        "--encoder Conv --decoder Conv",
        "--encoder Gated --decoder Gated",
        "--encoder Linear --decoder Linear",
    ],
    "Models": [
        "--model HierarchicalVAE",
        "--model ConditionalVAE",
    ],
    "Objectives": [
        "--objective ImportanceWeightedELBO",
        "--objective DReGELBO",
        "--objective FreeBitsELBO",
        "--beta Linear --beta.epochs 10",
    ],
}
IMAGES = 16


def name_of(flags: str) -> str:
    words = [word for word in flags.split() if not word.startswith("--")]
    return "_".join(dict.fromkeys(words)).lower()


def trained(flags: str, run: Path) -> dict[str, Any]:
    """The results of a run with these flags, which is trained if it is not there yet."""
    if not (run / "results.json").exists():
        command = f"train --data mnist5k {flags} --report false --run_dir {run} --resume auto"
        start = perf_counter()
        if main(command.split()):
            raise SystemExit(f"failed: {command}")
        (run / "seconds").write_text(f"{perf_counter() - start:.0f}")
    results = json.loads((run / "results.json").read_text())
    return results | {"seconds": (run / "seconds").read_text()}


def draw(run: Path, picture: Path) -> None:
    """Draw means of p(x | z) at draws from the prior."""
    vae = pv.load_run(run)
    pyro.set_rng_seed(0)
    y = None
    if vae.needs_labels:
        y = torch.arange(IMAGES) % 10
    means = vae.likelihood.unit(vae.sample_mean(IMAGES, y)).clamp(0, 1)
    picture.parent.mkdir(exist_ok=True)
    save_image(make_grid(1 - means, nrow=8, padding=1, pad_value=1.0), picture)


def score(results: dict[str, Any], key: str) -> str:
    """A value with its standard error, or nothing if the likelihood has none."""
    if key not in results:
        return ""
    return f"{results[key]['mean']:.1f} ± {results[key]['standard_error']:.1f}"


def entry(group: str, flags: str, work: Path) -> str:
    """The part of the page about these flags."""
    name = f"{group.lower()}-{name_of(flags)}"
    results = trained(flags, work / name)
    draw(work / name, FIGURES / f"{name}.png")
    facts = [f"ELBO {score(results, 'elbo')}", f"{results['seconds']} s"]
    if log_likelihood := score(results, "log_likelihood"):
        facts.insert(1, f"log p(x) {log_likelihood}")
    return f"""```sh
pyro-vae train --data mnist5k {flags}
```

![Sixteen means of p(x | z)](experiments/figures/gallery/{name}.png)

{"; ".join(facts)}
"""


HEAD = """# Gallery

Each picture shows means of p(x | z) at 16 draws from the prior, after the command above it, with
the default number of epochs and seed 0. The values are in nats per test image ± standard error over
images. Compare them only between likelihoods on the same kind of pixels. `experiments/gallery.py`
made this page.
"""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    work = parser.parse_args().work
    page = [HEAD]
    for group, parts in PARTS.items():
        page.append(f"## {group}\n")
        page += [entry(group, flags, work) for flags in parts]
    (HERE.parent / "docs" / "gallery.md").write_text("\n".join(page))
