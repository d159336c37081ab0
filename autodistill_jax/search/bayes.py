"""The Bayesian sampler: the next point of a grid of sizes, as an Optuna sampler."""

import datetime
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc
from threadpoolctl import threadpool_limits

from autodistill_jax.errors import UserError
from autodistill_jax.search import ehvi

_MAX_LISTED = 50_000  # A space up to here is listed, a larger one is drawn from.
_MAX_SCORED = 2_000  # Candidates that are looked at before the moves around the best.
_MOVE_ROUNDS, _MOVE_STARTS = 4, 10  # Of moves, and how many points each starts from.
_LONG_AXIS = 16  # Values of an axis, from which not all are moved to.
_NUM_FINALISTS = 300  # Candidates over which the front's own uncertainty is integrated.
# Seconds that another process has between a trial and its parameters.
_PARAMETERS_TIMEOUT = 30.0

# The attribute of a trial that died with its process and is run again as another.
ABANDONED = "abandoned"


def is_abandoned(trial: optuna.trial.FrozenTrial) -> bool:
    """Did the trial die with its process? One that came to an end after all did not."""
    return bool(trial.user_attrs.get(ABANDONED)) and trial.state != TrialState.COMPLETE


_Point = tuple[int, ...]  # The rank of each value on its axis.


class SpaceExhausted(UserError):
    """No point is left that may be tried."""


