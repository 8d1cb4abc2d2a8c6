"""MNIST with few labels: SemiSupervisedVAE on the codes of a VAE (M1+M2 of Kingma et al., 2014).

    pyro-vae train --data mnist --data_dir data --latent_dim 50 --epochs 10 --run_dir runs/m1
    python experiments/semi_supervised/m1_m2.py runs/m1 --out m1_m2.json --labels 100 --seeds 0 1

The codes of a training image are drawn anew for each of its rows, which is the only augmentation.
Labelled images have more rows, so that every batch has some. Results that the file holds already
are not computed again.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_vae as pv
from pyro_vae.evaluation.codes import ACTIVE
from pyro_vae.evaluation.labels import classify
from pyro_vae.likelihoods import Normal
from pyro_vae.runs.load import open_run

# Share of the rows whose label is known.
LABELLED = 0.2


def codes_of(run: str) -> tuple[pv.Data, list[tuple[Tensor, Tensor]]]:
    """The images of a run, and the active dimensions of their codes, by split."""
    saved = open_run(run)
    data = saved.data()
    codes = []
    for split in data.splits:
        loc, scale = pv.codes(saved.vae, split.with_fixed_noise())
        codes.append((loc, scale))
    active = codes[0][0].var(0) > ACTIVE
    return data, [(loc[:, active], scale[:, active]) for loc, scale in codes]


def rows_of(labels: Tensor, draws: int) -> Tensor:
    """The image of each training row."""
    images = torch.arange(len(labels)).repeat(draws)
    known = (labels >= 0).nonzero()[:, 0]
    copies = round(LABELLED / (1 - LABELLED) * len(images) / len(known))
    return torch.cat([images, known.repeat(max(0, copies))])


def train(data: pv.Data, codes: list[Any], labels: int, seed: int, args: Any) -> dict[str, Any]:
    """Train on the codes with so many labels, and classify the test images."""
    start = time.process_time()
    pyro.set_rng_seed(seed)
    hidden = data.train.with_labels(labels, seed).labels
    assert hidden is not None
    rows = rows_of(hidden, args.draws)
    loc, scale = codes[0]
    drawn = loc[rows] + scale[rows] * torch.randn(len(rows), loc.shape[1])
    train = pv.Split(drawn, hidden[rows])
    validation = pv.Split(codes[1][0], data.validation.labels)
    test = pv.Split(codes[2][0], data.test.labels)
    vectors = pv.Data("codes", train, validation, test)
    shape = vectors.shape
    vae = pv.SemiSupervisedVAE(
        prior=pv.StandardNormal(args.latent_dim),
        encoder=pv.MLP(shape, (2, args.latent_dim), (args.hidden,)),
        posterior=pv.DiagonalNormal(),
        decoder=pv.MLP((args.latent_dim + 10,), (2, *shape), (args.hidden,)),
        likelihood=Normal(kind="real", learned="pixel"),
        classifier=pv.MLP(shape, (10,), (args.hidden,)),
        data_shape=shape,
        label_dim=10,
        alpha=args.alpha,
    )
    curve = []
    training = pv.fit(
        vae,
        vectors,
        epochs=args.epochs,
        batch_size=256,
        seed=seed,
        optimizer=partial(Adam, lr=args.lr, fused=True),
        lr_scheduler=partial(CosineAnnealingLR, T_max=args.epochs),
        engine="traced",
    )
    for record in training:
        found = classify(vae, vectors.validation)
        curve.append(found.accuracy)
        print(
            f"{labels} labels, seed {seed}, epoch {record['epoch']}: validation accuracy"
            f" {found.accuracy:.4f}, ELBO {record['validation_elbo']:.2f}",
            flush=True,
        )
    result = classify(vae, vectors.test).summary()
    del result["bins"]
    return {**result, "validation_curve": curve, "cpu_seconds": time.process_time() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="run folder of a VAE of MNIST")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 600, 1000, 3000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--latent_dim", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=200)
    parser.add_argument("--alpha", type=float, default=2.0)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    results = {}
    if args.out.exists():
        results = json.loads(args.out.read_text())
    data, codes = codes_of(args.run)
    for seed in args.seeds:
        for labels in args.labels:
            key = f"{labels} labels, seed {seed}"
            if key not in results:
                results[key] = train(data, codes, labels, seed, args)
                args.out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
