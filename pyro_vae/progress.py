"""What a person sees while a program runs, and at its end."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

from tqdm import tqdm

from pyro_vae import distributed
from pyro_vae.diagnostics import Metrics
from pyro_vae.fit import Record
from pyro_vae.likelihoods import Likelihood

LINES = 20
"""About how many epochs are shown on a line of their own."""

NAMES = {"elbo": "ELBO", "reconstruction": "reconstruction", "kl": "KL"}


def bar(total: int, label: str, initial: int = 0) -> tqdm[Any]:
    """A progress bar in images, on a terminal only."""
    columns = None if sys.stderr.isatty() else 80
    return tqdm(
        total=total,
        initial=initial,
        desc=label,
        unit=" images",
        unit_scale=True,
        disable=None if distributed.is_lead() else True,
        dynamic_ncols=True,
        ncols=columns,
    )


@contextmanager
def only_the_lead() -> Iterator[None]:
    """Silence the standard output of every process but the one that writes."""
    with nullcontext() if distributed.is_lead() else redirect_stdout(io.StringIO()):
        yield


def say(line: str) -> None:
    """Print a line, above the bar if there is one."""
    tqdm.write(line)
    sys.stdout.flush()


def show_epoch(bar: tqdm[Any], record: Record, epochs: int, last: bool) -> None:
    """Write an epoch's figures on a line above the bar: the first, the last, and about `LINES` of all epochs."""
    bar.set_description_str(f"epoch {record['epoch']}/{epochs}", refresh=False)
    if last or record["epoch"] in {1, *range(0, epochs, max(1, epochs // LINES))}:
        say(
            f"epoch {record['epoch']}/{epochs}: ELBO {record['elbo']:.2f} (validation {record['validation_elbo']:.2f}), "
            f"reconstruction {record['reconstruction']:.2f}, KL {record['kl']:.2f}, {record['active_units']} active, "
            f"beta {record['beta']:.3g}, {record['images_per_second']:,.0f} images/s"
        )


def table(metrics: Metrics, title: str, likelihood: Likelihood) -> str:
    """Figures and their standard errors, one a line."""
    rows = [(name, metrics[key], "") for key, name in NAMES.items()]
    log_p = metrics["log_likelihood"]
    rows.append(("log p(x)", log_p, f"  K = {log_p['num_samples']:,}, {log_p['num_images']:,} images, importance-weighted"))
    lines = [f"  {name:<16}{value['mean']:>10.2f} ± {_error(value)}{note}" for name, value, note in rows]
    pixels, count = likelihood.pixels, metrics["elbo"]["num_images"]
    warning = [] if likelihood.is_density else ["  (a cross-entropy is no density: these are no log-probabilities)"]
    return "\n".join([f"{title} ({count:,} images, {pixels} pixels), nats per image ± standard error", *lines, *warning])


def _error(value: dict[str, Any]) -> str:
    return "-" if value["standard_error"] is None else f"{value['standard_error']:.2f}"