class BayesSampler(optuna.samplers.BaseSampler):
    """Bayesian search of a finite grid, one objective or more.

    A Gaussian process for each objective and each constraint. The next point has the
    largest expected hypervolume improvement (one objective: expected improvement) times
    chance of being feasible. Running trials are reckoned with. Constraints are those
    that trials carry (`trial.set_constraint`, at most 0 is feasible); once a trial has
    failed, failing is one more.

    No point is suggested that the study has in any state. Several processes may share a
    study: a trial waits for the parameters of those before it. What is suggested
    follows from the seed, the trial's number and the trials so far alone.

    Args:
      space: name -> choices, numbers; the same that `study.ask` is given. Coordinates
        are their logarithms where all are positive.
      seed: of all draws.
      allowed: may these parameters be tried at all? Must not change its mind.
      n_startup: trials that fill the space, before a process is asked.

    Raises:
      UserError: the space has one point, or a choice that is not a number.
      SpaceExhausted: from `study.ask`, if nothing is left; the trial fails.
    """

    def __init__(
        self,
        space: Mapping[str, CategoricalDistribution],
        seed: int = 0,
        allowed: Callable[[dict[str, Any]], bool] = lambda params: True,
        n_startup: int = 8,
    ):
        self._space = dict(space)
        self._axes = {
            name: _make_axis(name, choices) for name, choices in space.items()
        }
        self._levels = [len(axis.values) for axis in self._axes.values()]
        self._num_points = math.prod(self._levels)
        self._seed = seed
        self._allowed = allowed
        self._n_startup = n_startup
        self._allowed_points = None
        if self._num_points < 2:
            raise UserError("a space of one point needs no search; give an axis two")
        if self._num_points <= _MAX_LISTED:
            grid = itertools.product(*map(range, self._levels))
            self._allowed_points = dict.fromkeys(filter(self._is_allowed, grid))

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, Any]:
        """The axes that `sample_relative` gives a value; Optuna's interface."""
        return self._space

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: Any,
    ) -> NoReturn:
        """Refuses what is not an axis; Optuna's interface.

        Raises:
          UserError: always.
        """
        raise UserError(
            f"{param_name} is not an axis of the sampler; ask for "
            f"{', '.join(self._space)}"
        )

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What a trial tries: the candidate with the largest acquisition.

        Args:
          study: its finished trials are what is learned from.
          trial: its number seeds the draws.
          search_space: of `infer_relative_search_space`.

        Returns:
          {axis: value}.

        Raises:
          SpaceExhausted: all of the space has been tried.
        """
        trials = _earlier_trials(study, trial, self._space.keys())
        rng = np.random.default_rng([self._seed, trial.number])
        data = self._trial_points(trials, study.directions)
        fixed = trial.system_attrs.get("fixed_params", {})
        pool = self._candidates(rng, data, fixed)
        if not pool:
            study.tell(trial.number, state=TrialState.FAIL)
            raise SpaceExhausted(
                f"nothing is left to try: {len(data.tried)} of the space's "
                f"{self._num_points} points are in the study and no other that is "
                "allowed was found; widen the space or the budget, or end the search "
                "here"
            )
        num_trials = len(data.points) + len(data.failed) + len(data.pending)
        if len(data.points) < 2 or num_trials < self._n_startup:
            chosen = self._space_filling(pool, num_trials)
        else:
            # More threads take matrices this small no less time, and far more CPU.
            with threadpool_limits(1, user_api="blas"):
                chosen = self._most_improving(rng, pool, data, fixed)
        return self._params(chosen)

    def point(self, params: Mapping[str, Any]) -> tuple[int, ...] | None:
        """The grid point of a trial's parameters.

        Args:
          params: {axis: its value}.

        Returns:
          The rank of each value on its axis; None if one is not of the space.
        """
        ranks = [axis.ranks.get(params.get(n)) for n, axis in self._axes.items()]
        return None if None in ranks else tuple(ranks)

    def posterior_medians(
        self, params: Sequence[Mapping[str, Any]], values: Sequence[float]
    ) -> np.ndarray:
        """What noisy values of points truly are, by the model that suggests points.

        Args:
          params: {axis: its value} of each point; one may stand twice.
          values: of each, of one objective, to be minimised.

        Returns:
          [points], in the values' units.
        """
        x = self._coordinates([self.point(p) for p in params])
        rng = np.random.default_rng(self._seed)
        objective = ehvi.fit_objective(x, np.asarray(values, float), rng)
        return ehvi.median_value(objective, x)

    def _params(self, point):
        axes = self._axes.items()
        return {name: axis.values[rank] for (name, axis), rank in zip(axes, point)}

    def _coordinates(self, points):
        ranks = np.array(points, int).reshape(-1, len(self._axes)).T
        axes = self._axes.values()
        return np.stack([axis.scale[r] for axis, r in zip(axes, ranks)], axis=1)

    def _trial_points(self, trials, directions):
        data = _TrialPoints([], [], [], [], [], set(), {})
        signs = [-1 if d.name == "MAXIMIZE" else 1 for d in directions]
        for trial in trials:
            fixed = trial.system_attrs.get("fixed_params", {})
            point = self.point(fixed | trial.params)
            if point is None or is_abandoned(trial):
                continue
            data.tried.add(point)
            if not trial.state.is_finished():
                data.pending.append(point)
                continue
            for name, value in trial.constraints.items():
                data.constraints.setdefault(name, []).append((point, value))
            if trial.state == TrialState.COMPLETE:
                feasible = all(value <= 0 for value in trial.constraints.values())
                data.points.append(point)
                data.values.append([s * v for s, v in zip(signs, trial.values)])
                data.eligible.append(feasible and self._is_allowed(point))
            elif all(value <= 0 for value in trial.constraints.values()):
                data.failed.append(point)
        return data

    def _is_allowed(self, point):
        if self._allowed_points is not None:
            return point in self._allowed_points
        return self._allowed(self._params(point))

    def _suggestible(
        self, points: Iterable[_Point], tried: Collection[_Point], fixed: Mapping
    ) -> list[_Point]:
        """Those that may be suggested, each once, with what an enqueued trial fixes."""
        fresh = [point for point in dict.fromkeys(points) if point not in tried]
        if fixed:
            fresh = [p for p in fresh if fixed.items() <= self._params(p).items()]
        return [point for point in fresh if self._is_allowed(point)]

    def _candidates(self, rng, data, fixed):
        """Points that may be suggested: all of them, or a draw."""
        if self._allowed_points is not None:
            untried = self._suggestible(self._allowed_points, data.tried, fixed)
            if len(untried) <= _MAX_SCORED:
                return untried
            return [
                untried[i] for i in rng.choice(len(untried), _MAX_SCORED, replace=False)
            ]
        candidates = []
        # Where little is allowed it is the small: each round leans further to it.
        for lean in range(1, 21):
            draws = rng.random((_MAX_SCORED, len(self._levels))) ** lean * self._levels
            candidates += self._suggestible(
                map(tuple, draws.astype(int).tolist()), data.tried, fixed
            )
            if len(candidates) >= _MAX_SCORED // 2:
                break
        return candidates or self._neighbours(data.points, data.tried, fixed)

    def _neighbours(
        self, points: Iterable[_Point], tried: Collection[_Point], fixed: Mapping
    ) -> list[_Point]:
        """What may be suggested one axis away; on a long axis, near and ever wider."""
        neighbours = (
            (*point[:axis], rank, *point[axis + 1 :])
            for point in points
            for axis, levels in enumerate(self._levels)
            for rank in _nearby_ranks(point[axis], levels)
        )
        return self._suggestible(neighbours, tried, fixed)

    def _space_filling(self, pool, count):
        """The candidate closest to the count-th of a design that fills the space."""
        block, place = divmod(count, self._n_startup)
        rng = np.random.default_rng([self._seed, block])
        cube = qmc.LatinHypercube(len(self._axes), optimization="random-cd", rng=rng)
        goal = cube.random(self._n_startup)[place]
        offsets = (np.array(pool) + 0.5) / self._levels - goal
        return pool[np.argmin((offsets**2).sum(axis=1))]

    def _most_improving(
        self,
        rng: np.random.Generator,
        pool: list[_Point],
        data: "_TrialPoints",
        fixed: Mapping,
    ) -> _Point:
        """The candidate, or neighbour of a good one, that promises most."""
        constraints: list[Sequence[Sequence[Any]]] = [
            tuple(zip(*pairs)) for pairs in data.constraints.values()
        ]
        if data.failed:
            fails = [1] * len(data.failed) + [-1] * len(data.points)
            constraints.append((data.failed + data.points, fails))
        rough, fine = ehvi.acquisition(
            self._coordinates(data.points),
            np.array(data.values),
            np.array(data.eligible),
            [(self._coordinates(p), np.array(v, float)) for p, v in constraints],
            self._coordinates(data.pending),
            rng,
        )
        scores = dict(zip(pool, rough(self._coordinates(pool))))
        if len(pool) + len(data.tried) < self._num_points:
            # Moves start from measured points, too.
            scores.update(zip(data.points, rough(self._coordinates(data.points))))
            for _ in range(_MOVE_ROUNDS):
                ranked = sorted(scores, key=lambda point: scores[point])
                best = ranked[-_MOVE_STARTS:]
                near = self._neighbours(best, data.tried | scores.keys(), fixed)
                if not near:
                    break
                scores.update(zip(near, rough(self._coordinates(near))))
        untried = [point for point in scores if point not in data.tried]
        ranked = sorted(untried, key=lambda point: scores[point])
        finalists = ranked[-_NUM_FINALISTS:]
        return finalists[np.argmax(fine(self._coordinates(finalists)))]


def _nearby_ranks(rank, levels):
    if levels <= _LONG_AXIS:
        return range(levels)
    steps = [2**i for i in range(levels.bit_length())]
    near = {rank + sign * step for step in steps for sign in (-1, 1)}
    return sorted(r for r in near if 0 <= r < levels)


class _Axis(NamedTuple):
    """An axis of the grid.

    Attributes:
      values: in order.
      ranks: value -> its place in that order.
      scale: [values] coordinates from 0 to 1.
    """

    values: tuple
    ranks: Mapping[Any, int]
    scale: np.ndarray


def _make_axis(name, distribution):
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
    scale = (scale - scale[0]) / max(np.ptp(scale), 1e-9)
    return _Axis(values, {value: i for i, value in enumerate(values)}, scale)


class _TrialPoints(NamedTuple):
    """The trials of a study as grid points.

    Attributes:
      points: of the complete trials.
      values: of each of `points`, its objectives' values, to be minimised.
      eligible: of each of `points`, may it be on the front?
      failed: points whose trial failed for no constraint that is known.
      pending: points whose trial is running or waiting.
      tried: the points of all trials, in whatever state.
      constraints: name -> (point, value) pairs; at most 0 is feasible.
    """

    points: list[_Point]
    values: list[list[float]]
    eligible: list[bool]
    failed: list[_Point]
    pending: list[_Point]
    tried: set[_Point]
    constraints: dict[str, list[tuple[_Point, float]]]


def _earlier_trials(study, trial, names):
    """The other trials, once those before this one have their parameters: its number is
    a ticket, and no two processes choose at once. One that died is not waited for."""
    start = time.monotonic()
    while True:
        other_trials = [t for t in study.get_trials(False) if t.number != trial.number]
        latest = datetime.datetime.now() - datetime.timedelta(
            seconds=_PARAMETERS_TIMEOUT
        )
        choosing = [
            t
            for t in other_trials
            if t.number < trial.number
            and t.state == TrialState.RUNNING
            and not names <= t.params.keys()
            and t.datetime_start > latest
        ]
        if not choosing or time.monotonic() - start > _PARAMETERS_TIMEOUT:
            return other_trials
        time.sleep(0.01)
