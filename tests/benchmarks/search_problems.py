"""What samplers are compared on: two objectives on a grid, of which all is known."""

import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna


class Problem(NamedTuple):
    """Two objectives, both to be minimised, on a grid.

    Attributes:
      axes: the values of each axis, in order.
      truth: point -> its true values; only points that are feasible.
      measure: (rng, point) -> (values or None where it fails, constraints); None where
        there is no such point.
    """

    axes: Mapping[str, tuple]
    truth: Mapping[tuple, tuple[float, float]]
    measure: Callable


def noisy(seed: int = 0) -> Problem:
    """Shaped like a search of MobileBERT-like students: more of a thing helps less and
    less, thin heads harm, the narrowest part binds; time goes in tiles of 128."""
    axes = {
        "hidden": (128, 256, 384, 512),
        "bottleneck": (64, 96, 128, 160),
        "heads": (1, 2, 4, 8),
        "ffn": (384, 512, 640),
        "stacks": (2, 4, 6),
    }
    truth = {p: _error_and_latency(p) for p in itertools.product(*axes.values())}

    def measure(rng, point):
        error, latency = truth[point]
        noise = rng.normal(size=2)
        return (error + 0.01 * noise[0], latency * math.exp(0.02 * noise[1])), {}

    return Problem(axes, truth, measure)


def _error_and_latency(point):
    hidden, bottleneck, heads, ffn, stacks = point
    capacity = (
        0.5 * math.log2(hidden / 128)
        + 1.1 * math.log2(bottleneck / 64)
        + 0.35 * math.log2(stacks * ffn / 768)
        + 0.15 * math.log2(heads)
        - 0.25 * abs(math.log2(hidden / bottleneck) - 1.5)
        - 0.5 * max(0.0, math.log2(32 * heads / bottleneck))
    )
    error = 0.15 + 0.3 * math.exp(-0.6 * capacity)

    def tiles(n):
        return 0.5 * n / 128 + 0.5 * math.ceil(n / 128)

    products = tiles(hidden) * tiles(bottleneck) * 5 + 2 * stacks * tiles(
        bottleneck
    ) * tiles(ffn)
    latency = 0.1 + 24 * (0.0012 * products + 0.0008 * heads)
    return error, latency


def constrained(seed: int = 0) -> Problem:
    """A memory limit that is known only once measured, and shapes whose training fails."""
    axes = {
        "layers": (2, 3, 4, 6, 8, 12),
        "hidden": (128, 192, 256, 320, 384, 512),
        "heads": (2, 4, 8, 12),
        "ffn": (256, 512, 1024, 1536, 2048),
    }

    def values(point):
        layers, hidden, heads, ffn = point
        width = math.log2(hidden / 128)
        capacity = 0.7 * math.log2(layers) + width + 0.3 * math.log2(ffn / 256)
        capacity += 0.3 * math.log2(heads)
        capacity -= 0.4 * max(0.0, math.log2(24 * heads / hidden))
        capacity -= 0.3 * max(0.0, math.log2(layers / 4) - width)
        loss = 0.4 + 2.5 * math.exp(-0.45 * capacity)
        tiles = math.ceil(hidden / 128)
        latency = 0.2 + 0.02 * layers * tiles * (4 * tiles + 2 * ffn / 128 + heads / 4)
        return loss, latency

    def memory(point):
        layers, hidden, heads, ffn = point
        activations = layers * (6 * hidden + 2 * ffn + 64 * heads)
        return (activations + 60 * hidden) / 1000 - 56

    def fails(point):
        layers, hidden, heads, _ = point
        return layers >= 8 and hidden <= 192 or hidden / heads < 16

    grid = list(itertools.product(*axes.values()))
    truth = {p: values(p) for p in grid if memory(p) <= 0 and not fails(p)}

    def measure(rng, point):
        loss, latency = values(point)
        noise = rng.normal(size=2)
        if fails(point):
            return None, {}
        return (
            (loss + 0.05 * noise[0], latency * math.exp(0.03 * noise[1])),
            {"memory": memory(point)},
        )

    return Problem(axes, truth, measure)


