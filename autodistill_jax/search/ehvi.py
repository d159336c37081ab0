"""How much is a point expected to add to the front, after the trials so far?"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import log_ndtr, ndtr

from autodistill_jax.search import gp

_MAX_FITTED = 80  # Trials that hyper-parameters are fitted on: more change them little.
_NUM_DRAWS = 16  # Of the front.
_REFERENCE_MARGIN = (
    0.5  # Of an objective's range, from its worst value to the reference point.
)


class Predictive(NamedTuple):
    """What is believed of one objective at c points: normal, or log-normal where `log`
    is set; mean and deviation: [c], of the logarithm then."""

    mean: np.ndarray
    deviation: np.ndarray
    log: bool = False


def expected_shortfall(belief: Predictive, level: float) -> np.ndarray:
    """E[max(level - Y, 0)], [c]: by how much Y is expected to stay below the level."""
    if belief.log and level <= 0:
        return np.zeros_like(belief.mean)
    reach = math.log(level) if belief.log else level
    z = (reach - belief.mean) / belief.deviation
    if belief.log:
        whole = np.exp(belief.mean + 0.5 * belief.deviation**2)
        made = level * ndtr(z) - whole * ndtr(z - belief.deviation)
    else:
        density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        made = belief.deviation * (z * ndtr(z) + density)
    return np.maximum(made, 0.0)


def expected_improvement(
    beliefs: Sequence[Predictive], front: np.ndarray, reference: np.ndarray
) -> np.ndarray:
    """The expected hypervolume improvement of c points, [c], exactly; of one objective:
    the expected improvement.

    Space is cut along the first objective at the front's values: between two cuts, the
    front of the other objectives is made of the points to the left. Objectives are
    independent, so expectations multiply (two objectives: Yang et al. 2019).

    Args:
      beliefs: one an objective, all to be minimised.
      front: [n, objectives]; points may dominate each other; n may be 0.
      reference: [objectives]; what is worse does not count.
    """
    if len(beliefs) == 1:
        return expected_shortfall(beliefs[0], min([reference[0], *front[:, 0]]))
    front = nondominated(front[(front < reference).all(axis=1)])
    total = before = np.zeros_like(beliefs[0].mean)
    for cut in [*np.unique(front[:, 0]), reference[0]]:
        left = front[front[:, 0] < cut]
        now = expected_shortfall(beliefs[0], cut)
        width, before = now - before, now
        total = total + width * expected_improvement(
            beliefs[1:], left[:, 1:], reference[1:]
        )
    return total


def nondominated(values: np.ndarray) -> np.ndarray:
    """The rows of [n, objectives] that no other is as good as everywhere and better
    somewhere; equal rows once."""
    values = np.unique(values, axis=0)
    as_good = (values[:, None] <= values).all(axis=2)
    return values[as_good.sum(axis=0) == 1]


class FittedObjective(NamedTuple):
    """One objective's processes, of values that were shifted, scaled and perhaps made
    logarithms; the first has the best hyper-parameters, others are plausible."""

    processes: list[gp.GPPosterior]
    centre: float
    spread: float
    log: bool


def fit_objective(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator
) -> FittedObjective:
    """Fits y: [n], to be minimised, at x: [n, axes].

    What is far worse than the rest is drawn nearer, since its exact value says nothing
    of the front. Positive values are made logarithms if their evidence is larger.
    """
    finite = y[np.isfinite(y)] if np.isfinite(y).any() else np.zeros(1)
    low, middle, high = np.quantile(finite, (0.25, 0.5, 0.75))
    worst = middle + 5 * max(high - low, middle - finite.min())
    y = np.clip(np.nan_to_num(y, nan=worst), finite.min(), worst)
    some = np.unique(np.linspace(0, len(y) - 1, _MAX_FITTED).astype(int))
    made = []
    for log in (False, True) if y.min() > 0 else (False,):
        scaled = np.log(y) if log else y
        centre, spread = scaled.mean(), max(scaled.std(), 1e-9)
        scaled = (scaled - centre) / spread
        theta = gp.fit_hyperparameters(x[some], scaled[some])
        # The densities of y itself: of the same thing in different units.
        evidence = -gp.negative_evidence(theta, x[some], scaled[some])[0]
        evidence -= len(some) * math.log(spread)
        if log:
            evidence -= np.log(y[some]).sum()
        made.append((evidence, log, centre, spread, theta, scaled))
    _, log, centre, spread, theta, scaled = max(made, key=lambda one: one[0])
    count = min(8, max(1, 500 // len(y)))  # Many trials leave little open.
    thetas = gp.plausible_hyperparameters(theta, x[some], scaled[some], rng, count)
    processes = [gp.gp_posterior(one, x, scaled) for one in (theta, *thetas)]
    return FittedObjective(processes, centre, spread, log)


def predictive(one: FittedObjective, at: np.ndarray) -> Predictive:
    return _unscaled_predictive(one, *gp.predict_gp(one.processes[0], at))


def _unscaled_predictive(one, mean, variance):
    return Predictive(
        one.centre + one.spread * mean, one.spread * np.sqrt(variance), one.log
    )


def _to_raw(one, values):
    return np.exp(values) if one.log else values


def median_value(one: FittedObjective, at: np.ndarray) -> np.ndarray:
    """The median of an objective at points, in its own units."""
    return _to_raw(one, predictive(one, at).mean)


def sample_fronts(
    one: FittedObjective, base: np.ndarray, at: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, Predictive]]:
    """Values that the objective may have at base, and the belief at points then."""
    processes = one.processes[1:]
    for i, process in enumerate(processes):
        share = _NUM_DRAWS // len(processes) + (i < _NUM_DRAWS % len(processes))
        for values, mean, variance in gp.posterior_draws(process, base, at, rng, share):
            raw = _to_raw(one, one.centre + one.spread * values)
            yield raw, _unscaled_predictive(one, mean, variance)


def feasibility_prob(
    told: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Callable[[np.ndarray], np.ndarray]:
    """at -> the logarithm of the chance that all constraints are at most 0 there, [m].

    A logarithm, since where all was infeasible so far, what is least hopeless counts.

    Args:
      told: a constraint each: points [n, axes] and its values there.
    """
    processes = []
    for x, y in told:
        sizes = np.abs(y[np.isfinite(y) & (y != 0)])
        y = np.clip(y / np.median(sizes) if len(sizes) else np.sign(y), -10, 10)
        # Not shifted: 0 is the limit, and where nothing is known both sides may be.
        y = y / max(np.sqrt(np.mean(y * y)), 1e-9)
        some = np.unique(np.linspace(0, len(y) - 1, _MAX_FITTED).astype(int))
        processes.append(
            gp.gp_posterior(gp.fit_hyperparameters(x[some], y[some]), x, y)
        )

    def of(at):
        made = np.zeros(len(at))
        for process in processes:
            mean, variance = gp.predict_gp(process, at)
            made = made + log_ndtr(-mean / np.sqrt(variance))
        return made

    return of


def acquisition(
    x: np.ndarray,
    values: np.ndarray,
    counts: np.ndarray,
    told: Sequence[tuple[np.ndarray, np.ndarray]],
    pending: np.ndarray,
    rng: np.random.Generator,
) -> tuple[Callable, Callable]:
    """Two functions of points [m, axes]: how promising each is, as a logarithm, [m].

    The first, for many points, takes the means of measured points for the front. The
    second takes draws of the front, pending points with it, so that a lucky measurement
    is no front and a batch is spread (noisy EHVI: Daulton, Balandat, Bakshy 2021).

    Args:
      x, values: measured points [n, axes] and [n, objectives], to be minimised.
      counts: [n], whether a measured point may be on the front.
      told: a constraint each: points and its values there, at most 0 is feasible.
      pending: [p, axes].
    """
    objectives = [fit_objective(x, column, rng) for column in values.T]
    feasible = feasibility_prob(told)
    means = np.stack([median_value(one, x) for one in objectives], axis=1)
    seen = means[counts] if counts.any() else means
    # Beyond the worst, so that the ends of the front, not seen yet, are worth a trial.
    reach = np.maximum(np.ptp(seen, axis=0), 1e-9)
    reference = seen.max(axis=0) + _REFERENCE_MARGIN * reach

    def worth(gain, at):
        return np.log(np.maximum(gain, 1e-300)) + feasible(at)

    def rough(at):
        beliefs = [predictive(one, at) for one in objectives]
        return worth(expected_improvement(beliefs, means[counts], reference), at)

    def fine(at):
        base = np.concatenate([x, pending])
        likely = np.exp(feasible(pending)) if len(pending) else np.zeros(0)
        total = np.zeros(len(at))
        for draw in zip(*(sample_fronts(one, base, at, rng) for one in objectives)):
            points, beliefs = zip(*draw)
            front = np.concatenate([counts, rng.random(len(pending)) < likely])
            total += expected_improvement(
                beliefs, np.stack(points, axis=1)[front], reference
            )
        return worth(total, at)

    return rough, fine
