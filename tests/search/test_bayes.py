"""Is a suggestion new, allowed and worth a trial, and is its arithmetic right?"""

import threading

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from scipy.optimize import approx_fprime

from autodistill_jax.errors import UserError
from autodistill_jax.search import bayes, ehvi, gp

optuna.logging.set_verbosity(optuna.logging.ERROR)
TWO = ("minimize", "minimize")


def space(**axes):
    return {name: CategoricalDistribution(values) for name, values in axes.items()}


SMALL = space(layers=(2, 4, 6), hidden=(128, 256, 512), heads=(2, 4))
GRID = space(
    layers=(2, 3, 4, 6, 8), hidden=(128, 192, 256, 384, 512), heads=(2, 4, 8, 12)
)


def study_of(axes, directions=TWO, seed=0, **settings):
    sampler = bayes.BayesSampler(axes, seed=seed, **settings)
    return optuna.create_study(directions=list(directions), sampler=sampler)


def values_of(params):
    """Error and time, both positive: more of a thing is better and slower."""
    size = np.log2(params["layers"]) + np.log2(params["hidden"] / 64)
    error = np.exp(-0.3 * size) + 0.03 * abs(np.log2(params["heads"]) - 2)
    return error, params["layers"] * params["hidden"] / 1000 + params["heads"] / 100


def search(study, axes, count, values=values_of):
    points = []
    for _ in range(count):
        trial = study.ask(axes)
        study.tell(trial, values(trial.params))
        points.append(tuple(trial.params.values()))
    return points


def front_volume(points):
    values = np.array([values_of(dict(zip(GRID, point))) for point in points])
    worst, total = np.array([1.0, 4.3]), 0.0
    for first, second in ehvi.nondominated(values):
        total += max(0, worst[0] - first) * max(0, worst[1] - second)
        worst[1] = min(worst[1], second)
    return total


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_expected_improvement_is_that_of_many_draws(objectives):
    rng = np.random.default_rng(0)
    front = rng.uniform(0.5, 2.0, (6, objectives))
    reference = np.full(objectives, 1.8)
    predictives = [
        ehvi.Predictive(
            rng.normal(0.9 * (i != 1), 0.4, 2), np.array([0.5, 0.2]), log=i == 1
        )
        for i in range(objectives)
    ]
    improvement = ehvi.expected_improvement(predictives, front, reference)
    samples = rng.uniform(-2, 1.8, (20_000, objectives))
    free = ~(front <= samples[:, None]).all(axis=2).any(axis=1)
    samples, box = samples[free], 3.8**objectives / 20_000
    for point in range(2):
        draws = [
            rng.normal(predictive.mean[point], predictive.deviation[point], 2_000)
            for predictive in predictives
        ]
        draws = [
            np.exp(d) if predictive.log else d
            for d, predictive in zip(draws, predictives)
        ]
        inside = np.ones((2_000, len(samples)), bool)
        for draw, column in zip(draws, samples.T):
            inside &= draw[:, None] <= column
        expected = inside.sum(axis=1).mean() * box
        assert improvement[point] == pytest.approx(expected, rel=0.08, abs=0.01)
    assert (
        ehvi.expected_improvement(predictives, front[:0], reference) >= improvement
    ).all()


def test_a_process_is_the_closed_form_and_its_gradient_that_of_differences():
    rng = np.random.default_rng(0)
    x, z = rng.random((12, 3)), rng.random((4, 3))
    y = np.sin(3 * x[:, 0]) + 0.1 * rng.normal(size=12)
    theta = rng.normal(-0.5, 0.3, 5)
    _, gradient = gp.negative_evidence(theta, x, y)
    expected = approx_fprime(theta, lambda t: gp.negative_evidence(t, x, y)[0], 1e-6)
    assert gradient == pytest.approx(expected, rel=1e-3, abs=1e-3)
    noisy = gp.covariance(theta, x, x) + np.exp(2 * theta[-1]) * np.eye(12)
    cross = gp.covariance(theta, x, z)
    process = gp.gp_posterior(theta, x, y)
    mean, variance = gp.predict_gp(process, z)
    assert mean == pytest.approx(cross.T @ np.linalg.solve(noisy, y), abs=1e-5)
    full_covariance = gp.covariance(theta, z, z) - cross.T @ np.linalg.solve(
        noisy, cross
    )
    assert variance == pytest.approx(np.diag(full_covariance), abs=1e-5)
    draws = list(gp.posterior_draws(process, np.concatenate([x, z[:1]]), z, rng, 4_000))
    means = np.array([m for _, m, _ in draws])
    assert means.mean(axis=0) == pytest.approx(mean, abs=0.05)
    spread = means.var(axis=0) + draws[0][2]
    assert spread == pytest.approx(variance, rel=0.1, abs=1e-3)
    assert draws[0][2][0] < 1e-4 < draws[0][2][1]  # z[0] is in the base.


