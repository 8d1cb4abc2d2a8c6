"""`pyro-vae report`: one HTML page about one run, or that compares several."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_vae.cli.options import ArgumentParser, Namespace, add, add_common, new_parser, parse
from pyro_vae.data.split import Split
from pyro_vae.engine.graphs import logger
from pyro_vae.errors import NotFiniteError, RequestError
from pyro_vae.report.explorer import FULL, QUICK, Effort, RunReport, overview, view
from pyro_vae.runs.checkpoints import Checkpoint, load_checkpoint
from pyro_vae.runs.folder import Run
from pyro_vae.runs.load import SavedRun, open_run
from pyro_vae.runs.log import read_records
from pyro_vae.runs.recipe import Recipe, pick_device
from pyro_vae.runs.store import read, read_yaml, write
from pyro_vae.vae import Model

RESULTS_BYTES = 2**24


def report(argv: list[str]) -> None:
    """Run the command."""
    config = parse(_parser(), argv)
    _check_installed()
    only = Path(config.run_dirs[0]) if len(config.run_dirs) == 1 else Path()
    out = Path(config.out) if config.out else only / "report.html"
    if out.suffix != ".html" or os.path.isdir(out) or "\0" in str(out):
        raise RequestError(f"--out {out} must be a file that ends in .html")
    runs: list[RunReport] = []
    for run_dir in config.run_dirs:
        runs.append(_open(run_dir, config))
        if len(names := {run.config["data"] for run in runs}) > 1:
            raise RequestError(
                f"scores on {' and '.join(sorted(names))} cannot be compared; give runs on one data set"
            )
    logger.info("written to %s", _write(out, runs))


def _parser() -> ArgumentParser:
    parser = new_parser(
        "report",
        "Write an HTML page about one run, with an explorer, or a page that compares several.",
    )
    parser.add_argument("run_dirs", nargs="+", help="Folders of runs.")
    add(
        parser,
        "out",
        str,
        None,
        "File to write; RUN_DIR/report.html by default, or report.html for several runs.",
    )
    add(parser, "data_dir", str, None, "Folder of the downloaded data sets, if it was moved.")
    add_common(parser)
    return parser


def _open(run_dir: str, config: Namespace) -> RunReport:
    """What the page shows of a saved run."""
    saved = open_run(run_dir, "last", pick_device(config.device), config.trust)
    data = saved.data(config.data_dir)
    pyro.set_rng_seed(config.seed)
    return _report(saved, data.test, FULL, several=len(config.run_dirs) > 1)


def save_report(run: Run, vae: Model, test: Split) -> list[Path]:
    """Write the report of a run that has just ended, in seconds; a message if it cannot be made."""
    try:
        _check_installed()
        recipe = Recipe.load(run.recipe_file, trust=True)
        saved = SavedRun(run, recipe, load_checkpoint(run, "last"), vae)
        return [_write(run.path / "report.html", [_report(saved, test, QUICK)])]
    except (RequestError, NotFiniteError) as error:
        logger.info("no report.html: %s", error)
        return []


def _check_installed() -> None:
    if not (find_spec("bokeh") and find_spec("jinja2")):
        raise RequestError(
            "the report needs Bokeh and Jinja2; install them with pip install 'pyro_vae[report]'"
        )


def _write(path: Path, runs: list[RunReport]) -> Path:
    from pyro_vae.report.page import page

    return write(path, page(runs).encode())


def _report(saved: SavedRun, test: Split, effort: Effort, several: bool = False) -> RunReport:
    run, vae = saved.run, saved.vae
    options = dict(_flat(read_yaml(run.recipe_file)))
    records = read_records(run)
    results = _results(run.path / "results.json")
    facts = {
        "seconds of training": f"{sum(record['seconds'] for record in records):,.1f}",
        **_facts(saved.checkpoint, vae, test),
    }
    name = str(run.path) if several else run.path.resolve().name
    if several:
        return RunReport(name, options, facts, records, results, overview(vae, test, effort))
    shown = view(vae, test, effort, saved.earlier())
    return RunReport(name, options, facts, records, results, shown.overview, shown)


def _facts(checkpoint: Checkpoint, vae: Model, test: Split) -> dict[str, str]:
    """What is known of a run besides its options and metrics."""
    versions = checkpoint.content["versions"]
    device = next(vae.parameters()).device
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {
        "model": f"{type(vae).__name__}, {sum(param.numel() for param in vae.parameters()):,} parameters",
        "test images": f"{len(test):,} of shape {' x '.join(map(str, test.x.shape[1:]))}",
        "versions in training": ", ".join(f"{key} {value}" for key, value in versions.items()),
        "page made on": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
    }


def _results(file: Path) -> Mapping[str, Any]:
    """The content of results.json, with every number as a float; empty if there is no such file.

    Raises:
        RequestError: If it is damaged.
    """
    if not os.path.lexists(file):
        return {}
    try:
        results = json.loads(read(file, RESULTS_BYTES), parse_int=float)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"{file} is damaged; write it again by training, or remove it"
        ) from error
    return results if isinstance(results, dict) else {}


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Options by dotted names, as text; without the folder of the data, which tells about the machine only."""
    for key, value in options.items():
        name = prefix if key == "class_path" else ".".join(filter(None, (prefix, key)))
        if isinstance(value, Mapping):
            yield from _flat(value, prefix if key == "init_args" else name)
        elif name == "data":
            yield name, Path(str(value)).name
        elif name != "data_dir":
            yield name, str(value)
