"""Job `run`: a config's jobs in their order, all that can be refused refused first."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import log, multihost, storage
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import (
    evidence,
    loading,
    proxy_inputs,
    schema,
    student_latencies,
    teacher,
    text_rows,
    trials,
    workdir,
)
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.workdir import chosen_arch
from autodistill_jax.jobs import (
    JOBS,
    STAGES,
    baselines,
    finetune,
    job_function,
    pretrain,
)
from autodistill_jax.latency import estimate
from autodistill_jax.report.result import read_result
from autodistill_jax.search import study_storage


class Plan(NamedTuple):
    """What is to be done; its text alone can still be refused, as it is cut.

    Attributes:
      experiment: the checked config with its teacher.
      workdir: where all goes.
      stages: names, in their order.
      tasks: {stage: the labelled rows that were read for it}.
    """

    experiment: Experiment
    workdir: epath.Path
    stages: tuple[str, ...]
    tasks: Mapping[str, Any]


def run(
    config: ConfigDict, workdir: str | Path | None, job: str = "run", arch: str = ""
) -> Any:
    """A job from Python, as the command line runs it.

    Args:
      config: of `base_config`, or of a file by `load_config`.
      workdir: where all goes, local or gs://; the same goes on where it stopped. None
        for "cost" and "latency".
      job: "run" (all that the config asks for), or another of `JOBS`.
      arch: sizes or a name, for "cost" and "latency".

    Returns:
      The `Result` so far, None before a search has chosen; of "cost", "latency" and
      "preflight" what they print, a dict.

    Raises:
      UserError: the input cannot work.
    """
    if job not in JOBS:
        raise UserError(f"unknown job {job!r}; one of {', '.join(JOBS)}")
    folder = None if workdir is None else str(workdir)
    if job in ("cost", "latency"):
        extra = (arch,) if job == "cost" else (folder, arch, False)
        return job_function(job)(config, *extra)
    if job in ("preflight", "config"):
        return job_function(job)(config)
    if folder is None:
        raise UserError(f"the job {job} needs a workdir, and none was given")
    run_stages(job, config, folder)
    path = epath.Path(folder)
    return read_result(config, path) if chosen_arch(config, path) else None


def run_stages(name: str, config: ConfigDict, folder: str) -> None:
    """Runs one stage, or with "run" all that the config asks for.

    Args:
      name: of the job: "run" or a stage.
      config: with all flags in it.
      folder: the workdir.

    Raises:
      UserError: the input cannot work; nothing has been written then.
    """
    start = time.monotonic()
    plan = _plan(name, config, folder)
    _cut_text(plan)
    if (plan.workdir / "config.json").exists():
        workdir.write_config(config, plan.workdir)  # Some fields may differ by now.
    _run_plan(plan, numbered=name == "run")
    multihost.on_first_process(lambda: None)  # The end comes for all at once.
    seconds = time.monotonic() - start
    log.say(f"{name}: done in {seconds:.0f} s, workdir {plan.workdir}")


def _plan(name: str, config: ConfigDict, folder: str) -> Plan:
    """Raises UserError for whatever cannot work."""
    if config.mesh.topology:
        raise UserError(
            f"mesh.topology is {config.mesh.topology}, which only the job preflight "
            "compiles for; take it out to run on the devices at hand"
        )
    schema.check_config(config)
    path = workdir.open_workdir(config, folder)
    if name == "pretrain":  # A teacher need not fit this config's space.
        experiment = loading.load_teacher_side(config)
    else:
        experiment = loading.load_experiment(config, path)
        baselines.check_baselines(experiment)
        trials.check_search(experiment)
    stages = _stages(name, config)
    _check_pretrained(experiment, path, stages)
    # Labelled rows are read, and refused, before anything is trained.
    tasks: dict[str, Any] = {}
    if name != "pretrain":
        tasks = proxy_inputs.proxy_tasks(experiment, path, stages)
    if {"search", "baselines"} & set(stages) and config.latency.target:
        estimate.check_target(config.latency.target)
    if {"search", "rank"} & set(stages):
        multihost.on_first_process(
            lambda: study_storage.check_storage(config.search.storage, path)
        )
    if "finetune" in stages:
        tasks["finetune"] = finetune.pending_tasks(experiment, path)
    trains = "distill" in stages or config.search.proxy == "flash"
    is_new = not multihost.on_first_process((path / "config.json").exists)
    # In a workdir that is not new there is work that is not lost.
    if "search" in stages and trains and is_new:
        student_latencies.check_latency_bound(experiment)
    return Plan(experiment, path, stages, tasks)


def _stages(name: str, config: ConfigDict) -> tuple[str, ...]:
    if name != "run":
        return (name,)
    flash = config.search.proxy == "flash"
    off = {"distill", "finish"} if flash else {"transfer"}
    off |= set() if config.distill.finish_steps else {"finish"}
    off |= set() if config.pretrain.steps else {"pretrain"}
    return tuple(stage for stage in STAGES if stage not in off)


def _check_pretrained(
    experiment: Experiment, path: epath.Path, stages: Sequence[str]
) -> None:
    config, folder = experiment.config, teacher.pretrained_folder(path)
    if "pretrain" in stages:
        pretrain.check_pretrain(experiment)
    elif config.pretrain.steps and not storage.is_complete(folder):
        raise UserError(
            f"pretrain.steps is {config.pretrain.steps}, and {folder} "
            "is not there; run the job pretrain first"
        )


def _cut_text(plan: Plan) -> None:
    """The text rows, where a stage trains or judges on them; refuses too few."""
    experiment, stages = plan.experiment, set(plan.stages)
    if plan.stages == ("pretrain",):
        text_rows.text_rows(experiment, plan.workdir, "heldout")
        return
    training = {"pretrain", "distill"}
    training |= {"search"} if experiment.config.search.proxy == "flash" else set()
    if training & stages or (plan.workdir / "data" / "rows.npz").exists():
        check = partial(proxy_inputs.check_heldout, experiment)
        heldout = text_rows.text_rows(experiment, plan.workdir, "heldout", check)
        if {"distill", "search", "rank"} & stages:
            check(heldout)


def _run_plan(plan: Plan, numbered: bool) -> None:
    experiment, count = plan.experiment, len(plan.stages)
    # With the rows there are jobs that cut the teacher; after pretrain there is one.
    has_rows = (plan.workdir / "data" / "rows.npz").exists()
    if has_rows and "pretrain" not in plan.stages:
        experiment = evidence.with_evidence(experiment, plan.workdir, "start")
    try:
        for i, stage in enumerate(plan.stages, 1):
            label = f"[{i}/{count} {stage}]" if numbered else stage
            rows = (plan.tasks[stage],) if stage in plan.tasks else ()
            job_function(stage)(experiment, plan.workdir, *rows, stage=label)
            if stage == "pretrain" and numbered:  # Under the teacher there now is.
                experiment = loading.load_experiment(experiment.config, plan.workdir)
                experiment = evidence.with_evidence(experiment, plan.workdir, "start")
    finally:
        log.upload_metrics(plan.workdir)
