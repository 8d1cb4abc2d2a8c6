"""The public names of the package, which imports them when the first of them is used."""

from pyro_vae import likelihoods, networks, objectives, posteriors, priors, schedules
from pyro_vae.cli.run_folder import load_run
from pyro_vae.data import Data, Split, load_data, load_images
from pyro_vae.errors import NotFiniteError, RequestError, StorageError
from pyro_vae.evaluation.ais import annealed_log_weights, bidirectional_bounds
from pyro_vae.evaluation.diagnostics import bayes_classifier, check_log_likelihood, inference_gap, information, linear_probe
from pyro_vae.evaluation.metrics import evaluate, score_images
from pyro_vae.evaluation.quadrature import quadrature_log_likelihood
from pyro_vae.inference.codes import activity, codes
from pyro_vae.inference.fit import Record, Training, fit
from pyro_vae.inference.importance import (
    effective_sample_size,
    k_curve,
    log_likelihood,
    log_weights,
    monte_carlo_error,
    pareto_k,
)
from pyro_vae.inference.svi import SVI
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
from pyro_vae.schedules import Constant, Cosine, Cyclical, Ramp, Schedule, Sigmoid
from pyro_vae.vae import VAE, ConditionalVAE, HierarchicalVAE, Model
