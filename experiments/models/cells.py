"""A factor model of spatial gene counts: the abundances of known cell types in each spot."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro import plate, sample
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

SPOTS, GENES, TYPES = 150, 300, 12


def model(counts: Tensor, signatures: Tensor) -> None:
    genes = plate("genes", GENES, dim=-1)
    spots = plate("spots", SPOTS, dim=-2)
    types = plate("types", TYPES, dim=-1)
    level = sample("level", dist.Gamma(5.0, 1.0))
    with genes:
        efficiency = sample("efficiency", dist.Gamma(20.0, 20.0))
        background = sample("background", dist.Gamma(1.0, 100.0))
        dispersion = sample("dispersion", dist.Exponential(3.0))
    with spots:
        depth = sample("depth", dist.Gamma(20.0, 20.0))
        with types:
            abundance = sample("abundance", dist.Gamma(level / TYPES, 1.0))
        mean = (abundance @ signatures * efficiency + background) * depth
        concentration = dispersion.square().reciprocal()
        with genes:
            sample("counts", dist.GammaPoisson(concentration, concentration / mean), obs=counts)


def problem() -> tuple[Any, ...]:
    signatures = dist.Gamma(0.5, 1.0).sample(torch.Size([TYPES, GENES]))
    counts = torch.poisson(dist.Gamma(0.5, 1.0).sample(torch.Size([SPOTS, TYPES])) @ signatures)
    return model, AutoNormal(model), Trace_ELBO(), (counts, signatures)
