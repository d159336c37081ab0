"""Which architecture should be tried next? Gaussian processes over a grid of sizes."""

import datetime
import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from scipy.special import ndtr
from scipy.stats import qmc

from autodistill_jax.errors import UserError
from autodistill_jax.search import gp, hypervolume

_LISTED = 50_000  # A space up to here is listed, a larger one is drawn from.
_SCORED = 2_000  # Candidates that are looked at before the moves around the best.
_ROUNDS, _BEST = 4, 10  # Of moves, and how many points each starts from.
_FINALISTS = 300  # Candidates over which the front's own uncertainty is integrated.
_FITTED = 80  # Trials that hyper-parameters are fitted on: more change little.
_DRAWS = 16  # Of the front.
_PATIENCE = 30.0  # Seconds that another process has between a trial and its parameters.


class Exhausted(UserError):
    """The space has no point left that may be tried."""


class Sampler(optuna.samplers.BaseSampler):
    """Bayesian search of a finite grid, any number of objectives.

    A Gaussian process an objective and a constraint; the next point is the one with the
    largest expected hypervolume improvement (one objective: expected improvement) times
    the chance that it is feasible, over fronts drawn from the processes, so that a lucky
    measurement is no front (Daulton, Balandat, Bakshy 2021, noisy EHVI). Running trials
    are drawn with the front. Constraints are those that trials carry
    (`trial.set_constraint`, at most 0 is feasible); failing is one more.

    No point is ever suggested that the study has in any state. Several processes may
    share a study: each trial waits for the parameters of those before it. What is
    suggested follows from the seed, the trial's number and the trials so far alone.

    Args:
      space: name -> the choices, numbers; the same that `study.ask` is given. Their
        logarithms are the coordinates where all are positive.
      allowed: what may be tried at all, by its parameters; must not change its mind.
      n_startup: trials, running ones too, that fill the space before a process is asked.

    Raises:
      UserError: the space has one point, or a choice that is not a number.
      Exhausted: from `study.ask`: nothing is left; the trial is told as failed.
    """

    def __init__(
        self,
        space: Mapping[str, CategoricalDistribution],
        seed: int = 0,
        allowed: Callable[[dict[str, Any]], bool] | None = None,
        n_startup: int = 8,
    ):
        self._space = dict(space)
        self._seed = seed
        self._allowed = allowed
        self._n_startup = n_startup
        self._axes = [_axis(name, choices) for name, choices in space.items()]
        self._size = math.prod(len(axis.values) for axis in self._axes)
        self._verdicts: dict[tuple, bool] = {}
        if self._size < 2:
            raise UserError("a space of one point needs no search; give an axis two")

    def infer_relative_search_space(self, study, trial):
        return self._space

    def sample_independent(self, study, trial, param_name, param_distribution):
        raise UserError(
            f"{param_name} is no axis of the sampler's space ({', '.join(self._space)}); "
            "ask with the distributions that the sampler was made with"
        )

    def sample_relative(self, study, trial, search_space):
        trials = _in_turn(study, trial, set(self._space))
        rng = np.random.default_rng([self._seed, trial.number])
        data = _read(trials, study.directions, self._point)
        fixed = trial.system_attrs.get("fixed_params", {})
        pool = self._pool(rng, data, fixed)
        if not len(pool):
            study.tell(trial.number, state=TrialState.FAIL)
            raise Exhausted(
                f"nothing is left to try: {len(data.taken)} of the space's {self._size} "
                "points are in the study and no other is allowed; widen the space or "
                "the budget, or end the search here"
            )
        known = len(data.points) + len(data.failed) + len(data.pending)
        if len(data.points) < 2 or known < self._n_startup:
            chosen = self._fill(pool, known)
        else:
            chosen = self._improve(rng, pool, data, fixed)
        return {
            name: axis.values[i]
            for name, axis, i in zip(self._space, self._axes, chosen)
        }

    def _point(self, params):
        """Ranks on the axes, or None where params are not of the space."""
        ranks = [
            axis.ranks.get(params.get(name))
            for name, axis in zip(self._space, self._axes)
        ]
        return None if None in ranks else tuple(ranks)

    def _coordinates(self, points):
        points = np.asarray(points, int).reshape(-1, len(self._axes))
        columns = [axis.scale[points[:, i]] for i, axis in enumerate(self._axes)]
        return np.stack(columns, axis=1)

    def _open(self, points, taken, fixed):
        """Those that may be suggested, each once."""
        made = []
        for point in dict.fromkeys(map(tuple, points)):
            if point in taken:
                continue
            if point not in self._verdicts:
                params = {
                    name: axis.values[i]
                    for name, axis, i in zip(self._space, self._axes, point)
                }
                self._verdicts[point] = self._allowed is None or self._allowed(params)
            if self._verdicts[point] and all(
                axis.values[i] == fixed.get(name, axis.values[i])
                for name, axis, i in zip(self._space, self._axes, point)
            ):
                made.append(point)
        return made

    def _pool(self, rng, data, fixed):
        """Points to start from: all that are left, or some of them."""
        levels = [len(axis.values) for axis in self._axes]
        if self._size <= _LISTED:
            grid = itertools.product(*map(range, levels))
            left = self._open(grid, data.taken, fixed)
            if len(left) <= _SCORED:
                return left
            some = [left[i] for i in rng.choice(len(left), _SCORED, replace=False)]
        else:
            some = []
            for _ in range(20):
                draws = rng.integers(0, levels, (_SCORED, len(levels)))
                some += self._open(draws.tolist(), data.taken, fixed)
                if len(some) >= _SCORED // 2:
                    break
        around = self._moves(data.points, data.taken, fixed)
        return list(dict.fromkeys(some + around))

    def _moves(self, points, taken, fixed):
        """What is open one axis away."""
        return self._open(
            (
                (*point[:i], rank, *point[i + 1 :])
                for point in points
                for i, axis in enumerate(self._axes)
                for rank in range(len(axis.values))
            ),
            taken,
            fixed,
        )

    def _fill(self, pool, count):
        """The open point closest to the count-th of a design that fills the space."""
        blocks, place = divmod(count, self._n_startup)
        design = qmc.LatinHypercube(
            len(self._axes),
            optimization="random-cd",
            rng=np.random.default_rng([self._seed, blocks]),
        ).random(self._n_startup)
        levels = np.array([len(axis.values) for axis in self._axes])
        apart = (np.array(pool) + 0.5) / levels - design[place]
        return pool[int(np.argmin((apart**2).sum(axis=1)))]

    def _improve(self, rng, pool, data, fixed):
        x = self._coordinates(data.points)
        objectives = [_Objective(x, column) for column in data.values.T]
        feasible = _chances(data, self._coordinates)
        means = np.stack([one.means(x) for one in objectives], axis=1)
        good = np.array(data.feasible)
        seen = means[good] if good.any() else means
        reference = seen.max(axis=0) + 0.1 * np.ptp(seen, axis=0)

        def score(points):
            at = self._coordinates(points)
            beliefs = [one.belief(at) for one in objectives]
            made = hypervolume.improvement(beliefs, means[good], reference)
            return made * feasible(at)

        scores = dict(zip(pool, score(pool)))
        if self._size > len(pool) + len(data.taken):
            for _ in range(_ROUNDS):
                best = sorted(scores, key=scores.get)[-_BEST:]
                near = self._moves(best, data.taken | scores.keys(), fixed)
                if not near:
                    break
                scores.update(zip(near, score(near)))
        finalists = sorted(scores, key=scores.get)[-_FINALISTS:]
        at = self._coordinates(finalists)
        base = np.concatenate([x, self._coordinates(data.pending)])
        counts = np.concatenate([good, np.ones(len(data.pending), bool)])
        total = np.zeros(len(finalists))
        drawn = [one.draw(rng, base, at, _DRAWS) for one in objectives]
        for draws in zip(*drawn):
            front = np.stack([values for values, _ in draws], axis=1)[counts]
            beliefs = [belief for _, belief in draws]
            total += hypervolume.improvement(beliefs, front, reference)
        return finalists[int(np.argmax(total * feasible(at)))]


