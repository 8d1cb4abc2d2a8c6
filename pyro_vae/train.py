"""`python -m pyro_vae.train`: train a VAE, score it on the test set and draw it."""

from __future__ import annotations

import sys
from datetime import datetime
from itertools import chain, count
from math import ceil
from pathlib import Path

import pyro
from jsonargparse import Namespace

from pyro_vae import plots, progress, views
from pyro_vae.cli import build, constructors, device, parse, rehearse_optimizer, resolve_binarization, run, supply, train_parser
from pyro_vae.data import NAMED, Data, load_data, to_pixels
from pyro_vae.diagnostics import evaluate
from pyro_vae.errors import RequestError
from pyro_vae.fit import fit
from pyro_vae.runs import Run, new_run
from pyro_vae.schedules import value_at
from pyro_vae.vae import Model

EPOCHS = 20
STEPS = 3000
FIRST_PIXELS = 50_000_000
TEST_SAMPLES = 1000
TEST_IMAGES = 1000
LATENT_IMAGES = 5000


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    return run(_train, argv)


def _train(argv: list[str] | None) -> None:
    config = parse(train_parser(), argv)
    vae, data, folder = _prepare(config)
    _fit(vae, data, folder, config)
    results = _score(vae, data)
    folder.save_results(results)
    print(progress.table(results, f"\n{data.name}, test set", vae.likelihood))
    print(f"\nrun folder: {folder.path}", *(f"  {picture}" for picture in draw(vae, data, folder)), sep="\n")


def _prepare(config: Namespace) -> tuple[Model, Data, Run]:
    """Refuse whatever is wrong before anything is written."""
    where, parts = device(config.device), constructors(config)
    value_at(supply("beta", parts.beta), 0)
    rehearse_optimizer(parts.optimizer)
    config.binarization = resolve_binarization(config.binarization, supply("likelihood", parts.likelihood))
    data = load_data(config.data, config.data_dir, config.image_size, config.binarization, say=print)
    pyro.clear_param_store()
    pyro.set_rng_seed(config.seed)
    vae = build(parts, config.latent_dim, data.shape).to(where)
    if config.batch_size > len(data.train):
        raise RequestError(f"batch_size is {config.batch_size}, but there are {len(data.train)} training images: use fewer")
    config.epochs = config.epochs or max(EPOCHS, ceil(STEPS * config.batch_size / len(data.train)))
    first = data.train.images[: max(1, FIRST_PIXELS // data.train.images[0].numel())]
    supply("prior", vae.initialize, x=to_pixels(first, vae.pixels).to(where))
    config.data, config.data_dir = _found(config.data, data), str(Path(config.data_dir).resolve())
    folder = new_run(_run_dir(config.run_dir, data), config)
    print(f"{vae.__class__.__name__} on {where}: {sum(p.numel() for p in vae.parameters()):,} parameters; {_sizes(data)}")
    return vae, data.to(where), folder


def _found(asked: str, data: Data) -> str:
    return data.name if asked in ("auto", *NAMED) else str(Path(asked).resolve())


def _run_dir(asked: str | None, data: Data) -> Path:
    stem = f"runs/{Path(data.name).stem}-{datetime.now():%Y-%m-%d-%H%M%S}"
    numbered = (Path(f"{stem}-{number}") for number in count(2))
    return Path(asked) if asked else next(path for path in chain([Path(stem)], numbered) if not path.exists())


def _sizes(data: Data) -> str:
    sizes = f"{len(data.train):,} training, {len(data.validation):,} validation and {len(data.test):,} test images"
    return f"{data.name}: {sizes} of {'x'.join(map(str, data.shape))}"


def _fit(vae: Model, data: Data, folder: Run, config: Namespace) -> None:
    parts = constructors(config)
    best = float("-inf")
    with progress.bar(config.epochs * len(data.train), "training") as bar:
        records = fit(
            vae,
            data,
            epochs=config.epochs,
            batch_size=config.batch_size,
            optimizer=parts.optimizer,
            beta=parts.beta(),
            on_batch=bar.update,
        )
        for record in records:
            folder.add_record(record)
            folder.save_checkpoint("last", vae, data.shape, record["epoch"])
            if record["validation_elbo"] > best:
                best = record["validation_elbo"]
                folder.save_checkpoint("best", vae, data.shape, record["epoch"])
            progress.show_epoch(bar, record, config.epochs)


def _score(vae: Model, data: Data) -> dict[str, dict[str, float]]:
    num_images = min(TEST_IMAGES, len(data.test))
    with progress.bar(num_images, "scoring the test set") as bar:
        return evaluate(vae, data.test, TEST_SAMPLES, num_images, on_images=bar.update)


def draw(vae: Model, data: Data, folder: Run) -> list[Path]:
    """Write the pictures of a trained VAE; their paths."""
    x = data.test[:LATENT_IMAGES].scored(vae.pixels)
    where = "" if vae.latent_dim <= 2 else ", principal components"
    figures = {
        "curves": plots.curves(folder.records()),
        "reconstructions": plots.pairs(views.reconstructions(vae, x[:10]), "test images and their reconstructions"),
        "samples": plots.grid(views.samples(vae, 64), "samples: means of p(x | z), z from the prior"),
        "latent": plots.latent(
            views.codes(vae, x).loc, data.test[:LATENT_IMAGES].labels, f"posterior means of test images{where}"
        ),
    }
    if vae.latent_dim == 2:
        figures["manifold"] = plots.manifold(views.manifold(vae))
    return [plots.save(figure, folder.figures / f"{name}.png") for name, figure in figures.items()]


if __name__ == "__main__":
    sys.exit(main())
