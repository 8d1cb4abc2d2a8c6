"""`pyro-vae evaluate`: score a saved run, and check how far the numbers can be trusted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pyro
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
from pyro_vae.engine.graphs import AnyEngine, logger
from pyro_vae.engine.importance import log_likelihood
from pyro_vae.engine.programs import Batch
from pyro_vae.errors import RequestError
from pyro_vae.evaluation.ais import annealed_log_weights, bidirectional_bounds
from pyro_vae.evaluation.codes import scored
from pyro_vae.evaluation.diagnostics import (
    bayes_classifier,
    check_log_likelihood,
    inference_gap,
    information,
    linear_probe,
)
from pyro_vae.evaluation.metrics import Metrics, Scores, score_images, summarize, summary
from pyro_vae.evaluation.quadrature import latent_shapes
from pyro_vae.reporting import figures, views
from pyro_vae.runs.build import pick_device
from pyro_vae.runs.folder import Run, check_writable
from pyro_vae.runs.load import open_run
from pyro_vae.runs.store import npz, write
from pyro_vae.vae import Model

WORST = 10
PROBED = 5000
PER_IMAGE = ("elbo", "log_likelihood", "monte_carlo_error", "effective_sample_size", "pareto_k")


def evaluate(argv: list[str]) -> None:
    """Run the command."""
    config = parse(_parser(), argv)
    device = pick_device(config.device)
    with distributed.process_group(device):
        saved = open_run(config.run_dir, config.checkpoint, device, config.trust)
        if not config.per_image:  # which can be written elsewhere
            check_writable(saved.run.path)
        run, checkpoint, vae = saved.run, saved.checkpoint, saved.vae
        with distributed.main_process_first():
            name, split, train = saved.images(
                config.split, config.data, config.data_dir, config.image_size
            )
        split = split.to(device)
        index = _chosen(config, split)
        images = split[index]
        pyro.set_rng_seed(config.seed)
        scores = score_images(vae, images, config.num_samples, config.batch_size, config.engine)
        results = _results(vae, split, images, scores, config)
        pyro.set_rng_seed(config.seed)
        has_classes = train is not None and len(train.class_names()) > 1
        if train is not None and has_classes and not unknown_classes(train, split):
            results["linear_probe"] = linear_probe(vae, train[:PROBED], split[:PROBED])._asdict()
        if config.classify_images and checkpoint.label_dim and split.covariates is None:
            chosen = split.subset(min(config.classify_images, len(split)))
            results["bayes_classifier"] = bayes_classifier(
                vae, chosen, checkpoint.label_dim
            )._asdict()
        if distributed.is_main_process():
            logger.info(table(results, f"{name}, {config.checkpoint} checkpoint", vae.likelihood))
            _write(vae, images, index, scores, results, run, config)


def _parser() -> ArgumentParser:
    parser = run_parser(
        "evaluate",
        "Score a saved run, in nats per image, and check how far the numbers can be trusted.",
    )
    add(parser, "num_samples", up_to(10_000_000), 5000, "Importance samples per image.")
    add(
        parser,
        "num_images",
        PositiveInt,
        None,
        "Size of a random subset for log p(x); all, or 100 for ais.",
    )
    add(parser, "method", Literal["is", "ais"], "is", "Importance sampling; ais adds annealing.")
    add(parser, "num_chains", up_to(100_000), 16, "AIS: chains per image.")
    add(parser, "num_temperatures", up_to(1_000_000), 500, "AIS: temperatures.")
    add(
        parser, "check_images", NonNegativeInt, 10, "Images checked by a second method; 0 for none."
    )
    add(
        parser,
        "gap_images",
        NonNegativeInt,
        0,
        "Images for the inference gap; takes about 1 s each.",
    )
    text = "Models of images with classes: images to classify by Bayes' rule; 0 for none."
    add(parser, "classify_images", NonNegativeInt, 1000, text)
    add(parser, "batch_size", PositiveInt, None, "Decoder rows per pass; bounds the memory.")
    add(parser, "engine", AnyEngine, "auto", "What runs the passes.")
    add(parser, "per_image", str, None, "An .npz file for the scores of each image.")
    return parser


def _chosen(config: Namespace, split: Split) -> Tensor:
    """The indices of the images to score; the request is checked before minutes are spent."""
    count = config.num_images or (min(100, len(split)) if config.method == "ais" else len(split))
    if config.per_image and (
        not config.per_image.endswith(".npz") or not _is_writable(Path(config.per_image))
    ):
        raise RequestError(
            f"--per_image {config.per_image} must be an .npz file in a folder that you can write to"
        )
    return split.subset_index(count)


def _is_writable(file: Path) -> bool:
    there = next(path for path in (file.absolute(), *file.absolute().parents) if path.exists())
    return os.access(there, os.W_OK) and (
        there.is_file() if there == file.absolute() else there.is_dir()
    )


def _results(vae: Model, split: Split, images: Split, scores: Scores, config: Namespace) -> Metrics:
    results = summarize(vae, split, scores, config.num_samples, config.batch_size)
    batch = scored(vae, images)
    if config.check_images:
        results["check"] = check_log_likelihood(vae, batch, scores, config.check_images)
    if config.method == "ais":
        results |= _annealed(vae, batch, scores, config)
    pyro.set_rng_seed(
        config.seed
    )  # or the next numbers would depend on which others were asked for
    if latent_shapes(vae, batch).keys() == {"z"}:
        results["information"] = information(vae, split[:PROBED])._asdict()
    if config.gap_images:
        pyro.set_rng_seed(config.seed)
        gap = inference_gap(vae, batch[: config.gap_images])
        parts = {
            "total": gap.log_likelihood - gap.elbo,
            "approximation": gap.approximation,
            "amortization": gap.amortization,
        }
        results["inference_gap"] = {name: summary(values, 1000) for name, values in parts.items()}
    return results


def _annealed(vae: Model, batch: Batch, scores: Scores, config: Namespace) -> Metrics:
    """Annealed importance sampling on the same images, and bounds from both sides on images drawn from the model."""
    chains = config.num_chains
    options = {
        name: config[name] for name in ("num_chains", "num_temperatures", "batch_size", "engine")
    }
    log_p = log_likelihood(annealed_log_weights(vae.model, *batch, **options).cpu())
    bounds = bidirectional_bounds(vae.model, *batch, **options)[1]
    simulated = {**bounds._asdict(), "gap": bounds.upper - bounds.lower}
    return {
        "annealed": summary(log_p, chains),
        "annealed_difference": summary(log_p - scores.log_likelihood, chains),
        "simulated": {name: summary(values, chains) for name, values in simulated.items()},
    }


def _write(
    vae: Model,
    images: Split,
    index: Tensor,
    scores: Scores,
    results: Metrics,
    run: Run,
    config: Namespace,
) -> None:
    """Write the results and figures under a name that tells what was asked for."""
    name = f"{source(config)}-{config.checkpoint}-K{config.num_samples}-N{len(index)}-seed{config.seed}"
    name += f"-ais{config.num_chains}x{config.num_temperatures}" if config.method == "ais" else ""
    name += f"-gap{config.gap_images}" if config.gap_images else ""
    files = []
    if config.per_image:
        files.append(write(Path(config.per_image), _per_image(images, index, scores)))
    try:
        check_writable(run.path)
    except RequestError as error:
        logger.warning("the results are not saved: %s", error)
    else:
        drawn = {
            "k_curve": figures.bounds(results["k_curve"]),
            "worst": _worst(vae, images, scores),
        }
        files.append(run.save_results(results, f"results-{name}"))
        for kind, figure in drawn.items():
            file = run.path / "figures" / f"{kind}-{name}.png"
            files.append(write(file, figures.png(figure)))
    logger.info("\n  ".join(["\nwritten:", *map(str, files)]))


def _worst(vae: Model, images: Split, scores: Scores) -> figures.Figure:
    """The images that the model finds least likely."""
    order = scores.log_likelihood.argsort()[:WORST]
    x = views.to_grey(vae, images[order.to(images.x.device)].scored(vae.pixels))
    labels = [
        f"{scores.log_likelihood[i]:.0f}\nk-hat {scores.pareto_k[i]:.2f}" for i in order.tolist()
    ]
    return figures.grid(
        x, "the least likely images: log p(x) in nats, k-hat", len(x), column_labels=labels
    )


def _per_image(images: Split, index: Tensor, scores: Scores) -> bytes:
    """Scores of each image, with its position in the split and its label."""
    return npz(
        {
            "index": index,
            "labels": images.labels,
            **{name: getattr(scores, name) for name in PER_IMAGE},
        }
    )
