"""What is a prediction worth? GLUE's metrics, from scikit-learn and scipy."""

import warnings

import numpy as np


def accuracy(labels, predictions) -> float:
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def f1(labels, predictions) -> float:
    """F1 of class 1, the positive one of two; 0 where nobody sees it."""
    from sklearn.metrics import f1_score

    # One label asked for by number: a side may lack it, or the other.
    made = f1_score(labels, predictions, labels=[1], average="macro", zero_division=0)
    return float(made)


def matthews(labels, predictions) -> float:
    """Matthews correlation, CoLA's metric; 0 where one side is constant."""
    from sklearn.metrics import matthews_corrcoef

    if not _vary(labels, predictions):
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def spearman(labels, predictions) -> float:
    """Rank correlation; 0 where one side is constant."""
    from scipy.stats import spearmanr

    if not _vary(labels, predictions):
        return 0.0
    return float(spearmanr(labels, predictions).statistic)


def pearson(labels, predictions) -> float:
    """Linear correlation; 0 where one side is constant."""
    from scipy.stats import pearsonr

    if not _vary(labels, predictions):
        return 0.0
    with warnings.catch_warnings():
        # Numbers that hardly differ, as an untrained head gives: still a figure.
        warnings.simplefilter("ignore")
        made = float(pearsonr(labels, predictions).statistic)
    return made if np.isfinite(made) else 0.0


def accuracy_f1(labels, predictions) -> float:
    """The mean of accuracy and F1, MRPC's and QQP's metric."""
    return _mean(parts("accuracy_f1", labels, predictions))


def pearson_spearman(labels, predictions) -> float:
    """The mean of both correlations, STS-B's metric."""
    return _mean(parts("pearson_spearman", labels, predictions))


def parts(metric: str, labels, predictions) -> dict[str, float]:
    """The single figures behind a metric of `METRICS`, of which it is the mean.

    {"accuracy", "f1"} or {"pearson", "spearman"}; one figure, under its own name,
    where the metric is no mean.
    """
    single = _PARTS.get(metric) or {metric: METRICS[metric]}
    return {name: figure(labels, predictions) for name, figure in single.items()}


def _mean(figures: dict[str, float]) -> float:
    return sum(figures.values()) / len(figures)


def _vary(*sides) -> bool:
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
