"""The same regression with a guide that has a full covariance matrix."""

from typing import Any

from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from regression import Regression, data


def problem() -> tuple[Any, ...]:
    model = Regression()
    return model, AutoMultivariateNormal(model), Trace_ELBO(), data()
