"""Does our sampler find the front with fewer trials than others?

    python tests/benchmarks/bayes.py [--problem noisy] [--seeds 20] [--out runs.json]
    python tests/benchmarks/bayes.py --problem table --table measured.json

Each run is 60 trials of one sampler on one problem from one seed. A run's score after n
trials is the hypervolume of the true, noise-free values of its feasible points, as a
fraction of the whole space's; the reference point is the worst feasible value of each
objective. Finished runs are kept in --out and not run again. Ours sees ordered choices;
the others see ranks as integers, so that they know the order, too.

A table is one JSON file: {"axes": {name: [values]}, "points": [{"params": {name: value},
"proxy": [repeats], "latency": [repeats]}]}; a trial draws one repeat of each, the truth
is their mean, and a point that the table lacks is a failed trial that is not counted.
"""

import argparse
import importlib.util
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna

from autodistill_jax.search import bayes

TRIALS = 60
STOPS = (15, 30, 45, 60)
SAMPLERS = ("ours", "random", "nsga2", "tpe", "gp", "qlognehvi")
SLOW = ("gp", "qlognehvi")
SLOW_SEEDS = 5


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


def error_and_latency(point):
    """Shaped like a search of MobileBERT-like students: more of a thing helps less and
    less, thin heads harm, the narrowest part binds; time goes in tiles of 128."""
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


def noisy():
    axes = {
        "hidden": (128, 256, 384, 512),
        "bottleneck": (64, 96, 128, 160),
        "heads": (1, 2, 4, 8),
        "ffn": (384, 512, 640),
        "stacks": (2, 4, 6),
    }
    truth = {p: error_and_latency(p) for p in itertools.product(*axes.values())}

    def measure(rng, point):
        error, latency = truth[point]
        noise = rng.normal(size=2)
        return (error + 0.01 * noise[0], latency * math.exp(0.02 * noise[1])), {}

    return Problem(axes, truth, measure)


def constrained():
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


def table(path):
    held = json.loads(Path(path).read_text())
    axes = {name: tuple(values) for name, values in held["axes"].items()}
    repeats = {
        tuple(entry["params"][axis] for axis in axes): (
            entry["proxy"],
            entry["latency"],
        )
        for entry in held["points"]
    }
    truth = {p: (np.mean(a), np.mean(b)) for p, (a, b) in repeats.items()}

    def measure(rng, point):
        if point not in repeats:
            return None
        return tuple(float(rng.choice(values)) for values in repeats[point]), {}

    return Problem(axes, truth, measure)


def hypervolume(values, worst):
    total, floor = 0.0, worst[1]
    for first, second in sorted(values):
        if second < floor:
            total += (worst[0] - first) * (floor - second)
            floor = second
    return total


def make_sampler(name, seed, problem):
    if name == "ours":
        return bayes.BayesSampler(choices(problem, ordered=False), seed=seed)
    if name == "qlognehvi":
        from optuna_integration import BoTorchSampler

        return BoTorchSampler(candidates_func=qlognehvi, seed=seed)
    samplers = {
        "random": optuna.samplers.RandomSampler,
        "nsga2": optuna.samplers.NSGAIISampler,
        "tpe": optuna.samplers.TPESampler,
        "gp": optuna.samplers.GPSampler,
    }
    return samplers[name](seed=seed)


def qlognehvi(x, y, constraints, bounds, pending):
    """BoTorch's noisy expected hypervolume improvement, in its logarithmic form."""
    import torch
    from botorch.acquisition.multi_objective import logei
    from botorch.acquisition.multi_objective.objective import (
        IdentityMCMultiOutputObjective,
    )
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelListGP, SingleTaskGP
    from botorch.models.transforms import Standardize
    from botorch.optim import optimize_acqf
    from botorch.sampling import SobolQMCNormalSampler
    from botorch.utils.multi_objective import infer_reference_point, is_non_dominated
    from botorch.utils.transforms import normalize, unnormalize
    from gpytorch.mlls import SumMarginalLogLikelihood

    unit = normalize(x, bounds)
    outputs = y if constraints is None else torch.cat([y, constraints], dim=-1)
    model = ModelListGP(
        *[
            SingleTaskGP(unit, outputs[:, i : i + 1], outcome_transform=Standardize(1))
            for i in range(outputs.shape[1])
        ]
    )
    fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
    good = y if constraints is None else y[(constraints <= 0).all(dim=-1)]
    good = good if len(good) else y
    count = y.shape[1]
    limits = [lambda z, i=i: z[..., i] for i in range(count, outputs.shape[1])]
    acquisition = logei.qLogNoisyExpectedHypervolumeImprovement(
        model,
        infer_reference_point(good[is_non_dominated(good)]),
        unit,
        sampler=SobolQMCNormalSampler(torch.Size([128]), seed=0),
        objective=IdentityMCMultiOutputObjective(outcomes=list(range(count))),
        constraints=limits or None,
        prune_baseline=True,
        X_pending=pending,
    )
    square = torch.stack([torch.zeros_like(bounds[0]), torch.ones_like(bounds[1])])
    candidates, _ = optimize_acqf(
        acquisition, square, q=1, num_restarts=5, raw_samples=256, sequential=True
    )
    return unnormalize(candidates.detach(), bounds)


