"""A model and a guide: their data (`Batch`), how they are run together, and their random sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.errors import RequestError, check_positive, first_line

Program = Callable[..., Any]
Site = Any

# The name of the plate over samples, at dim -2; the data are at dim -1.
SAMPLES = "importance samples"
# The first dimension of the values of sites that are summed out, to the left of the samples.
SUMMED_DIM = -3


class StructureError(RequestError):
    """Programs that are not in one plate over the rows, or differ in their latent sites."""


class BroadcastError(RequestError):
    """Programs in one plate that do not broadcast over samples."""


class Batch:
    """Rows of data: `x`, and the further arguments of the programs, such as labels `y`.

    A program is called as `model(*batch)`. Supports `len`, and indexing by a slice or by a tensor
    of positions, which selects rows of every tensor; numbers and None stay as they are.

    Arguments:
        x: The data, one row for each element of the programs' plate.
        *more: Tensors with as many rows, numbers, scalar tensors, or None.

    Example:
        >>> batch = Batch(torch.zeros(5, 2), torch.arange(5))
        >>> batch[1:3].y
        tensor([1, 2])
        >>> [len(part) for part in batch.split(2)]
        [2, 2, 1]
    """

    def __init__(self, x: Tensor, *more: Any) -> None:
        self.x = x
        self.more = more

    @property
    def y(self) -> Tensor | None:
        """The first of the further arguments, the labels, or None if there are none."""
        if not self.more:
            return None
        return self.more[0]

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.x, *self.more))

    def __getitem__(self, index: slice | Tensor) -> Batch:
        return self.map(lambda tensor: tensor[index])

    def __repr__(self) -> str:
        shown = []
        for item in self:
            if isinstance(item, Tensor):
                item = tuple(item.shape)
            shown.append(str(item))
        return f"Batch({', '.join(shown)})"

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply a function to each tensor that has rows."""
        more = list(self.more)
        for position, item in enumerate(more):
            if isinstance(item, Tensor) and item.ndim > 0:
                more[position] = function(item)
        return Batch(function(self.x), *more)

    def with_x(self, x: Tensor) -> Batch:
        """The same further arguments with other data."""
        return Batch(x, *self.more)

    def split(self, size: int) -> Iterator[Batch]:
        """`size` rows at a time; the last part may be smaller."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def repeat_interleave(self, times: int) -> Batch:
        """Each row `times` times in a row."""
        return self.map(lambda tensor: torch.repeat_interleave(tensor, times, 0))


def traces(
    model: Program,
    guide: Program,
    batch: Batch,
    num_samples: int,
    at_draws: Messenger | None = None,
) -> tuple[Trace, Trace]:
    """The traces of the model and of the guide, with the same latent values.

    Several samples are drawn at once, under a plate at dim -2 around both programs. Sites of the
    guide with `infer={"enumerate": "parallel"}` are not drawn: they have all their values, in a
    dimension to the left of the samples.

    Arguments:
        model: A Pyro program whose sites are all in one plate of `len(batch)` rows at dim -1.
        guide: A Pyro program that samples the model's latent sites in such a plate.
        batch: The arguments of both programs.
        num_samples: Number of samples.
        at_draws: An effect handler around the guide, inside its trace.

    Raises:
        StructureError: If a site is outside the plate, or the latent sites of the programs differ.
        BroadcastError: If the programs do not broadcast over the samples.
    """
    check_positive(num_samples=num_samples)
    try:
        p, q = _run(model, guide, batch, num_samples, at_draws)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        if num_samples == 1:
            raise
        # Raises what is wrong without the plate, if anything is.
        p, q = _run(model, guide, batch, 1, at_draws)
        _check_sites(p, q, len(batch))
        raise BroadcastError(
            f"the programs fail under a plate of {num_samples} samples to the left of the data"
            f" ({first_line(error)}); let them broadcast over dim -2, or draw one sample at a time:"
            " vectorize_particles=False, or num_samples=1"
        ) from error
    _check_sites(p, q, len(batch))
    return p, q


def _run(
    model: Program,
    guide: Program,
    batch: Batch,
    num_samples: int,
    at_draws: Messenger | None,
) -> tuple[Trace, Trace]:
    samples: AbstractContextManager[Any] = nullcontext()
    if num_samples > 1:
        samples = pyro.plate(SAMPLES, num_samples, dim=-2)
    with samples:
        with EnumMessenger(first_available_dim=SUMMED_DIM), at_draws or nullcontext():
            q = poutine.trace(guide).get_trace(*batch)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*batch)
    return p, q


def trace_at(
    model: Program, batch: Batch, latents: Mapping[str, Tensor], num_samples: int
) -> Trace:
    """The trace of a model at given values of its latent sites.

    Arguments:
        model: As for `traces`.
        batch: The arguments of the model.
        latents: The value of each latent site; its batch shape must broadcast to
            `(num_samples, N)`.
        num_samples: Number of values for each row.
    """
    with (
        EnumMessenger(first_available_dim=SUMMED_DIM),
        pyro.plate(SAMPLES, num_samples, dim=-2),
    ):
        return poutine.trace(poutine.condition(model, data=dict(latents))).get_trace(*batch)


def has_rows(args: tuple[Any, ...]) -> bool:
    """Whether the first argument of programs is a tensor with rows."""
    return bool(args) and isinstance(args[0], Tensor) and args[0].ndim > 0


def sample_sites(trace: Trace) -> dict[str, Site]:
    """The random sites of a trace, by name."""
    return {name: site for name, site in trace.nodes.items() if is_random(site)}


def latent_sites(model: Trace) -> dict[str, Site]:
    """The random sites of a model that are not observed, by name."""
    return {name: site for name, site in sample_sites(model).items() if not site["is_observed"]}


def is_summed_out(site: Site) -> bool:
    """Whether a latent site is discrete and to be summed out rather than drawn."""
    return not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


def is_random(site: Site) -> bool:
    """Whether a site has a random value: neither a plate nor `pyro.deterministic`."""
    if site["type"] != "sample" or site_is_subsample(site):
        return False
    return not site["infer"].get("_deterministic")


def log_prob(site: Site) -> Tensor:
    """Log-probability of a site, masked but not scaled."""
    return scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])


def site_sum(
    trace: Trace,
    x: Tensor,
    num_samples: int,
    which: Callable[[Site], bool] = lambda site: True,
    scaled: bool = False,
) -> Tensor:
    """The summed log-probability of some sites of a trace, shape `(num_samples, N)`.

    Sites that are summed out add a dimension on the left, with an entry for each of their values.

    Arguments:
        trace: The trace of a model or a guide.
        x: The data, N rows.
        num_samples: Number of samples in the trace.
        which: Selects the sites.
        scaled: Multiply each by the scale of its site.
    """
    total = torch.zeros((), device=x.device)
    for site in sample_sites(trace).values():
        if which(site):
            score = log_prob(site)
            if scaled:
                score = score * site["scale"]
            total = total + score
    return total.expand(torch.broadcast_shapes(total.shape, (num_samples, len(x))))


def _check_sites(model: Trace, guide: Trace, size: int) -> None:
    """Raise `StructureError` unless the latent sites are the same, and all sites in the plate."""
    p = sample_sites(model)
    q = sample_sites(guide)
    latent = latent_sites(model).keys()
    sampled = {name for name, site in q.items() if not site["infer"].get("is_auxiliary")}
    if latent != sampled:
        names = ", ".join(sorted(latent ^ sampled))
        raise StructureError(
            f"model and guide need the same latent sites, but only one of them has {names}"
        )
    check_plates({**p, **q}, size)


def check_plates(sites: Mapping[str, Site], size: int) -> None:
    """Raise `StructureError` unless each site is in one plate over the data.

    It may be in that over samples, too.
    """
    for name, site in sites.items():
        plates = [plate for plate in site["cond_indep_stack"] if plate.name != SAMPLES]
        if [(plate.dim, plate.size) for plate in plates] != [(-1, size)]:
            raise StructureError(
                f"site {name} is not in exactly one plate of {size} rows at dim -1; put the sites"
                " of a row inside `with pyro.plate('data', len(x))`; for latent variables that rows"
                " share, use log_weights, annealed_log_weights or ImportanceWeightedELBO"
            )
