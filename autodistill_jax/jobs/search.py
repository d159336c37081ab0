"""Job `search`: proxies and costs of the affordable Archs, their front, one chosen."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from autodistill_jax import log, multihost, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.data.tasks import Task
from autodistill_jax.experiment import (
    labelled_data,
    proxy_inputs,
    student_latencies,
)
from autodistill_jax.experiment import trials as study_trials
from autodistill_jax.experiment.experiment import Experiment, latency_conditions
from autodistill_jax.experiment.fingerprints import choice_fingerprint
from autodistill_jax.experiment.superlm import trained_superlm
from autodistill_jax.experiment.workdir import arch_to_json, chosen_arch
from autodistill_jax.latency import table as latency_table
from autodistill_jax.search import proxies, study_storage
from autodistill_jax.search.selection import choose_arch, pareto_front
from autodistill_jax.train.classification import ClassificationData

# Archs evaluated before their trials are recorded: what a stop can lose.
_ARCHS_PER_RECORD = 8

# {Arch: {"proxy": lower is better, "flops", and what else is known}}.
_Trials = Mapping[AnyArch, dict[str, Any]]


class _SearchPlan(NamedTuple):
    """What a search starts from.

    Attributes:
      folder: search/ of the workdir.
      fingerprint: what the choice depends on besides the trained SuperLMs.
      exhaustive: every affordable Arch is evaluated, not a sample of them.
      superlms: {space: parameters}; empty where the proxy inherits no weights.
      conditions: under which latencies are taken.
    """

    folder: epath.Path
    fingerprint: dict
    exhaustive: bool
    superlms: dict[str, dict]
    conditions: latency_table.LatencyConditions


class _Candidates(NamedTuple):
    """What there is to choose from.

    Attributes:
      trials: {Arch: its figures}, with the latency of the timed ones.
      front: the Archs that no other beats in both proxy and cost, lowest proxy first.
      timed_archs: those whose latency is known.
      teacher: the teacher's cost and latency.
    """

    trials: _Trials
    front: list[AnyArch]
    timed_archs: list[AnyArch]
    teacher: dict[str, Any]


class _Outcome(NamedTuple):
    """What a search ends with.

    Attributes:
      choices: of each budget the Arch that was chosen, and why, for the user.
      trials: {Arch: its figures}, the executed params and flops among them.
    """

    choices: list[tuple[AnyArch, str]]
    trials: _Trials


def run_search(
    experiment: Experiment,
    workdir: epath.Path,
    task: Task | None = None,
    stage: str = "search",
) -> None:
    """Leaves search/study.db, trials.csv, latency.json and front.json.

    Under another budget than last time the proxies there are, and what is missing of
    them and of the latencies, make another choice.

    Args:
      experiment: with its spaces, see `loading.load_experiment`.
      workdir: holds the trained SuperLMs, unless the proxy is flash.
      task: that a labelled proxy needs.
      stage: what lines to the user begin with.

    Raises:
      UserError: no Arch meets the latency bound, or no trial came to an end.
    """
    if chosen_arch(experiment.config, workdir):
        log.say(f"{stage}: done already, {workdir / 'search' / 'front.json'}")
        return
    plan = _plan_search(experiment, workdir)
    find = _exhaustive_candidates if plan.exhaustive else _sampled_candidates
    candidates = find(experiment, workdir, plan, task, stage)
    outcome = _choose_candidates(experiment, plan, candidates, stage)
    _write_search(experiment, plan, candidates, outcome, stage)


def _plan_search(experiment: Experiment, workdir: epath.Path) -> _SearchPlan:
    fingerprint = choice_fingerprint(experiment.config)
    exhaustive = experiment.config.search.sampler == "all"
    spaces = (
        set(experiment.affordable.values()) if exhaustive else set(experiment.spaces)
    )
    if experiment.config.search.proxy == "flash":
        spaces = set()  # Nothing is inherited.
    return _SearchPlan(
        workdir / "search",
        fingerprint,
        exhaustive,
        {name: trained_superlm(experiment, workdir, name) for name in sorted(spaces)},
        latency_conditions(experiment.config),
    )


def _exhaustive_candidates(
    experiment: Experiment,
    workdir: epath.Path,
    plan: _SearchPlan,
    task: Task | None,
    stage: str,
) -> _Candidates:
    """All Archs under the budget; at most `latency.max_measurements` are timed: those
    that a latency bound asks for, else some of the front."""
    trials = _exhaustive_trials(experiment, workdir, plan.superlms, task, stage)
    front = pareto_front(trials, "flops")
    bounds_latency = any(budget.bounds_latency for budget in experiment.budgets)
    if bounds_latency and not experiment.config.search.fixed_arch:
        scores = {arch: values["proxy"] for arch, values in trials.items()}
        latencies = student_latencies.latencies_at_bound(
            experiment, plan.folder, plan.superlms, scores, stage
        )
        return _with_latencies(experiment, trials, front, list(trials), latencies)
    # Each is a compile, so only the front's, evenly over it, the best always in.
    count = min(len(front), max(experiment.config.latency.max_measurements, 1))
    picks = sorted({round(i) for i in np.linspace(0, len(front) - 1, count)})
    latencies = student_latencies.student_latencies(
        experiment, plan.folder, plan.superlms, [front[i] for i in picks], stage, front
    )
    return _with_latencies(experiment, trials, front, front, latencies)


def _sampled_candidates(
    experiment: Experiment,
    workdir: epath.Path,
    plan: _SearchPlan,
    task: Task | None,
    stage: str,
) -> _Candidates:
    """The Archs that a study tried; each was timed before it was evaluated: so with
    random weights."""
    path = plan.folder / "latency.json"
    latency_of = study_trials.latency_fn(experiment, path, plan.conditions, stage)
    teacher = experiment.teacher.arch
    teacher_ms = latency_table.trial_fields(latency_of(teacher))["latency_ms"]
    bounds = experiment.budget.bounds(
        {**experiment.cost(teacher), "latency_ms": teacher_ms}
    )
    trials = study_trials.run_trials(
        experiment,
        workdir,
        plan.superlms,
        lambda arch: latency_table.trial_fields(latency_of(arch))["latency_ms"],
        # A named Arch is taken whatever it costs.
        None if experiment.config.search.fixed_arch else bounds.get("latency_ms"),
        plan.conditions.record(),
        task,
        stage,
    )
    latencies = {"teacher": latency_of(teacher)}
    latencies |= {str(arch): latency_of(arch) for arch in trials}
    front = pareto_front(trials, "latency_ms")
    return _with_latencies(experiment, trials, front, list(trials), latencies)


def _with_latencies(
    experiment: Experiment,
    trials: _Trials,
    front: list[AnyArch],
    archs: Sequence[AnyArch],
    latencies: student_latencies.Latencies,
) -> _Candidates:
    """The candidates, with the latency of those of `archs` that have one."""
    timed_archs = [arch for arch in archs if str(arch) in latencies]
    updated = {
        arch: trials[arch] | latency_table.trial_fields(latencies[str(arch)])
        for arch in timed_archs
    }
    teacher = {
        **experiment.cost(experiment.teacher.arch),
        **latency_table.trial_fields(latencies["teacher"]),
    }
    return _Candidates({**trials, **updated}, front, timed_archs, teacher)


def _choose_candidates(
    experiment: Experiment, plan: _SearchPlan, candidates: _Candidates, stage: str
) -> _Outcome:
    config, choices = experiment.config, []
    for budget in experiment.budgets:
        archs = list(candidates.trials)
        if not config.search.fixed_arch:  # That one is taken whatever it costs.
            archs = experiment.archs_within(archs, budget)
        choices.append(
            choose_arch(
                {arch: candidates.trials[arch] for arch in archs},
                [arch for arch in candidates.timed_archs if arch in archs],
                candidates.teacher,
                budget,
                config.search.to_dict(),
            )
        )
    trials = dict(candidates.trials)
    # The chosen ones' figures are of their own extracted weights, too.
    archs = [arch for arch, _ in choices]
    if plan.exhaustive:
        archs = [arch for arch in archs if arch not in candidates.timed_archs]
    if plan.superlms and archs:
        latencies = student_latencies.student_latencies(
            experiment, plan.folder, plan.superlms, archs, stage
        )
        for arch in archs:
            fields = latency_table.trial_fields(latencies[str(arch)])
            trials[arch] = trials[arch] | fields
    # Last, so that params and flops are the executed ones whatever the budget counts.
    executed = {a: {**values, **experiment.cost(a)} for a, values in trials.items()}
    return _Outcome(choices, executed)


def _write_search(
    experiment: Experiment,
    plan: _SearchPlan,
    candidates: _Candidates,
    outcome: _Outcome,
    stage: str,
) -> None:
    path = plan.folder / "front.json"
    csv_text = study_storage.trials_csv(outcome.trials)
    storage.write_text(plan.folder / "trials.csv", csv_text)
    storage.write_json(
        path,
        {
            # The first budget's; of all the choices.
            "chosen": arch_to_json(outcome.choices[0][0]),
            "reason": outcome.choices[0][1],
            "choices": [
                {
                    "budget": dataclasses.asdict(budget),
                    "arch": arch_to_json(arch),
                    "reason": reason,
                }
                for budget, (arch, reason) in zip(experiment.budgets, outcome.choices)
            ],
            "front": [arch_to_json(arch) for arch in candidates.front],
            "trials": [
                {
                    "arch": arch_to_json(arch),
                    "space": experiment.affordable[arch],
                    **values,
                    "on_front": arch in candidates.front,
                }
                for arch, values in outcome.trials.items()
            ],
            "asked": plan.fingerprint,
            "teacher": {
                "arch": arch_to_json(experiment.teacher.arch),
                **candidates.teacher,
            },
            "space": experiment.num_archs(),
            "proxy": experiment.config.search.proxy,
            "sampler": experiment.config.search.sampler,
            "latency": plan.conditions.record(),
        },
    )
    for arch, reason in outcome.choices:
        log.say(f"{stage}: chose {arch}: {reason}")
    log.say(f"{stage}: made {path}")


def _exhaustive_trials(
    experiment: Experiment,
    workdir: epath.Path,
    superlms: Mapping[str, dict],
    task: Task | None,
    stage: str,
) -> _Trials:
    """The trials under the budget; those in the study already are not run again."""
    spaces, name = experiment.spaces, experiment.config.search.proxy
    folder = workdir / "search"

    @functools.cache  # The first process' alone.
    def study():
        study_name = proxy_inputs.study_name(experiment)
        return study_storage.open_study(folder, spaces, study_name)

    def record(results):
        for arch, values in results.items():
            study_storage.record_trial(study(), spaces, arch, values)
        study_storage.upload_study(folder)

    trials = multihost.on_first_process(
        lambda: study_storage.read_trials(study(), spaces)
    )
    missing = [arch for arch in experiment.affordable if arch not in trials]
    log.say(
        f"{stage}: {len(experiment.affordable)} of {experiment.num_archs()} "
        "sub-networks are within the bounds on parameters and multiply-adds, "
        f"{len(missing)} to evaluate by {name!r}: "
        f"{proxies.PROXIES[name]}"
    )
    rows = (
        labelled_data.classification_data(experiment, task)
        if task and missing
        else None
    )
    progress = log.Progress(f"{stage}: proxies", len(missing))
    count = 0
    for results in _evaluate_archs(experiment, workdir, superlms, missing, rows):
        multihost.on_first_process(functools.partial(record, results))
        multihost.raise_if_preempted()
        trials |= results
        count += len(results)
        progress(count)
    return {
        # The study's FLOPs are those of the budget that it was made under.
        arch: trials[arch] | {"flops": _budget_flops(experiment, arch)}
        for arch in experiment.affordable
    }


def _evaluate_archs(
    experiment: Experiment,
    workdir: epath.Path,
    superlms: Mapping[str, dict],
    missing: Sequence[AnyArch],
    rows: ClassificationData | None,
) -> Iterator[dict[AnyArch, dict[str, Any]]]:
    """Trials of the missing Archs, as many at once as are recorded together."""
    for space, params in superlms.items():
        archs = [arch for arch in missing if experiment.affordable[arch] == space]
        if not archs:
            continue
        proxy = proxies.make_proxy(
            experiment.config.search.proxy,
            proxy_inputs.proxy_inputs(
                experiment, workdir, space, params, rows, experiment.config.seed
            ),
        )
        count = max(_ARCHS_PER_RECORD, experiment.mesh.size)
        for start in range(0, len(archs), count):
            yield {
                arch: {
                    "proxy": values["proxy"],
                    "flops": _budget_flops(experiment, arch),
                    **values,
                }
                for arch, values in proxy(archs[start : start + count]).items()
            }


def _budget_flops(experiment: Experiment, arch: AnyArch) -> float:
    return experiment.budget.convention_costs(experiment.cost(arch))["flops"]
