"""Latency predictions without a compiler: features, their fit, and its errors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autodistill_jax import metrics
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import ModelDims, cost


def latency_features(
    arch: AnyArch, dims: ModelDims, batch: int, length: int
) -> dict[str, float]:
    """What a latency is predicted from without a compiler.

    Args:
      arch: the Arch that is predicted for.
      dims: its dimensions that are not elastic.
      batch: texts a pass.
      length: tokens a text.

    Returns:
      {multiply_adds: of a pass, weight_bytes: of the weights that it reads (float32,
      without the token embedding), layers}.
    """
    costs = cost(arch, dims, length)
    word_embeddings = dims.vocab * (dims.embedding or arch.hidden)
    return {
        "multiply_adds": batch * costs["flops"],
        "weight_bytes": 4 * (costs["params"] - word_embeddings),
        "layers": arch.layers,
    }


def fit_latency(
    features: Mapping[str, Sequence[float]],
    seconds: Sequence[float],
    in_fit: Sequence[bool],
) -> dict[str, Any]:
    """Fits seconds = base + sum of coefficient * feature by non-negative least squares.

    No coefficient is below 0 (more work takes no less time), and it is the squares of
    relative errors whose sum is least: a small Arch counts as much as a large one.

    Args:
      features: {name: its value for each Arch}.
      seconds: measured latency of each Arch.
      in_fit: whether each Arch is fitted to; on the others the fit is judged.

    Returns:
      {coefficients ({"base": seconds, name: seconds a unit}), predicted (seconds of
      each Arch), and `prediction_errors` on the Archs that are not in the fit}.
    """
    fitted = np.asarray(in_fit, bool)
    y = np.asarray(seconds, np.float64)
    archs = [dict(zip(features, values)) for values in zip(*features.values())]
    coefficients = fit_coefficients(
        [f for f, is_fitted in zip(archs, fitted) if is_fitted], y[fitted]
    )
    predicted = np.asarray([predict_latency(coefficients, f) for f in archs])
    return {
        "coefficients": coefficients,
        "predicted": predicted.tolist(),
        **prediction_errors(predicted[~fitted], y[~fitted]),
    }


def fit_coefficients(
    features: Sequence[Mapping[str, float]], seconds: Sequence[float] | np.ndarray
) -> dict[str, float]:
    """The coefficients of `fit_latency` alone.

    Args:
      features: of each Arch that is fitted to.
      seconds: measured latency of each.

    Returns:
      {"base": seconds, name: seconds a unit}.
    """
    from scipy.optimize import nnls

    names = ("base", *features[0])
    x = np.asarray([[1.0, *f.values()] for f in features], np.float64)
    y = np.asarray(seconds, np.float64)
    scale = np.maximum(np.abs(x).max(axis=0), 1e-30)
    solution, _ = nnls(x / scale / y[:, None], np.ones(len(y)))
    return dict(zip(names, (solution / scale).tolist()))


def prediction_errors(predicted: np.ndarray, seconds: np.ndarray) -> dict[str, float]:
    """How far predicted latencies are from measured ones.

    Args:
      predicted: seconds of each Arch, predicted.
      seconds: of each Arch, measured.

    Returns:
      {mape (mean of the absolute errors relative to what was measured), kendall and
      spearman (rank correlations)}.
    """
    return {
        "mape": float(np.mean(np.abs(predicted - seconds) / seconds)),
        "kendall": metrics.kendall_tau(predicted, seconds),
        "spearman": metrics.spearman(seconds, predicted),
    }


def predict_latency(
    coefficients: Mapping[str, float], features: Mapping[str, float]
) -> float:
    """Predicts the latency of one Arch.

    Args:
      coefficients: of `fit_latency`, "base" among them.
      features: {name: the Arch's value}, those that were fitted.

    Returns:
      Seconds.
    """
    contributions = (
        weight * features[name]
        for name, weight in coefficients.items()
        if name != "base"
    )
    return coefficients["base"] + sum(contributions)
