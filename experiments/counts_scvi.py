"""Compare with scvi-tools' VAE on simulated counts: equal networks, likelihood and optimizer.

    pip install scvi-tools
    python experiments/counts_scvi.py

The counts are those of `counts.py simulated`, the total of each cell is the exposure. The third
row has the parameters of scvi-tools in this package's model, so that both score one model.
"""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import anndata
import numpy as np
import pyro
import scvi
import torch
from counts import RESULTS, Process, mean, split
from torch.optim import Adam

import pyro_vae as pv

EPOCHS = 60
HIDDEN = 128
LATENT = 5
SAMPLES = 1000


def make(shape: tuple[int, ...]) -> pv.VAE:
    return pv.VAE(
        pv.StandardNormal(LATENT),
        pv.MLP(shape, (2, LATENT), (HIDDEN,)),
        pv.DiagonalNormal(),
        pv.MLP((LATENT,), (1, *shape), (HIDDEN,)),
        pv.NegativeBinomial(given_total=True),
    )


def train_ours(data: pv.Data) -> pv.VAE:
    pyro.set_rng_seed(0)
    vae = make(data.shape)
    adam = partial(Adam, lr=1e-3, eps=0.01, weight_decay=1e-6)
    for _ in pv.fit(vae, data, epochs=EPOCHS, seed=0, optimizer=adam):
        pass
    return vae


def train_theirs(data: pv.Data) -> scvi.model.SCVI:
    scvi.settings.seed = 0
    cells = anndata.AnnData(data.train.x.numpy().astype(np.float32))
    scvi.model.SCVI.setup_anndata(cells)
    model = scvi.model.SCVI(
        cells,
        n_hidden=HIDDEN,
        n_latent=LATENT,
        dropout_rate=0.0,
        gene_likelihood="nb",
        use_batch_norm="none",
    )
    model.train(
        EPOCHS,
        accelerator="cpu",
        train_size=1.0,
        plan_kwargs={"lr": 1e-3, "n_epochs_kl_warmup": None},
        enable_progress_bar=False,
        logger=False,
    )
    return model


@torch.no_grad()
def copied(model: scvi.model.SCVI, shape: tuple[int, ...]) -> pv.VAE:
    """The parameters of scvi-tools' model in one of this package."""
    theirs: Any = model.module.cpu()
    vae: Any = make(shape)
    vae.likelihood.initialize(torch.ones(2, *shape))
    encoder, decoder = theirs.z_encoder, theirs.decoder
    pairs = [
        (encoder.encoder.fc_layers[0][0], vae.encoder.layers[1]),
        (decoder.px_decoder.fc_layers[0][0], vae.decoder.layers[1]),
        (decoder.px_scale_decoder[0], vae.decoder.layers[3]),
    ]
    for source, target in pairs:
        target.weight.copy_(source.weight)
        target.bias.copy_(source.bias)
    # They output the logarithm of the variance, here it is that of the scale.
    loc, log_variance, head = encoder.mean_encoder, encoder.var_encoder, vae.encoder.layers[3]
    head.weight.copy_(torch.cat([loc.weight, log_variance.weight / 2]))
    head.bias.copy_(torch.cat([loc.bias, log_variance.bias / 2]))
    vae.likelihood.log_inverse_dispersion.copy_(theirs.px_r)
    return vae  # type: ignore[no-any-return]


def scored(vae: pv.VAE, test: pv.Split) -> dict[str, list[float]]:
    scores = pv.score_images(vae, test, SAMPLES)
    return {"elbo": mean(scores.elbo), "log_p": mean(scores.log_likelihood)}


def main() -> None:
    x = Process().sample(5000)
    data = split("simulated", x, 500, 1000)
    start = time.perf_counter()
    model = train_theirs(data)
    results: dict[str, dict[str, Any]] = {}
    results["scvi-tools"] = {"seconds": round(time.perf_counter() - start)}
    test = anndata.AnnData(data.test.x.numpy().astype(np.float32))
    elbos = [float(model.get_elbo(test)) for _ in range(20)]
    results["scvi-tools"] |= {
        "elbo": float(np.mean(elbos)),
        "log_p": float(model.get_marginal_ll(test, n_mc_samples=SAMPLES)),
    }
    print(results, flush=True)
    results["parameters of scvi-tools, here"] = scored(copied(model, data.shape), data.test)
    print(results, flush=True)
    start = time.perf_counter()
    vae = train_ours(data)
    seconds = round(time.perf_counter() - start)
    results["pyro_vae"] = {"seconds": seconds, **scored(vae, data.test)}
    print(json.dumps(results), flush=True)
    (RESULTS / "counts-scvi.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
