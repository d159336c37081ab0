"""GLUE's metrics, from scikit-learn and scipy, and Kendall's tau.

Labels and predictions are numbers, [rows] each; more is better in every metric.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The fraction of predictions that equal their label."""
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def f1(labels: ArrayLike, predictions: ArrayLike) -> float:
    """F1 of class 1, the positive one of two; 0 where nobody sees it."""
    from sklearn.metrics import f1_score

    # One label asked for by number: a side may lack it, or the other.
    score = f1_score(labels, predictions, labels=[1], average="macro", zero_division=0)
    return float(score)


def matthews(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Matthews correlation, CoLA's metric; 0 where one side is constant."""
    from sklearn.metrics import matthews_corrcoef

    if not _all_vary(labels, predictions):
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def spearman(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Rank correlation; 0 where one side is constant."""
    from scipy.stats import spearmanr

    if not _all_vary(labels, predictions):
        return 0.0
    return float(spearmanr(labels, predictions).statistic)


def pearson(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Linear correlation; 0 where one side is constant."""
    from scipy.stats import pearsonr

    if not _all_vary(labels, predictions):
        return 0.0
    with warnings.catch_warnings():
        # Numbers that hardly differ, as an untrained head gives: still a figure.
        warnings.simplefilter("ignore")
        correlation = float(pearsonr(labels, predictions).statistic)
    return correlation if np.isfinite(correlation) else 0.0


def accuracy_f1(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The mean of accuracy and F1, MRPC's and QQP's metric."""
    return _mean(metric_parts("accuracy_f1", labels, predictions))


def pearson_spearman(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The mean of both correlations, STS-B's metric."""
    return _mean(metric_parts("pearson_spearman", labels, predictions))


def metric_parts(
    metric: str, labels: ArrayLike, predictions: ArrayLike
) -> dict[str, float]:
    """The single figures behind a metric, of which it is the mean.

    Args:
      metric: a name in `METRICS`.
      labels: [rows].
      predictions: [rows].

    Returns:
      {"accuracy", "f1"} or {"pearson", "spearman"}; one figure, under its own name,
      where the metric is no mean.
    """
    single = _PARTS.get(metric) or {metric: METRICS[metric]}
    return {name: figure(labels, predictions) for name, figure in single.items()}


def kendall_tau(
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    pairs: np.ndarray | None = None,
) -> float:
    """Kendall's tau-b of two orders of the same things.

    Args:
      x: [n].
      y: [n].
      pairs: [n, n] bool, which pairs count; None: all.

    Returns:
      From -1 to 1; 0 where no pair is ordered on one of the sides.
    """
    signs = [
        np.sign(np.subtract.outer(values, values)) for values in map(np.asarray, (x, y))
    ]
    counted = np.ones_like(signs[0]) if pairs is None else pairs
    ordered = [(counted * np.square(sign)).sum() for sign in signs]
    if min(ordered) == 0:
        return 0.0
    return float((counted * signs[0] * signs[1]).sum() / np.sqrt(np.prod(ordered)))


def _mean(figures: dict[str, float]) -> float:
    return sum(figures.values()) / len(figures)


def _all_vary(*sides) -> bool:
    """A correlation needs numbers that differ."""
    return all(np.isfinite(side).all() and np.ptp(side) > 0 for side in sides)


METRICS = {
    "accuracy": accuracy,
    "accuracy_f1": accuracy_f1,
    "matthews": matthews,
    "spearman": spearman,
    "pearson_spearman": pearson_spearman,
}

_PARTS = {
    "accuracy_f1": {"accuracy": accuracy, "f1": f1},
    "pearson_spearman": {"pearson": pearson, "spearman": spearman},
}
