"""One scale for likelihoods of bytes: bits for each pixel and channel."""

from __future__ import annotations

from math import log
from typing import NamedTuple

from torch import Tensor

from pyro_vae.likelihoods import Likelihood


class Scale(NamedTuple):
    """How nats per image become bits per dimension.

    Attributes:
        of: What the bits describe. Those of bytes and of dequantized bytes are comparable.
        offset: Bits of one dimension at a density of 1.
    """

    of: str
    offset: float


SCALES = {
    "binary": Scale("binary pixels", 0.0),
    "byte": Scale("bytes", 0.0),
    "dequantized": Scale("dequantized bytes", 8.0),
}


def scale_of(likelihood: Likelihood) -> Scale | None:
    r"""The scale on which values of a likelihood can be compared; None if there is none.

    A density f of dequantized bytes :math:`v = (x + u) / 256`, with u uniform on [0, 1], is a
    lower bound on a probability of the byte, by Jensen's inequality:

    .. math:: \mathbb{E}_u \log_2 f(v) - 8 D \leq \log_2 P(x), \qquad
        P(x) = \int f(v) \, \mathrm{d}u / 256^D

    So :math:`8 - \log_2 f / D` stands in one column with :math:`-\log_2 p / D` of a distribution of
    bytes, as an upper bound on the bits of P. Both are at least 0 for any image in expectation over
    the noise. A density of grey values without noise ("unit") has no such value: it is unbounded at
    the values that occur, so that a constant image would take less than 0 bits. Values of binary
    pixels describe another, simpler image.

    References:
        | A note on the evaluation of generative models (Theis et al., 2016)
        | https://arxiv.org/abs/1511.01844

    Example:
        >>> import pyro_vae as pv
        >>> scale_of(pv.Beta()).of, scale_of(pv.ContinuousBernoulli())
        ('dequantized bytes', None)
    """
    if not likelihood.is_density:
        return None
    return SCALES.get(likelihood.pixels)


def bits_per_dimension(
    log_p: float | Tensor, likelihood: Likelihood, dimensions: int
) -> float | Tensor | None:
    """log p(x) in nats per image as bits for each of its dimensions; None without a scale.

    Arguments:
        log_p: One value, or one for each image. A lower bound gives an upper bound.
        likelihood: What gave it.
        dimensions: The number of pixels times channels.

    Example:
        >>> import pyro_vae as pv
        >>> bits_per_dimension(-784 * log(2), pv.DiscretizedLogistic(), 784)
        1.0
    """
    scale = scale_of(likelihood)
    if scale is None:
        return None
    return scale.offset - log_p / (dimensions * log(2))
