"""Latent Dirichlet allocation: word topics are summed out, a network infers document topics."""

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import plate, sample
from pyro.distributions import constraints
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn

DOCUMENTS, WORDS, VOCABULARY, TOPICS, HIDDEN = 64, 40, 200, 8, 50


@config_enumerate
def model(words: Tensor) -> None:
    with plate("topics", TOPICS):
        sample("weight", dist.Gamma(1.0 / TOPICS, 1.0))
        topic_words = sample("topic_words", dist.Dirichlet(torch.ones(VOCABULARY) / VOCABULARY))
    with plate("documents", DOCUMENTS):
        proportions = sample("proportions", dist.Dirichlet(torch.full((TOPICS,), 0.5)))
        with plate("words", WORDS):
            topic = sample("topic", dist.Categorical(proportions))
            sample("word", dist.Categorical(topic_words[topic]), obs=words)


class Guide:
    def __init__(self) -> None:
        layers = (
            nn.Linear(VOCABULARY, HIDDEN),
            nn.Sigmoid(),
            nn.Linear(HIDDEN, TOPICS),
            nn.Softmax(-1),
        )
        self.network = nn.Sequential(*layers)

    def __call__(self, words: Tensor) -> None:
        weight = pyro.param(
            "weight_loc", lambda: torch.rand(TOPICS) + 0.5, constraint=constraints.positive
        )
        topics = pyro.param(
            "topic_words_loc",
            lambda: torch.rand(TOPICS, VOCABULARY).softmax(-1),
            constraint=constraints.simplex,
        )
        with plate("topics", TOPICS):
            sample("weight", dist.Delta(weight))
            sample("topic_words", dist.Delta(topics, event_dim=1))
        pyro.module("network", self.network)
        with plate("documents", DOCUMENTS):
            counts = topics.new_zeros(VOCABULARY, DOCUMENTS).scatter_add(
                0, words, topics.new_ones(words.shape)
            )
            sample("proportions", dist.Delta(self.network(counts.T), event_dim=1))


def problem() -> tuple[Any, ...]:
    return (
        model,
        Guide(),
        TraceEnum_ELBO(max_plate_nesting=2),
        (torch.randint(VOCABULARY, (WORDS, DOCUMENTS)),),
    )
