"""`pyro-vae train`: train a model, score it on the test set and draw figures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from logging import getLogger
from pathlib import Path
from shlex import quote

import torch

from pyro_vae.cli.loggers import Log, check_installed, tensorboard
from pyro_vae.cli.options import Asked, parse_resumed, parse_training
from pyro_vae.cli.report import save_report
from pyro_vae.cli.tables import epoch_line, table
from pyro_vae.data.split import Data
from pyro_vae.engine import distributed
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import NotFiniteError, RequestError
from pyro_vae.evaluation.forecast import forecast, has_forecast
from pyro_vae.evaluation.metrics import Metrics, evaluate, score_images
from pyro_vae.reporting import figures
from pyro_vae.runs.build import build_training, pick_device
from pyro_vae.runs.checkpoints import load_checkpoint, resume, save_checkpoint
from pyro_vae.runs.folder import Run
from pyro_vae.runs.log import add_record, keep_records, read_records
from pyro_vae.runs.recipe import FigureFormat, Recipe
from pyro_vae.runs.store import unused
from pyro_vae.schedules import value_at
from pyro_vae.training.fit import Record, Training
from pyro_vae.vae import Model

# About how many epochs are printed.
LINES = 20
# Consecutive steps with a collapsed posterior after which it is reported: it may recover in the
# first ones.
COLLAPSED_STEPS = 1000
# Test images that are scored to estimate the time for all.
TIMED = 4

COLLAPSED = (
    "the posterior has collapsed: %d of %d latent dimensions are active; try more epochs, a warm-up"
    " (--beta Linear), free bits (--objective FreeBitsELBO) or a smaller --beta.value"
)

logger = getLogger("pyro_vae")


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
            f"{asked.run_dir} exists already; add --resume to continue its run, or use another"
            " run_dir"
        )
    with distributed.process_group(pick_device(asked.recipe.device)):
        if asked.resume == "always" or (asked.resume == "auto" and run_exists):
            _resume(asked, argv)
        else:
            _start(asked.recipe, asked.run_dir)


def _start(recipe: Recipe, run_dir: str | None) -> None:
    vae, data, training = build_training(recipe)
    run = None
    lock: AbstractContextManager[None] = nullcontext()
    if distributed.is_main_process():
        run = Run.create(_run_dir(run_dir, data))
        lock = run.lock()
    with lock:
        if run:
            save_checkpoint(run, "last", training, data)
            recipe.save(run.recipe_file)  # last: with it, the run can be resumed
        with _how_to_resume(run, recipe):
            _finish(vae, data, training, run, recipe)


def _resume(asked: Asked, argv: list[str]) -> None:
    run = Run.open(asked.run_dir or "")
    written = None  # only the main process writes to the folder
    lock: AbstractContextManager[None] = nullcontext()
    if distributed.is_main_process():
        written = run
        lock = run.lock()
    with lock:
        stored = Recipe.load(run.recipe_file, asked.trust, asked.recipe.paths())
        recipe = parse_resumed(stored, argv, run.path)
        checkpoint = load_checkpoint(run, "last")
        is_named = recipe.data_dir == asked.recipe.data_dir
        vae, data, training = build_training(recipe, download=is_named)
        resume(training, data, checkpoint, stored.epochs or training.epochs)
        logger.info("resuming after epoch %d of %d", training.epoch, training.epochs)
        if written:
            recipe.save(written.recipe_file)
            keep_records(written, training.epoch)
        with _how_to_resume(run, recipe):
            _finish(vae, data, training, written, recipe)


@contextmanager
def _how_to_resume(run: Run | None, recipe: Recipe) -> Iterator[None]:
    """Add to an interruption how to continue, unless the loss would only become NaN again."""
    try:
        yield
    except BaseException as error:
        if run and not isinstance(error, NotFiniteError):
            command = f"python -m pyro_vae.train --run_dir {quote(str(run.path))} --resume"
            if not recipe.is_known():
                command += " --trust"
            error.add_note(f"to continue: {command}")
        raise


def _run_dir(asked: str | None, data: Data) -> Path:
    """The folder that was asked for, or a new one that is named after the data and the time."""
    if asked:
        return Path(asked)
    name = f"{Path(data.name).stem}-{datetime.now():%Y-%m-%d-%H%M%S}"
    return unused(Path("runs", name))


def _finish(vae: Model, data: Data, training: Training, run: Run | None, recipe: Recipe) -> None:
    """Train to the end, score and draw; only the main process has a run folder."""
    _summarize(vae, data, training)
    log_epochs: AbstractContextManager[Log | None] = nullcontext()
    if run and recipe.logger:
        log_epochs = tensorboard(run.path / "tensorboard", vae, data, training.epoch)
    with log_epochs as log:
        _train(data, training, run, recipe, log)
    if recipe.test_samples:
        results = score(vae, data, recipe)
        if run:
            run.save_results(results)
            logger.info(table(results, f"\n{data.name}, test set", vae.likelihood))
    if run:
        files = draw(vae, data, run, recipe.figure_format)
        if recipe.report:
            files += save_report(run, vae, data.test)
        logger.info("\n  ".join([f"\nrun folder: {run.path}", *map(str, files)]))
        logger.info("next: %s", _next(run, files))


def _next(run: Run, files: Sequence[Path]) -> str:
    """What to do with a run that has ended."""
    evaluate = f"pyro-vae evaluate {quote(str(run.path))}"
    page = run.path / "report.html"
    if page in files:
        return f"open {page}, or check the numbers: {evaluate}"
    return f"check the numbers: {evaluate}"


def _summarize(vae: Model, data: Data, training: Training) -> None:
    """Log what is trained, on what."""
    sizes = " + ".join(f"{len(split):,}" for split in (data.train, data.validation, data.test))
    shape = "x".join(map(str, data.shape))
    text = "%s: %s %ss of %s (training + validation + test)"
    logger.info(text, data.name, sizes, data.train.noun, shape)
    kind = type(vae).__name__
    parameters = sum(param.numel() for param in vae.parameters())
    device = training.loop.device
    text = "%s: %s parameters, on %s, engine %s"
    logger.info(text, kind, f"{parameters:,}", device, training.engine)
    _foresee_collapse(vae, data, training)
    if device.type == "cpu" and torch.get_num_threads() > 1 and _cores_are_busy():
        logger.warning("other processes use the cores; OMP_NUM_THREADS=1 may be many times faster")


def _foresee_collapse(vae: Model, data: Data, training: Training) -> None:
    """Log how many latent dimensions Gaussian pixels of this scale have a use for."""
    if not has_forecast(vae):
        return
    steps = training.epochs * -(-len(data.train) // training.loop.batch_size)
    beta = value_at(training.loop.schedule, steps - 1)
    predicted = forecast(vae, data.train, beta)
    if predicted is not None:
        logger.info(
            "active units of an optimal linear VAE at this scale and beta: %d of %d",
            predicted,
            vae.latent_dim,
        )


def _cores_are_busy() -> bool:
    """Whether as many processes ran in the last minute as there are cores."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] >= (os.cpu_count() or 1)