class _Axis(NamedTuple):
    values: tuple
    ranks: Mapping[Any, int]
    scale: np.ndarray


def _axis(name, distribution):
    for choice in distribution.choices:
        if isinstance(choice, bool) or not isinstance(choice, int | float):
            raise UserError(
                f"{name} has the choice {choice!r}; the sampler needs numbers, since "
                "it learns from their order"
            )
    values = tuple(sorted(set(distribution.choices)))
    scale = np.array(values, float)
    if scale[0] > 0:
        scale = np.log(scale)
    scale = (scale - scale[0]) / max(np.ptp(scale), 1e-300)
    return _Axis(values, {value: i for i, value in enumerate(values)}, scale)


class _Data(NamedTuple):
    """points: of finished trials with values: [n, objectives], to be minimised, and
    whether they are feasible; taken: all points of the study."""

    points: list
    values: np.ndarray
    feasible: list
    failed: list
    pending: list
    taken: set
    constraints: dict


def _read(trials, directions, point_of):
    data = _Data([], [], [], [], [], set(), {})
    signs = [1 if d == optuna.study.StudyDirection.MINIMIZE else -1 for d in directions]
    for trial in trials:
        fixed = trial.system_attrs.get("fixed_params", {})
        point = point_of({**fixed, **trial.params})
        if point is None:
            continue
        data.taken.add(point)
        if not trial.state.is_finished():
            data.pending.append(point)
            continue
        for name, value in trial.constraints.items():
            data.constraints.setdefault(name, []).append((point, value))
        if trial.state == TrialState.COMPLETE:
            data.points.append(point)
            data.values.append([s * v for s, v in zip(signs, trial.values)])
            data.feasible.append(all(v <= 0 for v in trial.constraints.values()))
        else:
            data.failed.append(point)
    return data._replace(values=np.array(data.values))


