"""The variational autoencoder: a generative program p(z) p(x | z) and an inference program q(z | x)."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.runtime import NonlocalExit
from torch import Tensor, nn

from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError, check_positive
from pyro_vae.likelihoods import Likelihood, Pixels
from pyro_vae.networks import MLP, Shape, batched
from pyro_vae.posteriors import DiagonalNormal, Posterior
from pyro_vae.priors import Prior

_instances = count()


class Model(nn.Module, ABC):
    """A generative model of images and its guide.

    To write your own, subclass it and write the two programs. Call `self.register()` first in each, put every site in one
    plate over the images, name the decoder's input `z` and the image `x`, and scale every latent site by beta in both programs:

        class Shifted(Model):
            def __init__(self, encoder, posterior, decoder, likelihood, latent_dim: int) -> None:
                super().__init__(encoder, posterior, decoder, likelihood)
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

    Constructor parameters named `prior`, `encoder`, `posterior`, `decoder`, `likelihood`, `latent_dim`, `data_shape` and
    `label_dim` are filled in by the command line. A model that uses labels y sets `needs_labels`; if its decoder reads z
    joined with a code of y of `label_dim` elements, it also sets `decodes_labels`. If p(z | y) depends on real covariates, it
    overrides `latent_dim`. See `ConditionalVAE`.

    Attributes:
        needs_labels: Whether the programs require y.
        decodes_labels: Whether the decoder has `latent_dim + label_dim` inputs.

    Arguments:
        encoder: Network from images, `(N, *data_shape)`, to the posterior's parameters, `(N, num_params, latent_dim)`.
        posterior: The distribution q(z | x).
        decoder: Network from codes, `(N, latent_dim)`, to the likelihood's parameters, `(N, num_params, *data_shape)`.
        likelihood: The distribution p(x | z).
    """

    needs_labels = False
    decodes_labels = False

    def __init__(
        self, encoder: nn.Module, posterior: Posterior, decoder: nn.Module, likelihood: Likelihood
    ) -> None:
        super().__init__()
        self.encoder, self.posterior, self.decoder, self.likelihood = (
            encoder,
            posterior,
            decoder,
            likelihood,
        )
        self.initialized = False
        self.register_load_state_dict_post_hook(_mark_initialized)
        self._set_name()

    @abstractmethod
    def model(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        """The generative program.

        Arguments:
            x: Images as the likelihood's pixels, shape `(N, *data_shape)`.
            y: Their labels, for models that use them: classes, int64 of shape `(N,)`, or real covariates, shape
                `(N, label_dim)`.
            beta: Weight of the KL divergence.
        """

    @abstractmethod
    def guide(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        """The inference program; arguments as for `model`."""

    def register(self) -> None:
        """Register the parameters with Pyro, under a name that is unique to this instance."""
        pyro.module(self._name, self)

    def encode(self, x: Tensor) -> TorchDistribution:
        """The posterior q(z | x) of each image: batch_shape `(N,)`, event_shape `(latent_dim,)`."""
        return self.posterior(self.encoder(self.likelihood.unit(x)))

    def decode(self, z: Tensor) -> TorchDistribution:
        """The likelihood p(x | z) at each code of `z`, shape `(..., latent_dim)`: batch_shape `(...)`."""
        return self.likelihood(batched(self.decoder, z))

    def q_z(self, x: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """The guide's distribution q(z | x) or q(z | x, y): batch_shape `(N,)`, event_shape `(latent_dim,)`."""
        site: Any = poutine.trace(self.guide).get_trace(x, y).nodes["z"]
        return site["fn"]

    def p_x(self, z: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """The model's distribution p(x | z) or p(x | z, y) at codes of shape `(N, latent_dim)`: batch_shape `(N,)`."""
        return self._generate(len(z), y, {"z": z})["x"]["fn"]

    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draws x ~ p(x | z) with z ~ p(z), shape `(n, *data_shape)`; `y` has the labels, if the model uses them."""
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

        A model that uses labels encodes with `y` and decodes with `new_y`, or with `y` if that is None.
        """
        return self.p_x(self.q_z(x, y).sample(), y if new_y is None else new_y).mean

    @torch.no_grad()
    def sample_codes(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draws z ~ p(z), shape `(n, latent_dim)`."""
        return self._generate(n, y)["z"]["value"]

    @property
    @torch.no_grad()
    def latent_dim(self) -> int:
        """Number of latent dimensions, that of the site `z`. Does not run the decoder or change the random state.

        A model whose prior depends on real covariates must override it, because the program is called with the class 0.
        """
        until_z = poutine.escape(poutine.uncondition(self.model), lambda site: site["name"] == "z")
        try:
            with forked_rng():
                until_z(
                    self._no_images(1),
                    self._no_images(1).new_zeros(1, dtype=torch.int64)
                    if self.needs_labels
                    else None,
                )
        except NonlocalExit as exit_at_z:
            site: Any = exit_at_z.site
            return site["fn"].event_shape[0]
        except Exception as error:
            if self.needs_labels:
                error.add_note(
                    "a model whose prior depends on real covariates must override the property latent_dim"
                )
            raise
        raise RequestError("the model has no site z; name the decoder's input z")

    @property
    def pixels(self) -> Pixels:
        """The kind of data that the likelihood scores."""
        return self.likelihood.pixels

    def check_labels(self, y: Tensor | None) -> None:
        """Raise `RequestError` if these labels, or their absence, do not fit the model."""
        if self.needs_labels and y is None:
            raise RequestError(
                f"{type(self).__name__} needs labels, but there are none; use data with labels or covariates"
            )

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Initialize the decoder's last bias so that reconstructions start near the mean of the training images `x`.

        The bias may have one element per pixel or one per channel. Other decoders are left unchanged. `fit` calls this once,
        unless a state_dict was loaded.
        """
        biases = [param for name, param in self.decoder.named_parameters() if name.endswith("bias")]
        for mean in (x.mean(0), x.mean((0, -2, -1))[:, None, None]):
            params = self.likelihood.params_at(mean)
            if biases and params is not None and params.numel() == biases[-1].numel():
                biases[-1].copy_(params.flatten())

    @torch.no_grad()
    def _generate(self, n: int, y: Tensor | None, given: dict[str, Tensor] | None = None) -> Any:
        """The sites of the generative program for `n` images, some of them with given values."""
        self.check_labels(y)
        if y is not None and len(y) != n:
            raise RequestError(
                f"there are {len(y)} labels for {n} images; pass one label for each image"
            )
        program = poutine.condition(poutine.uncondition(self.model), given or {})
        return poutine.trace(program).get_trace(self._no_images(n), y).nodes

    def _no_images(self, n: int) -> Tensor:
        """A batch of `n` images without pixels: an unconditioned program uses only their number, dtype and device."""
        return next(self.parameters()).new_empty(n, 0)

    def _set_name(self) -> None:
        """Take a new name in Pyro's global parameter store, and leave the store when this instance is deleted."""
        self._name = f"vae{next(_instances)}"
        weakref.finalize(self, _forget, self._name)

    def __getstate__(self) -> dict[str, Any]:
        for param in self.parameters():
            vars(param).pop(
                "unconstrained", None
            )  # a weak reference of Pyro's, which cannot be pickled
        return vars(self).copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy has its own parameters, and so needs its own name."""
        super().__setstate__(state)
        self._set_name()


def _mark_initialized(model: Model, keys: Any) -> None:
    model.initialized = True


def _forget(name: str) -> None:
    store = pyro.get_param_store()
    for key in [key for key in store.keys() if key.startswith(f"{name}$$$")]:  # noqa: SIM118
        with suppress(KeyError):  # a parameter that two modules share is stored under one name only
            del store[key]


class VAE(Model):
    r"""A variational autoencoder, :math:`p(x, z) = p(z) \, p(x \mid z)` with the guide :math:`q(z \mid x)`.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114

    Arguments:
        prior: The distribution p(z).
        encoder: Network from images, `(N, *data_shape)`, to the posterior's parameters, `(N, num_params, latent_dim)`.
        posterior: The distribution q(z | x).
        decoder: Network from codes, `(N, latent_dim)`, to the likelihood's parameters, `(N, num_params, *data_shape)`.
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

    def model(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        r"""The generative program, :math:`p(z)^\beta \, p(x \mid z)`."""
        self.register()
        with pyro.plate("images", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        r"""The inference program, :math:`q(z \mid x)^\beta`."""
        self.register()
        with pyro.plate("images", len(x)), poutine.scale(scale=beta):
            pyro.sample("z", self.encode(x))

    def initialize(self, x: Tensor) -> None:
        super().initialize(x)
        self.prior.initialize(self.likelihood.unit(x))


class ConditionalVAE(VAE):
    r"""A VAE of images with labels, :math:`p(z) \, p(x \mid z, y)` with the guide :math:`q(z \mid x, y)`.

    The code of y is one-hot for classes, and y itself for real covariates. The decoder reads z joined with the code. A linear
    map of the code, which starts at zero, is added to the encoder's input, so that any encoder can be used.

    References:
        | Learning Structured Output Representation using Deep Conditional Generative Models (Sohn et al., 2015)
        | https://papers.nips.cc/paper/5775

    Arguments:
        prior: The distribution p(z).
        encoder: Network from images, `(N, *data_shape)`, to the posterior's parameters, `(N, num_params, latent_dim)`.
        posterior: The distribution q(z | x, y).
        decoder: Network from z and the code of y, `(N, latent_dim + label_dim)`, to the likelihood's parameters,
            `(N, num_params, *data_shape)`.
        likelihood: The distribution p(x | z, y).
        data_shape: Shape of an image.
        label_dim: Number of classes or of covariates.

    Example:
        >>> import pyro_vae as pv
        >>> encoder, decoder = MLP((1, 8, 8), (2, 5)), MLP((5 + 10,), (1, 1, 8, 8))
        >>> prior, posterior = pv.StandardNormal(5), pv.DiagonalNormal()
        >>> vae = ConditionalVAE(prior, encoder, posterior, decoder, pv.Bernoulli(), data_shape=(1, 8, 8), label_dim=10)
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

    def model(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        r"""The generative program, :math:`p(z)^\beta \, p(x \mid z, y)`."""
        self.register()
        with pyro.plate("images", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z, y), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        r"""The inference program, :math:`q(z \mid x, y)^\beta`."""
        self.register()
        with pyro.plate("images", len(x)), poutine.scale(scale=beta):
            pyro.sample("z", self.encode(x, y))

    def encode(self, x: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """The posterior q(z | x, y) of each image: batch_shape `(N,)`, event_shape `(latent_dim,)`."""
        return self.posterior(
            self.encoder(self.likelihood.unit(x) + torch.tensordot(self.code(y), self.embedding, 1))
        )

    def decode(self, z: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """The likelihood p(x | z, y) at codes of shape `(..., N, latent_dim)`: batch_shape `(..., N)`."""
        code = self.code(y)
        return super().decode(torch.cat([z, code.expand(*z.shape[:-1], -1)], -1))

    def code(self, y: Tensor | None) -> Tensor:
        """The code of labels, shape `(N, label_dim)`."""
        if y is None:
            raise RequestError("ConditionalVAE needs labels; pass y")
        code = (
            y
            if y.is_floating_point()
            else y[:, None] == torch.arange(self.label_dim, device=y.device)
        )
        return code.to(self.embedding.dtype)

    def check_labels(self, y: Tensor | None) -> None:
        super().check_labels(y)
        if y is None:
            return
        if y.is_floating_point() and y.shape[1:] != (self.label_dim,):
            raise RequestError(
                f"covariates must have shape (N, {self.label_dim}), but have {tuple(y.shape)}"
            )
        if not y.is_floating_point() and not (
            y.ndim == 1 and ((y >= 0) & (y < self.label_dim)).all()
        ):
            raise RequestError(
                f"labels must be integers from 0 to {self.label_dim - 1}, shape (N,); give each class a number"
            )


class HierarchicalVAE(VAE):
    r"""A VAE with two stochastic layers, each a Gaussian given the other.

    .. math:: p(z_2) \, p(z \mid z_2) \, p(x \mid z) \quad \text{with the guide} \quad q(z \mid x) \, q(z_2 \mid z)

    Encoder and decoder operate on the code :math:`z` of `latent_dim` dimensions; the prior is over :math:`z_2`. Burda et al.
    (2016) use 100 and 50 dimensions with tanh layers of width 100 between them.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Arguments:
        prior: The distribution p(z_2), over `prior_dim` dimensions.
        encoder: Network from images, `(N, *data_shape)`, to the posterior's parameters, `(N, num_params, latent_dim)`.
        posterior: The distribution q(z | x).
        decoder: Network from codes z, `(N, latent_dim)`, to the likelihood's parameters, `(N, num_params, *data_shape)`.
        likelihood: The distribution p(x | z).
        latent_dim: Number of dimensions of z.
        prior_dim: Number of dimensions of z_2.
        hidden: Widths of the layers from z to z_2; the layers from z_2 to z are the reverse.
        activation: Constructor of their activation.

    Raises:
        ValueError: If the prior does not have `prior_dim` dimensions.

    Example:
        >>> import pyro_vae as pv
        >>> encoder, decoder = MLP((1, 8, 8), (2, 10)), MLP((10,), (1, 1, 8, 8))
        >>> prior, posterior = pv.StandardNormal(5), pv.DiagonalNormal()
        >>> vae = HierarchicalVAE(prior, encoder, posterior, decoder, pv.Bernoulli(), latent_dim=10, prior_dim=5)
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
        if prior().event_shape != (prior_dim,):
            raise RequestError(
                f"prior has {prior().event_shape[0]} dimensions, but prior_dim={prior_dim}; make them equal"
            )
        self.normal = DiagonalNormal()
        self.up = MLP((latent_dim,), (2, prior_dim), hidden, activation)
        self.down = MLP((prior_dim,), (2, latent_dim), tuple(reversed(hidden)), activation)

    def model(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        r"""The generative program, :math:`(p(z_2) \, p(z \mid z_2))^\beta \, p(x \mid z)`."""
        self.register()
        with pyro.plate("images", len(x)):
            with poutine.scale(scale=beta):
                z2 = pyro.sample("z2", self.prior())
                z = pyro.sample("z", self.normal(batched(self.down, z2)))
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        r"""The inference program, :math:`(q(z \mid x) \, q(z_2 \mid z))^\beta`."""
        self.register()
        with pyro.plate("images", len(x)), poutine.scale(scale=beta):
            z = pyro.sample("z", self.encode(x))
            pyro.sample("z2", self.normal(batched(self.up, z)))


# Decoder outputs computed at once: 8 MiB in float32, large enough for efficient products, small enough for CPU caches.
OUTPUTS_PER_PASS = 2**21
# On CUDA: 64 MiB in float32, of which a pass holds a few for each particle. Larger passes hide the launches of kernels.
OUTPUTS_PER_PASS_ON_CUDA = 2**24


def default_batch_size(vae: Model, x: Tensor) -> int:
    """Number of decoder rows per pass that is efficient for images of the shape and device of `x`, `(N, *data_shape)`."""
    outputs = OUTPUTS_PER_PASS_ON_CUDA if x.is_cuda else OUTPUTS_PER_PASS
    return max(1, outputs // (vae.likelihood.num_params * x[0].numel()))
