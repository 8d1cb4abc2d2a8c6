"""A model whose posterior has several modes, of which its guide knows one."""

import torch
from torch import nn

import pyro_vae as pv

SCALE = 0.2

X = torch.tensor([[0.5, 1.0], [2.0, 0.7], [1.5, 4.0]]).reshape(3, 1, 1, 2)


class Square(nn.Module):
    """A decoder that ignores the sign of the code: the posterior has 2^latent_dim modes."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, z):
        return (self.factor * z.square()).reshape(len(z), 1, 1, 1, -1)


class Root(nn.Module):
    """An encoder that finds the mode where all codes are positive, with the right width."""

    def forward(self, x):
        loc = x.flatten(1).clamp(min=0.1).sqrt()
        return torch.stack([loc, (1.2 * SCALE / (2 * loc)).log()], 1)


def folded(dim):
    return pv.VAE(
        pv.StandardNormal(dim), Root(), pv.DiagonalNormal(), Square(), pv.likelihoods.Normal(SCALE)
    ).eval()