def roofline(seed: int = 0) -> Problem:
    """A device that either computes or waits for its memory, layer by layer; the error
    is a sum of power laws in width and depth. One timing in ten comes 10-40 % late, and
    what is larger than the memory fails."""
    axes = {
        "layers": (1, 2, 3, 4, 6, 9, 12),
        "hidden": (96, 128, 192, 256, 320, 448, 640),
        "head_size": (16, 32, 64),
        "ffn_ratio": (0.5, 1.0, 2.0, 3.0, 4.0),
    }

    def values(point):
        layers, hidden, head_size, ratio = point
        weights = hidden**2 * (4 + 2 * ratio)
        # Seconds of a layer: multiply-adds, or its bytes and those of its maps; launches.
        rows = 128
        compute = rows * weights / 2.5e9 + 2 * rows**2 * hidden / 1e9
        maps = (hidden / head_size) * rows**2
        memory = 2 * (weights + 6 * rows * hidden + 3 * maps) / 2.2e8
        latency = 0.05 + 1e3 * layers * (max(compute, memory) / 40 + 1.5e-5)
        # The cost of a head's size is smallest at 32, of the ratio's at 2.5.
        error = (
            0.06 + 0.9 * layers**-0.6 * 0.25 + 28 * (hidden * (1 + ratio) / 3) ** -1.1
        )
        error += 0.01 * (math.log2(head_size / 32)) ** 2
        error += 0.004 * (ratio - 2.5) ** 2 * layers**0.3
        return error, latency

    def fails(point):
        layers, hidden, _, ratio = point
        return layers * hidden**2 * (4 + 2 * ratio) > 35e6

    grid = list(itertools.product(*axes.values()))
    truth = {p: values(p) for p in grid if not fails(p)}

    def measure(rng, point):
        noise, delay = rng.normal(size=2), rng.uniform(1.1, 1.4)
        is_late = rng.random() < 0.1
        if fails(point):
            return None, {}
        error, latency = values(point)
        late = delay if is_late else 1.0
        latency *= late * math.exp(0.015 * noise[1])
        return (error * math.exp(0.03 * noise[0]), latency), {}

    return Problem(axes, truth, measure)


def random_functions(seed: int = 0) -> Problem:
    """Two smooth functions drawn anew for each seed, pulled apart by the sizes: nothing
    is known of them but that they are smooth in the logarithms."""
    axes = {
        "a": (1, 2, 3, 4, 6, 8),
        "b": (64, 96, 128, 192, 256),
        "c": (1, 2, 4, 8),
        "d": (0.5, 1.0, 2.0, 4.0),
    }
    rng = np.random.default_rng([seed, 7])
    points = list(itertools.product(*axes.values()))
    logs = np.log([[float(v) for v in point] for point in points])
    unit = (logs - logs.min(axis=0)) / (logs.max(axis=0) - logs.min(axis=0))
    objectives = []
    for sign in (1, -1):
        lengths = rng.uniform(0.3, 1.5, unit.shape[1])
        frequencies = rng.normal(size=(200, unit.shape[1])) / lengths
        phases = rng.uniform(0, 2 * np.pi, 200)
        waves = np.cos(unit @ frequencies.T + phases) @ rng.normal(size=200) / 10
        objectives.append(waves + sign * 2.0 * unit.mean(axis=1))
    truth = dict(zip(points, map(tuple, np.transpose(objectives).tolist())))

    def measure(rng, point):
        first, second = truth[point]
        noise = 0.05 * rng.normal(size=2)
        return (first + noise[0], second + noise[1]), {}

    return Problem(axes, truth, measure)


def table(path: str | Path) -> Problem:
    """A measured table, of `table.py`.

    One JSON file: {"axes": {name: [values]}, "points": [{"params": {name: value},
    "proxy": [repeats], "latency": [repeats]}]}; a trial draws one repeat of each, the
    truth is their mean, and a point that the table lacks is no trial.
    """
    stored = json.loads(Path(path).read_text())
    axes = {name: tuple(values) for name, values in stored["axes"].items()}
    repeats = {
        tuple(entry["params"][axis] for axis in axes): (
            entry["proxy"],
            entry["latency"],
        )
        for entry in stored["points"]
    }
    truth = {p: (np.mean(a), np.mean(b)) for p, (a, b) in repeats.items()}

    def measure(rng, point):
        if point not in repeats:
            return None
        return tuple(float(rng.choice(values)) for values in repeats[point]), {}

    return Problem(axes, truth, measure)


def distributions(problem: Problem, ranks: bool) -> dict[str, Any]:
    """The axes as Optuna's: ranks as integers, or ordered choices."""
    return {
        name: optuna.distributions.IntDistribution(0, len(values) - 1)
        if ranks
        else optuna.distributions.CategoricalDistribution(values)
        for name, values in problem.axes.items()
    }


# What the sampler was made on, and what was not there when it was made.
PROBLEMS = {
    "noisy": noisy,
    "constrained": constrained,
    "roofline": roofline,
    "random_functions": random_functions,
}
