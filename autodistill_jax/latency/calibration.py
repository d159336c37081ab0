"""How far off are predicted latencies on Archs they have not seen, and what corrects them?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autodistill_jax import metrics
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import ModelDims, cost


def latency_features(
    arch: AnyArch, dims: ModelDims, batch: int, length: int
) -> dict[str, float]:
    """What a latency is predicted from without a compiler: the multiply-adds of a pass,
    the bytes of the weights that it reads (float32, without the word table), its layers.
    """
    made = cost(arch, dims, length)
    words = dims.vocab * (dims.embedding or arch.hidden)
    return {
        "multiply_adds": batch * made["flops"],
        "weight_bytes": 4 * (made["params"] - words),
        "layers": arch.layers,
    }


def fit_latency(
    features: Mapping[str, Sequence[float]],
    seconds: Sequence[float],
    seen: Sequence[bool],
) -> dict[str, Any]:
    """seconds = base + sum of coefficient * feature, over the Archs that are `seen`.

    No coefficient is below 0 (more work takes no less time), and it is the squares of
    relative errors whose sum is least: a small Arch counts as much as a large one.

    Args:
      features: {name: of each Arch}.
      seconds: of each Arch, measured.
      seen: which Archs are fitted to; on the others it is judged.

    Returns:
      {coefficients ({"base": seconds, name: seconds a unit}), predicted (of each Arch),
      and of the unseen: mape (mean absolute error over what was measured), kendall,
      spearman}.
    """
    from scipy.optimize import nnls

    columns = {"base": np.ones(len(seconds)), **features}
    x = np.stack([np.asarray(value, np.float64) for value in columns.values()], axis=1)
    y, seen = np.asarray(seconds, np.float64), np.asarray(seen, bool)
    scale = np.maximum(np.abs(x[seen]).max(axis=0), 1e-30)
    found, _ = nnls(x[seen] / scale / y[seen, None], np.ones(seen.sum()))
    predicted = x @ (found / scale)
    return {
        "coefficients": dict(zip(columns, (found / scale).tolist())),
        "predicted": predicted.tolist(),
        **prediction_errors(predicted[~seen], y[~seen]),
    }


def prediction_errors(predicted: np.ndarray, seconds: np.ndarray) -> dict[str, float]:
    """{mape, kendall, spearman} of predictions."""
    return {
        "mape": float(np.mean(np.abs(predicted - seconds) / seconds)),
        "kendall": metrics.kendall_tau(predicted, seconds),
        "spearman": metrics.spearman(seconds, predicted),
    }


def predict_latency(
    coefficients: Mapping[str, float], features: Mapping[str, float]
) -> float:
    """Seconds by a `fit_latency`'s coefficients."""
    rest = (
        weight * features[name]
        for name, weight in coefficients.items()
        if name != "base"
    )
    return coefficients["base"] + sum(rest)
