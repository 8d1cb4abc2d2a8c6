"""Progress bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from pyro_vae.engine.distributed import is_main_process

# Of training: the space for the metrics is taken from elapsed time, counts and rate.
TRAINING = "{desc}: {percentage:.0f}%|{bar}| {remaining} left{postfix}"


def progress_bar(total: int, desc: str, unit: str = " images", **options: Any) -> tqdm[Any]:
    """A progress bar, shown only on a terminal and only in the main process."""
    disable = None if is_main_process() else True
    return tqdm(
        total=total,
        desc=desc,
        unit=unit,
        unit_scale=True,
        leave=False,
        disable=disable,
        dynamic_ncols=True,
        **options,
    )


def live(metrics: Mapping[str, Any]) -> str:
    """What the bar of training shows of a record, or of a part of it."""
    forms = {"elbo": "ELBO {:.1f}", "kl": "KL {:.1f}", "active_units": "{} active"}
    return ", ".join(form.format(metrics[name]) for name, form in forms.items() if name in metrics)
