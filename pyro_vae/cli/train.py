"""`pyro-vae train`: train a model, score it on the test set and draw figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from shlex import quote
from timeit import repeat

import torch

from pyro_vae.cli.loggers import Log, check_installed, tensorboard
from pyro_vae.cli.options import Asked, parse_resumed, parse_training
from pyro_vae.cli.report import save_report
from pyro_vae.cli.tables import epoch_line, table
from pyro_vae.data.split import Data
from pyro_vae.engine import distributed
from pyro_vae.engine.graphs import logger
from pyro_vae.errors import NotFiniteError, RequestError
from pyro_vae.evaluation.codes import codes, scored
from pyro_vae.evaluation.metrics import evaluate
from pyro_vae.report import figures, views
from pyro_vae.runs.checkpoints import load_checkpoint, resume, save_checkpoint
from pyro_vae.runs.folder import Run
from pyro_vae.runs.log import add_record, keep_records, read_records
from pyro_vae.runs.recipe import Recipe, build_training, pick_device
from pyro_vae.runs.store import write
from pyro_vae.training.fit import Record, Training
from pyro_vae.vae import Model

TEST_SAMPLES = 1000
TEST_IMAGES = 1000
LATENT_IMAGES = 5000
# About how many epochs are printed.
LINES = 20
# Consecutive steps with a collapsed posterior after which it is reported: it may recover in the first ones.
COLLAPSED_STEPS = 1000


def train(argv: list[str]) -> None:
    """Run the command."""
    asked = parse_training(argv)
    if asked.recipe.logger:
        check_installed()
    if asked.resume != "never" and asked.run_dir is None:
        raise RequestError("--resume continues the run in --run_dir; add its folder")
    run_exists = asked.run_dir is not None and Run(Path(asked.run_dir)).exists()
    if asked.resume == "never" and run_exists:
        raise RequestError(
            f"{asked.run_dir} holds a run already; add --resume to continue it, or use another run_dir"
        )
    with distributed.process_group(pick_device(asked.recipe.device)):
        if asked.resume == "always" or (asked.resume == "auto" and run_exists):
            _resume(asked, argv)
        else:
            _start(asked.recipe, asked.run_dir)


def _start(recipe: Recipe, run_dir: str | None) -> None:
    vae, data, training = build_training(recipe)
    run = Run.create(_run_dir(run_dir, data)) if distributed.is_main_process() else None
    with run.lock() if run else nullcontext():
        if run:
            save_checkpoint(run, "last", training, data)
            _save_recipe(run, recipe)  # last: with it, the folder holds a run that can be resumed
        with _how_to_resume(run, recipe):
            _finish(vae, data, training, run, recipe)


def _resume(asked: Asked, argv: list[str]) -> None:
    run = Run.open(asked.run_dir or "")
    with run.lock() if distributed.is_main_process() else nullcontext():
        stored = Recipe.load(run.recipe_file, asked.trust, asked.recipe.paths())
        recipe = parse_resumed(stored, argv, run.path)
        checkpoint = load_checkpoint(run, "last")
        is_named = recipe.data_dir == asked.recipe.data_dir
        vae, data, training = build_training(recipe, download=is_named)
        resume(training, data, checkpoint, stored.epochs or training.epochs)
        logger.info("resuming after epoch %d of %d", training.epoch, training.epochs)
        if distributed.is_main_process():
            _save_recipe(run, recipe)
            keep_records(run, training.epoch)
        with _how_to_resume(run, recipe):
            _finish(vae, data, training, run if distributed.is_main_process() else None, recipe)


def _save_recipe(run: Run, recipe: Recipe) -> None:
    write(run.recipe_file, recipe.to_yaml().encode())


@contextmanager
def _how_to_resume(run: Run | None, recipe: Recipe) -> Iterator[None]:
    """Add to an interruption how to continue; a loss that is not finite would only become so again."""
    try:
        yield
    except BaseException as error:
        if run and not isinstance(error, NotFiniteError):
            command = f"python -m pyro_vae.train --run_dir {quote(str(run.path))} --resume"
            trust = "" if recipe.is_known() else " --trust"
            error.add_note(f"to continue: {command}{trust}")
        raise


def _run_dir(asked: str | None, data: Data) -> Path:
    stem = f"runs/{Path(data.name).stem}-{datetime.now():%Y-%m-%d-%H%M%S}"
    numbered = (Path(f"{stem}-{number}") for number in count(2))
    return (
        Path(asked)
        if asked
        else next(path for path in chain([Path(stem)], numbered) if not path.exists())
    )


def _finish(vae: Model, data: Data, training: Training, run: Run | None, recipe: Recipe) -> None:
    """Train to the end, score and draw; only the main process has a run folder."""
    _summarize(vae, data, training)
    with (
        tensorboard(run.path / "tensorboard", vae, data, training.epoch)
        if run and recipe.logger
        else nullcontext() as log
    ):
        _train(data, training, run, recipe, log)
    results = evaluate(vae, data.test, TEST_SAMPLES, min(TEST_IMAGES, len(data.test)))
    if run:
        run.save_results(results)
        logger.info(table(results, f"\n{data.name}, test set", vae.likelihood))
        files = [
            *draw(vae, data, run),
            *(save_report(run, vae, data.test) if recipe.report else []),
        ]
        logger.info("\n  ".join([f"\nrun folder: {run.path}", *map(str, files)]))


def _summarize(vae: Model, data: Data, training: Training) -> None:
    parameters = sum(param.numel() for param in vae.parameters())
    sizes = " + ".join(f"{len(split):,}" for split in (data.train, data.validation, data.test))
    shape = "x".join(map(str, data.shape))
    logger.info("%s: %s images of %s (training + validation + test)", data.name, sizes, shape)
    kind, device = type(vae).__name__, training.loop.device
    logger.info(
        "%s: %s parameters, on %s, engine %s", kind, f"{parameters:,}", device, training.engine
    )
    if (
        device.type == "cpu"
        and torch.get_num_threads() > 1
        and _product_seconds() > 2 * _product_seconds(1)
    ):
        logger.warning("other processes use the cores; OMP_NUM_THREADS=1 may be many times faster")


def _product_seconds(threads: int | None = None) -> float:
    """Seconds of a product as in training, with torch's number of threads or another."""
    before, x = torch.get_num_threads(), torch.ones(128, 784)
    torch.set_num_threads(threads or before)
    try:
        return min(repeat(lambda: x @ x.T, number=20, repeat=3))
    finally:
        torch.set_num_threads(before)


