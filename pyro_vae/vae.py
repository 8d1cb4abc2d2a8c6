"""Variational autoencoders: a generative program p(z) p(x | z), an inference program q(z | x)."""

from __future__ import annotations

import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from logging import getLogger
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn

from pyro_vae.distributions import leave_out_missing
from pyro_vae.engine.importance import log_weights
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError, check_count, check_positive
from pyro_vae.likelihoods import IMAGE_DIMS, Likelihood, Pixels, standardization
from pyro_vae.networks import MLP, Shape, batched
from pyro_vae.posteriors import DiagonalNormal, Posterior
from pyro_vae.priors import Prior

logger = getLogger("pyro_vae")

_instances = count()


class Model(nn.Module, ABC):
    """A generative model of images and its guide.

    To write your own, subclass it and write the two programs::

        class Shifted(Model):
            def __init__(self, encoder, posterior, decoder, likelihood, latent_dim: int) -> None:
                super().__init__(encoder, posterior, decoder, likelihood)
                self.latent_dim = latent_dim
                self.loc = nn.Parameter(torch.zeros(latent_dim))

            def model(self, x, y=None, beta=1.0):
                self.register()
                with pyro.plate("images", len(x)):
                    with poutine.scale(scale=beta):
                        z = pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))
                    pyro.sample("x", self.decode(z), obs=x)

            def guide(self, x, y=None, beta=1.0):
                self.register()
                with pyro.plate("images", len(x)), poutine.scale(scale=beta):
                    pyro.sample("z", self.encode(x))

    What the programs must do: call `self.register()` first; put every site in one plate over the
    images; name the decoder's input `z` and the image `x`; scale every latent site by `beta`, in
    both programs.

    What the class must set: `latent_dim`, and what differs from the defaults of the other
    attributes below. If q(z | x) is not the posterior of the encoder's outputs, override `encode`.

    What the constructor may ask for: the command line fills in the parameters that are named
    `prior`, `encoder`, `posterior`, `decoder`, `likelihood`, `classifier`, `latent_dim`,
    `data_shape` and `label_dim`. All other parameters are options. An option named `prior_dim` is
    also the number of dimensions of the prior that is filled in, which has `latent_dim` dimensions
    otherwise.

    Attributes:
        latent_dim: Number of dimensions of the site `z`.
        needs_labels: Whether the programs use y. False by default.
        infers_labels: Whether labels may be unknown, which is -1, or None for all; their site is
            `y`. False by default.
        decodes_labels: Whether the decoder reads z joined with a code of y of `label_dim` elements.
            False by default.
        default_objective: The class of the objective that `fit` uses if none is given.

    Arguments:
        encoder: Network from images, `(N, *data_shape)`, to the posterior's parameters,
            `(N, num_params, latent_dim)`.
        posterior: The distribution q(z | x).
        decoder: Network from codes, `(N, latent_dim)`, to the likelihood's parameters,
            `(N, num_params, *data_shape)`.
        likelihood: The distribution p(x | z).
    """

    latent_dim: int = 0
    needs_labels = False
    infers_labels = False
    decodes_labels = False
    default_objective: type[ELBO] = Trace_ELBO
    _treats_missing = True

    def __init__(
        self, encoder: nn.Module, posterior: Posterior, decoder: nn.Module, likelihood: Likelihood
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.posterior = posterior
        self.decoder = decoder
        self.likelihood = likelihood
        self.initialized = False
        self.register_load_state_dict_post_hook(_mark_initialized)
        self._set_name()

    @abstractmethod
    def model(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        """The generative program.

        Arguments:
            x: Images as the likelihood's pixels, shape `(N, *data_shape)`.
            y: Their labels, for models that use them: classes, int64 of shape `(N,)`, or real
                covariates, shape `(N, label_dim)`.
            beta: Weight of the KL divergence.
        """

    @abstractmethod
    def guide(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        """The inference program; arguments as for `model`."""

    def register(self) -> None:
        """Register the parameters with Pyro, under a name that is unique to this instance.

        Those that require no gradient are not registered. Pyro's warning about them is silenced.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* was not registered in the param store")
            pyro.module(self._name, self)

    def encode(self, x: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """The posterior q(z | x) of each image: batch_shape `(N,)`, event_shape `(latent_dim,)`."""
        return self.posterior(self.encoder(self.input_of(self.encoder, x)))

    def input_of(self, network: nn.Module, x: Tensor) -> Tensor:
        """What a network of images reads: `likelihood.unit(x)`, with zeros for missing values.

        A network that reads the mask gets them as NaN, see `Network.mask_input`.
        """
        unit = self.likelihood.unit(x)
        if getattr(network, "mask_input", False) or not self._treats_missing:
            return unit
        return unit.masked_fill(unit.isnan(), 0.0)

    def decode(self, z: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """The likelihood p(x | z) at codes of shape `(..., latent_dim)`: batch_shape `(...)`.

        Its log-density leaves out values that are NaN, if the elements are independent.
        """
        params = batched(self.decoder, z)
        self.likelihood.data_dims = params.ndim - z.ndim
        p = self.likelihood(params)
        if not self._treats_missing:
            return p
        return leave_out_missing(p)

    @contextmanager
    def treating_missing(self, treated: bool) -> Iterator[None]:
        """Skip the treatment of missing values in a `with` block, unless `treated`.

        For data that are known to be complete, to save time: results are the same, bit for bit.
        """
        before = self._treats_missing
        self._treats_missing = treated
        try:
            yield
        finally:
            self._treats_missing = before

    def q_z(self, x: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """The guide's q(z | x) or q(z | x, y): batch_shape `(N,)`, event_shape `(latent_dim,)`."""
        y = self.complete_labels(x, y)
        site: Any = poutine.trace(self.guide).get_trace(x, y).nodes["z"]
        return site["fn"]

    def p_x(self, z: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """The model's p(x | z) or p(x | z, y) at codes `(N, latent_dim)`: batch_shape `(N,)`."""
        return self._generate(len(z), y, {"z": z})["x"]["fn"]

    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draws x ~ p(x | z) with z ~ p(z), shape `(n, *data_shape)`.

        Arguments:
            n: Number of images.
            y: The label of each, for models that use labels.
        """
        return self._generate(n, y)["x"]["value"]

    @torch.no_grad()
    def sample_mean(self, n: int, y: Tensor | None = None) -> Tensor:
        """The means of p(x | z) at `n` draws z ~ p(z), shape `(n, *data_shape)`."""
        return self._generate(n, y)["x"]["fn"].mean

    @torch.no_grad()
    def reconstruct_mean(
        self, x: Tensor, y: Tensor | None = None, new_y: Tensor | None = None
    ) -> Tensor:
        """The mean of p(x | z) at one draw z ~ q(z | x) for each image, shape `(N, *data_shape)`.

        A model that uses labels encodes with `y` and decodes with `new_y`, or with `y` if that is
        None.
        """
        y = self.complete_labels(x, y)
        if new_y is None:
            new_y = y
        p = self.p_x(self.q_z(x, y).sample(), new_y)
        return self.likelihood.mean(p, x)

    @torch.no_grad()
    def sample_codes(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draws z ~ p(z), shape `(n, latent_dim)`."""
        return self._generate(n, y)["z"]["value"]

    @property
    def pixels(self) -> Pixels:
        """The kind of data that the likelihood scores."""
        return self.likelihood.pixels

    def q_y(self, x: Tensor) -> Any:
        """The classifier q(y | x), a Categorical with batch_shape `(N,)`, if labels are inferred.

        Raises:
            RequestError: If the model infers no labels.
        """
        raise RequestError(
            f"{type(self).__name__} infers no labels; use SemiSupervisedVAE, or a linear probe"
        )

    def complete_labels(self, x: Tensor, y: Tensor | None = None) -> Tensor | None:
        """The labels, with guesses of those that are unknown if the model infers them."""
        return y

    def check_labels(self, y: Tensor | None) -> None:
        """Raise `RequestError` if these labels, or their absence, do not fit the model."""
        if self.needs_labels and y is None:
            raise RequestError(
                f"{type(self).__name__} needs labels, but there are none; use data with labels or"
                " covariates"
            )

    @torch.no_grad()
    def check_missing(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raise `RequestError` if values of `x` are missing and the programs cannot treat them.

        Arguments:
            x: Images as the likelihood's pixels, with NaN for what is missing.
            y: Their labels, for models that use them.
        """
        missing = x.flatten(1).isnan()
        if not missing.any():
            return
        nothing = missing.all(1)
        if nothing.any():
            raise RequestError(
                f"{int(nothing.sum()):,} rows have no observed value, such as row"
                f" {int(nothing.nonzero()[0])}; remove them"
            )
        row = missing.any(1).nonzero()[0]
        if y is not None:
            y = y[row]
        with forked_rng(), pyro.validation_enabled(False):
            score = log_weights(self.model, self.guide, x[row], y, num_samples=1)
        if score.isnan().any():
            raise RequestError(
                f"x has missing values (NaN), which {type(self).__name__} with"
                f" {type(self.likelihood).__name__} cannot leave out; use a likelihood of"
                " independent elements, so no given_total, through self.encode and self.decode,"
                " or complete data"
            )

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Initialize the likelihood and the decoder's last bias from the training data `x`.

        Reconstructions then start near their mean. The bias may have one element per pixel or one
        per channel. Other decoders, and a bias that requires no gradient, are left unchanged. `fit`
        calls this once, unless a state_dict was loaded.
        """
        self.likelihood.initialize(x)
        biases = [param for name, param in self.decoder.named_parameters() if name.endswith("bias")]
        if not biases or not biases[-1].requires_grad:
            return
        means = [_mean(x, 0)]
        if x.ndim == 1 + IMAGE_DIMS:
            means.append(_mean(x, (0, -2, -1))[:, None, None])
        for mean in means:
            params = self.likelihood.params_at(mean)
            if params is not None and params.numel() == biases[-1].numel():
                biases[-1].copy_(params.flatten())

    def initialize_labels(self, y: Tensor) -> None:
        """Initialize from the labels of all training images; `fit` calls this with `initialize`.

        Does nothing by default.
        """

    @torch.no_grad()
    def _generate(self, n: int, y: Tensor | None, given: dict[str, Tensor] | None = None) -> Any:
        """The sites of the generative program for `n` images, some of them with given values."""
        check_count(n=n)
        self.check_labels(y)
        if y is not None and len(y) != n:
            raise RequestError(f"there are {len(y)} labels for n={n}; pass one label for each")
        program = poutine.condition(poutine.uncondition(self.model), given or {})
        sites = poutine.trace(program).get_trace(self._no_images(n), y).nodes
        for name in ("z", "x"):
            if name not in sites:
                raise RequestError(
                    f"the model has no site {name}; name the decoder's input z and the image x"
                )
        return sites

    def _no_images(self, n: int) -> Tensor:
        """A batch of `n` images without pixels.

        An unconditioned program uses only their number, dtype and device.
        """
        return next(self.parameters()).new_empty(n, 0)

    def _set_name(self) -> None:
        """Take a new name in Pyro's global parameter store.

        Its parameters leave the store when this instance is deleted.
        """
        self._name = f"vae{next(_instances)}"
        weakref.finalize(self, _forget, self._name)

    def __getstate__(self) -> dict[str, Any]:
        for param in self.parameters():
            # A weak reference of Pyro's, which cannot be pickled.
            vars(param).pop("unconstrained", None)
        return vars(self).copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy has its own parameters, and so needs its own name."""
        super().__setstate__(state)
        self._set_name()


def _mean(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """The mean of what is observed."""
    if x.isnan().any():
        return x.nanmean(dims)
    return x.mean(dims)


def _mark_initialized(model: Model, keys: Any) -> None:
    model.initialized = True


def _forget(name: str) -> None:
    store = pyro.get_param_store()
    for key in list(store.keys()):
        if key.startswith(f"{name}$$$"):
            # A parameter that two modules share is stored under one name only.
            with suppress(KeyError):
                del store[key]


@torch.no_grad()
def _dimensions(prior: Prior) -> int:
    """The number of dimensions of a prior.

    It is called in evaluation mode, because a VampPrior's encoder may have batch normalization, and
    leaves the random state as it is.

    Raises:
        ValueError: If a draw is not a vector.
    """
    if not isinstance(prior, nn.Module):
        raise RequestError(f"prior must be an object such as StandardNormal(20), but is {prior!r}")
    modes = {module: module.training for module in prior.modules()}
    prior.eval()
    try:
        with forked_rng():
            event_shape = prior().event_shape
    finally:
        for module, mode in modes.items():
            module.training = mode
    if len(event_shape) != 1:
        raise RequestError(
            f"the prior's event_shape must be (latent_dim,), but is {tuple(event_shape)};"
            " use to_event(1)"
        )
    return event_shape[0]


class VAE(Model):
    r"""A variational autoencoder: p(z) p(x | z) with the guide q(z | x).

    .. math:: p(x, z) = p(z) \, p(x \mid z), \qquad q(z \mid x)

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114

    Arguments:
        prior: The distribution p(z).
        encoder: Network from images, `(N, *data_shape)`, to the posterior's parameters,
            `(N, num_params, latent_dim)`.
        posterior: The distribution q(z | x).
        decoder: Network from codes, `(N, latent_dim)`, to the likelihood's parameters,
            `(N, num_params, *data_shape)`.
        likelihood: The distribution p(x | z).

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     prior=pv.StandardNormal(5),
        ...     encoder=pv.MLP((1, 8, 8), (2, 5)),
        ...     posterior=pv.DiagonalNormal(),
        ...     decoder=pv.MLP((5,), (1, 1, 8, 8)),
        ...     likelihood=pv.Bernoulli(),
        ... )
        >>> vae.sample(3).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        prior: Prior,
        encoder: nn.Module,
        posterior: Posterior,
        decoder: nn.Module,
        likelihood: Likelihood,
    ) -> None:
        super().__init__(encoder, posterior, decoder, likelihood)
        self.prior = prior
        self.latent_dim = _dimensions(prior)

    def model(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        """The generative program, p(z)^beta p(x | z)."""
        self.register()
        with pyro.plate("images", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        """The inference program, q(z | x)^beta."""
        self.register()
        with pyro.plate("images", len(x)), poutine.scale(scale=beta):
            pyro.sample("z", self.encode(x))

    def initialize(self, x: Tensor) -> None:
        super().initialize(x)
        unit = self.likelihood.unit(x)
        self.prior.initialize(unit.masked_fill(unit.isnan(), 0.0))


class ConditionalVAE(VAE):
    r"""A VAE of images with labels: p(z) p(x | z, y) with the guide q(z | x, y).

    .. math:: p(x, z \mid y) = p(z) \, p(x \mid z, y), \qquad q(z \mid x, y)

    The code of y is one-hot for classes. Real covariates are standardized: their code is
    (y - `label_mean`) / `label_scale`, with the mean and the standard deviation of the training
    images, which are saved with the parameters. The decoder reads z joined with the code. A linear
    map of the code, which starts at zero, is added to the encoder's input, so that any encoder can
    be used.

    References:
        | Learning Structured Output Representation using Deep Conditional Generative Models
        | (Sohn et al., 2015)
        | https://papers.nips.cc/paper/5775

    Arguments:
        prior: The distribution p(z).
        encoder: Network from images, `(N, *data_shape)`, to the posterior's parameters,
            `(N, num_params, latent_dim)`.
        posterior: The distribution q(z | x, y).
        decoder: Network from z and the code of y, `(N, latent_dim + label_dim)`, to the
            likelihood's parameters, `(N, num_params, *data_shape)`.
        likelihood: The distribution p(x | z, y).
        data_shape: Shape of an image.
        label_dim: Number of classes or of covariates.

    Example:
        >>> import pyro_vae as pv
        >>> encoder, decoder = MLP((1, 8, 8), (2, 5)), MLP((5 + 10,), (1, 1, 8, 8))
        >>> prior, posterior = pv.StandardNormal(5), pv.DiagonalNormal()
        >>> parts = prior, encoder, posterior, decoder, pv.Bernoulli()
        >>> vae = ConditionalVAE(*parts, data_shape=(1, 8, 8), label_dim=10)
        >>> vae.sample(3, y=torch.tensor([7, 7, 7])).shape
        torch.Size([3, 1, 8, 8])
    """

    needs_labels = True
    decodes_labels = True

    def __init__(
        self,
        prior: Prior,
        encoder: nn.Module,
        posterior: Posterior,
        decoder: nn.Module,
        likelihood: Likelihood,
        data_shape: Shape,
        label_dim: int,
    ) -> None:
        super().__init__(prior, encoder, posterior, decoder, likelihood)
        self.label_dim = label_dim
        self.embedding = nn.Parameter(torch.zeros(label_dim, *data_shape))
        self.label_mean = nn.Buffer(torch.zeros(label_dim))
        self.label_scale = nn.Buffer(torch.ones(label_dim))

    def model(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        """The generative program, p(z)^beta p(x | z, y)."""
        self.register()
        with pyro.plate("images", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z, y), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        """The inference program, q(z | x, y)^beta."""
        self.register()
        with pyro.plate("images", len(x)), poutine.scale(scale=beta):
            pyro.sample("z", self.encode(x, y))

    def encode(self, x: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """The posterior q(z | x, y): batch_shape `(N,)`, event_shape `(latent_dim,)`."""
        shift = torch.tensordot(self.code(y), self.embedding, 1)
        return self.posterior(self.encoder(self.input_of(self.encoder, x) + shift))

    def decode(self, z: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """The likelihood p(x | z, y) at codes `(..., N, latent_dim)`: batch_shape `(..., N)`."""
        code = self.code(y)
        shape = torch.broadcast_shapes(z.shape[:-1], code.shape[:-1])
        return super().decode(torch.cat([z.expand(*shape, -1), code.expand(*shape, -1)], -1))

    def code(self, y: Tensor | None) -> Tensor:
        """The code of labels, shape `(..., N, label_dim)`."""
        if y is None:
            raise RequestError(f"{type(self).__name__} needs labels; pass y")
        if y.is_floating_point():
            return (y.to(self.label_mean.dtype) - self.label_mean) / self.label_scale
        one_hot = y[..., None] == torch.arange(self.label_dim, device=y.device)
        return one_hot.to(self.embedding.dtype)

    @torch.no_grad()
    def initialize_labels(self, y: Tensor) -> None:
        """Set the mean and the scale of covariates; classes need none."""
        self.check_labels(y)
        if not y.is_floating_point():
            return
        mean, scale = standardization(y.double())
        self.label_mean.copy_(mean)
        self.label_scale.copy_(scale)
        logger.info(
            "covariates: standardized by the training data, mean %s, standard deviation %s",
            _numbers(mean),
            _numbers(scale),
        )

    def check_labels(self, y: Tensor | None) -> None:
        super().check_labels(y)
        if y is None:
            return
        if y.is_floating_point():
            if y.shape[1:] != (self.label_dim,):
                raise RequestError(
                    f"covariates must have shape (N, {self.label_dim}), but have {tuple(y.shape)}"
                )
            if not y.isfinite().all():
                raise RequestError(
                    "covariates must be finite, but some are NaN or infinite; ConditionalVAE needs"
                    " all of them"
                )
        elif (y == -1).any():
            raise RequestError(
                "some labels are unknown (-1); use SemiSupervisedVAE, or remove their images"
            )
        elif y.ndim != 1 or ((y < 0) | (y >= self.label_dim)).any():
            raise RequestError(
                f"labels must be integers from 0 to {self.label_dim - 1}, shape (N,); give each"
                " class a number"
            )


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.tolist())


class HierarchicalVAE(VAE):
    r"""A VAE with two stochastic layers, each a Gaussian given the other.

    .. math:: p(z_2) \, p(z \mid z_2) \, p(x \mid z)
        \quad \text{with the guide} \quad q(z \mid x) \, q(z_2 \mid z)

    Encoder and decoder operate on the code z of `latent_dim` dimensions; the prior is over z2.
    Burda et al. (2016) use 100 and 50 dimensions with tanh layers of width 100 between them.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Arguments:
        prior: The distribution p(z2), over `prior_dim` dimensions.
        encoder: Network from images, `(N, *data_shape)`, to the posterior's parameters,
            `(N, num_params, latent_dim)`.
        posterior: The distribution q(z | x).
        decoder: Network from codes z, `(N, latent_dim)`, to the likelihood's parameters,
            `(N, num_params, *data_shape)`.
        likelihood: The distribution p(x | z).
        latent_dim: Number of dimensions of z.
        prior_dim: Number of dimensions of z2.
        hidden: Widths of the layers from z to z2; the layers from z2 to z are the reverse.
        activation: Constructor of their activation.

    Raises:
        ValueError: If the prior does not have `prior_dim` dimensions.

    Example:
        >>> import pyro_vae as pv
        >>> encoder, decoder = MLP((1, 8, 8), (2, 10)), MLP((10,), (1, 1, 8, 8))
        >>> prior, posterior = pv.StandardNormal(5), pv.DiagonalNormal()
        >>> parts = prior, encoder, posterior, decoder, pv.Bernoulli()
        >>> vae = HierarchicalVAE(*parts, latent_dim=10, prior_dim=5)
        >>> vae.sample(3).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        prior: Prior,
        encoder: nn.Module,
        posterior: Posterior,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        prior_dim: int = 50,
        hidden: Sequence[int] = (100, 100),
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__(prior, encoder, posterior, decoder, likelihood)
        check_positive(prior_dim=prior_dim)
        if self.latent_dim != prior_dim:
            raise RequestError(
                f"prior has {self.latent_dim} dimensions, but prior_dim={prior_dim}; make them"
                " equal"
            )
        self.latent_dim = latent_dim
        self.normal = DiagonalNormal()
        self.up = MLP((latent_dim,), (2, prior_dim), hidden, activation)
        self.down = MLP((prior_dim,), (2, latent_dim), tuple(reversed(hidden)), activation)

    def model(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        """The generative program, (p(z2) p(z | z2))^beta p(x | z)."""
        self.register()
        with pyro.plate("images", len(x)):
            with poutine.scale(scale=beta):
                z2 = pyro.sample("z2", self.prior())
                z = pyro.sample("z", self.normal(batched(self.down, z2)))
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        """The inference program, (q(z | x) q(z2 | z))^beta."""
        self.register()
        with pyro.plate("images", len(x)), poutine.scale(scale=beta):
            z = pyro.sample("z", self.encode(x))
            pyro.sample("z2", self.normal(batched(self.up, z)))


class PosteriorMoments(nn.Module):
    """Maps images, and labels if the model uses them, to the mean and scale of q(z | x).

    It is one module, with all that the model does before its encoder (bytes to grey values, labels)
    and after it, so that it can be exported whole, with `torch.export` or `torch.onnx.export`. Its
    outputs are those of `codes`, each of shape `(N, latent_dim)`. A model of your own is exported
    as its `encode` is.

    Arguments:
        vae: The model, which is set to evaluation mode.

    Raises:
        ValueError: When called, if the posterior has no closed form of the moments.

    Example:
        >>> import pyro_vae as pv
        >>> encoder, decoder = pv.MLP((1, 8, 8), (2, 5)), pv.MLP((5,), (1, 1, 8, 8))
        >>> prior, posterior = pv.StandardNormal(5), pv.DiagonalNormal()
        >>> vae = pv.VAE(prior, encoder, posterior, decoder, pv.Bernoulli())
        >>> program = torch.export.export(PosteriorMoments(vae), (torch.zeros(2, 1, 8, 8),))
        >>> loc, scale = program.module()(torch.zeros(2, 1, 8, 8))
        >>> loc.shape
        torch.Size([2, 5])
    """

    def __init__(self, vae: Model) -> None:
        super().__init__()
        self.vae = vae
        self.eval()

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The posterior means and standard deviations.

        Arguments:
            x: Images as the likelihood's pixels, shape `(N, *data_shape)`.
            y: Their labels, for models that use them.
        """
        # Pyro's validation reads the values of tensors, which an exported graph cannot do.
        with pyro.validation_enabled(False):
            q = self.vae.encode(x, y)
        try:
            return q.mean, q.stddev
        except NotImplementedError as error:
            raise RequestError(
                f"{type(self.vae.posterior).__name__} has no closed form of the mean and the scale;"
                " export vae.encoder, and draw codes"
            ) from error


# Decoder outputs computed at once: 8 MiB in float32, large enough for efficient products, small
# enough for CPU caches.
OUTPUTS_PER_PASS = 2**21
# On CUDA: 64 MiB in float32, of which a pass holds a few for each particle. Larger passes hide the
# launches of kernels.
OUTPUTS_PER_PASS_ON_CUDA = 2**24


def default_batch_size(vae: Model, x: Tensor) -> int:
    """Number of decoder rows per pass that is efficient for the shape and device of `x`."""
    outputs = OUTPUTS_PER_PASS_ON_CUDA if x.is_cuda else OUTPUTS_PER_PASS
    return max(1, outputs // (vae.likelihood.num_params * x[0].numel()))
