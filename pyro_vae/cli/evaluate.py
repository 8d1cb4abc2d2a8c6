"""`pyro-vae evaluate`: score a saved run, and check how far the numbers can be trusted."""

from __future__ import annotations

import os
from logging import getLogger
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_vae.cli.options import (
    ArgumentParser,
    Namespace,
    NonNegativeInt,
    PositiveInt,
    add,
    parse,
    run_parser,
    source,
    up_to,
)
from pyro_vae.cli.tables import table
from pyro_vae.data.split import Split, unknown_classes
from pyro_vae.engine import distributed
from pyro_vae.engine.graphs import AnyEngine
from pyro_vae.errors import RequestError
from pyro_vae.evaluation.anomaly import anomaly_scores, auroc
from pyro_vae.evaluation.batch import random_rows, scored
from pyro_vae.evaluation.calibration import calibration, simulates
from pyro_vae.evaluation.check import annealed_log_likelihood, check_log_likelihood
from pyro_vae.evaluation.forecast import forecast
from pyro_vae.evaluation.gap import inference_gap
from pyro_vae.evaluation.information import information
from pyro_vae.evaluation.metrics import (
    Metrics,
    Scores,
    label_metrics,
    score_images,
    summarize,
)
from pyro_vae.evaluation.probe import bayes_classifier, linear_probe
from pyro_vae.evaluation.quadrature import latent_shapes
from pyro_vae.reporting import figures, views
from pyro_vae.runs.build import pick_device
from pyro_vae.runs.folder import Run, check_writable
from pyro_vae.runs.load import open_run
from pyro_vae.runs.log import read_records
from pyro_vae.runs.recipe import FigureFormat
from pyro_vae.runs.store import npz, write
from pyro_vae.vae import Model

logger = getLogger("pyro_vae")

# Images that are scored by default with --method ais.
ANNEALED = 100
# The least likely images that are drawn.
WORST = 10
# Names in a message.
LISTED = 10
# Images that are simulated for the calibration of the guide.
CALIBRATION_IMAGES = 1000
# Random training images that the linear probe is fitted to.
PROBED = 5000
PER_IMAGE = ("elbo", "log_likelihood", "monte_carlo_error", "effective_sample_size", "pareto_k")


def evaluate(argv: list[str]) -> None:
    """Run the command."""
    config = parse(_parser(), argv)
    device = pick_device(config.device)
    with distributed.process_group(device):
        run = Run.open(config.run_dir)
        saves = _check_files(run, config)
        saved = open_run(config.run_dir, config.checkpoint, device, config.trust)
        vae = saved.vae
        with distributed.main_process_first():
            name, split, train = saved.images(
                config.split, config.data, config.data_dir, config.image_size
            )
        # Fixed before anything is scored, so that every number is about the same pixels.
        split = split.with_fixed_noise().to(device)
        index = split.subset_index(_count(config, split))
        images = split[index]
        is_anomaly = _marked(images, config.normal)
        pyro.set_rng_seed(config.seed)
        scores = score_images(vae, images, config.num_samples, config.batch_size, config.engine)
        results = _results(vae, split, images, scores, config)
        if train is not None:
            results["active_units"] |= _forecast(vae, train, run)
        if config.split != "train" and train is not None:
            results |= _probe(vae, train, split, config)
        if saved.checkpoint.label_dim:
            results |= _classifier(vae, split, saved.checkpoint.label_dim, config)
        unusual = _unusual(vae, images, scores, config)
        if is_anomaly is not None:
            results["anomalies"] = _aurocs(unusual, is_anomaly)
        if not distributed.is_main_process():
            return
        logger.info(table(results, f"{name}, {config.checkpoint} checkpoint", vae.likelihood))
        files = []
        if config.per_image:
            content = _per_image(images, index, scores, unusual)
            files.append(write(Path(config.per_image), content))
        if saves:
            files += _save(vae, images, scores, results, run, config)
        logger.info("\n  ".join(["\nwritten:", *map(str, files)]))
        if saves and config.split == "test" and config.data is None:
            logger.info("next: pyro-vae report %s shows the checked images", config.run_dir)


