# The public names, imported when they are first used (lazy_loader reads this file).
from . import (
    likelihoods as likelihoods,
    networks as networks,
    objectives as objectives,
    posteriors as posteriors,
    priors as priors,
    schedules as schedules,
    testing as testing,
)
from .data.datasets import load_data as load_data, load_images as load_images
from .data.split import Data as Data, Split as Split
from .engine.importance import (
    effective_sample_size as effective_sample_size,
    k_curve as k_curve,
    log_likelihood as log_likelihood,
    log_weights as log_weights,
    monte_carlo_error as monte_carlo_error,
    pareto_k as pareto_k,
)
from .engine.svi import SVI as SVI
from .errors import (
    NotFiniteError as NotFiniteError,
    RequestError as RequestError,
    StorageError as StorageError,
)
from .evaluation.ais import (
    annealed_log_weights as annealed_log_weights,
    bidirectional_bounds as bidirectional_bounds,
)
from .evaluation.anomaly import anomaly_scores as anomaly_scores, auroc as auroc
from .evaluation.bits import bits_per_dimension as bits_per_dimension
from .evaluation.calibration import Calibration as Calibration, calibration as calibration
from .evaluation.check import (
    annealed_log_likelihood as annealed_log_likelihood,
    check_log_likelihood as check_log_likelihood,
)
from .evaluation.codes import activity as activity, codes as codes
from .evaluation.forecast import predicted_active_units as predicted_active_units
from .evaluation.gap import (
    inference_gap as inference_gap,
    likelihood_regret as likelihood_regret,
)
from .evaluation.impute import Imputation as Imputation, impute as impute
from .evaluation.information import information as information
from .evaluation.labels import (
    class_probabilities as class_probabilities,
    classify as classify,
)
from .evaluation.metrics import evaluate as evaluate, score_images as score_images
from .evaluation.probe import (
    bayes_classifier as bayes_classifier,
    linear_probe as linear_probe,
)
from .evaluation.quadrature import quadrature_log_likelihood as quadrature_log_likelihood
from .evaluation.reliability import (
    k_hat_curve as k_hat_curve,
    required_samples as required_samples,
)
from .likelihoods import (
    Bernoulli as Bernoulli,
    Beta as Beta,
    Binomial as Binomial,
    Categorical as Categorical,
    ContinuousBernoulli as ContinuousBernoulli,
    DiscretizedLogistic as DiscretizedLogistic,
    Likelihood as Likelihood,
    NegativeBinomial as NegativeBinomial,
    Poisson as Poisson,
    ZeroInflatedNegativeBinomial as ZeroInflatedNegativeBinomial,
)
from .networks import MLP as MLP, Conv as Conv, Gated as Gated, Network as Network
from .objectives import (
    CapacityELBO as CapacityELBO,
    DReGELBO as DReGELBO,
    FreeBitsELBO as FreeBitsELBO,
    ImportanceWeightedELBO as ImportanceWeightedELBO,
    PathELBO as PathELBO,
    ScheduledELBO as ScheduledELBO,
    StickingTheLandingELBO as StickingTheLandingELBO,
    TensorELBO as TensorELBO,
)
from .posteriors import (
    DiagonalNormal as DiagonalNormal,
    FlowPosterior as FlowPosterior,
    FullRankNormal as FullRankNormal,
    LowRankNormal as LowRankNormal,
    Posterior as Posterior,
)
from .priors import (
    FlowPrior as FlowPrior,
    GaussianMixture as GaussianMixture,
    Prior as Prior,
    StandardNormal as StandardNormal,
    StudentT as StudentT,
    VampPrior as VampPrior,
)
from .reporting import figures as figures, views as views
from .reporting.report import compare_models as compare_models, report as report
from .runs.load import load_run as load_run
from .runs.recipe import Choice as Choice
from .runs.recipe import Recipe as Recipe
from .runs.save import save_run as save_run
from .schedules import (
    Constant as Constant,
    Cosine as Cosine,
    Cyclical as Cyclical,
    Ramp as Ramp,
    Schedule as Schedule,
    Sigmoid as Sigmoid,
)
from .semi_supervised import SemiSupervisedVAE as SemiSupervisedVAE
from .training.fit import Record as Record, Training as Training, fit as fit
from .vae import (
    VAE as VAE,
    ConditionalVAE as ConditionalVAE,
    HierarchicalVAE as HierarchicalVAE,
    Model as Model,
    PosteriorMoments as PosteriorMoments,
)

__version__: str
