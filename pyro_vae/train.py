"""`python -m pyro_vae.train`: train a VAE, score it on the test set and draw it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from itertools import chain, count
from math import ceil
from pathlib import Path

import pyro
from jsonargparse import Namespace
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae import distributed, plots, progress, views
from pyro_vae.checkpoints import storing
from pyro_vae.cli import (
    build,
    build_objective,
    constructors,
    device,
    parse,
    rehearse_optimizer,
    resolve_binarization,
    run,
    supply,
    train_parser,
)
from pyro_vae.data import NAMED, Data, load_data, to_pixels
from pyro_vae.diagnostics import codes, evaluate
from pyro_vae.errors import RequestError
from pyro_vae.fit import Record, Training, fit
from pyro_vae.graphs import pick_engine
from pyro_vae.runs import Run, is_of, new_run
from pyro_vae.schedules import value_at
from pyro_vae.vae import Model

EPOCHS = 20
STEPS = 3000
FIRST_PIXELS = 50_000_000
TEST_SAMPLES = 1000
TEST_IMAGES = 1000
LATENT_IMAGES = 5000
COLLAPSED_STEPS = 1000
"""So many steps in succession with a collapsed posterior are no matter of the start."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    return run(_train, argv)


def _train(argv: list[str] | None) -> None:
    config = parse(train_parser(), argv)
    with distributed.joined(device(config.device)), progress.only_the_lead():
        _resume(config, argv) if config.resume else _start(config)


def _start(config: Namespace) -> None:
    vae, data, training = prepare(config)
    folder = new_run(_run_dir(config.run_dir, data), config) if distributed.is_lead() else None
    with folder.lock() if folder else nullcontext(), _resumable(folder):
        if folder:
            folder.save_checkpoint("last", training, data)
        _finish(vae, data, training, folder, config)


def _resume(asked: Namespace, argv: list[str] | None) -> None:
    if asked.run_dir is None:
        raise RequestError("--resume goes on with the run in --run_dir: name its folder")
    folder = Run.open(asked.run_dir)
    with folder.lock() if distributed.is_lead() else nullcontext():
        config, checkpoint = folder.resumed_config(asked, argv), folder.load_checkpoint("last")
        state = checkpoint["training"]
        if "optimizer" not in state:
            raise RequestError(f"{folder.path} is of an older version, which kept no state to go on from: train again")
        if state["epoch"] > config.epochs:
            raise RequestError(f"epochs is {config.epochs}, but {folder.path} has trained {state['epoch']}: ask for more")
        vae, data, training = prepare(config, download=config.data_dir == asked.data_dir)
        if not is_of(data, checkpoint):
            raise RequestError(f"{config.data} has changed since {folder.path} was trained: put it back, or train anew")
        training.load_state_dict(state)
        print(f"resuming after epoch {state['epoch']} of {config.epochs}")
        if distributed.is_lead():
            folder.save_config(config)
            folder.keep_records(state["epoch"])
        with _resumable(folder):
            _finish(vae, data, training, folder if distributed.is_lead() else None, config)


@contextmanager
def _resumable(folder: Run | None) -> Iterator[None]:
    """Add to whatever stops a training how it can go on."""
    try:
        yield
    except BaseException as error:
        if folder:
            error.add_note(f"to go on: python -m pyro_vae.train --run_dir {folder.path} --resume")
        raise


