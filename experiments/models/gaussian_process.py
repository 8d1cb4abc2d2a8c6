"""A Gaussian process with inducing points, by Pyro's own class, whose data are attributes."""

from typing import Any

import torch
from pyro.contrib.gp.kernels import RBF
from pyro.contrib.gp.likelihoods import Binary
from pyro.contrib.gp.models import VariationalSparseGP
from pyro.infer import Trace_ELBO

ROWS, POINTS = 200, 15


def problem() -> tuple[Any, ...]:
    x = torch.linspace(-3, 3, ROWS)
    y = torch.bernoulli(torch.sigmoid(4 * (2 * x).sin()))
    start = x[:: ROWS // POINTS].clone()
    process = VariationalSparseGP(x, y, RBF(input_dim=1), start, Binary(), whiten=True, jitter=1e-4)
    return process.model, process.guide, Trace_ELBO(), ()