def _train(
    data: Data, training: Training, run: Run | None, recipe: Recipe, log: Log | None
) -> None:
    """Train to the end; save and print the epochs."""
    if recipe.keep_every and recipe.keep_every > training.epochs:
        text = "--keep_every %d keeps none of %d epochs"
        logger.warning(text, recipe.keep_every, training.epochs)
    printed = {1, *range(0, training.epochs, max(1, training.epochs // LINES))}
    last_active = training.loop.step
    warned = False
    for record in training:
        if run:
            _save(training, record, run, data, recipe)
        if log:
            log(record)
        if training.ended or record["epoch"] in printed:
            logger.info(epoch_line(record, training.epochs))
        if record["active_units"] > recipe.latent_dim // 10:
            last_active = record["step"]
        elif not warned:
            warned = training.ended or record["step"] - last_active >= COLLAPSED_STEPS
            if warned:
                logger.warning(COLLAPSED, record["active_units"], recipe.latent_dim)


def _save(training: Training, record: Record, run: Run, data: Data, recipe: Recipe) -> None:
    """Write the record and the checkpoints. Resuming starts from "last", which is written last."""
    add_record(run, record)
    if training.improved:
        save_checkpoint(run, "best", training, data)
    if recipe.keep_every and training.epoch % recipe.keep_every == 0:
        save_checkpoint(run, training.epoch, training, data)
    if training.ended or training.epoch % recipe.checkpoint_every == 0:
        save_checkpoint(run, "last", training, data)


def score(vae: Model, data: Data, recipe: Recipe) -> Metrics:
    """The metrics on the test set; says before how long they take."""
    images = min(recipe.test_images, len(data.test))
    with forked_rng():
        few = data.test[: max(TIMED, distributed.world_size())]
        score_images(vae, few, recipe.test_samples)  # the first call takes longer than others
        start = time.perf_counter()
        score_images(vae, few, recipe.test_samples)
        seconds = (time.perf_counter() - start) * images / len(few)
    duration = f"{seconds:.0f} s"
    if seconds >= 100:
        duration = f"{seconds / 60:.0f} min"
    logger.info(
        "\nscoring %s test %ss, %s samples each (--test_samples): about %s",
        f"{images:,}",
        data.test.noun,
        f"{recipe.test_samples:,}",
        duration,
    )
    return evaluate(vae, data.test, recipe.test_samples, images)


def draw(vae: Model, data: Data, run: Run, figure_format: FigureFormat) -> list[Path]:
    """Write the figures of a trained model and return their paths.

    Logs a message if matplotlib is not installed.
    """
    if not figures.are_possible():
        return []
    files = []
    for name, figure in figures.figures_of(vae, data, read_records(run)).items():
        files += figures.write_figure(figure, run.path / "figures" / name, figure_format)
    return files
