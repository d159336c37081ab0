"""Are GLUE's metrics what GLUE means by them?"""

import warnings

import numpy as np
import pytest

from autodistill_jax import metrics


def test_metrics():
    labels, predictions = [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]
    assert metrics.metric_parts("accuracy_f1", labels, predictions) == pytest.approx(
        {"accuracy": 3 / 5, "f1": 4 / 6}
    )
    assert metrics.accuracy_f1(labels, predictions) == pytest.approx(
        (3 / 5 + 4 / 6) / 2
    )
    assert metrics.metric_parts("matthews", labels, predictions) == pytest.approx(
        {"matthews": 1 / 6}
    )
    assert metrics.spearman([1, 2, 3], [10, 20, 40]) == pytest.approx(1)
    figures = metrics.metric_parts("pearson_spearman", [0, 1, 2, 5], [0, 1, 3, 2])
    assert figures == pytest.approx({"pearson": 5 / 70**0.5, "spearman": 0.8})
    assert metrics.pearson_spearman([0, 1, 2, 5], [0, 1, 3, 2]) == pytest.approx(
        sum(figures.values()) / 2
    )


def test_metrics_of_constant_predictions():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for constant in (0, 1):
            for labels in ([0, 1, 1, 0], [constant] * 4):
                assert metrics.matthews(labels, [constant] * 4) == 0
        assert metrics.f1([0, 1, 1], [0, 0, 0]) == 0 == metrics.f1([0, 0], [0, 0])
        assert metrics.f1([1, 1], [1, 1]) == 1
        nearly = 1e8 + np.arange(4) * 1e-8
        for predictions in ([2.5] * 4, [np.nan, 1, 2, 3], nearly):
            figures = metrics.metric_parts(
                "pearson_spearman", [0, 1, 2, 5], predictions
            )
            assert np.isfinite(list(figures.values())).all()
        assert metrics.pearson_spearman([0, 1, 2, 5], [2.5] * 4) == 0
