"""Which Archs to time under a latency bound: a fitted model says where the bound lies."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from autodistill_jax.latency import calibration

# Of the range of all proxies: for a smaller gain no timing is taken.
_MIN_GAIN = 1e-3
_NUM_SPREAD = 4  # Archs timed before the model says anything
_MOST_TIMINGS = 4  # of one Arch, in one search
_SURE = 0.9  # that the Arch chosen is within the bound; else it is timed once more
# Of a latency: what the linear model misses at least of like Archs, what is each Arch's
# own, and by what two timings of one network differ at least.
_MIN_MODEL_ERROR, _OWN_ERROR, _MIN_NOISE = 0.03, 0.05, 0.01


class LatencyEstimate(NamedTuple):
    """What is believed of all latencies after some were taken.

    Attributes:
      seconds: the estimate of each Arch [N].
      error: its standard deviation, relative [N].
    """

    seconds: np.ndarray
    error: np.ndarray

    def within(self, bound: float) -> np.ndarray:
        """The probability of each Arch to take at most `bound` seconds, [N]."""
        return norm.cdf((math.log(bound) - np.log(self.seconds)) / self.error)


def search_within_latency(
    proxies: Sequence[float],
    features: Sequence[Mapping[str, float]],
    bound: float,
    time_fn: Callable[[list[int]], Sequence[tuple[float, float]]],
    max_measurements: int,
    timed: Mapping[int, tuple[float, float]] | None = None,
) -> tuple[int | None, dict[int, tuple[float, float]], LatencyEstimate]:
    """The Arch with the lowest proxy within a latency bound, few Archs being timed.

    A few Archs spread over all of them are timed first. Then, until nothing is to be
    gained or all measurements are spent: the Arch is timed that promises the largest
    gain over the best one within the bound so far, its probability to be within the
    bound counted in, and the latencies are fitted anew. That may be an Arch whose one
    timing, which is noisy, lay above the bound; and the one that is chosen is timed
    again where one timing leaves a doubt.

    Args:
      proxies: of N Archs, lower is better.
      features: of each, see `calibration.latency_features`.
      bound: seconds.
      time_fn: times Archs once more, indices -> (seconds, the mean of all timings of
        the Arch; the standard deviation of that mean) of each. Without a deviation an
        Arch is not timed twice.
      max_measurements: how many timings may be taken here.
      timed: what `time_fn` would have said of Archs that were timed before.

    Returns:
      (the index of the one chosen, None where no timed Arch is within the bound; all
      timings, {index: (seconds, deviation)}; the estimate of all latencies).
    """
    losses = np.asarray(proxies, np.float64)
    scale = max(float(np.ptp(losses)), 1e-12)
    timings = dict(timed or {})
    counts = np.zeros(len(losses), int)

    def take(indices: list[int]) -> None:
        timings.update(zip(indices, time_fn(indices)))
        counts[indices] += 1

    points = _log_features(features)
    if len(timings) < _NUM_SPREAD:
        count = min(_NUM_SPREAD, len(features)) - len(timings)
        take(_spread_points(points, min(count, max_measurements), list(timings)))
    while True:
        estimate = estimate_latencies(features, timings)
        within = estimate.within(bound)
        chosen = _lowest(losses, [i for i in timings if timings[i][0] <= bound])
        if counts.sum() >= max_measurements:
            return chosen, timings, estimate
        # Without any within the bound, every one within it is a gain.
        reference = losses.max() + scale if chosen is None else losses[chosen]
        gains = within * np.maximum(reference - losses, 0)
        settled = [
            i for i in timings if counts[i] >= _MOST_TIMINGS or not timings[i][1]
        ]
        gains[settled] = 0
        following = int(gains.argmax())
        if gains[following] <= _MIN_GAIN * scale:
            if chosen is None or chosen in settled:
                return chosen, timings, estimate
            if counts[chosen] > 1 or within[chosen] > _SURE:
                return chosen, timings, estimate
            following = chosen
        take([following])


def estimate_latencies(
    features: Sequence[Mapping[str, float]],
    timings: Mapping[int, tuple[float, float]],
) -> LatencyEstimate:
    """All latencies from some: a linear model, and a Gaussian process on what it misses.

    Args:
      features: of N Archs, see `calibration.latency_features`.
      timings: {index: (seconds, their standard deviation)} of some.

    Returns:
      The estimates of all N.
    """
    indices = list(timings)
    seconds, noise = np.asarray([timings[i] for i in indices], np.float64).T
    coefficients = calibration.fit_coefficients([features[i] for i in indices], seconds)
    predicted = [calibration.predict_latency(coefficients, f) for f in features]
    trend = np.log(np.maximum(predicted, 1e-12))
    residual = np.log(seconds) - trend[indices]
    # As far as the fit misses what it saw, with a degree of freedom for each column.
    freedom = max(len(indices) - len(coefficients) + 1, 1)
    error = max(math.sqrt(float(residual @ residual) / freedom), _MIN_MODEL_ERROR)
    points = _log_features(features)
    distances = np.square(points[:, None] - points[None, indices]).sum(axis=2)
    of_all = error**2 * np.exp(-distances / 2)
    of_all[indices, np.arange(len(indices))] += _OWN_ERROR**2
    of_timed = of_all[indices]
    noise = np.maximum(noise / seconds, _MIN_NOISE)
    solved = np.linalg.solve(of_timed + np.diag(noise**2), of_all.T)
    variance = error**2 + _OWN_ERROR**2 - (of_all * solved.T).sum(axis=1)
    return LatencyEstimate(
        np.exp(trend + residual @ solved), np.sqrt(np.maximum(variance, 1e-8))
    )


def _log_features(features: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Each feature's logarithm, scaled to a deviation of 1, [N, features]."""
    logs = np.log([[f[name] for name in features[0]] for f in features])
    return (logs - logs.mean(axis=0)) / np.maximum(logs.std(axis=0), 1e-9)


def _spread_points(points: np.ndarray, count: int, indices: list[int]) -> list[int]:
    """So many points that are not among `indices`, each the farthest from all before it;
    the first is the largest."""
    picked: list[int] = []
    for _ in range(count):
        timed = [*indices, *picked]
        if not timed:
            picked.append(int(points.sum(axis=1).argmax()))
            continue
        distances = np.square(points[:, None] - points[None, timed]).sum(axis=2)
        nearest = distances.min(axis=1)
        nearest[timed] = -1  # Others may have their very features.
        picked.append(int(nearest.argmax()))
    return picked


def _lowest(losses: np.ndarray, indices: Sequence[int]) -> int | None:
    return min(indices, key=lambda i: losses[i]) if indices else None
