"""What a person sees while a program runs, and at its end."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from math import log
from typing import Any

from tqdm import tqdm

from pyro_vae.inference import distributed
from pyro_vae.inference.fit import Record
from pyro_vae.likelihoods import Likelihood

LINES = 20
"""About how many epochs are shown on a line of their own."""

NAMES = {"elbo": "ELBO", "reconstruction": "reconstruction", "kl": "KL"}


def bar(total: int, label: str, initial: int = 0, unit: str = " images") -> tqdm[Any]:
    """A progress bar, on a terminal only."""
    columns = None if sys.stderr.isatty() else 80
    return tqdm(
        total=total,
        initial=initial,
        desc=label,
        unit=unit,
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


def table(metrics: Mapping[str, Any], title: str, likelihood: Likelihood) -> str:
    """Figures and their standard errors, one a line."""
    rows = [_row(name, metrics[key]) for key, name in NAMES.items()]
    rows.append(_row("log p(x)", metrics["log_likelihood"], _trust(metrics["log_likelihood"])))
    rows += [_row(name, metrics[key], note) for key, (name, note) in MORE.items() if key in metrics]
    rows += [line for key, lines in _SECTIONS.items() if key in metrics for line in lines(metrics[key])]
    pixels, count = likelihood.pixels, metrics["elbo"]["num_images"]
    warning = [] if likelihood.is_density else ["  (a cross-entropy is no density: these are no log-probabilities)"]
    return "\n".join([f"{title} ({count:,} images, {pixels} pixels), nats per image ± standard error", *rows, *warning])


MORE = {
    "bits_per_dimension": ("bits per dimension", "  of log p(x)"),
    "annealed": ("log p(x), annealed", "  by annealed importance sampling, on the same images"),
    "annealed_less_importance": ("  difference", "  paired: where it is significant, the lower of the two is the looser"),
}


def _row(name: str, value: Mapping[str, Any], note: str = "") -> str:
    return f"  {name:<20}{value['mean']:>10.2f} ± {_error(value)}{note}"


def _trust(log_p: Mapping[str, Any]) -> str:
    """How an importance-weighted estimate was made, and how far to trust it."""
    how = f"  K = {log_p['num_samples']:,}, {log_p['num_images']:,} images"
    over, error = log_p["share_of_images_with_k_hat_over_0.7"], log_p["monte_carlo_error"]
    if error is not None:
        return f"{how}; the estimate itself ± {error:.3f}"
    return f"{how}; lower bound" + ("" if over is None else f" (k-hat over 0.7 for {over:.0%} of them)")


def _active(value: Mapping[str, Any]) -> list[str]:
    return [] if value["count"] is None else [f"  {'active units':<20}{value['count']:>10} of {value['latent_dim']}"]


def _information(value: Mapping[str, Any]) -> list[str]:
    ceiling = f"  N = {value['num_images']:,}, at most log N = {log(value['num_images']):.2f}"
    errors = {
        key: {"mean": value[key], "standard_error": value[f"{key}_error"]} for key in ("mutual_information", "marginal_kl")
    }
    return [_row("mutual information", errors["mutual_information"], ceiling), _row("KL(q(z) || p(z))", errors["marginal_kl"])]


def _probe(value: Mapping[str, Any]) -> list[str]:
    share = f"{value['accuracy']:>10.1%} ± {value['standard_error']:.1%}"
    return [f"  {'linear probe':<20}{share}  of {value['num_images']:,} labels, from the posterior means"]


def _inference_gap(value: Mapping[str, Any]) -> list[str]:
    if "refused" in value:
        return []
    images = f"  {value['total']['num_images']:,} images"
    return [
        _row("inference gap", value["total"], images),
        _row("  of approximation", value["approximation"], "  by the posterior's family"),
        _row("  of amortization", value["amortization"], "  by the encoder"),
    ]


def _simulated(value: Mapping[str, Any]) -> list[str]:
    note = f"  between the annealed bounds from both sides, on {value['gap']['num_images']:,} images from the model"
    return [_row("  sandwich", value["gap"], note)]


_SECTIONS: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "simulated": _simulated,
    "active_units": _active,
    "information": _information,
    "linear_probe": _probe,
    "inference_gap": _inference_gap,
}


def _error(value: Mapping[str, Any]) -> str:
    return "-" if value["standard_error"] is None else f"{value['standard_error']:.2f}"
