"""Accuracy on MNIST of classifiers that use the labelled images alone.

python experiments/semi_supervised/floors.py --data_dir data
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

import pyro_vae as pv

LABELS = (100, 600, 1000, 3000)


def classes(split: pv.Split) -> np.ndarray:
    if split.labels is None:
        raise SystemExit("the data have no labels")
    return split.labels.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    data = pv.load_data("mnist", args.data_dir, download=False)
    x_test = data.test.x.flatten(1).numpy() / 255
    y_test = classes(data.test)
    results: dict[str, object] = {}
    start = time.process_time()
    for labels in LABELS:
        found: dict[str, list[float]] = {"logistic regression": [], "MLP": []}
        for seed in range(args.seeds):
            train = data.train.with_labels(labels, seed).labelled()
            x = train.x.flatten(1).numpy() / 255
            y = classes(train)
            logistic = LogisticRegression(C=0.1, max_iter=1000).fit(x, y)
            found["logistic regression"].append(logistic.score(x_test, y_test))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the number of iterations is fixed
                mlp = MLPClassifier((300,), alpha=0.1, max_iter=100, random_state=seed).fit(x, y)
            found["MLP"].append(mlp.score(x_test, y_test))
        for name, values in found.items():
            error = np.std(values, ddof=1) / len(values) ** 0.5
            results[f"{name}, {labels} labels"] = {
                "mean": float(np.mean(values)),
                "standard_error": float(error),
                "accuracies": values,
            }
    results["cpu_seconds"] = time.process_time() - start
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