def _parser() -> ArgumentParser:
    text = "Score a saved run, in nats per image, and check how far the numbers can be trusted."
    parser = run_parser("evaluate", text)
    add(parser, "num_samples", up_to(10_000_000), 5000, "Importance samples per image.")
    text = "Size of a random subset for log p(x); all, or 100 for ais."
    add(parser, "num_images", PositiveInt, None, text)
    text = "Importance sampling; ais adds annealing."
    add(parser, "method", Literal["is", "ais"], "is", text)
    add(parser, "num_chains", up_to(100_000), 16, "AIS: chains per image.")
    add(parser, "num_temperatures", up_to(1_000_000), 500, "AIS: temperatures.")
    text = "Random images checked by a second method; 0 for none."
    add(parser, "check_images", NonNegativeInt, 10, text)
    text = "Random images for the inference gap, which takes seconds for each; 0 for none."
    add(parser, "gap_images", NonNegativeInt, 0, text)
    text = "Simulated images for the calibration of the guide; 0 for none."
    add(parser, "calibration_images", NonNegativeInt, CALIBRATION_IMAGES, text)
    text = "Models of images with classes: images to classify by Bayes' rule; 0 for none."
    add(parser, "classify_images", NonNegativeInt, 1000, text)
    add(parser, "batch_size", PositiveInt, None, "Decoder rows per pass; bounds the memory.")
    add(parser, "engine", AnyEngine, "auto", "What runs the passes.")
    text = (
        "An .npz file for the scores of each image, with scores of anomalies. log p(x) is a poor"
        " one: blank images often have a higher one than any image of the data."
    )
    add(parser, "per_image", str, None, text)
    text = "Format of the figures; pdf and svg are written beside the png files."
    add(parser, "figure_format", FigureFormat, "png", text)
    text = (
        "Classes of normal images, by name or number: how well the scores tell the others from them"
        " (AUROC)."
    )
    parser.add_argument("--normal", nargs="+", type=str, metavar="LABEL", help=text)
    return parser


def _check_files(run: Run, config: Namespace) -> bool:
    """Whether files can be written to the run folder; checked before minutes are spent."""
    if config.per_image:
        file = Path(config.per_image)
        if file.suffix != ".npz" or not _is_writable(file):
            raise RequestError(
                f"--per_image {file} must be an .npz file in a folder that you can write to"
            )
    try:
        check_writable(run.path)
    except RequestError as error:
        if not config.per_image:
            raise
        logger.warning("the results are only printed: %s", error)
        return False
    return True


def _is_writable(file: Path) -> bool:
    """Whether a file can be written, and the folders that it needs can be made."""
    file = file.absolute()
    if file.exists():
        return file.is_file() and os.access(file, os.W_OK)
    folder = next(path for path in file.parents if path.exists())
    return folder.is_dir() and os.access(folder, os.W_OK)


def _count(config: Namespace, split: Split) -> int:
    """The number of images to score."""
    if config.num_images is not None:
        return int(config.num_images)
    if config.method == "ais":
        return min(ANNEALED, len(split))
    return len(split)


def _results(vae: Model, split: Split, images: Split, scores: Scores, config: Namespace) -> Metrics:
    """The numbers that need no labels."""
    batch_size = config.batch_size
    engine = config.engine
    results = summarize(vae, split, scores, config.num_samples, batch_size, engine)
    if config.check_images:
        results["check"] = check_log_likelihood(
            vae, images, scores, config.check_images, batch_size=batch_size, engine=engine
        )
    if config.method == "ais":
        chains = config.num_chains
        temperatures = config.num_temperatures
        results |= annealed_log_likelihood(
            vae, images, scores, chains, temperatures, batch_size, engine
        )
    # The next numbers do not depend on which others were requested.
    pyro.set_rng_seed(config.seed)
    if vae.infers_labels:
        results |= label_metrics(vae, split, images, config.num_samples, batch_size, engine)
    if latent_shapes(vae, scored(vae, images[:1])).keys() == {"z"}:
        results["information"] = information(vae, split, batch_size=batch_size)._asdict()
    if config.calibration_images and simulates(vae):
        pyro.set_rng_seed(config.seed)
        simulated = config.calibration_images
        ranks = calibration(vae, split, num_images=simulated, batch_size=batch_size)
        results["calibration"] = ranks.summary()
    if config.gap_images:
        pyro.set_rng_seed(config.seed)
        chosen = images[random_rows(images, config.gap_images)]
        gap = inference_gap(vae, chosen, batch_size=batch_size, engine=engine)
        results["inference_gap"] = gap.summary()
    return results


def _forecast(vae: Model, train: Split, run: Run) -> Metrics:
    """The active units of an optimal linear VAE at the last beta of the run, if it has records."""
    records = read_records(run)
    if not records:
        return {}
    return {"predicted": forecast(vae, train, records[-1]["beta"])}


def _probe(vae: Model, train: Split, split: Split, config: Namespace) -> Metrics:
    """The linear probe, if there are labels of at least two classes, and of no other ones."""
    if not split.class_names() or len(train.class_names()) < 2 or unknown_classes(train, split):
        return {}
    pyro.set_rng_seed(config.seed)
    seen = train.labelled()
    seen = seen.subset(min(PROBED, len(seen)))
    return {"linear_probe": linear_probe(vae, seen, split)._asdict()}


