"""BoTorch's qLogNEHVI over the points of a grid, as an Optuna sampler."""

import itertools
from typing import Any

import numpy as np
import optuna
from search_problems import Problem, distributions


class GridNehvi(optuna.samplers.BaseSampler):
    """BoTorch's noisy expected hypervolume improvement in its logarithmic form, over all
    points of a grid that are not tried."""

    def __init__(self, problem: Problem, seed: int):
        self._axes = list(problem.axes)
        self._distributions = distributions(problem, ranks=True)
        levels = [range(len(values)) for values in problem.axes.values()]
        self._grid = list(itertools.product(*levels))
        logs = np.log(list(itertools.product(*problem.axes.values())))
        reach = np.maximum(np.ptp(logs, axis=0), 1e-9)
        self._unit = dict(zip(self._grid, (logs - logs.min(axis=0)) / reach))
        self._seed = seed

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict:
        return self._distributions

    def sample_independent(self, study: Any, trial: Any, name: str, space: Any) -> int:
        raise AssertionError(f"{name} is enqueued or sampled with the others")

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict:
        if "fixed_params" in trial.system_attrs:
            return {}
        points, values, constraints = [], [], []
        for finished in study.get_trials(deepcopy=False):
            if finished.state == optuna.trial.TrialState.COMPLETE:
                points.append(tuple(finished.params[name] for name in self._axes))
                values.append(finished.values)
                constraints.append(dict(finished.constraints))
        untried = [point for point in self._grid if point not in set(points)]
        chosen = most_improving(
            np.stack([self._unit[point] for point in points]),
            np.asarray(values),
            constraints,
            np.stack([self._unit[point] for point in untried]),
            self._seed,
        )
        return dict(zip(self._axes, untried[chosen]))


def most_improving(
    x: np.ndarray,
    values: np.ndarray,
    constraints: list[dict[str, float]],
    untried: np.ndarray,
    seed: int,
) -> int:
    """qLogNEHVI -> the place of the best untried point.

    A trial that failed (`failed` above 0) says nothing of the objectives, and a
    constraint that it lacks is not known there.
    """
    import torch
    from botorch.acquisition.multi_objective import logei
    from botorch.acquisition.multi_objective.objective import (
        IdentityMCMultiOutputObjective,
    )
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelListGP, SingleTaskGP
    from botorch.models.transforms import Standardize
    from botorch.sampling import SobolQMCNormalSampler
    from gpytorch.mlls import SumMarginalLogLikelihood

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    worked = np.asarray([c.get("failed", -1.0) <= 0 for c in constraints])
    columns = [(x[worked], -column[worked]) for column in values.T]
    names = sorted({name for c in constraints for name in c})
    for name in names:
        measured_places = [i for i, c in enumerate(constraints) if name in c]
        column = np.asarray([constraints[i][name] for i in measured_places])
        if np.ptp(column) > 0:
            columns.append((x[measured_places], column))
    model = ModelListGP(
        *(
            SingleTaskGP(
                torch.tensor(inputs),
                torch.tensor(column)[:, None],
                outcome_transform=Standardize(1),
            )
            for inputs, column in columns
        )
    )
    fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
    is_feasible = [all(v <= 0 for v in c.values()) for c in constraints]
    observed = values[is_feasible] if any(is_feasible) else values[worked]
    reach = np.maximum(np.ptp(observed, axis=0), 1e-9)
    acquisition = logei.qLogNoisyExpectedHypervolumeImprovement(
        model,
        torch.tensor(-(observed.max(axis=0) + 0.1 * reach)),
        torch.tensor(x[worked]),
        sampler=SobolQMCNormalSampler(torch.Size([128]), seed=seed),
        objective=IdentityMCMultiOutputObjective(outcomes=[0, 1]),
        constraints=[lambda z, i=i: z[..., i] for i in range(2, len(columns))] or None,
        prune_baseline=True,
    )
    with torch.no_grad():
        scores = [
            acquisition(part) for part in torch.tensor(untried)[:, None].split(64)
        ]
    return int(torch.cat(scores).argmax())
