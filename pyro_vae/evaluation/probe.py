"""Predicting labels: from the codes by a linear probe, and from p(x | y) by Bayes' rule."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.data.split import Split, check_known_classes
from pyro_vae.engine.graphs import AnyEngine
from pyro_vae.engine.programs import Batch
from pyro_vae.errors import RequestError
from pyro_vae.evaluation.batch import scored
from pyro_vae.evaluation.codes import codes
from pyro_vae.evaluation.metrics import score_images
from pyro_vae.vae import Model


class Accuracy(NamedTuple):
    """The share of images whose label is predicted correctly, and its standard error."""

    accuracy: float
    standard_error: float
    num_images: int


def linear_probe(vae: Model, train: Split, test: Split) -> Accuracy:
    """Logistic regression from posterior means to labels, fitted on `train`, scored on `test`.

    Images whose label is unknown are left out.

    Arguments:
        vae: A model.
        train: Images with labels.
        test: Other images with labels of the same classes. Take random ones if you need fewer,
            with `Split.subset`: the first images of a data set may be of another population.

    Raises:
        RequestError: If there are no labels, or only one class, or test images of other classes.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if train.labels is None or test.labels is None:
        raise RequestError(
            "a linear probe needs labels: add an array `labels`, or one folder per class"
        )
    train = train.labelled()
    test = test.labelled()
    assert train.labels is not None
    assert test.labels is not None
    if len(train.class_names()) < 2:
        raise RequestError("a linear probe needs images of at least two classes")
    if len(test) == 0:
        raise RequestError("a linear probe needs test images with known labels")
    check_known_classes(train, test)
    seen = codes(vae, train).loc.cpu().double().numpy()
    unseen = codes(vae, test).loc.cpu().double().numpy()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000, tol=1e-3))
    predicted = classifier.fit(seen, train.labels.cpu().numpy()).predict(unseen)
    return _accuracy(torch.from_numpy(predicted) == test.labels.cpu())


def bayes_classifier(
    vae: Model,
    images: Split,
    num_classes: int,
    num_samples: int = 100,
    batch_size: int | None = None,
    engine: AnyEngine = "auto",
) -> Accuracy:
    r"""Predict labels by Bayes' rule with equal class probabilities, :math:`\arg\max_y p(x | y)`.

    A model that infers labels includes p(y): the prediction is :math:`\arg\max_y p(x, y)`, the most
    likely label under p(y | x). `classify` uses q(y | x) instead.

    Each log-probability is an importance-weighted estimate. The pixels of an image are the same for
    every class.

    Arguments:
        vae: A model of images with classes.
        images: Labelled images.
        num_classes: Number of classes.
        num_samples: Importance samples for each image and class.
        batch_size: Decoder rows per pass, as for `score_images`.
        engine: What runs the passes, as for `score_images`.
    """
    if images.labels is None:
        raise RequestError("a classifier needs labels; use images with labels")
    images = images.labelled()
    labels = images.labels
    assert labels is not None
    x = scored(vae, images).x
    log_p = []
    for label in range(num_classes):
        batch = Batch(x, torch.full_like(labels, label, device=x.device))
        log_p.append(score_images(vae, batch, num_samples, batch_size, engine).log_likelihood)
    return _accuracy(torch.stack(log_p).argmax(0) == labels.cpu())


def _accuracy(right: Tensor) -> Accuracy:
    share = right.double().mean().item()
    return Accuracy(share, (share * (1 - share) / len(right)) ** 0.5, len(right))
