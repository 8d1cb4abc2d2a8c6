"""ProdLDA: a topic model with logistic-normal proportions, batch normalization and dropout."""

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import plate, sample
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

DOCUMENTS, VOCABULARY, TOPICS, HIDDEN = 32, 1000, 20, 100


class ProdLDA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(VOCABULARY, affine=False)
        self.decoder = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(TOPICS, VOCABULARY, bias=False), norm, nn.Softmax(-1)
        )
        hidden = (
            nn.Linear(VOCABULARY, HIDDEN),
            nn.Softplus(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.Softplus(),
            nn.Dropout(0.2),
        )
        self.encoder = nn.Sequential(
            *hidden, nn.Linear(HIDDEN, 2 * TOPICS), nn.BatchNorm1d(2 * TOPICS, affine=False)
        )

    def model(self, counts: Tensor) -> None:
        pyro.module("networks", self)
        with plate("documents", len(counts)):
            logits = sample("logits", dist.Normal(counts.new_zeros(TOPICS), 1.0).to_event(1))
            words = self.decoder(logits.softmax(-1))
            sample("counts", dist.Multinomial(int(1e6), words, validate_args=False), obs=counts)

    def guide(self, counts: Tensor) -> None:
        pyro.module("networks", self)
        with plate("documents", len(counts)):
            loc, log_variance = self.encoder(counts).chunk(2, -1)
            sample("logits", dist.Normal(loc, (log_variance / 2).exp()).to_event(1))


def problem() -> tuple[Any, ...]:
    networks = ProdLDA()
    counts = torch.poisson(torch.full((DOCUMENTS, VOCABULARY), 0.1))
    return networks.model, networks.guide, TraceMeanField_ELBO(), (counts,)