@pytest.mark.parametrize("noise", [0.02, 0.5])
def test_noise_is_recovered(noise):
    rng = np.random.default_rng(0)
    x = rng.random((70, 3))
    y = np.sin(4 * x[:, 0]) * (1 + x[:, 1])
    y = (y - y.mean()) / y.std() + noise * rng.normal(size=70)
    assert 0.6 < np.exp(gp.fit_hyperparameters(x, y)[-1]) / noise < 1.7


def test_every_allowed_point_comes_once_and_then_the_end_is_told():
    study = study_of(SMALL, allowed=lambda p: p["layers"] * p["hidden"] <= 1536)
    points = []
    for i in range(14):
        trial = study.ask(SMALL)
        points.append(tuple(trial.params.values()))
        if i % 5 == 3:
            study.tell(trial, state=TrialState.FAIL)
        elif i % 5 == 4:
            study.tell(trial, state=TrialState.PRUNED)
        elif i % 7:  # The others go on running.
            study.tell(trial, values_of(trial.params))
    assert len(set(points)) == 14
    assert all(layers * hidden <= 1536 for layers, hidden, _ in points)
    with pytest.raises(bayes.SpaceExhausted, match="14 of the space's 18 points"):
        study.ask(SMALL)
    assert study.trials[-1].state == TrialState.FAIL


def test_a_pending_point_takes_worth_from_its_neighbours():
    rng = np.random.default_rng(0)
    x, at = rng.random((10, 2)), rng.random((60, 2))
    values = np.stack([1 + x.sum(axis=1), 3 - x.prod(axis=1) - x[:, 0]], axis=1)

    def worth(pending, constraints=()):
        parts = ehvi.acquisition(
            x, values, np.ones(10, bool), constraints, pending, np.random.default_rng(1)
        )
        return parts[1](at)

    alone = np.exp(worth(at[:0]))
    best = np.argmax(alone)
    with_pending = np.exp(worth(at[[best]]))
    apart = np.linalg.norm(at - at[best], axis=1)
    near, far = (apart < 0.15) & (apart > 0), apart > 0.5
    assert with_pending[best] < 0.05 * alone[best]
    assert with_pending[near].sum() < 0.5 * alone[near].sum()
    assert with_pending[far].sum() > 0.8 * alone[far].sum()
    # Nothing is taken by a point that is likely to be infeasible.
    hopeless = [(x, 1 + np.sin(40 * x[:, 0]))]
    lost = worth(at[:0], hopeless) - worth(at[[best]], hopeless)
    assert lost[best] < 0.3 and (lost[near] < 0.3).all()


def test_pending_trials_change_and_spread_what_is_suggested(monkeypatch):
    study, pending = study_of(GRID), []
    search(study, GRID, 12)
    original = ehvi.acquisition

    def acquisition(*args):
        pending.append(len(args[4]))
        return original(*args)

    monkeypatch.setattr(ehvi, "acquisition", acquisition)
    waiting = [study.ask(GRID) for _ in range(6)]
    study.enqueue_trial(dict(zip(GRID, (8, 512, 12))))
    study.enqueue_trial(dict(zip(GRID, (8, 512, 12))))
    for _ in range(3):
        trial = study.ask(GRID)
    assert pending == [0, 1, 2, 3, 4, 5, 8]
    points = np.array(
        [[list(GRID[n].choices).index(v) for n, v in t.params.items()] for t in waiting]
    )
    apart = np.abs(points[:, None] - points).sum(axis=2)
    assert len(np.unique(points, axis=0)) == 6 and apart.sum() / 30 > 2
    assert trial.params not in [t.params for t in study.trials[:-1]]


def test_what_an_enqueued_trial_leaves_open_is_new():
    study = study_of(SMALL)
    for layers, hidden in list(np.ndindex(3, 3))[:8]:
        params = {"layers": (2, 4, 6)[layers], "hidden": (128, 256, 512)[hidden]}
        study.enqueue_trial({**params, "heads": 4})
        study.tell(study.ask(SMALL), (1.0, 2.0))
    study.enqueue_trial({"heads": 4})
    expected = {"layers": 6, "hidden": 512, "heads": 4}
    assert study.ask(SMALL).params == expected


def test_what_is_infeasible_or_fails_is_avoided():
    def wide(params):
        return params["hidden"] >= 384

    for fails in (False, True):
        study, bad = study_of(GRID, seed=2), 0
        for i in range(30):
            trial = study.ask(GRID)
            bad += i >= 14 and wide(trial.params)
            if not fails:
                trial.set_constraint("memory", trial.params["hidden"] - 300)
            if fails and wide(trial.params):
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, values_of(trial.params))
        assert bad <= 3, fails  # Of 16; 40 % of the points are wide.


