"""Does our sampler find the front with fewer trials than others at their best?

    python tests/benchmarks/bayes.py [--problems roofline,random_functions] [--seeds 20]
      [--samplers ours,tpe_best] [--table measured.json] [--out runs.json]

Each run is 60 trials of one sampler on one problem from one seed. A run's score after n
trials is the hypervolume of the true, noise-free values of its feasible points, as a
fraction of the whole space's; the reference point is the worst feasible value of each
objective. Finished runs are kept in --out and not run again. Seeds are paired: what a
point measures follows from the seed and the point, whoever asks.

Peers stand as they are, and at their best (`_best`, and `qlognehvi`): they start from
the eight points that ours starts from, a point that was measured costs no second trial,
and a failure is told as a constraint that is not met. TPE is multivariate; NSGA-II has a
population of 8; qLogNEHVI is taken over all points of the grid, in their logarithms, with
the reference point that ours has. Ours sees ordered choices, the others ranks as
integers. `noisy` and `constrained` are what the sampler was made on; `roofline` and
`random_functions` were not there then.
"""

import argparse
import importlib.util
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from grid_nehvi import GridNehvi
from search_problems import PROBLEMS, Problem, distributions, table

from autodistill_jax.search import bayes

TRIALS = 60
STOPS = (15, 30, 45, 60)
_NUM_STARTS = 8  # Points that ours starts from, and peers at their best.
_MAX_REPEATS = 20  # Points told again in a row, before one that is new is drawn.


class Peer(NamedTuple):
    """A sampler and how it is asked.

    Attributes:
      make_fn: (seed, problem) -> the sampler.
      is_best: starts as ours does, pays for no repeat, is told of failures.
      modules: that it needs.
    """

    make_fn: Callable[[int, Problem], optuna.samplers.BaseSampler]
    is_best: bool = False
    modules: tuple[str, ...] = ()


def _bayes_sampler(seed: int, problem: Problem) -> optuna.samplers.BaseSampler:
    return bayes.BayesSampler(distributions(problem, ranks=False), seed=seed)


SAMPLERS = {
    "ours": Peer(_bayes_sampler),
    "random": Peer(lambda seed, _: optuna.samplers.RandomSampler(seed)),
    "random_best": Peer(lambda seed, _: optuna.samplers.RandomSampler(seed), True),
    "nsga2": Peer(lambda seed, _: optuna.samplers.NSGAIISampler(seed=seed)),
    "nsga2_best": Peer(
        lambda seed, _: optuna.samplers.NSGAIISampler(population_size=8, seed=seed),
        True,
    ),
    "tpe": Peer(lambda seed, _: optuna.samplers.TPESampler(seed=seed)),
    "tpe_best": Peer(
        lambda seed, _: optuna.samplers.TPESampler(
            n_startup_trials=_NUM_STARTS, multivariate=True, seed=seed
        ),
        True,
    ),
    "gp": Peer(lambda seed, _: optuna.samplers.GPSampler(seed=seed), False, ("torch",)),
    "gp_best": Peer(
        lambda seed, _: optuna.samplers.GPSampler(
            n_startup_trials=_NUM_STARTS, seed=seed
        ),
        True,
        ("torch",),
    ),
    "qlognehvi": Peer(
        lambda seed, problem: GridNehvi(problem, seed), True, ("botorch",)
    ),
}


def measure(problem: Problem, seed: int, point: tuple) -> tuple | None:
    """What a point measures under a seed: the same for every sampler."""
    place = [list(v).index(p) for v, p in zip(problem.axes.values(), point)]
    return problem.measure(np.random.default_rng([seed, 1, *place]), point)


def first_points(problem: Problem, seed: int) -> list[dict[str, int]]:
    """Those that ours starts from, as ranks."""
    study = _study(_bayes_sampler(seed, problem))
    starts: list[dict[str, int]] = []
    while len(starts) < _NUM_STARTS:
        trial = study.ask(distributions(problem, ranks=False))
        point = tuple(trial.params[name] for name in problem.axes)
        measured = measure(problem, seed, point)
        tell(study, trial, measured)
        if measured is not None:
            axes = problem.axes.items()
            starts.append({name: list(v).index(trial.params[name]) for name, v in axes})
    return starts


def tell(
    study: optuna.Study,
    trial: Any,
    measured: tuple | None,
    as_failed: tuple | None = None,
) -> None:
    """Tells a study what a trial measured.

    Args:
      study: that asked.
      trial: of it.
      measured: of `measure`.
      as_failed: (values, constraints) that stand for a failure, which is then told as
        one more constraint that is not met; without them it is told as a failure.
    """
    values, constraints = measured or (None, {})
    if as_failed:
        constraints = constraints | {"failed": 1.0 if values is None else -1.0}
        if values is None:
            values, constraints = as_failed[0], as_failed[1] | constraints
    for name, value in constraints.items():
        trial.set_constraint(name, value)
    if values is None:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        study.tell(trial, values)


