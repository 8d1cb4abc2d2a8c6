"""`pyro-vae report`: one HTML page about one run, or that compares several."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

from pyro_vae.cli.options import ArgumentParser, Namespace, add, add_common, new_parser, parse
from pyro_vae.data.split import Data, Split
from pyro_vae.errors import NotFiniteError, RequestError
from pyro_vae.reporting.overview import FULL, QUICK
from pyro_vae.reporting.report import check_installed, check_page, write_page
from pyro_vae.reporting.subject import SECONDS, Subject, facts_of
from pyro_vae.runs.build import pick_device
from pyro_vae.runs.checkpoints import load_checkpoint
from pyro_vae.runs.folder import Run
from pyro_vae.runs.load import SavedRun, open_run
from pyro_vae.runs.log import read_records
from pyro_vae.runs.recipe import Recipe
from pyro_vae.runs.store import read
from pyro_vae.runs.strict_yaml import read_yaml
from pyro_vae.vae import Model

logger = getLogger("pyro_vae")

RESULTS_BYTES = 2**24


def report(argv: list[str]) -> None:
    """Run the command."""
    config = parse(_parser(), argv)
    check_installed()
    out = _out(config)
    several = len(config.run_dirs) > 1
    subjects = [_open(run_dir, config, several) for run_dir in config.run_dirs]
    logger.info("written to %s", write_page(out, subjects, FULL, config.seed))


def _parser() -> ArgumentParser:
    parser = new_parser(
        "report",
        "Write an HTML page about one run, with an explorer, or a page that compares several.",
    )
    parser.add_argument("run_dirs", nargs="+", help="Folders of runs.")
    text = "File to write; RUN_DIR/report.html by default, or report.html for several runs."
    add(parser, "out", str, None, text)
    add(parser, "title", str, None, "Title of the page about one run; the run folder by default.")
    add(parser, "data_dir", str, None, "Folder of the downloaded data sets, if it was moved.")
    add_common(parser)
    return parser


def _out(config: Namespace) -> Path:
    """The file to write."""
    if config.out:
        try:
            return check_page(config.out)
        except RequestError as error:
            raise RequestError(f"--out {error}") from error
    folder = "."
    if len(config.run_dirs) == 1:
        folder = config.run_dirs[0]
    return check_page(Path(folder, "report.html"))


def _open(run_dir: str, config: Namespace, several: bool) -> Subject:
    """A saved run as the subject of a page; a comparison shows whole paths."""
    saved = open_run(run_dir, "last", pick_device(config.device), config.trust)
    data = saved.data(config.data_dir)
    name = config.title or saved.run.path.resolve().name
    if several:
        name = str(saved.run.path)
    return _subject(name, saved, data.test, data)


def save_report(run: Run, vae: Model, test: Split) -> list[Path]:
    """Write a quick report of a run that has just ended; log a message if that is not possible."""
    try:
        check_installed()
        name = run.path.resolve().name
        recipe = Recipe.load(run.recipe_file, trust=True)
        saved = SavedRun(run, recipe, load_checkpoint(run, "last"), vae)
        subject = _subject(name, saved, test)
        return [write_page(run.path / "report.html", [subject], QUICK)]
    except (RequestError, NotFiniteError) as error:
        logger.info("no report.html: %s", error)
        return []


def _subject(name: str, saved: SavedRun, test: Split, data: Data | None = None) -> Subject:
    run = saved.run
    vae = saved.vae
    records = read_records(run)
    seconds = sum(record["seconds"] for record in records)
    versions = saved.checkpoint.content["versions"]
    facts = {
        "data": saved.recipe.data,
        SECONDS: f"{seconds:,.1f}",
        "versions in training": ", ".join(f"{key} {value}" for key, value in versions.items()),
        **facts_of(vae, test),
    }
    fault = ""
    if data is not None and data.fingerprint != saved.checkpoint.content.get("data"):
        fault = "its data have changed since it was trained"
    return Subject(
        name,
        vae,
        test,
        results={**_latest(run.path), **_results(run.path / "results.json")},
        records=records,
        options=dict(_flat(read_yaml(run.recipe_file))),
        facts=facts,
        earlier=saved.earlier(),
        fault=fault,
    )


def _latest(folder: Path) -> Mapping[str, Any]:
    """The latest comparison with a second method and the latest calibration, by `evaluate`."""
    found = {}
    files = sorted(folder.glob("results-test-last-*.json"), key=os.path.getmtime)
    for file in files:
        results = _results(file)
        for key in ("check", "calibration"):
            if key in results:
                found[key] = results[key]
    return found


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
    if not isinstance(results, dict):
        return {}
    return results


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Options by dotted names, as text.

    Folders of data are left out: they tell about the machine only.
    """
    for key, value in options.items():
        name = key
        if key == "class_path":
            name = prefix
        elif prefix:
            name = f"{prefix}.{key}"
        if isinstance(value, Mapping) and key == "init_args":
            yield from _flat(value, prefix)
        elif isinstance(value, Mapping):
            yield from _flat(value, name)
        elif name == "data":
            yield name, Path(str(value)).name
        elif name != "data_dir":
            yield name, str(value)
