"""Which architecture should be tried next? Bayesian search over a grid of sizes."""

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
from scipy.stats import qmc
from threadpoolctl import threadpool_limits

from autodistill_jax.errors import UserError
from autodistill_jax.search import ehvi

_MAX_LISTED = 50_000  # A space up to here is listed, a larger one is drawn from.
_MAX_SCORED = 2_000  # Candidates that are looked at before the moves around the best.
_MOVE_ROUNDS, _MOVE_STARTS = 4, 10  # Of moves, and how many points each starts from.
_LONG_AXIS = 16  # Values of an axis, from which not all are moved to.
_NUM_FINALISTS = 300  # Candidates over which the front's own uncertainty is integrated.
_PARAMETERS_TIMEOUT = (
    30.0  # Seconds that another process has between a trial and its parameters.
)


# The attribute of a trial that died with its process and is run again as another.
ABANDONED = "lost"


def is_abandoned(trial: optuna.trial.FrozenTrial) -> bool:
    """One that came to an end after all is not."""
    return bool(trial.user_attrs.get(ABANDONED)) and trial.state != TrialState.COMPLETE


class SpaceExhausted(UserError):
    """No point is left that may be tried."""


class BayesSampler(optuna.samplers.BaseSampler):
    """Bayesian search of a finite grid, one objective or more.

    A Gaussian process an objective and a constraint. The next point has the largest
    expected hypervolume improvement (one objective: expected improvement) times chance
    of being feasible. Running trials are reckoned with. Constraints are those that
    trials carry (`trial.set_constraint`, at most 0 is feasible); once a trial has
    failed, failing is one more.

    No point is suggested that the study has in any state. Several processes may share a
    study: a trial waits for the parameters of those before it. What is suggested follows
    from the seed, the trial's number and the trials so far alone.

    Args:
      space: name -> choices, numbers; the same that `study.ask` is given. Coordinates
        are their logarithms where all are positive.
      allowed: may these parameters be tried at all? Must not change its mind.
      n_startup: trials that fill the space, before a process is asked.

    Raises:
      UserError: the space has one point, or a choice that is no number.
      Exhausted: from `study.ask`, if nothing is left; the trial is told as failed.
    """

    def __init__(
        self,
        space: Mapping[str, CategoricalDistribution],
        seed: int = 0,
        allowed: Callable[[dict[str, Any]], bool] = lambda params: True,
        n_startup: int = 8,
    ):
        self._space = dict(space)
        self._axes = {name: _axis(name, one) for name, one in space.items()}
        self._levels = [len(axis.values) for axis in self._axes.values()]
        self._size = math.prod(self._levels)
        self._seed = seed
        self._allowed = allowed
        self._n_startup = n_startup
        self._listed = None
        if self._size < 2:
            raise UserError("a space of one point needs no search; give an axis two")
        if self._size <= _MAX_LISTED:
            grid = itertools.product(*map(range, self._levels))
            self._listed = dict.fromkeys(filter(self._permits, grid))

    def infer_relative_search_space(self, study, trial):
        return self._space

    def sample_independent(self, study, trial, param_name, param_distribution):
        raise UserError(
            f"{param_name} is no axis of the sampler; ask for {', '.join(self._space)}"
        )

    def sample_relative(self, study, trial, search_space):
        trials = _earlier_trials(study, trial, self._space.keys())
        rng = np.random.default_rng([self._seed, trial.number])
        data = self._read(trials, study.directions)
        fixed = trial.system_attrs.get("fixed_params", {})
        pool = self._pool(rng, data, fixed)
        if not pool:
            study.tell(trial.number, state=TrialState.FAIL)
            raise SpaceExhausted(
                f"nothing is left to try: {len(data.taken)} of the space's "
                f"{self._size} points are in the study and no other that is allowed "
                "was found; widen the space or the budget, or end the search here"
            )
        known = len(data.points) + len(data.failed) + len(data.pending)
        if len(data.points) < 2 or known < self._n_startup:
            chosen = self._fill(pool, known)
        else:
            # More threads take matrices this small no less time, and far more CPU.
            with threadpool_limits(1, user_api="blas"):
                chosen = self._improve(rng, pool, data, fixed)
        return self._params(chosen)

    def point(self, params: Mapping[str, Any]) -> tuple[int, ...] | None:
        """The ranks of its sizes; None if it is not of the space."""
        ranks = [axis.ranks.get(params.get(n)) for n, axis in self._axes.items()]
        return None if None in ranks else tuple(ranks)

    def _params(self, point):
        axes = self._axes.items()
        return {name: axis.values[rank] for (name, axis), rank in zip(axes, point)}

    def _coordinates(self, points):
        ranks = np.array(points, int).reshape(-1, len(self._axes)).T
        axes = self._axes.values()
        return np.stack([axis.scale[one] for axis, one in zip(axes, ranks)], axis=1)

    def _read(self, trials, directions):
        data = _TrialPoints([], [], [], [], [], set(), {})
        signs = [-1 if one.name == "MAXIMIZE" else 1 for one in directions]
        for trial in trials:
            fixed = trial.system_attrs.get("fixed_params", {})
            point = self.point(fixed | trial.params)
            if point is None or is_abandoned(trial):
                continue
            data.taken.add(point)
            if not trial.state.is_finished():
                data.pending.append(point)
                continue
            for name, value in trial.constraints.items():
                data.constraints.setdefault(name, []).append((point, value))
            if trial.state == TrialState.COMPLETE:
                feasible = all(value <= 0 for value in trial.constraints.values())
                data.points.append(point)
                data.values.append([s * v for s, v in zip(signs, trial.values)])
                data.counts.append(feasible and self._permits(point))
            elif all(value <= 0 for value in trial.constraints.values()):
                data.failed.append(point)  # Not for a constraint that is known.
        return data

    def _permits(self, point):
        if self._listed is not None:
            return point in self._listed
        return self._allowed(self._params(point))

    def _open(self, points, taken, fixed):
        """Those that may be suggested, each once, with what an enqueued trial fixes."""
        fresh = [point for point in dict.fromkeys(points) if point not in taken]
        if fixed:
            fresh = [p for p in fresh if fixed.items() <= self._params(p).items()]
        return [point for point in fresh if self._permits(point)]

    def _pool(self, rng, data, fixed):
        """What is left, or some of it."""
        if self._listed is not None:
            left = self._open(self._listed, data.taken, fixed)
            if len(left) <= _MAX_SCORED:
                return left
            return [left[i] for i in rng.choice(len(left), _MAX_SCORED, replace=False)]
        some = []
        # Where little is allowed it is the small: each round leans further to it.
        for lean in range(1, 21):
            draws = rng.random((_MAX_SCORED, len(self._levels))) ** lean * self._levels
            some += self._open(
                map(tuple, draws.astype(int).tolist()), data.taken, fixed
            )
            if len(some) >= _MAX_SCORED // 2:
                break
        return some or self._moves(data.points, data.taken, fixed)

    def _moves(self, points, taken, fixed):
        """What is open one axis away; of a long axis near at hand and ever wider."""
        moves = (
            (*point[:axis], rank, *point[axis + 1 :])
            for point in points
            for axis, levels in enumerate(self._levels)
            for rank in _nearby_ranks(point[axis], levels)
        )
        return self._open(moves, taken, fixed)

    def _fill(self, pool, count):
        """The open point closest to the count-th of a design that fills the space."""
        block, place = divmod(count, self._n_startup)
        rng = np.random.default_rng([self._seed, block])
        cube = qmc.LatinHypercube(len(self._axes), optimization="random-cd", rng=rng)
        goal = cube.random(self._n_startup)[place]
        apart = (np.array(pool) + 0.5) / self._levels - goal
        return pool[np.argmin((apart**2).sum(axis=1))]

    def _improve(self, rng, pool, data, fixed):
        told = [tuple(zip(*pairs)) for pairs in data.constraints.values()]
        if data.failed:
            fails = [1] * len(data.failed) + [-1] * len(data.points)
            told.append((data.failed + data.points, fails))
        rough, fine = ehvi.acquisition(
            self._coordinates(data.points),
            np.array(data.values),
            np.array(data.counts),
            [(self._coordinates(p), np.array(v, float)) for p, v in told],
            self._coordinates(data.pending),
            rng,
        )
        scores = dict(zip(pool, rough(self._coordinates(pool))))
        if len(pool) + len(data.taken) < self._size:
            # Moves start from measured points, too.
            scores.update(zip(data.points, rough(self._coordinates(data.points))))
            for _ in range(_MOVE_ROUNDS):
                best = sorted(scores, key=scores.get)[-_MOVE_STARTS:]
                near = self._moves(best, data.taken | scores.keys(), fixed)
                if not near:
                    break
                scores.update(zip(near, rough(self._coordinates(near))))
        new = [point for point in scores if point not in data.taken]
        finalists = sorted(new, key=scores.get)[-_NUM_FINALISTS:]
        return finalists[np.argmax(fine(self._coordinates(finalists)))]


