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
from .evaluation.diagnostics import (
    bayes_classifier,
    check_log_likelihood,
    inference_gap,
    information,
    linear_probe,
)
from .evaluation.metrics import evaluate, score_images
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
from .runs.load import load_run
from .runs.recipe import Choice, Recipe
from .runs.save import save_run
from .schedules import Constant, Cosine, Cyclical, Ramp, Schedule, Sigmoid
from .training.fit import Record, Training, fit
from .vae import VAE, ConditionalVAE, HierarchicalVAE, Model, PosteriorMoments

__version__: str
