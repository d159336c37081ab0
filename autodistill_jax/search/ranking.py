"""Kendall's tau of proxies with the quality after fine-tuning, and its confidence."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from autodistill_jax.archs.arch import Arch
from autodistill_jax.metrics import kendall_tau

_NUM_BOOTSTRAPS = 2000
# Of the qualities, which take a metric for every network: each serves ten of those.
_NUM_QUALITY_DRAWS = 200


def draw_by_flops(
    flops: Mapping[Arch, float], count: int, bands: int, seed: int
) -> dict[Arch, int]:
    """Draws Archs over the whole space, evenly over bands of FLOPs.

    The bands hold equally many Archs of the space; from each, Archs are drawn at random
    without repetition (all of them where there are not enough).

    Args:
      flops: {Arch: its FLOPs}, of the whole space.
      count: how many Archs to draw.
      bands: how many bands.
      seed: of the draw.

    Returns:
      {Arch: its band, from 0}.
    """
    rng = np.random.default_rng(seed)
    ordered = sorted(flops, key=lambda arch: (flops[arch], arch))
    band_of: dict[Arch, int] = {}
    for band, part in enumerate(np.array_split(np.arange(len(ordered)), bands)):
        num_picks = count // bands + (band < count % bands)
        picks = rng.permutation(part)[:num_picks]
        band_of |= {ordered[i]: band for i in sorted(picks)}
    return band_of


def redraw_quality(
    metric_fn: Callable[[np.ndarray, np.ndarray], float],
    labels: np.ndarray,
    predictions: Sequence[np.ndarray],
    seed: int = 0,
) -> np.ndarray:
    """The quality that Archs would have had with other seeds and other dev rows.

    A bootstrap: of each Arch's seeds and of the dev rows, which all Archs share, as many
    as there are, with repetition. Of one seed there is nothing to draw.

    Args:
      metric_fn: (labels, predictions) -> score; more is better.
      labels: of the dev rows, [N].
      predictions: of each Arch, by seed, [seeds, N].
      seed: of the draws.

    Returns:
      [draws, Archs].
    """
    rng = np.random.default_rng(seed)
    draws = np.zeros((_NUM_QUALITY_DRAWS, len(predictions)))
    for draw in draws:
        rows = rng.integers(len(labels), size=len(labels))
        for i, of_arch in enumerate(predictions):
            seeds = rng.integers(len(of_arch), size=len(of_arch))
            picked = [metric_fn(labels[rows], of_arch[j][rows]) for j in seeds]
            draw[i] = np.mean(picked)
    return draws


def rank_table(
    quality: Sequence[float],
    scores: Mapping[str, Sequence[float]],
    bands: Sequence[int],
    reference: str = "flops",
    seed: int = 0,
    quality_draws: np.ndarray | None = None,
) -> dict[str, dict[str, Any]]:
    """How well each score ranks Archs as their quality does.

    Args:
      quality: of each Arch after fine-tuning; more is better.
      scores: {name: of each Arch}, signed so that more is better.
      bands: of FLOPs, one an Arch.
      reference: the score that the others are compared with.
      seed: of the bootstrap.
      quality_draws: of `redraw_quality`; None: the quality is taken as exact.

    Returns:
      {name: {"overall" and "within" (pairs inside a band only): {"tau", "interval"
      (95 %, percentile bootstrap over Archs and quality), "difference" (to the reference's tau),
      "difference_interval" (paired: the same draws), "verdict": "better", "worse" or
      "tie" (the interval holds 0)}}}.
    """
    rng = np.random.default_rng(seed)
    qualities, arch_bands = np.asarray(quality), np.asarray(bands)
    draws = rng.integers(len(qualities), size=(_NUM_BOOTSTRAPS, len(qualities)))
    drawn_qualities = qualities[None] if quality_draws is None else quality_draws
    table: dict[str, dict[str, Any]] = {name: {} for name in scores}
    for scope in ("overall", "within"):

        def same(picks, scope=scope):
            inside = np.equal.outer(arch_bands[picks], arch_bands[picks])
            return inside.astype(float) if scope == "within" else None

        all_archs = np.arange(len(qualities))
        admitted = [same(picks) for picks in draws]
        spread = {}
        for name, arch_scores in scores.items():
            values = np.asarray(arch_scores)
            spread[name] = np.asarray(
                [
                    kendall_tau(values[picks], quality_draw[picks], pairs)
                    for picks, pairs, quality_draw in zip(
                        draws, admitted, itertools.cycle(drawn_qualities)
                    )
                ]
            )
            table[name][scope] = {
                "tau": kendall_tau(values, qualities, same(all_archs)),
                "interval": _interval(spread[name]),
            }
        for name in scores:
            entry = table[name][scope]
            low, high = _interval(spread[name] - spread[reference])
            entry["difference"] = entry["tau"] - table[reference][scope]["tau"]
            entry["difference_interval"] = (low, high)
            entry["verdict"] = "better" if low > 0 else "worse" if high < 0 else "tie"
    return table


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
