# The public names, imported when they are first used (lazy_loader reads this file).
from . import likelihoods, networks, objectives, posteriors, priors, schedules, testing
from .data.datasets import load_data, load_images
from .data.split import Data, Split
from .engine.importance import (
    effective_sample_size,
    k_curve,
    log_likelihood,
    log_weights,
    monte_carlo_error,
    pareto_k,
)
from .engine.svi import SVI
from .errors import NotFiniteError, RequestError, StorageError
from .evaluation.ais import annealed_log_weights, bidirectional_bounds
from .evaluation.codes import activity, codes
from .evaluation.check import annealed_log_likelihood, check_log_likelihood
from .evaluation.gap import inference_gap
from .evaluation.information import information
from .evaluation.metrics import evaluate, score_images
from .evaluation.probe import bayes_classifier, linear_probe
from .evaluation.quadrature import quadrature_log_likelihood
from .likelihoods import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Likelihood,
)
from .networks import MLP, Conv, Gated, Network
from .objectives import (
    CapacityELBO,
    DReGELBO,
    FreeBitsELBO,
    ImportanceWeightedELBO,
    PathELBO,
    ScheduledELBO,
    StickingTheLandingELBO,
    TensorELBO,
)
from .posteriors import DiagonalNormal, FlowPosterior, FullRankNormal, LowRankNormal, Posterior
from .priors import FlowPrior, GaussianMixture, Prior, StandardNormal, StudentT, VampPrior
from .reporting import figures, views
from .reporting.report import compare_models, report
from .runs.folder import load_run
from .schedules import Constant, Cosine, Cyclical, Ramp, Schedule, Sigmoid
from .training.fit import Record, Training, fit
from .vae import VAE, ConditionalVAE, HierarchicalVAE, Model, PosteriorMoments

__version__: str
