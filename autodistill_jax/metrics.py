"""What is a prediction worth? GLUE's metrics, from scikit-learn and scipy."""

import numpy as np


def accuracy(labels, predictions) -> float:
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def matthews(labels, predictions) -> float:
    """Matthews correlation, CoLA's metric."""
    from sklearn.metrics import matthews_corrcoef

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
    return float(pearsonr(labels, predictions).statistic)


def pearson_spearman(labels, predictions) -> float:
    """The mean of both correlations, STS-B's metric."""
    return (pearson(labels, predictions) + spearman(labels, predictions)) / 2


def _vary(*sides) -> bool:
    """A correlation needs numbers that differ."""
    return all(np.isfinite(side).all() and np.ptp(side) > 0 for side in sides)


METRICS = {
    "accuracy": accuracy,
    "matthews": matthews,
    "spearman": spearman,
    "pearson_spearman": pearson_spearman,
}
