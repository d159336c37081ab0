"""Expected hypervolume improvement under Gaussian processes, noisy and constrained."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import log_ndtr, ndtr

from autodistill_jax.search import gp

_MAX_FITTED = 80  # Trials that hyper-parameters are fitted on: more change them little.
_NUM_DRAWS = 16  # Of the front.
# Of an objective's range, from its worst value to the reference point.
_REFERENCE_MARGIN = 0.5


class Predictive(NamedTuple):
    """The predictive distribution of one objective at c points, normal or log-normal.

    Attributes:
      mean: [c], of the logarithm where `log` is set.
      deviation: [c] standard deviations, of the logarithm where `log` is set.
      log: is it log-normal?
    """

    mean: np.ndarray
    deviation: np.ndarray
    log: bool = False


def expected_shortfall(predictive: Predictive, level: float) -> np.ndarray:
    """E[max(level - Y, 0)], [c]: by how much Y is expected to stay below the level.

    Args:
      predictive: of Y, at c points.
      level: in Y's own units.

    Returns:
      [c], at least 0.
    """
    if predictive.log and level <= 0:
        return np.zeros_like(predictive.mean)
    reach = math.log(level) if predictive.log else level
    z = (reach - predictive.mean) / predictive.deviation
    if predictive.log:
        expectation = np.exp(predictive.mean + 0.5 * predictive.deviation**2)
        shortfall = level * ndtr(z) - expectation * ndtr(z - predictive.deviation)
    else:
        density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        shortfall = predictive.deviation * (z * ndtr(z) + density)
    return np.maximum(shortfall, 0.0)


def expected_improvement(
    predictives: Sequence[Predictive], front: np.ndarray, reference: np.ndarray
) -> np.ndarray:
    """The expected hypervolume improvement of c points, [c], exactly; of one objective:
    the expected improvement.

    Space is cut along the first objective at the front's values: between two cuts, the
    front of the other objectives is made of the points to the left. Objectives are
    independent, so expectations multiply (two objectives: Yang et al. 2019).

    Args:
      predictives: one an objective at c points, all to be minimised.
      front: [n, objectives]; points may dominate each other; n may be 0.
      reference: [objectives]; what is worse does not count.

    Returns:
      [c] volumes, in the objectives' own units.
    """
    if len(predictives) == 1:
        return expected_shortfall(predictives[0], min([reference[0], *front[:, 0]]))
    front = nondominated(front[(front < reference).all(axis=1)])
    total = last_shortfall = np.zeros_like(predictives[0].mean)
    for cut in [*np.unique(front[:, 0]), reference[0]]:
        left_front = front[front[:, 0] < cut]
        shortfall = expected_shortfall(predictives[0], cut)
        width, last_shortfall = shortfall - last_shortfall, shortfall
        total = total + width * expected_improvement(
            predictives[1:], left_front[:, 1:], reference[1:]
        )
    return total


def nondominated(values: np.ndarray) -> np.ndarray:
    """The rows of [n, objectives] that no other is as good as everywhere and better
    somewhere; equal rows once."""
    values = np.unique(values, axis=0)
    as_good = (values[:, None] <= values).all(axis=2)
    return values[as_good.sum(axis=0) == 1]


class FittedObjective(NamedTuple):
    """One objective's posteriors, of values that were shifted, scaled and perhaps made
    logarithms.

    Attributes:
      posteriors: the first has the best hyper-parameters, the others plausible ones.
      centre: what was subtracted from the values (or their logarithms).
      spread: what they were divided by then.
      log: are they logarithms?
    """

    posteriors: list[gp.GPPosterior]
    centre: float
    spread: float
    log: bool


def fit_objective(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator
) -> FittedObjective:
    """Fits an objective's measured values.

    What is far worse than the rest is drawn nearer, since its exact value says nothing
    of the front. Positive values are made logarithms if their evidence is larger.

    Args:
      x: [n, axes] points in the unit cube.
      y: [n] their values, to be minimised.
      rng: where plausible hyper-parameters are drawn from.

    Returns:
      The fitted objective, over all draws of its hyper-parameters.
    """
    finite = y[np.isfinite(y)] if np.isfinite(y).any() else np.zeros(1)
    low, middle, high = np.quantile(finite, (0.25, 0.5, 0.75))
    worst = middle + 5 * max(high - low, middle - finite.min())
    y = np.clip(np.nan_to_num(y, nan=worst), finite.min(), worst)
    subset = np.unique(np.linspace(0, len(y) - 1, _MAX_FITTED).astype(int))
    fits = []
    for log in (False, True) if y.min() > 0 else (False,):
        scaled = np.log(y) if log else y
        centre, spread = scaled.mean(), max(scaled.std(), 1e-9)
        scaled = (scaled - centre) / spread
        theta = gp.fit_hyperparameters(x[subset], scaled[subset])
        # The densities of y itself: of the same thing in different units.
        evidence = -gp.negative_evidence(theta, x[subset], scaled[subset])[0]
        evidence -= len(subset) * math.log(spread)
        if log:
            evidence -= np.log(y[subset]).sum()
        fits.append((evidence, log, centre, spread, theta, scaled))
    _, log, centre, spread, theta, scaled = max(fits, key=lambda fit: fit[0])
    count = min(8, max(1, 500 // len(y)))  # Many trials leave little open.
    thetas = gp.plausible_hyperparameters(theta, x[subset], scaled[subset], rng, count)
    posteriors = [gp.gp_posterior(t, x, scaled) for t in (theta, *thetas)]
    return FittedObjective(posteriors, centre, spread, log)


def predictive(objective: FittedObjective, z: np.ndarray) -> Predictive:
    """The predictive distribution of an objective at points z, [m, axes]."""
    return _unscaled_predictive(objective, *gp.predict_gp(objective.posteriors[0], z))


def _unscaled_predictive(objective, mean, variance):
    return Predictive(
        objective.centre + objective.spread * mean,
        objective.spread * np.sqrt(variance),
        objective.log,
    )


def _to_raw(objective, values):
    return np.exp(values) if objective.log else values


def median_value(objective: FittedObjective, z: np.ndarray) -> np.ndarray:
    """The median of an objective at points z, [m, axes], in its own units: [m]."""
    return _to_raw(objective, predictive(objective, z).mean)


def sample_fronts(
    objective: FittedObjective,
    base: np.ndarray,
    z: np.ndarray,
    rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, Predictive]]:
    """Joint draws of an objective at `base`, and what is predicted given each.

    Args:
      objective: the fitted objective.
      base: [b, axes], holds all points that it was fitted on.
      z: [m, axes] points to predict at.
      rng: where the draws come from.

    Yields:
      (values at base [b], in the objective's own units; the predictive at z).
    """
    posteriors = objective.posteriors[1:]
    for i, posterior in enumerate(posteriors):
        share = _NUM_DRAWS // len(posteriors) + (i < _NUM_DRAWS % len(posteriors))
        for values, mean, variance in gp.posterior_draws(
            posterior, base, z, rng, share
        ):
            raw = _to_raw(objective, objective.centre + objective.spread * values)
            yield raw, _unscaled_predictive(objective, mean, variance)


def feasibility_prob(
    constraints: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Callable[[np.ndarray], np.ndarray]:
    """The chance that all constraints hold, as a function of points.

    Args:
      constraints: a constraint each: points [n, axes] and its values there, at most 0
        where it holds.

    Returns:
      log_prob(z): the logarithm of that chance at points z, [m, axes]: [m]. A
      logarithm, since where all was infeasible so far, what is least hopeless counts.
    """
    posteriors = []
    for x, y in constraints:
        sizes = np.abs(y[np.isfinite(y) & (y != 0)])
        y = np.clip(y / np.median(sizes) if len(sizes) else np.sign(y), -10, 10)
        # Not shifted: 0 is the limit, and where nothing is known both sides may be.
        y = y / max(np.sqrt(np.mean(y * y)), 1e-9)
        subset = np.unique(np.linspace(0, len(y) - 1, _MAX_FITTED).astype(int))
        posteriors.append(
            gp.gp_posterior(gp.fit_hyperparameters(x[subset], y[subset]), x, y)
        )

    def log_prob(z):
        total = np.zeros(len(z))
        for posterior in posteriors:
            mean, variance = gp.predict_gp(posterior, z)
            total = total + log_ndtr(-mean / np.sqrt(variance))
        return total

    return log_prob


def acquisition(
    x: np.ndarray,
    values: np.ndarray,
    eligible: np.ndarray,
    constraints: Sequence[tuple[np.ndarray, np.ndarray]],
    pending: np.ndarray,
    rng: np.random.Generator,
) -> tuple[Callable, Callable]:
    """Two functions of points [m, axes]: how promising each is, as a logarithm, [m].

    The first, for many points, takes the means of measured points for the front. The
    second takes draws of the front, pending points with it, so that a lucky measurement
    is no front and a batch is spread (noisy EHVI: Daulton, Balandat, Bakshy 2021).

    Args:
      x: [n, axes] measured points, in the unit cube.
      values: [n, objectives] what was measured there, to be minimised.
      eligible: [n], whether a measured point may be on the front.
      constraints: a constraint each: points and its values there, feasible at most 0.
      pending: [p, axes] points whose trials are still running.
      rng: where hyper-parameters and fronts are drawn from.

    Returns:
      (rough, fine): the function for many points, and the one that draws fronts.
    """
    objectives = [fit_objective(x, column, rng) for column in values.T]
    log_feasible = feasibility_prob(constraints)
    means = np.stack([median_value(objective, x) for objective in objectives], axis=1)
    observed = means[eligible] if eligible.any() else means
    # Beyond the worst, so that the ends of the front, not seen yet, are worth a trial.
    reach = np.maximum(np.ptp(observed, axis=0), 1e-9)
    reference = observed.max(axis=0) + _REFERENCE_MARGIN * reach

    def log_worth(gain, z):
        return np.log(np.maximum(gain, 1e-300)) + log_feasible(z)

    def rough(z):
        predictives = [predictive(objective, z) for objective in objectives]
        return log_worth(
            expected_improvement(predictives, means[eligible], reference), z
        )

    def fine(z):
        base = np.concatenate([x, pending])
        likely = np.exp(log_feasible(pending)) if len(pending) else np.zeros(0)
        total = np.zeros(len(z))
        for draw in zip(
            *(sample_fronts(objective, base, z, rng) for objective in objectives)
        ):
            sampled_values, predictives = zip(*draw)
            front = np.concatenate([eligible, rng.random(len(pending)) < likely])
            total += expected_improvement(
                predictives, np.stack(sampled_values, axis=1)[front], reference
            )
        return log_worth(total, z)

    return rough, fine