def _train(
    data: Data, training: Training, run: Run | None, recipe: Recipe, log: Log | None
) -> None:
    if recipe.keep_every and recipe.keep_every > training.epochs:
        logger.warning(
            "--keep_every %d keeps none of %d epochs", recipe.keep_every, training.epochs
        )
    latent_dim, last_active, warned = recipe.latent_dim, training.loop.step, False
    for record in training:
        if run:
            _save(training, record, run, data, recipe)
        if log:
            log(record)
        if training.ended or record["epoch"] in {
            1,
            *range(0, training.epochs, max(1, training.epochs // LINES)),
        }:
            logger.info(epoch_line(record, training.epochs))
        collapsed = record["active_units"] <= latent_dim // 10
        last_active = last_active if collapsed else record["step"]
        if (
            collapsed
            and not warned
            and (training.ended or record["step"] - last_active >= COLLAPSED_STEPS)
        ):
            logger.warning(COLLAPSED, record["active_units"], latent_dim)
            warned = True


def _save(training: Training, record: Record, run: Run, data: Data, recipe: Recipe) -> None:
    """Write an epoch; the checkpoint last, because resuming starts from it."""
    add_record(run, record)
    if training.improved:
        save_checkpoint(run, "best", training, data)
    if recipe.keep_every and training.epoch % recipe.keep_every == 0:
        save_checkpoint(run, training.epoch, training, data)
    if training.ended or training.epoch % recipe.checkpoint_every == 0:
        save_checkpoint(run, "last", training, data)


COLLAPSED = (
    "the posterior has collapsed: %d of %d latent dimensions are active; try more epochs, a warm-up (--beta Linear), free bits"
    " (--objective FreeBitsELBO) or a smaller --beta.value"
)


def draw(vae: Model, data: Data, run: Run) -> list[Path]:
    """Write the figures of a trained model; their paths."""
    images = data.test[:LATENT_IMAGES]
    batch = scored(vae, images)
    y = batch.y
    drawn = {
        "curves": figures.curves(read_records(run)),
        "reconstructions": figures.reconstructions(
            views.reconstructions(vae, batch[:10]), "test images and reconstructions"
        ),
        "samples": figures.samples(views.samples(vae, 64, y=views.random_labels(vae, images, 64))),
        "latent": figures.latent(
            codes(vae, batch).loc, images.labels, "posterior means of test images"
        ),
    }
    if vae.needs_labels and y is not None and not y.is_floating_point():
        classes = y.unique()
        drawn["analogies"] = figures.analogies(views.analogies(vae, classes), classes)
    if vae.latent_dim == 2 and not vae.needs_labels:
        drawn["manifold"] = figures.manifold(*views.manifold(vae))
    return [
        write(run.path / "figures" / f"{name}.png", figures.png(figure))
        for name, figure in drawn.items()
    ]
