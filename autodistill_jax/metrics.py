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

    value = float(spearmanr(labels, predictions).statistic)
    return 0.0 if np.isnan(value) else value


def pearson(labels, predictions) -> float:
    from scipy.stats import pearsonr

    value = float(pearsonr(labels, predictions).statistic)
    return 0.0 if np.isnan(value) else value


def pearson_spearman(labels, predictions) -> float:
    """The mean of both correlations, STS-B's metric."""
    return (pearson(labels, predictions) + spearman(labels, predictions)) / 2


METRICS = {
    "accuracy": accuracy,
    "matthews": matthews,
    "spearman": spearman,
    "pearson_spearman": pearson_spearman,
}
