"""A Gaussian process over the unit cube: fit, posterior, predictions and draws."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import linalg, optimize

# Means and deviations of the normal priors of the logarithms, for points in the unit
# cube and values of mean 0 and deviation 1: a length scale an axis, the deviation of
# the function and that of the noise. They keep a fit of five points sane and are
# outweighed by fifty.
_LENGTH_PRIOR, _FUNCTION_PRIOR, _NOISE_PRIOR = (0.0, 0.7), (0.0, 0.7), (-2.0, 1.0)
_MIN_THETA, _MAX_THETA = -7.0, 4.0
_OFFSET_VARIANCE = 1.0  # Variance of the constant that the values are scattered about.
_JITTER = 1e-8
_MAX_ITERATIONS = 25


class GPPosterior(NamedTuple):
    """A Gaussian process with its hyper-parameters, conditioned on noisy values.

    Attributes:
      x: [n, d] points in the unit cube.
      theta: [d + 2] logarithms: length scales, deviations of function and noise.
      chol: [n, n] lower factor of the values' covariance, noise included.
      weights: [n] inverse covariance times values.
    """

    x: np.ndarray
    theta: np.ndarray
    chol: np.ndarray
    weights: np.ndarray


def covariance(theta: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The covariance of the function itself, without noise: Matern 5/2 and a constant.

    Args:
      theta: [d + 2] logarithms, as `GPPosterior.theta`.
      x: [n, d] points in the unit cube.
      z: [m, d] others.

    Returns:
      [n, m].
    """
    axes = x.shape[1]
    scale = np.exp(theta[:axes])
    a, b = x / scale, z / scale
    square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    root = np.sqrt(5 * np.maximum(square, 0))
    matern = (1 + root + root * root / 3) * np.exp(-root)
    return math.exp(2 * theta[axes]) * matern + _OFFSET_VARIANCE