def prepare(config: Namespace, download: bool = True) -> tuple[Model, Data, Training]:
    """The model, the data and the training that a configuration asks for, before anything is written.

    Arguments:
        config: What `train_parser` has read; what it leaves open (epochs, binarization, engine) is filled in.
        download: Whether the data may be downloaded to `config.data_dir`.

    Raises:
        RequestError: If anything in it is wrong.
    """
    where, parts = device(config.device), constructors(config)
    rehearse_optimizer(parts.optimizer, parts.lr_scheduler)
    config.binarization = resolve_binarization(config.binarization, supply("likelihood", parts.likelihood))
    with distributed.lead_first():
        data = load_data(config.data, config.data_dir, config.image_size, config.binarization, download)
    if config.batch_size > len(data.train):
        raise RequestError(f"batch_size is {config.batch_size}, but there are {len(data.train)} training images: use fewer")
    steps_per_epoch = ceil(len(data.train) / config.batch_size)
    config.epochs = config.epochs or max(EPOCHS, ceil(STEPS / steps_per_epoch))
    beta = supply("beta", parts.beta, steps_per_epoch=steps_per_epoch)
    value_at(beta, 0)
    pyro.clear_param_store()
    pyro.set_rng_seed(config.seed)
    vae = build(parts, config.latent_dim, data.shape).to(where)
    first = data.train.images[: max(1, FIRST_PIXELS // data.train.images[0].numel())]
    supply("prior", vae.initialize, x=to_pixels(first, vae.pixels).to(where))
    config.data, config.data_dir = _found(config.data, data), str(Path(config.data_dir).resolve())
    if config.engine == "auto":
        config.engine = pick_engine(where, config.epochs * steps_per_epoch) if distributed.size() == 1 else "eager"
    training = fit(
        vae,
        data.to(where),
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer=parts.optimizer,
        objective=build_objective(parts.objective),
        beta=beta,
        lr_scheduler=parts.lr_scheduler and (lambda optimizer: _scheduler(parts, optimizer)),
        clip_grad_norm=config.clip_grad_norm,
        patience=config.patience,
        engine=config.engine,
        precision=config.precision,
        on_nan=config.on_nan,
        say=progress.say,
    )
    print(_summary(vae, data, config.engine, str(where)))
    return vae, data.to(where), training


def _scheduler(parts: Namespace, optimizer: Optimizer) -> LRScheduler:
    return supply("lr_scheduler", parts.lr_scheduler, optimizer=optimizer)


def _found(asked: str, data: Data) -> str:
    return data.name if asked in ("auto", *NAMED) else str(Path(asked).resolve())


def _run_dir(asked: str | None, data: Data) -> Path:
    stem = f"runs/{Path(data.name).stem}-{datetime.now():%Y-%m-%d-%H%M%S}"
    numbered = (Path(f"{stem}-{number}") for number in count(2))
    return Path(asked) if asked else next(path for path in chain([Path(stem)], numbered) if not path.exists())


def _summary(vae: Model, data: Data, engine: str, where: str) -> str:
    parameters = sum(param.numel() for param in vae.parameters())
    sizes = f"{len(data.train):,} training, {len(data.validation):,} validation and {len(data.test):,} test images"
    shape = "x".join(map(str, data.shape))
    return f"{vae.__class__.__name__} on {where}, engine {engine}: {parameters:,} parameters; {data.name}: {sizes} of {shape}"


def _finish(vae: Model, data: Data, training: Training, folder: Run | None, config: Namespace) -> None:
    """Train to the end, score and draw; only the lead has a folder."""
    _fit(vae, data, training, folder, config)
    results = _score(vae, data)
    if folder:
        folder.save_results(results)
        print(progress.table(results, f"\n{data.name}, test set", vae.likelihood))
        print(f"\nrun folder: {folder.path}", *(f"  {picture}" for picture in draw(vae, data, folder)), sep="\n")


def _fit(vae: Model, data: Data, training: Training, folder: Run | None, config: Namespace) -> None:
    open_steps, warned = training.loop.step, False
    images = len(data.train)
    with progress.bar(config.epochs * images, "training", initial=training.epoch * images) as bar:
        training.loop.on_batch = bar.update
        for record in training:
            if folder:
                _keep(training, record, folder, data, config.checkpoint_every)
            progress.show_epoch(bar, record, config.epochs, training.ended)
            collapsed = record["active_units"] <= vae.latent_dim // 10
            open_steps = open_steps if collapsed else record["step"]
            if collapsed and not warned and (training.ended or record["step"] - open_steps >= COLLAPSED_STEPS):
                progress.say(_COLLAPSED.format(record["active_units"], vae.latent_dim))
                warned = True


def _keep(training: Training, record: Record, folder: Run, data: Data, checkpoint_every: int) -> None:
    """Write what an epoch came to; the checkpoint last, for a run goes on from it."""
    folder.add_record(record)
    if training.improved:
        folder.save_checkpoint("best", training, data)
    if training.ended or training.epoch % checkpoint_every == 0:
        folder.save_checkpoint("last", training, data)


_COLLAPSED = (
    "warning: the posterior has collapsed: {} of {} latent dimensions are active; try more epochs, a warm-up (--beta Linear"
    " --beta.epochs 10), free bits (--objective FreeBitsELBO) or a smaller --beta.value"
)


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
        "latent": plots.latent(codes(vae, x).loc, data.test[:LATENT_IMAGES].labels, f"posterior means of test images{where}"),
    }
    if vae.latent_dim == 2:
        figures["manifold"] = plots.manifold(views.manifold(vae))
    with storing(folder.figures):
        folder.figures.mkdir(exist_ok=True)
        return [plots.save(figure, folder.figures / f"{name}.png") for name, figure in figures.items()]


if __name__ == "__main__":
    sys.exit(main())
