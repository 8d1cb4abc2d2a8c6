"""Progress bars."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from pyro_vae.inference.distributed import is_main_process


def progress_bar(total: int, desc: str, unit: str = " images") -> tqdm[Any]:
    """A progress bar, shown only on a terminal and only in the main process."""
    disable = None if is_main_process() else True
    return tqdm(total=total, desc=desc, unit=unit, unit_scale=True, leave=False, disable=disable, dynamic_ncols=True)
