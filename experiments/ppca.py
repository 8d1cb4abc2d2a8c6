"""Compare a trained linear VAE with the exact maximum likelihood of probabilistic PCA.

    python experiments/ppca.py --data_dir DIR

Pixels are dequantized, (byte + u) / 256 with new u at every step, and the closed form uses the
covariance of such pixels. The KL is computed in closed form, one noise scale is learned, and the
learning rate decreases to 0, so that the parameters hardly change during the last epoch. Its mean
ELBO is compared.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_vae as pv
from pyro_vae.networks import Linear
from pyro_vae.testing import probabilistic_pca


def linear_vae(shape: tuple[int, ...], latent_dim: int) -> pv.VAE:
    encoder, decoder = Linear(shape, (2, latent_dim)), Linear((latent_dim,), (1, *shape))
    likelihood = pv.likelihoods.Normal(scale=0.3, learned="scalar")
    return pv.VAE(pv.StandardNormal(latent_dim), encoder, pv.DiagonalNormal(), decoder, likelihood)


def covariance(images: torch.Tensor) -> torch.Tensor:
    """The covariance of dequantized pixels, including that of the noise u."""
    pixels = images.flatten(1).double() / 256
    return torch.cov(pixels.T, correction=0) + torch.eye(pixels.shape[1]) / 12 / 256**2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--latent_dims", nargs="+", type=int, default=[2, 10])
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=0.003)
    args = parser.parse_args()
    data = pv.load_data(args.data, args.data_dir)
    print("| latent_dim | closed form | ELBO of the last epoch | difference ", end="")
    print("| noise, closed form | learned | s |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for latent_dim in args.latent_dims:
        start = time.perf_counter()
        pyro.set_rng_seed(0)
        vae = linear_vae(data.shape, latent_dim)
        *_, last = pv.fit(
            vae,
            data,
            epochs=args.epochs,
            batch_size=args.batch_size,
            objective=TraceMeanField_ELBO(),
            optimizer=partial(Adam, lr=args.lr),
            lr_scheduler=partial(CosineAnnealingLR, T_max=args.epochs),
            engine="compiled",
        )
        exact = probabilistic_pca(covariance(data.train.x), latent_dim)
        scale = 0.3 * vae.likelihood.log_factor.exp().item()  # type: ignore[union-attr, operator]
        elbo = -last["loss"]
        difference = elbo - exact.log_likelihood
        seconds = time.perf_counter() - start
        print(
            f"| {latent_dim} | {exact.log_likelihood:.2f} | {elbo:.2f} | {difference:+.3f} ", end=""
        )
        print(f"| {exact.scale:.5f} | {scale:.5f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
