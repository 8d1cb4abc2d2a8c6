"""MNIST with few labels: SemiSupervisedVAE whose classifier sees moved images in training.

    python experiments/semi_supervised/moved.py --out moved.json --labels 100 --seeds 0 1

The classifier is first trained on the labelled images alone, which is the floor. Then the other
networks are trained with this classifier held, and last all together. Labelled images have more
rows, so that every batch has some. Results that the file holds already are not computed again.
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
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_vae as pv
from pyro_vae.evaluation.labels import classify


class Moved(nn.Module):
    """Turns, scales, shears and shifts each image by random amounts, in training mode only.

    Arguments:
        turn: Largest rotation in radians.
        scale: Largest relative change of the width and of the height.
        shear: Largest shear.
        shift: Largest shift as a share of half the image.
    """

    def __init__(
        self, turn: float = 0.25, scale: float = 0.15, shear: float = 0.2, shift: float = 0.15
    ) -> None:
        super().__init__()
        self.limits = nn.Buffer(torch.tensor([turn, scale, scale, shear, shift, shift]))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        amounts = self.limits * (2 * torch.rand(len(x), 6, device=x.device) - 1)
        turn, width, height, shear, right, down = amounts.unbind(1)
        first = torch.stack([turn.cos() * (1 + width), shear - turn.sin(), right], 1)
        second = torch.stack([turn.sin(), turn.cos() * (1 + height), down], 1)
        grid = functional.affine_grid(torch.stack([first, second], 1), list(x.shape), False)
        return functional.grid_sample(x, grid, align_corners=False)


class MovedConv(nn.Module):
    """A classifier of moved images: three strided convolutions with batch normalization."""

    def __init__(self, channels: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Moved(),
            *convolution(1, channels, 5),
            *convolution(channels, 2 * channels, 3),
            *convolution(2 * channels, 2 * channels, 3),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(2 * channels * 16, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def convolution(channels_in: int, channels_out: int, kernel_size: int) -> list[nn.Module]:
    """Layers that halve the height and the width."""
    layer = nn.Conv2d(channels_in, channels_out, kernel_size, 2, kernel_size // 2)
    return [layer, nn.BatchNorm2d(channels_out), nn.ReLU()]


def fit_classifier(classifier: nn.Module, labelled: pv.Split, steps: int) -> None:
    """Train a classifier on labelled images alone."""
    assert labelled.labels is not None
    x = labelled.x / 255
    optimizer = Adam(classifier.parameters(), lr=2e-3)
    scheduler = CosineAnnealingLR(optimizer, steps)
    classifier.train()
    for _ in range(steps):
        rows = torch.randperm(len(x))[:128]
        loss = functional.cross_entropy(classifier(x[rows]), labelled.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def with_more_labelled(split: pv.Split, share: float) -> pv.Split:
    """The split with copies of the labelled images, up to this share of the rows."""
    assert split.labels is not None
    images = torch.arange(len(split))
    known = (split.labels >= 0).nonzero()[:, 0]
    copies = round(share / (1 - share) * len(images) / len(known))
    return split[torch.cat([images, known.repeat(max(0, copies))])]


def train(data: pv.Data, labels: int, seed: int, args: Any) -> dict[str, Any]:
    """Train with so many labels, and classify the validation and test images.

    The settings were chosen by the accuracy on the validation images.
    """
    start = time.process_time()
    pyro.set_rng_seed(seed)
    hidden = data.train.with_labels(labels, seed)
    vae = pv.SemiSupervisedVAE(
        prior=pv.StandardNormal(args.latent_dim),
        encoder=nn.Sequential(
            nn.AvgPool2d(2), pv.MLP((1, 14, 14), (2, args.latent_dim), (args.hidden,))
        ),
        posterior=pv.DiagonalNormal(),
        decoder=pv.MLP((args.latent_dim + 10,), (1, *data.shape), (args.hidden,)),
        likelihood=pv.Bernoulli(relaxed=True),
        classifier=MovedConv(),
        data_shape=data.shape,
        label_dim=10,
        alpha=args.alpha,
    )
    fit_classifier(vae.classifier, hidden.labelled(), args.steps)
    alone = accuracies(vae, data)
    cpu_alone = time.process_time() - start
    print(f"{labels} labels, seed {seed}: {alone['validation']:.4f}", flush=True)
    shown = pv.Data(data.name, with_more_labelled(hidden, args.share), data.validation, data.test)
    curve = []
    phases = [(args.first, False), (args.epochs, True)]
    if args.epochs == 0:
        phases = []
    for epochs, together in phases:
        vae.classifier.requires_grad_(together)
        training = pv.fit(
            vae,
            shown,
            epochs=epochs,
            batch_size=args.batch_size,
            seed=seed,
            optimizer=partial(Adam, lr=args.lr, fused=True),
            lr_scheduler=partial(CosineAnnealingLR, T_max=epochs),
            engine="traced",
        )
        for record in training:
            curve.append(classify(vae, data.validation).accuracy)
            print(
                f"{labels} labels, seed {seed}, epoch {record['epoch']}: validation accuracy"
                f" {curve[-1]:.4f}, ELBO {record['validation_elbo']:.2f}",
                flush=True,
            )
    return {
        "classifier_alone": alone,
        "cpu_seconds_alone": cpu_alone,
        "together": accuracies(vae, data),
        "cpu_seconds": time.process_time() - start,
        "validation_curve": curve,
    }


def accuracies(vae: pv.SemiSupervisedVAE, data: pv.Data) -> dict[str, float]:
    """Accuracy on the validation and the test images."""
    vae.eval()
    validation = classify(vae, data.validation).accuracy
    return {"validation": validation, "test": classify(vae, data.test).accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 600, 1000, 3000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--latent_dim", type=int, default=15)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--alpha", type=float, default=10.0)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=4, help="0: the classifier alone")
    parser.add_argument("--batch_size", type=int, default=256)
    args = parser.parse_args()
    results = {}
    if args.out.exists():
        results = json.loads(args.out.read_text())
    data = pv.load_data("mnist", args.data_dir, download=False)
    for seed in args.seeds:
        for labels in args.labels:
            key = f"{labels} labels, seed {seed}"
            if key not in results:
                results[key] = train(data, labels, seed, args)
                args.out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
