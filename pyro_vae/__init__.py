"""Variational autoencoders as Pyro programs.

Names that mean one thing are here; Normal, Laplace and Linear, of which there are several, are in their modules:
`priors`, `posteriors`, `likelihoods`, `networks` and `schedules`.
"""

from pyro_vae import (
    data,
    diagnostics,
    importance,
    likelihoods,
    networks,
    objectives,
    plots,
    posteriors,
    priors,
    schedules,
    views,
)
from pyro_vae.ais import annealed_log_weights, bidirectional_bounds
from pyro_vae.data import Data, Split, load_data
from pyro_vae.diagnostics import activity, codes, inference_gap, information, linear_probe
from pyro_vae.errors import NotFiniteError, RequestError, StorageError
from pyro_vae.evaluate import evaluate
from pyro_vae.fit import Record, Training, fit
from pyro_vae.hierarchical import HierarchicalVAE
from pyro_vae.importance import (
    effective_sample_size,
    k_curve,
    log_likelihood,
    log_weights,
    monte_carlo_error,
    pareto_k,
)
from pyro_vae.likelihoods import Bernoulli, Beta, Binomial, Categorical, ContinuousBernoulli, DiscretizedLogistic, Likelihood
from pyro_vae.networks import MLP, Conv, Gated, Network
from pyro_vae.objectives import (
    CapacityELBO,
    DReGELBO,
    FreeBitsELBO,
    ImportanceWeightedELBO,
    PathELBO,
    ScheduledELBO,
    StickingTheLandingELBO,
    TensorELBO,
)
from pyro_vae.posteriors import DiagonalNormal, FlowPosterior, FullRankNormal, LowRankNormal, Posterior
from pyro_vae.priors import FlowPrior, GaussianMixture, Prior, StandardNormal, StudentT, VampPrior
from pyro_vae.runs import load_run
from pyro_vae.schedules import Constant, Cosine, Cyclical, Ramp, Schedule, Sigmoid
from pyro_vae.svi import SVI
from pyro_vae.vae import VAE, Model

__all__ = [
    "MLP",
    "SVI",
    "VAE",
    "Bernoulli",
    "Beta",
    "Binomial",
    "CapacityELBO",
    "Categorical",
    "Constant",
    "ContinuousBernoulli",
    "Conv",
    "Cosine",
    "Cyclical",
    "DReGELBO",
    "Data",
    "DiagonalNormal",
    "DiscretizedLogistic",
    "FlowPosterior",
    "FlowPrior",
    "FreeBitsELBO",
    "FullRankNormal",
    "Gated",
    "GaussianMixture",
    "HierarchicalVAE",
    "ImportanceWeightedELBO",
    "Likelihood",
    "LowRankNormal",
    "Model",
    "Network",
    "NotFiniteError",
    "PathELBO",
    "Posterior",
    "Prior",
    "Ramp",
    "Record",
    "RequestError",
    "Schedule",
    "ScheduledELBO",
    "Sigmoid",
    "Split",
    "StandardNormal",
    "StickingTheLandingELBO",
    "StorageError",
    "StudentT",
    "TensorELBO",
    "Training",
    "VampPrior",
    "activity",
    "annealed_log_weights",
    "bidirectional_bounds",
    "codes",
    "data",
    "diagnostics",
    "effective_sample_size",
    "evaluate",
    "fit",
    "importance",
    "inference_gap",
    "information",
    "k_curve",
    "likelihoods",
    "linear_probe",
    "load_data",
    "load_run",
    "log_likelihood",
    "log_weights",
    "monte_carlo_error",
    "networks",
    "objectives",
    "pareto_k",
    "plots",
    "posteriors",
    "priors",
    "schedules",
    "views",
]
