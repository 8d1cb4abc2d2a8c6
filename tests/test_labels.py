"""Accuracy and calibration of inferred labels, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import SHAPE, make_semi_supervised, make_vae
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

import pyro_vae as pv
from pyro_vae.engine.programs import Batch
from pyro_vae.evaluation.labels import class_probabilities, classify, known_labels

CLASSES = 3


def labelled(rows=200):
    vae = make_semi_supervised(CLASSES)
    split = pv.Split(torch.rand(rows, *SHAPE) < 0.5, torch.randint(-1, CLASSES, (rows,)))
    return vae, split.with_fixed_noise()


def test_accuracy_and_log_loss_are_those_of_scikit_learn():
    vae, split = labelled()
    known = split.labelled()
    found = classify(vae, split)
    q = class_probabilities(vae, known).double()
    q = q / q.sum(1, keepdim=True)  # scikit-learn warns of float32's rounding
    assert found.num_images == len(known) < len(split)
    assert found.accuracy == pytest.approx(accuracy_score(known.labels, q.argmax(1)))
    assert found.log_loss == pytest.approx(
        log_loss(known.labels, q, labels=range(CLASSES)), rel=1e-5
    )
    share = found.accuracy
    assert found.standard_error == pytest.approx((share * (1 - share) / len(known)) ** 0.5)
    assert found.summary()["bins"][0].keys() == found.bins[0]._asdict().keys()


class Given(nn.Module):
    """Class probabilities that are the pixels."""

    def forward(self, x):
        return x[:, 0, 0, :CLASSES].log()


def test_the_calibration_curve_by_hand():
    """Two bins: confidence 0.6 with 3 of 4 right, and 0.9 with 1 of 2 right."""
    vae = make_semi_supervised(CLASSES)
    vae.classifier = Given()
    x = torch.zeros(6, *SHAPE)
    x[:4, 0, 0, :CLASSES] = torch.tensor([0.6, 0.3, 0.1])
    x[4:, 0, 0, :CLASSES] = torch.tensor([0.05, 0.9, 0.05])
    found = classify(vae, Batch(x, torch.tensor([0, 0, 1, 0, 1, 2])), num_bins=4)
    rows = [(each.confidence, each.accuracy, each.num_images) for each in found.bins]
    assert np.array(rows) == pytest.approx(np.array([[0.6, 0.75, 4], [0.9, 0.5, 2]]))
    assert found.calibration_error == pytest.approx((4 * 0.15 + 2 * 0.4) / 6)


def test_a_calibrated_classifier_has_a_small_error():
    """Labels drawn from the probabilities themselves: the log loss is their entropy."""
    rows = 5000
    vae = make_semi_supervised(CLASSES)
    vae.classifier = Given()
    x = torch.zeros(rows, *SHAPE)
    q = torch.distributions.Dirichlet(torch.ones(CLASSES)).sample((rows,))
    x[:, 0, 0, :CLASSES] = q
    found = classify(vae, Batch(x, torch.distributions.Categorical(q).sample()))
    entropy = torch.distributions.Categorical(q).entropy().mean().item()
    assert abs(found.log_loss - entropy) < 4 * found.log_loss_error
    assert found.calibration_error < 0.03
    for each in found.bins:
        assert abs(each.accuracy - each.confidence) < 4 * each.standard_error + 0.05


def test_without_known_labels():
    vae, split = labelled()
    assert known_labels(vae, pv.Split(split.x, noise=split.noise)) is None
    assert known_labels(vae, Batch(torch.zeros(2, *SHAPE), None)) is None
    with pytest.raises(pv.RequestError, match="needs images with known labels"):
        classify(vae, pv.Split(split.x, noise=split.noise))
    with pytest.raises(pv.RequestError, match="VAE infers no labels"):
        class_probabilities(make_vae(), split)


def test_evaluate_scores_with_and_without_labels():
    """log p(x) of all images, and log p(x, y) of those in the subset whose label is known."""
    vae, split = labelled(40)
    results = pv.evaluate(vae, split, num_samples=20, num_images=20)
    bare = pv.evaluate(vae, pv.Split(split.x, noise=split.noise), num_samples=20, num_images=20)
    assert bare.keys() == results.keys() - {"classification", "log_joint"}
    assert results["classification"]["num_images"] == len(split.labelled())
    subset = split.subset(20).labelled()
    assert results["log_joint"]["num_images"] == len(subset)
    batch = known_labels(vae, subset)
    joint = pv.score_images(vae, batch, num_samples=2000).log_likelihood.mean().item()
    assert results["log_joint"]["mean"] == pytest.approx(joint, abs=0.2)
    assert results["log_joint"]["mean"] < results["log_likelihood"]["mean"]
    assert "given" not in results