def _classifier(vae: Model, split: Split, num_classes: int, config: Namespace) -> Metrics:
    """The Bayes classifier of a model of images with classes."""
    if not config.classify_images or split.covariates is not None:
        return {}
    pyro.set_rng_seed(config.seed)
    split = split.labelled()
    if split.labels is None or len(split) == 0:
        return {}
    chosen = split.subset(min(config.classify_images, len(split)))
    found = bayes_classifier(
        vae, chosen, num_classes, batch_size=config.batch_size, engine=config.engine
    )
    return {"bayes_classifier": found._asdict()}


def _save(
    vae: Model, images: Split, scores: Scores, results: Metrics, run: Run, config: Namespace
) -> list[Path]:
    """Write the results and figures under a name that tells what was asked for."""
    name = f"{source(config)}-{config.checkpoint}-K{config.num_samples}-N{len(images)}"
    name += f"-seed{config.seed}"
    if config.method == "ais":
        name += f"-ais{config.num_chains}x{config.num_temperatures}"
    if config.gap_images:
        name += f"-gap{config.gap_images}"
    files = [run.save_results(results, f"results-{name}")]
    if not figures.are_possible():
        return files
    for kind, figure in _figures(vae, images, scores, results).items():
        path = run.path / "figures" / f"{kind}-{name}"
        files += figures.write_figure(figure, path, config.figure_format)
    return files


def _figures(
    vae: Model, images: Split, scores: Scores, results: Metrics
) -> dict[str, figures.Figure]:
    drawn = {
        "k_curve": figures.bounds(results["k_curve"], images.noun),
        "worst": _worst(vae, images, scores),
    }
    if "classification" in results:
        drawn["reliability"] = figures.reliability(results["classification"])
    if "calibration" in results:
        drawn["calibration"] = figures.calibration(results["calibration"])
    return drawn


def _worst(vae: Model, images: Split, scores: Scores) -> figures.Figure:
    """The images that the model finds least likely."""
    order = scores.log_likelihood.argsort()[:WORST]
    x = views.to_grey(vae, scored(vae, images[order.to(images.x.device)]).x)
    labels = []
    for i in order.tolist():
        labels.append(f"{scores.log_likelihood[i]:.0f}\n{scores.pareto_k[i]:.2f}")
    title = f"the least likely {images.noun}s; above them log p(x) in nats and k-hat"
    return figures.grid(x, title, len(x), column_labels=labels)


def _unusual(vae: Model, images: Split, scores: Scores, config: Namespace) -> dict[str, Tensor]:
    """Scores of anomalies, if they are asked for."""
    if not (config.per_image or config.normal):
        return {}
    pyro.set_rng_seed(config.seed)
    return anomaly_scores(vae, images, scores, config.num_samples, config.batch_size, config.engine)


def _marked(images: Split, normal: list[str] | None) -> Tensor | None:
    """Which images are anomalies; None if no labels of normal ones are given."""
    if normal is None:
        return None
    if images.labels is None:
        raise RequestError("--normal needs images with labels")
    if (images.labels < 0).any():
        raise RequestError("--normal needs the labels of all images; remove those without")
    numbers = [_class(label, images) for label in normal]
    is_anomaly = ~torch.isin(images.labels.cpu(), torch.tensor(numbers))
    if is_anomaly.all() or not is_anomaly.any():
        raise RequestError(
            f"--normal needs normal images and anomalies, but {int(is_anomaly.sum()):,} of"
            f" {len(images):,} images have other labels"
        )
    return is_anomaly


def _class(label: str, images: Split) -> int:
    """The number of a class, which is given by its name or number."""
    classes = images.classes or ()
    if label in classes:
        return classes.index(label)
    if label.isdecimal():
        return int(label)
    listed = ", ".join(images.class_names()[:LISTED])
    raise RequestError(f"--normal must be some of the classes {listed}, but has {label}")


def _aurocs(unusual: dict[str, Tensor], is_anomaly: Tensor) -> Metrics:
    """How well each score tells anomalies from normal images."""
    return {name: auroc(scores, is_anomaly)._asdict() for name, scores in unusual.items()}


def _per_image(images: Split, index: Tensor, scores: Scores, unusual: dict[str, Tensor]) -> bytes:
    """Scores of each image, its position in the split, its label and the name of its class."""
    arrays: dict[str, Any] = {"index": index, "labels": images.labels}
    if images.labels is not None and images.classes is not None:
        names = [figures.class_name(label, images.classes) for label in images.labels.tolist()]
        arrays["classes"] = np.array(names)
    for name in PER_IMAGE:
        arrays[name] = getattr(scores, name)
    for name in ("typicality", "likelihood_regret"):
        if name in unusual:
            arrays[name] = unusual[name]
    return npz(arrays)