def test_spaces_too_large_to_list_are_searched():
    axes = space(**{f"axis{i}": tuple(range(1, 11)) for i in range(7)})

    def values(params):
        return sum((np.log2(v) - 2) ** 2 for v in params.values())

    study = study_of(axes, TWO[:1], allowed=lambda p: p["axis0"] != 5)
    points = search(study, axes, 26, values)
    assert len(set(points)) == 26 and all(point[0] != 5 for point in points)
    apart = [trial.value for trial in study.trials]
    assert min(apart[8:]) < 0.7 * min(apart[:8])
    with pytest.raises(bayes.SpaceExhausted):
        study_of(axes, allowed=lambda p: False).ask(axes)
    # Thirty-six of ten million points: no draw that is even would meet one.
    study = study_of(axes, TWO[:1], allowed=lambda p: sum(p.values()) <= 9)
    points = search(study, axes, 12, values)
    assert len(set(points)) == 12 and all(sum(point) <= 9 for point in points)


def test_directions_are_honoured():
    def shifted(params):  # Not all positive: no logarithms in either.
        return tuple(np.array(values_of(params)) - 1)

    def mirrored(params):
        error, seconds = shifted(params)
        return -error, seconds

    points = search(study_of(GRID), GRID, 14, shifted)
    assert points == search(study_of(GRID, ("maximize", TWO[1])), GRID, 14, mirrored)
    single = search(study_of(GRID, TWO[:1]), GRID, 16, lambda p: shifted(p)[1])
    assert (2, 128, 2) in single
    single = search(study_of(GRID, ("maximize",)), GRID, 16, lambda p: shifted(p)[1])
    assert (8, 512, 12) in single
    three = study_of(GRID, ("minimize", "maximize", "minimize"))
    assert len(set(search(three, GRID, 10, lambda p: (*mirrored(p), p["heads"])))) == 10


def test_odd_values_do_no_harm():
    for odd in (np.inf, -np.inf, 1e30, 0.0):
        study = study_of(GRID)
        for i in range(11):
            study.tell(study.ask(GRID), (odd if i % 3 else i, odd))
        trial = study.ask(GRID)
        trial.set_constraint("memory", 1e300)
        study.tell(trial, (1.0, 1.0))
        study.ask(GRID)


def test_a_resumed_study_goes_on_the_same():
    uninterrupted = search(study_of(GRID), GRID, 14)
    study = study_of(GRID)
    search(study, GRID, 9)
    study.sampler = bayes.BayesSampler(GRID, seed=0)
    assert search(study, GRID, 5) == uninterrupted[9:]
    assert search(study_of(GRID, seed=1), GRID, 14) != uninterrupted


def test_workers_of_one_journal_never_take_the_same_point(tmp_path):
    def connect(make):
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "log"))
        storage = optuna.storages.JournalStorage(backend)
        return make(storage, bayes.BayesSampler(SMALL, seed=0))

    def create(storage, sampler):
        optuna.create_study(
            storage=storage, sampler=sampler, study_name="s", directions=TWO
        )

    def load(storage, sampler):
        return optuna.load_study(storage=storage, sampler=sampler, study_name="s")

    def work():
        search(connect(load), SMALL, 6)

    connect(create)
    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    points = {tuple(trial.params.values()) for trial in connect(load).trials}
    assert len(points) == 18


def test_no_numbers_one_point_or_a_foreign_axis_are_refused():
    with pytest.raises(UserError, match="needs numbers"):
        bayes.BayesSampler(space(kind=("relu", "gelu"), heads=(1, 2)))
    with pytest.raises(UserError, match="one point"):
        bayes.BayesSampler(space(heads=(2,)))
    with pytest.raises(UserError, match="depth is not an axis"):
        study_of(SMALL).ask(space(depth=(1, 2)))


def test_a_front_is_found_sooner_than_at_random():
    bayes_volumes, random_volumes = [], []
    points = list(np.ndindex(5, 5, 4))
    for seed in range(3):
        searched = search(study_of(GRID, seed=seed), GRID, 20)
        bayes_volumes.append(front_volume(searched))
        indices = np.random.default_rng(seed).choice(len(points), 20, replace=False)
        choices = [axis.choices for axis in GRID.values()]
        random_volumes.append(
            front_volume(
                [[c[i] for c, i in zip(choices, points[draw])] for draw in indices]
            )
        )
    every = front_volume([[c[i] for c, i in zip(choices, p)] for p in points])
    assert (
        min(bayes_volumes) > max(random_volumes)
        and np.mean(bayes_volumes) > 0.98 * every
    )
