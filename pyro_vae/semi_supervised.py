"""A VAE of images of which only some have labels; labels that are unknown are summed out."""

from __future__ import annotations

from logging import getLogger
from math import inf
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from pyro_vae.errors import RequestError
from pyro_vae.likelihoods import Likelihood
from pyro_vae.networks import Shape
from pyro_vae.posteriors import Posterior
from pyro_vae.priors import Prior
from pyro_vae.vae import ConditionalVAE

logger = getLogger("pyro_vae")

# The site is not drawn: Pyro runs the programs at all its values.
SUMMED_OUT: Any = {"enumerate": "parallel"}


class SemiSupervisedVAE(ConditionalVAE):
    r"""A VAE of images and labels: p(y) p(z) p(x | z, y) with the guide q(y | x) q(z | x, y).

    The label -1 is unknown, and so are all labels if y is None. An unknown label is a latent site
    that is summed out: `TraceEnum_ELBO`, the default objective, weights the terms of all classes
    with q(y | x). Where a label is known, p(y) and q(y | x) are replaced by a point mass at it, and
    log p(y) is added. A batch may have known and unknown labels.

    In training mode the guide has a classification term, without which known labels would not teach
    the classifier (Kingma et al., 2014): the ELBO of an image whose label is known is increased by
    :math:`\alpha \, (N / N_l) \log q(y \mid x)`, where N counts all training images and
    :math:`N_l` those with known labels. The term of all images is then :math:`\alpha N` times the
    mean over the known labels, as in the paper. `model` and `guide` without it are p and q.

    p(y) has the proportions of the known labels of the training images, which are saved with the
    parameters. Codes of y are as in `ConditionalVAE`.

    References:
        | Semi-supervised Learning with Deep Generative Models (Kingma et al., 2014), model M2
        | https://arxiv.org/abs/1406.5298

    Arguments:
        prior: The distribution p(z).
        encoder: Network from images, `(N, *data_shape)`, to the posterior's parameters,
            `(N, num_params, latent_dim)`.
        posterior: The distribution q(z | x, y), for parameters with any leading dimensions.
        decoder: Network from z and the code of y, `(N, latent_dim + label_dim)`, to the
            likelihood's parameters, `(N, num_params, *data_shape)`.
        likelihood: The distribution p(x | z, y).
        classifier: Network from images to the logits of q(y | x), `(N, label_dim)`.
        data_shape: Shape of an image.
        label_dim: Number of classes.
        alpha: Weight of the classification term.

    Raises:
        ValueError: If `alpha` is negative.

    Example:
        >>> import pyro_vae as pv
        >>> encoder, decoder = pv.MLP((1, 8, 8), (2, 5)), pv.MLP((5 + 10,), (1, 1, 8, 8))
        >>> parts = pv.StandardNormal(5), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli()
        >>> classifier = pv.MLP((1, 8, 8), (10,))
        >>> vae = SemiSupervisedVAE(*parts, classifier, data_shape=(1, 8, 8), label_dim=10)
        >>> vae.sample(3, y=torch.tensor([7, 7, -1])).shape
        torch.Size([3, 1, 8, 8])
    """

    infers_labels = True
    default_objective = TraceEnum_ELBO

    def __init__(
        self,
        prior: Prior,
        encoder: nn.Module,
        posterior: Posterior,
        decoder: nn.Module,
        likelihood: Likelihood,
        classifier: nn.Module,
        data_shape: Shape,
        label_dim: int,
        alpha: float = 0.1,
    ) -> None:
        super().__init__(prior, encoder, posterior, decoder, likelihood, data_shape, label_dim)
        if not 0 <= alpha < inf:
            raise RequestError(f"alpha must be a number, at least 0, but is {alpha}")
        self.classifier = classifier
        self.alpha = alpha
        self.log_p_y = nn.Buffer(torch.zeros(label_dim).log_softmax(0))
        self.images_per_label = nn.Buffer(torch.ones(()))

    def model(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        """The generative program, (p(y) p(z))^beta p(x | z, y)."""
        self.register()
        p_y = dist.Categorical(logits=self.log_p_y)
        with pyro.plate("images", len(x)):
            if y is not None:
                known: Any = y >= 0
                with poutine.mask(mask=known):
                    pyro.sample("label", p_y, obs=y.clamp(min=0))
            with poutine.scale(scale=beta):
                y = pyro.sample("y", given(p_y, y), infer=SUMMED_OUT.copy())
                z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z, y), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, beta: float | Tensor = 1.0) -> None:
        """The inference program, (q(y | x) q(z | x, y))^beta."""
        self.register()
        q_y = self.q_y(x)
        with pyro.plate("images", len(x)):
            if y is not None and self.training:
                weight = self.alpha * self.images_per_label * (y >= 0)
                cost = -weight * q_y.log_prob(y.clamp(min=0))
                pyro.factor("classification", cost, has_rsample=True)
            with poutine.scale(scale=beta):
                y = pyro.sample("y", given(q_y, y), infer=SUMMED_OUT.copy())
                pyro.sample("z", self.encode(x, y))

    def q_y(self, x: Tensor) -> dist.Categorical:
        """The classifier q(y | x): batch_shape `(N,)`."""
        return dist.Categorical(logits=self.classifier(self.input_of(self.classifier, x)))

    def encode(self, x: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """The posterior q(z | x, y) at labels of shape `(..., N)` or `(..., 1)`."""
        shift = torch.tensordot(self.code(y), self.embedding, 1)
        inputs = self.input_of(self.encoder, x) + shift
        leading = inputs.shape[: inputs.ndim - x.ndim + 1]
        params = self.encoder(inputs.flatten(0, len(leading) - 1))
        q = self.posterior(params.unflatten(0, leading))
        if q.batch_shape != leading:
            raise RequestError(
                f"{type(self.posterior).__name__} must take parameters with any leading dimensions,"
                " of which one is for the classes; index from the end, as in params[..., 0, :]"
            )
        return q

    def complete_labels(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The labels, with the most likely ones under q(y | x) for those that are unknown."""
        likely = self.q_y(x).logits.argmax(-1)
        if y is None:
            return likely
        return torch.where(y >= 0, y, likely)

    @torch.no_grad()
    def initialize_labels(self, y: Tensor) -> None:
        """Set p(y) and the scale of the classification term from the known labels."""
        self.check_labels(y)
        counts = y[y >= 0].bincount(minlength=self.label_dim)
        if (counts == 0).any():
            raise RequestError(
                f"all training labels of class {int(counts.argmin())} are unknown; give at least"
                " one of each class"
            )
        self.log_p_y.copy_((counts / counts.sum()).log())
        self.images_per_label.fill_(len(y) / counts.sum())
        logger.info("labels: %s of %s are known", f"{counts.sum():,}", f"{len(y):,}")

    def check_labels(self, y: Tensor | None) -> None:
        if y is None:
            return
        if y.is_floating_point():
            raise RequestError(
                "SemiSupervisedVAE infers classes, but y are covariates; use condition_on=labels,"
                " or ConditionalVAE"
            )
        if y.ndim != 1 or ((y < -1) | (y >= self.label_dim)).any():
            raise RequestError(
                f"labels must be integers from 0 to {self.label_dim - 1}, or -1 if they are"
                " unknown, shape (N,); give each class a number"
            )


def given(labels: dist.Categorical, y: Tensor | None) -> dist.Categorical:
    """The distribution of labels of which some are known: a point mass at these.

    Arguments:
        labels: The distribution of labels, batch_shape `()` or `(N,)`.
        y: Labels, shape `(N,)`, -1 where they are unknown; or None if all are.

    Example:
        >>> prior = dist.Categorical(torch.tensor([0.25, 0.75]))
        >>> given(prior, torch.tensor([0, -1])).probs
        tensor([[1.0000, 0.0000],
                [0.2500, 0.7500]])
    """
    if y is None:
        return labels
    classes = torch.arange(labels.logits.shape[-1], device=y.device)
    is_other = (y[:, None] >= 0) & (y[:, None] != classes)
    return dist.Categorical(logits=labels.logits.masked_fill(is_other, -inf))
