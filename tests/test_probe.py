"""Predictions of labels, against known ones."""

import pytest
import torch
from families import make_conditional_oracle
from torch import nn

import pyro_vae as pv
from pyro_vae.evaluation.probe import linear_probe


def probed(noise):
    """Codes that are a one-hot of the label, with noise."""
    labels = torch.arange(200) % 4
    images = torch.zeros(200, 1, 2, 2)
    images.flatten(1)[torch.arange(200), labels] = 1.0

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.param = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            loc = x.flatten(1) + noise * torch.randn(len(x), 4)
            return torch.stack([loc, torch.zeros_like(loc)], 1)

    vae = pv.VAE(
        pv.StandardNormal(4),
        Encoder(),
        pv.DiagonalNormal(),
        pv.MLP((4,), (1, 1, 2, 2)),
        pv.Bernoulli(relaxed=True),
    )
    return linear_probe(vae, pv.Split(images, labels), pv.Split(images, labels))


def test_a_linear_probe():
    assert probed(0.0).accuracy == 1.0
    lost = probed(50.0)
    assert 0.1 < lost.accuracy < 0.5
    assert lost.standard_error == pytest.approx((lost.accuracy * (1 - lost.accuracy) / 200) ** 0.5)


def test_a_probe_without_labels(vae, x):
    with pytest.raises(pv.RequestError, match="needs labels"):
        linear_probe(vae, pv.Split(x), pv.Split(x))


def test_the_bayes_classifier_finds_the_label_of_the_largest_density():
    """Against the exact densities of a linear-Gaussian model."""
    vae, plain = make_conditional_oracle(3)
    y = torch.randint(3, (500,))
    x = vae.sample(len(y), y)
    with torch.no_grad():
        exact = torch.stack([plain.log_p(x + shift) for shift in vae.embedding]).argmax(0)
    split = pv.Split(torch.zeros(x.shape), y).with_x(x)  # real numbers, not pixels
    found = pv.bayes_classifier(vae, split, 3, num_samples=1)
    assert found.accuracy == pytest.approx((exact == y).double().mean().item())
    assert 0.4 < found.accuracy < 1
