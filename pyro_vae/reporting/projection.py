"""The planes on which codes of any number of dimensions are drawn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# t-SNE's perplexity, and the fewest codes that it is of use for.
PERPLEXITY = 30
FEWEST = 10


class Plane(NamedTuple):
    """Codes as points of a plane.

    Attributes:
        title: What the points are.
        names: What the axes are called; empty if their values mean nothing.
        points: Shape `(N, 2)`, float64.
        caption: What a reader must know.
    """

    title: str
    names: tuple[str, str]
    points: Tensor
    caption: str


def planes(codes: Tensor, order: Sequence[int]) -> list[Plane]:
    """The planes that show codes.

    Up to two dimensions are drawn as they are, one over the index of the image. More are drawn
    twice: by t-SNE, and in the two dimensions that matter most.

    References:
        | Visualizing Data using t-SNE (van der Maaten & Hinton, 2008)

    Arguments:
        codes: Shape `(N, latent_dim)`.
        order: Latent dimensions, the most important one first.
    """
    codes = codes.cpu().double()
    latent_dim = codes.shape[1]
    if latent_dim == 1:
        points = torch.stack([codes[:, 0], torch.arange(len(codes))], 1)
        return [Plane("Codes", ("z[0]", "index of the image"), points, "")]
    if latent_dim == 2:
        return [Plane("Codes", ("z[0]", "z[1]"), codes, "")]
    others = [dimension for dimension in range(latent_dim) if dimension not in order]
    first, second = [*order, *others][:2]
    names = (f"z[{first}]", f"z[{second}]")
    found = [Plane("The two most active dimensions", names, codes[:, [first, second]], "")]
    if len(codes) >= FEWEST:
        found.insert(0, _t_sne(codes))
    return found


def _t_sne(codes: Tensor) -> Plane:
    from sklearn.manifold import TSNE  # takes most of a second

    start = time.perf_counter()
    perplexity = min(PERPLEXITY, (len(codes) - 1) / 3)
    method = TSNE(perplexity=perplexity, init="pca", random_state=0)
    points = torch.from_numpy(method.fit_transform(codes.numpy())).double()
    seconds = time.perf_counter() - start
    caption = (
        f"t-SNE of {len(codes):,} codes of {codes.shape[1]} dimensions, {seconds:.1f} s."
        " Distances between clusters mean nothing."
    )
    return Plane("t-SNE of the codes", ("", ""), points, caption)
