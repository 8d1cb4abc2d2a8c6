"""The same regression with a guide whose covariance is a diagonal plus a low-rank matrix."""

from typing import Any

from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from regression import Regression, data


def problem() -> tuple[Any, ...]:
    model = Regression()
    return model, AutoLowRankMultivariateNormal(model, rank=2), Trace_ELBO(), data()
