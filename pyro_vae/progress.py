"""What a person sees while a program runs, and at its end."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from pyro_vae.diagnostics import Metrics
from pyro_vae.fit import Record

LINES = 20
"""Epochs that are shown where there is no terminal."""

NAMES = {"elbo": "ELBO", "reconstruction": "reconstruction", "kl": "KL"}


def bar(total: int, label: str) -> tqdm[Any]:
    """A progress bar in images, on a terminal only."""
    columns = None if sys.stderr.isatty() else 80
    return tqdm(total=total, desc=label, unit=" images", unit_scale=True, disable=None, dynamic_ncols=True, ncols=columns)


def show_epoch(bar: tqdm[Any], record: Record, epochs: int) -> None:
    """Put an epoch's figures on the bar, or, where there is no terminal, on a line."""
    figures = (
        f"ELBO {record['elbo']:.2f} (validation {record['validation_elbo']:.2f}), "
        f"reconstruction {record['reconstruction']:.2f}, KL {record['kl']:.2f}, beta {record['beta']:.3g}"
    )
    label = f"epoch {record['epoch']}/{epochs}"
    if bar.disable and record["epoch"] in {1, epochs, *range(0, epochs, max(1, epochs // LINES))}:
        print(f"{label}: {figures}, {record['images_per_second']:,.0f} images/s", flush=True)
    elif not bar.disable:
        bar.set_description_str(label, refresh=False)
        bar.set_postfix_str(figures)


def table(metrics: Metrics, title: str) -> str:
    """Figures and their standard errors, one a line."""
    rows = [(name, metrics[key], "") for key, name in NAMES.items()]
    log_p = metrics["log_likelihood"]
    rows.append(("log p(x)", log_p, f"  K = {log_p['num_samples']:,}, {log_p['num_images']:,} images, importance-weighted"))
    lines = [f"  {name:<16}{value['mean']:>10.2f} ± {_error(value)}{note}" for name, value, note in rows]
    return "\n".join([f"{title}, nats per image ± standard error ({metrics['elbo']['num_images']:,} images)", *lines])


def _error(value: dict[str, Any]) -> str:
    return "-" if value["standard_error"] is None else f"{value['standard_error']:.2f}"