def choices(problem, ordered):
    if ordered:
        distributions = {
            name: optuna.distributions.IntDistribution(0, len(values) - 1)
            for name, values in problem.axes.items()
        }
    else:
        distributions = {
            name: optuna.distributions.CategoricalDistribution(values)
            for name, values in problem.axes.items()
        }
    return distributions


def tell(study, trial, problem, rng, ordered):
    """Measures a trial -> its point; None where the table has no such point."""
    point = tuple(
        values[trial.params[name]] if ordered else trial.params[name]
        for name, values in problem.axes.items()
    )
    measured = problem.measure(rng, point)
    values, constraints = measured or (None, {})
    for name, value in constraints.items():
        trial.set_constraint(name, value)
    if values is None:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        study.tell(trial, values)
    return point if measured else None


def run(name, seed, problem):
    """-> the score after each trial."""
    rng = np.random.default_rng([seed, 1])
    ordered = name != "ours"
    study = optuna.create_study(
        directions=["minimize"] * 2, sampler=make_sampler(name, seed, problem)
    )
    worst = np.max(list(problem.truth.values()), axis=0)
    best = hypervolume(problem.truth.values(), worst)
    scores, outcomes = [], []
    while len(scores) < TRIALS:
        point = tell(study, study.ask(choices(problem, ordered)), problem, rng, ordered)
        if point is None:
            continue
        if point in problem.truth:
            outcomes.append(problem.truth[point])
        scores.append(float(hypervolume(outcomes, worst) / best))
    return scores


def seconds(name, problem, count=200):
    """CPU seconds of one suggestion after `count` random trials, the mean of three."""
    ordered = name != "ours"
    study = optuna.create_study(
        directions=["minimize"] * 2, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    rng = np.random.default_rng(0)
    for _ in range(count):
        tell(study, study.ask(choices(problem, ordered)), problem, rng, ordered)
    study.sampler = make_sampler(name, 0, problem)
    spent = 0.0
    for _ in range(3):
        start = time.process_time()
        trial = study.ask(choices(problem, ordered))
        spent += time.process_time() - start
        tell(study, trial, problem, rng, ordered)
    return spent / 3


def write_table(runs, problem, samplers):
    print(
        f"\n| {problem} | seeds | " + " | ".join(map(str, STOPS)) + " | CPU s at 200 |"
    )
    print("|---" * (len(STOPS) + 3) + "|")
    for sampler in samplers:
        curves = [
            scores
            for key, scores in runs.items()
            if key.startswith(f"{problem}/{sampler}/")
        ]
        if not curves:
            continue
        at = np.asarray(curves)[:, np.asarray(STOPS) - 1]
        error = at.std(axis=0, ddof=1) / len(at) ** 0.5 if len(at) > 1 else at[0] * 0
        cells = [f"{m:.3f} ± {e:.3f}" for m, e in zip(at.mean(axis=0), error)]
        cells.append(f"{runs.get(f'seconds/{problem}/{sampler}', math.nan):.3f}")
        print(f"| {sampler} | {len(at)} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--problem", choices=["noisy", "constrained", "table"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--table", help="a JSON file of measured values")
    parser.add_argument("--out", type=Path, default=Path("bayes.json"))
    flags = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    problems = {"noisy": noisy, "constrained": constrained}
    if flags.table:
        problems["table"] = lambda: table(flags.table)
    names = [flags.problem] if flags.problem else list(problems)
    if flags.problem == "table" and not flags.table:
        parser.error("--problem table needs --table FILE.json")
    runs = json.loads(flags.out.read_text()) if flags.out.exists() else {}

    def keep(key, make):
        if key not in runs:
            runs[key] = make()
            flags.out.write_text(json.dumps(runs))

    needs = {"gp": ("torch",), "qlognehvi": ("botorch", "optuna_integration")}
    samplers = flags.samplers.split(",")
    for sampler in samplers:
        missing = [x for x in needs.get(sampler, ()) if not importlib.util.find_spec(x)]
        if missing:
            print(f"{sampler} is skipped: no {', '.join(missing)} here")
            continue
        for name in names:
            problem = problems[name]()
            seeds = min(flags.seeds, SLOW_SEEDS) if sampler in SLOW else flags.seeds
            for seed in range(seeds):
                keep(
                    f"{name}/{sampler}/{seed}",
                    lambda: run(sampler, seed, problem),  # noqa: B023
                )
            keep(
                f"seconds/{name}/{sampler}",
                lambda: seconds(sampler, problem),  # noqa: B023
            )
    for name in names:
        write_table(runs, name, samplers)


if __name__ == "__main__":
    main()
