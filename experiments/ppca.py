"""A linear VAE trained on MNIST, against the maximum likelihood of probabilistic PCA in closed form.

    python experiments/ppca.py --data_dir DIR

Pixels are dequantized, (byte + u) / 256 with fresh u at every step; so is the covariance that the closed form is of. The
closed form of the KL, one learned noise scale; the decoder's bias starts at the mean; the learning rate falls to 0, so that the
last epoch's ELBO is of parameters that stand still.
"""

from __future__ import annotations

import argparse
import time

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_vae as pv
from pyro_vae.networks import Linear
from pyro_vae.testing import probabilistic_pca


def linear_vae(shape: tuple[int, ...], latent_dim: int) -> pv.VAE:
    posterior = pv.DiagonalNormal(Linear(shape, (2, latent_dim)))
    likelihood = pv.likelihoods.Normal(scale=0.3, learned="scalar")
    return pv.VAE(pv.StandardNormal(latent_dim), posterior, Linear((latent_dim,), (1, *shape)), likelihood)


def covariance(images: torch.Tensor) -> torch.Tensor:
    """Of the dequantized pixels, whose noise adds its own variance."""
    pixels = images.flatten(1).double() / 256
    return torch.cov(pixels.T, correction=0) + torch.eye(pixels.shape[1]) / 12 / 256**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--latent_dims", nargs="+", type=int, default=[2, 10])
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=0.003)
    args = parser.parse_args()
    data = pv.load_data(args.data, args.data_dir)
    print("| latent_dim | closed form | ELBO of the last epoch | difference | noise, closed form | learned | s |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for latent_dim in args.latent_dims:
        start = time.perf_counter()
        pyro.set_rng_seed(0)
        vae = linear_vae(data.shape, latent_dim)
        vae.initialize(data.train.scored("dequantized"))
        *_, last = pv.fit(
            vae,
            data,
            epochs=args.epochs,
            batch_size=args.batch_size,
            objective=TraceMeanField_ELBO(),
            optimizer=lambda params: Adam(params, lr=args.lr),
            lr_scheduler=lambda optimizer: CosineAnnealingLR(optimizer, args.epochs),
            engine="compiled",
        )
        exact = probabilistic_pca(covariance(data.train.images), latent_dim)
        scale = 0.3 * vae.likelihood.log_factor.exp().item()  # type: ignore[union-attr, operator]
        row = (
            f"| {latent_dim} | {exact.log_likelihood:.2f} | {-last['loss']:.2f} | {-last['loss'] - exact.log_likelihood:+.3f} "
        )
        print(f"{row}| {exact.scale:.5f} | {scale:.5f} | {time.perf_counter() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