def run(name: str, seed: int, problem: Problem, trials: int = TRIALS) -> list[float]:
    """-> the score after each trial."""
    peer, ranks = SAMPLERS[name], name != "ours"
    study = _study(peer.make_fn(seed, problem))
    if peer.is_best:
        for start in first_points(problem, seed):
            study.enqueue_trial(start)
    reference = np.max(list(problem.truth.values()), axis=0)
    best = hypervolume(problem.truth.values(), reference)
    rng = np.random.default_rng([seed, 2])
    results: dict[tuple, Any] = {}
    scores: list[float] = []
    outcomes: list[tuple] = []
    repeats = 0
    while len(scores) < trials:
        trial = study.ask(distributions(problem, ranks))
        axes = problem.axes.items()
        point = tuple(v[trial.params[n]] if ranks else trial.params[n] for n, v in axes)
        is_repeat = point in results
        if not is_repeat:
            results[point] = measure(problem, seed, point)
        as_failed = _as_failed(problem, results.values()) if peer.is_best else None
        tell(study, trial, results[point], as_failed)
        repeats = repeats + 1 if is_repeat else 0
        if peer.is_best and repeats >= _MAX_REPEATS:
            levels = [range(len(v)) for v in problem.axes.values()]
            grid = list(itertools.product(*levels))
            tried = {tuple(t.params.values()) for t in study.get_trials(deepcopy=False)}
            fresh = [place for place in grid if place not in tried]
            place = fresh[rng.integers(len(fresh))]
            study.enqueue_trial(dict(zip(problem.axes, place)))
        if results[point] is None or is_repeat and peer.is_best:
            continue
        if point in problem.truth:
            outcomes.append(problem.truth[point])
        scores.append(float(hypervolume(outcomes, reference) / best))
    return scores


def _as_failed(problem: Problem, results: Iterable[tuple | None]) -> tuple:
    """The worst values so far, and every constraint of the problem on its limit."""
    values = [m[0] for m in results if m is not None and m[0] is not None]
    worst = np.max(values, axis=0).tolist() if values else [0.0, 0.0]
    feasible = next(iter(problem.truth))
    names = measure(problem, 0, feasible)[1]
    return worst, dict.fromkeys(names, 0.0)


def hypervolume(values: Any, worst: np.ndarray) -> float:
    """Of two objectives, to the worst of each."""
    total, floor = 0.0, worst[1]
    for first, second in sorted(values):
        if second < floor:
            total += (worst[0] - first) * (floor - second)
            floor = second
    return total


def seconds(name: str, problem: Problem, count: int = 200) -> float:
    """CPU seconds of one suggestion after `count` random trials, the mean of three."""
    ranks = name != "ours"
    study = _study(optuna.samplers.RandomSampler(seed=0))
    spent = []
    for i in range(count + 3):
        if i == count:
            study.sampler = SAMPLERS[name].make_fn(0, problem)
        start = time.process_time()
        trial = study.ask(distributions(problem, ranks))
        spent.append(time.process_time() - start)
        axes = problem.axes.items()
        point = tuple(v[trial.params[n]] if ranks else trial.params[n] for n, v in axes)
        measured = measure(problem, i, point)
        is_best = SAMPLERS[name].is_best
        tell(
            study, trial, measured, _as_failed(problem, [measured]) if is_best else None
        )
    return float(np.mean(spent[count:]))


def _study(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    return optuna.create_study(directions=["minimize"] * 2, sampler=sampler)


def write_table(runs: Mapping[str, Any], problem: str, samplers: list[str]) -> None:
    """Scores at the stops, mean and standard error, and how far ours lies above, paired
    by seeds, in the mean over the stops."""
    heads = ["seeds", *map(str, STOPS), "ours above", "CPU s at 200"]
    print(f"\n| {problem} | " + " | ".join(heads) + " |")
    print("|---" * (len(heads) + 1) + "|")

    def curves(sampler: str) -> dict[str, np.ndarray]:
        start = f"{problem}/{sampler}/"
        return {
            key.removeprefix(start): np.asarray(scores)[np.asarray(STOPS) - 1]
            for key, scores in runs.items()
            if key.startswith(start)
        }

    bayes_curves = curves("ours")
    for sampler in samplers:
        by_seed = curves(sampler)
        if not by_seed:
            continue
        at = np.stack(list(by_seed.values()))
        cells = [f"{m:.3f} ± {e:.3f}" for m, e in zip(at.mean(axis=0), _error(at))]
        paired = [
            (bayes_curves[seed] - at).mean()
            for seed, at in by_seed.items()
            if seed in bayes_curves
        ]
        above = (
            ""
            if sampler == "ours" or not paired
            else (
                f"{np.mean(paired):+.3f} ± {_error(np.asarray(paired)[:, None])[0]:.3f}"
            )
        )
        cost = runs.get(f"seconds/{problem}/{sampler}", math.nan)
        cells = [str(len(at)), *cells, above, f"{cost:.3f}"]
        print(f"| {sampler} | " + " | ".join(cells) + " |")


def _error(at: np.ndarray) -> np.ndarray:
    """The standard error of the mean over the first axis."""
    if len(at) < 2:
        return np.zeros(at.shape[1:])
    return at.std(axis=0, ddof=1) / len(at) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--table", help="a JSON file of measured values, one more")
    parser.add_argument("--out", type=Path, default=Path("bayes.json"))
    flags = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    problems = {name: PROBLEMS[name] for name in flags.problems.split(",") if name}
    if flags.table:
        problems["table"] = lambda seed: table(flags.table)
    runs = json.loads(flags.out.read_text()) if flags.out.exists() else {}

    def keep(key: str, make_fn: Callable[[], Any]) -> None:
        if key not in runs:
            runs[key] = make_fn()
            flags.out.write_text(json.dumps(runs))

    samplers = flags.samplers.split(",")
    for sampler in samplers:
        modules = SAMPLERS[sampler].modules
        missing = [x for x in modules if not importlib.util.find_spec(x)]
        if missing:
            print(f"{sampler} is skipped: no {', '.join(missing)} here")
            continue
        for name, problem_fn in problems.items():
            for seed in range(flags.seeds):
                keep(
                    f"{name}/{sampler}/{seed}",
                    lambda: run(sampler, seed, problem_fn(seed)),  # noqa: B023
                )
            keep(
                f"seconds/{name}/{sampler}",
                lambda: seconds(sampler, problem_fn(0)),  # noqa: B023
            )
    for name in problems:
        write_table(runs, name, samplers)


if __name__ == "__main__":
    main()