def _in_turn(study, trial, names):
    """The other trials, once those before this one have their parameters: a trial's
    number is a ticket, and so no two processes choose at once."""
    start = time.monotonic()
    while True:
        others = [t for t in study.get_trials(deepcopy=False) if t._trial_id != trial._trial_id]
        latest = datetime.datetime.now() - datetime.timedelta(seconds=_PATIENCE)
        before = [
            other
            for other in others
            if other.number < trial.number
            and other.state == TrialState.RUNNING
            and not names <= other.params.keys()
            and other.datetime_start > latest
        ]
        if not before or time.monotonic() - start > _PATIENCE:
            return others
        time.sleep(0.02)


class _Objective:
    def __init__(self, x, y):
        y = np.where(np.isfinite(y), y, np.inf)
        low, middle, high = np.quantile(y, (0.25, 0.5, 0.75), method="lower")
        worst = middle + 5 * max(high - low, middle - y.min())
        y = np.minimum(y, worst)
        some = np.unique(np.linspace(0, len(y) - 1, min(_FITTED, len(y))).astype(int))
        made = []
        for log in (False, True) if y.min() > 0 else (False,):
            z = np.log(y) if log else y
            centre, spread = z.mean(), max(z.std(), 1e-9)
            z = (z - centre) / spread
            theta = gp.fit(x[some], z[some])
            evidence = -gp.negative_evidence(theta, x[some], z[some])[0] - len(
                some
            ) * np.log(spread)
            if log:
                evidence -= np.log(y[some]).sum()
            made.append((evidence, log, centre, spread, theta, z))
        _, self.log, self.centre, self.spread, theta, z = max(made, key=lambda m: m[0])
        self.process = gp.condition(theta, x, z)

    def belief(self, at):
        mean, variance = gp.predict(self.process, at)
        return hypervolume.Belief(
            self.centre + self.spread * mean, self.spread * variance**0.5, self.log
        )

    def means(self, at):
        mean = self.belief(at).mean
        return np.exp(mean) if self.log else mean

    def draw(self, rng, base, at, count):
        for values, mean, variance in gp.draws(self.process, base, at, rng, count):
            values = self.centre + self.spread * values
            yield (
                np.exp(values) if self.log else values,
                hypervolume.Belief(
                    self.centre + self.spread * mean,
                    self.spread * variance**0.5,
                    self.log,
                ),
            )


def _chances(data, coordinates):
    """at -> the chance that all constraints hold and nothing fails there."""
    processes = []
    told = list(data.constraints.values())
    if data.failed:
        told.append(
            [(p, 1.0) for p in data.failed] + [(p, -1.0) for p in data.points]
        )
    for pairs in told:
        x = coordinates([point for point, _ in pairs])
        y = np.array([value for _, value in pairs])
        centre, spread = y.mean(), max(y.std(), 1e-9)
        y = (y - centre) / spread
        theta = gp.fit(x[-_FITTED:], y[-_FITTED:])
        processes.append((gp.condition(theta, x, y), -centre / spread))

    def chance(at):
        made = np.ones(len(at))
        for process, limit in processes:
            mean, variance = gp.predict(process, at)
            made *= ndtr((limit - mean) / variance**0.5)
        return made

    return chance


def warm_start(study: optuna.Study, earlier: optuna.Study) -> int:
    return 0
