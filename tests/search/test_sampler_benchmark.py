"""Is the comparison of samplers fair, and can every benchmark be imported?"""

import importlib
from pathlib import Path

import bayes
import numpy as np
import pytest
from search_problems import PROBLEMS, distributions

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(
    "path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem
)
def test_every_benchmark_is_imported(path):
    assert importlib.import_module(path.stem).__doc__


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_a_point_measures_is_near_its_truth_whoever_asks(name):
    problem = PROBLEMS[name](3)
    truth = np.asarray(list(problem.truth.values()))
    reach = np.ptp(truth, axis=0)
    points = list(problem.truth)[:: len(truth) // 20]
    for point in points:
        values, constraints = bayes.measure(problem, 3, point)
        assert (values, constraints) == bayes.measure(problem, 3, point)
        assert (np.abs(np.subtract(values, problem.truth[point])) < 0.5 * reach).all()
        assert all(value <= 0 for value in constraints.values())
    # Both objectives cannot be best at once: there is something to search.
    assert truth[:, 0].argmin() != truth[:, 1].argmin()


def test_peers_at_their_best_start_as_ours_and_pay_for_no_repeat():
    problem = PROBLEMS["constrained"](0)
    scores = {}
    for name in ("ours", "random_best", "nsga2_best", "tpe_best"):
        scores[name] = bayes.run(name, 0, problem, 12)
        assert len(scores[name]) == 12
        assert scores[name][:8] == scores["ours"][:8]
        assert all(np.diff(scores[name]) >= 0) and 0 <= scores[name][-1] <= 1
    # As it is, a failure is one trial more; all points of 12 trials cannot be repeats.
    assert len(bayes.run("nsga2", 0, problem, 12)) == 12


def test_a_failure_is_told_as_a_constraint_that_is_not_met():
    problem = PROBLEMS["roofline"](0)
    point = tuple(values[-1] for values in problem.axes.values())
    measured = bayes.measure(problem, 0, point)
    assert measured == (None, {})
    study = bayes._study(bayes.SAMPLERS["random"].make_fn(0, problem))
    trial = study.ask(distributions(problem, ranks=True))
    worked = bayes.measure(problem, 0, next(iter(problem.truth)))
    bayes.tell(study, trial, measured, bayes._as_failed(problem, [measured, worked]))
    (finished,) = study.trials
    assert finished.values == list(worked[0]) and finished.constraints == {
        "failed": 1.0
    }


def test_botorchs_sampler_goes_on_behind_the_starts_and_failures():
    pytest.importorskip("botorch", reason="needs botorch")
    problem = PROBLEMS["roofline"](0)
    scores = bayes.run("qlognehvi", 0, problem, 11)
    assert len(scores) == 11 and all(np.diff(scores) >= 0)
