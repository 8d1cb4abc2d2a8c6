"""The plane on which codes of any number of dimensions are drawn."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Projection(NamedTuple):
    """A map from codes to points of the plane: equal for pages and pictures of the same codes.

    Attributes:
        names: What the two axes are called.
        centre: The mean of the codes, shape `(latent_dim,)`.
        directions: The first two principal components, shape `(latent_dim, 2)`; the identity for
            at most two dimensions.
    """

    names: tuple[str, str]
    centre: Tensor
    directions: Tensor

    def __call__(self, codes: Tensor) -> Tensor:
        """Points of shape `(N, 2)`; codes of one dimension are drawn over their position."""
        points = (codes.cpu().double() - self.centre) @ self.directions
        if points.shape[1] == 2:
            return points
        return torch.stack([points[:, 0], torch.arange(len(points))], 1)


def projection(codes: Tensor) -> Projection:
    """The projection of codes, shape `(N, latent_dim)`, on their first two principal components.

    The largest component of each direction is positive, so that its sign is not arbitrary.
    """
    codes = codes.cpu().double()
    latent_dim = codes.shape[1]
    if latent_dim <= 2:
        vertical = "z[1]" if latent_dim == 2 else "index of the image"
        return Projection(
            ("z[0]", vertical), codes.new_zeros(latent_dim), torch.eye(latent_dim).double()
        )
    centre = codes.mean(0)
    centred = codes - centre
    variances, directions = torch.linalg.eigh(centred.T @ centred)  # in increasing order
    shares = variances / variances.sum().clamp(min=1e-300)
    first = f"principal component 1 ({shares[-1]:.0%} of the variance)"
    second = f"principal component 2 ({shares[-2]:.0%} of the variance)"
    directions = directions[:, [-1, -2]]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return Projection((first, second), centre, directions * largest.sign())