def _nearby_ranks(rank, levels):
    if levels <= _LONG_AXIS:
        return range(levels)
    steps = [2**i for i in range(levels.bit_length())]
    near = {rank + sign * step for step in steps for sign in (-1, 1)}
    return sorted(one for one in near if 0 <= one < levels)


class _Axis(NamedTuple):
    values: tuple
    ranks: Mapping[Any, int]
    scale: np.ndarray  # 0 to 1.


def _axis(name, distribution):
    for choice in distribution.choices:
        if isinstance(choice, bool) or not isinstance(choice, int | float):
            raise UserError(
                f"{name} has the choice {choice!r}; the sampler needs numbers, since it "
                "learns from their order"
            )
    values = tuple(sorted(set(distribution.choices)))
    scale = np.array(values, float)
    if scale[0] > 0:
        scale = np.log(scale)
    scale = (scale - scale[0]) / max(np.ptp(scale), 1e-9)
    return _Axis(values, {value: i for i, value in enumerate(values)}, scale)


class _TrialPoints(NamedTuple):
    """Trials as points. `values` are to be minimised; `counts`: which of `points` may be
    on the front; `constraints`: name -> (point, value) pairs."""

    points: list
    values: list
    counts: list
    failed: list
    pending: list
    taken: set
    constraints: dict


def _earlier_trials(study, trial, names):
    """The other trials, once those before this one have their parameters: its number is
    a ticket, and no two processes choose at once. One that died is not waited for."""
    start = time.monotonic()
    while True:
        others = [t for t in study.get_trials(False) if t.number != trial.number]
        latest = datetime.datetime.now() - datetime.timedelta(
            seconds=_PARAMETERS_TIMEOUT
        )
        choosing = [
            other
            for other in others
            if other.number < trial.number
            and other.state == TrialState.RUNNING
            and not names <= other.params.keys()
            and other.datetime_start > latest
        ]
        if not choosing or time.monotonic() - start > _PARAMETERS_TIMEOUT:
            return others
        time.sleep(0.01)