def negative_evidence(
    theta: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[float, np.ndarray]:
    """Minus the log of the marginal likelihood times the priors, and its gradient.

    Rasmussen and Williams, Gaussian Processes for Machine Learning, (5.8) and (5.9).

    Args:
      theta: [d + 2] logarithms, as `GPPosterior.theta`.
      x: [n, d] points in the unit cube.
      y: [n] their values, of mean 0 and deviation 1 or so.

    Returns:
      The value, and its gradient by theta, [d + 2].
    """
    count, axes = x.shape
    scale = np.exp(theta[:axes])
    variances = np.exp(2 * theta[axes:])
    squares = np.stack([np.subtract.outer(c, c) ** 2 for c in (x / scale).T])
    root = np.sqrt(5 * squares.sum(axis=0))
    decay = np.exp(-root)
    matern = variances[0] * (1 + root + root * root / 3) * decay
    cov = matern + _OFFSET_VARIANCE
    cov[np.diag_indices(count)] += variances[1] + _JITTER
    chol = linalg.cholesky(cov, lower=True, check_finite=False)
    weights = linalg.cho_solve((chol, True), y, check_finite=False)
    inverse, _ = linalg.lapack.dpotri(chol, lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    slack = inverse - np.outer(weights, weights)
    by_square = slack * (variances[0] * 5 / 3) * (1 + root) * decay
    gradient = np.concatenate(
        [
            0.5 * np.einsum("dij,ij->d", squares, by_square),
            [(slack * matern).sum(), slack.trace() * variances[1]],
        ]
    )
    mean, deviation = _priors(axes)
    scaled = (theta - mean) / deviation
    value = (
        0.5 * y @ weights
        + np.log(np.diag(chol)).sum()
        + 0.5 * count * math.log(2 * math.pi)
        + 0.5 * scaled @ scaled
    )
    return value, gradient + scaled / deviation


def _priors(axes):
    # More axes, longer scales: distances grow with the root of their number.
    length = (_LENGTH_PRIOR[0] + 0.5 * math.log(axes), _LENGTH_PRIOR[1])
    return np.array([length] * axes + [_FUNCTION_PRIOR, _NOISE_PRIOR]).T


def fit_hyperparameters(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The theta of the highest evidence, sought from one start: the priors' means.

    Args:
      x: [n, d] points in the unit cube.
      y: [n] their values, of mean 0 and deviation 1 or so.

    Returns:
      [d + 2] logarithms, as `GPPosterior.theta`.
    """
    start = _priors(x.shape[1])[0]
    result = optimize.minimize(
        negative_evidence,
        start,
        (x, y),
        jac=True,
        method="L-BFGS-B",
        bounds=[(_MIN_THETA, _MAX_THETA)] * len(start),
        options={"maxiter": _MAX_ITERATIONS},
    )
    return result.x


def gp_posterior(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> GPPosterior:
    """The process of theta, [d + 2], conditioned on values y, [n], at x, [n, d]."""
    cov = covariance(theta, x, x)
    cov[np.diag_indices(len(x))] += math.exp(2 * theta[-1]) + _JITTER
    chol = linalg.cholesky(cov, lower=True, check_finite=False)
    return GPPosterior(x, theta, chol, linalg.cho_solve((chol, True), y))


def predict_gp(posterior: GPPosterior, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance, [m] each, of the function itself at points z, [m, d]."""
    cross = covariance(posterior.theta, posterior.x, z)
    part = linalg.solve_triangular(
        posterior.chol, cross, lower=True, check_finite=False
    )
    prior_variance = math.exp(2 * posterior.theta[-2]) + _OFFSET_VARIANCE
    variance = np.maximum(prior_variance - (part * part).sum(axis=0), _JITTER)
    return cross.T @ posterior.weights, variance


def posterior_draws(
    posterior: GPPosterior,
    base: np.ndarray,
    z: np.ndarray,
    rng: np.random.Generator,
    n: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What the function may be at `base`, jointly, and what is then expected at z.

    Args:
      posterior: the fitted process.
      base: [b, d], holds all points of the posterior: the function's values there say
        all that the noisy values said.
      z: [m, d] points to predict at.
      rng: where the draws come from.
      n: how many draws.

    Yields:
      n times (values [b], mean [m], variance [m]).
    """
    theta = posterior.theta
    prior = covariance(theta, base, base)
    cross = covariance(theta, posterior.x, base)
    part = linalg.solve_triangular(
        posterior.chol, cross, lower=True, check_finite=False
    )
    # Neighbours on a grid are almost equal: without this the factors would not exist.
    blur = 1e-6 * np.diag(prior).max() * np.eye(len(base))
    root = linalg.cholesky(prior - part.T @ part + blur, lower=True)
    chol = linalg.cholesky(prior + blur, lower=True)
    gain = linalg.solve_triangular(
        chol, covariance(theta, base, z), lower=True, check_finite=False
    )
    prior_variance = math.exp(2 * theta[-2]) + _OFFSET_VARIANCE
    variance = np.maximum(prior_variance - (gain * gain).sum(axis=0), _JITTER)
    for _ in range(n):
        values = cross.T @ posterior.weights + root @ rng.normal(size=len(base))
        white = linalg.solve_triangular(chol, values, lower=True)
        yield values, gain.T @ white, variance


def plausible_hyperparameters(
    best: np.ndarray, x: np.ndarray, y: np.ndarray, rng: np.random.Generator, n: int
) -> np.ndarray:
    """Draws of theta from the normal distribution that the evidence has about its top
    (Laplace's approximation): few points leave much open.

    Args:
      best: [d + 2], the theta of the highest evidence.
      x: [points, d] in the unit cube.
      y: [points], their values.
      rng: where the draws come from.
      n: how many draws.

    Returns:
      [n, d + 2].
    """
    step = 1e-3
    curvature = np.stack(
        [
            negative_evidence(best + move, x, y)[1]
            - negative_evidence(best - move, x, y)[1]
            for move in step * np.eye(len(best))
        ]
    ) / (2 * step)
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    # No flatter than the priors are: the top may lie at a bound.
    normal = rng.normal(size=(n, len(best))) / np.sqrt(np.maximum(values, 1.0))
    return np.clip(best + normal @ vectors.T, _MIN_THETA, _MAX_THETA)
