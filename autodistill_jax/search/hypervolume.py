"""How much would a point add to the front? Expected hypervolume improvement, exactly."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr


class Belief(NamedTuple):
    """What is believed of one objective at c points: normal, or log-normal where `log`
    is set; mean and deviation: [c], of the logarithm then."""

    mean: np.ndarray
    deviation: np.ndarray
    log: bool = False


def shortfall(belief: Belief, level: float) -> np.ndarray:
    """E[max(level - Y, 0)], [c]: by how much Y is expected to stay below the level."""
    if not belief.log:
        z = (level - belief.mean) / belief.deviation
        density = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
        return belief.deviation * (z * ndtr(z) + density)
    if level <= 0:
        return np.zeros_like(belief.mean)
    z = (np.log(level) - belief.mean) / belief.deviation
    whole = np.exp(belief.mean + 0.5 * belief.deviation**2)
    return np.maximum(level * ndtr(z) - whole * ndtr(z - belief.deviation), 0.0)


def improvement(
    beliefs: Sequence[Belief], front: np.ndarray, reference: np.ndarray
) -> np.ndarray:
    """The expected hypervolume improvement of c points, [c]; one objective: the expected
    improvement.

    Cut along the first objective at the front's values: between two cuts the points to
    the left are the front of the other objectives, and objectives are independent, so
    that expectations multiply. Two objectives: Emmerich, Deutz, Klinkenberg (2011).

    Args:
      beliefs: one an objective, all to be minimised.
      front: [n, objectives]; points may dominate each other; n may be 0.
      reference: [objectives]; what is worse does not count.
    """
    front = front[(front < reference).all(axis=1)]
    if len(beliefs) == 1:
        return shortfall(beliefs[0], min([reference[0], *front[:, 0]]))
    front = nondominated(front)
    total = np.zeros_like(beliefs[0].mean)
    before = total
    for cut in [*np.unique(front[:, 0]), reference[0]]:
        left = front[front[:, 0] < cut]
        now = shortfall(beliefs[0], cut)
        total = total + (now - before) * improvement(
            beliefs[1:], left[:, 1:], reference[1:]
        )
        before = now
    return total


def nondominated(values: np.ndarray) -> np.ndarray:
    """The rows of [n, objectives] that no other is as good as everywhere and better
    somewhere; equal rows once."""
    values = np.unique(values, axis=0)
    below = (values[:, None] <= values).all(axis=2)
    return values[below.sum(axis=0) == 1]
