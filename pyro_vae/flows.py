"""zuko's normalizing flows as Pyro distributions."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.contrib.zuko import ZukoToPyro
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.networks import Shape

_validated = Distribution._validate_args  # zuko turns torch's validation off for everybody when it is imported

from zuko.distributions import NormalizingFlow  # noqa: E402
from zuko.flows import MAF, NSF, Flow, RealNVP  # noqa: E402

Distribution.set_default_validate_args(_validated)

__all__ = ["MAF", "NSF", "Flow", "FlowDistribution", "NormalizingFlow", "RealNVP"]


class FlowDistribution(ZukoToPyro):
    """A zuko distribution in Pyro that can also be sampled outside a program, and on its own device."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.real_vector

    def rsample(self, sample_shape: Shape | list[int] = ()) -> Tensor:
        return self(torch.Size(sample_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Shape | list[int] = ()) -> Tensor:
        return self.dist.sample(torch.Size(sample_shape))

    def expand(self, batch_shape: Shape | list[int], _instance: None = None) -> FlowDistribution:
        return FlowDistribution(self.dist.expand(batch_shape))
