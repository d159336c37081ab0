"""Job `run`, and every other job by its name."""

import functools
import time

from ml_collections import ConfigDict

from autodistill_jax import log, multihost, storage
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import (
    experiment,
    proxy_inputs,
    schema,
    text_rows,
    trials,
    workdir,
)
from autodistill_jax.experiment import teacher as teachers
from autodistill_jax.jobs import (
    baselines,
    cost,
    distill,
    export,
    finetune,
    latency,
    preflight,
    pretrain,
    rank,
    report,
    search,
    transfer,
)
from autodistill_jax.latency import estimate
from autodistill_jax.search import study_storage

_STAGES = {
    "pretrain": pretrain.run_pretrain,
    "distill": distill.run_distill,
    "search": search.run_search,
    "transfer": transfer.run_transfer,
    "export": export.run_export,
    "baselines": baselines.run_baselines,
    "finetune": finetune.run_finetune,
    "rank": rank.run_rank,
    "report": report.run_report,
}


def run_job(
    name: str,
    config: ConfigDict,
    folder: str | None,
    arch: str | None,
    calibrate: bool = False,
) -> int:
    """Runs one job; 0, or 1 where `preflight` says no. Everything that can be refused is
    refused before it starts.

    Raises:
      UserError: the input cannot work.
    """
    if name == "cost":
        cost.run_cost(config, arch)
        return 0
    _check_same_everywhere(name, config)
    if name == "latency":
        latency.run_latency(config, folder, arch, calibrate)
        return 0
    if name == "preflight":
        return 0 if preflight.run_preflight(config) else 1
    if config.mesh.topology:
        raise UserError(
            f"mesh.topology is {config.mesh.topology}, which only the job preflight "
            "compiles for; take it out to run on the devices at hand"
        )
    start = time.monotonic()
    schema.check_config(config)
    home = workdir.open_workdir(config, folder)
    if name == "pretrain":  # A teacher need not fit this config's space.
        made = experiment.load_teacher_side(config)
    else:
        made = experiment.load_experiment(config, home)
        baselines.check_baselines(made)
        trials.check_search(made)
    stages = [stage for stage in _STAGES if name in ("run", stage)]
    if name == "run":
        flash = config.search.proxy == "flash"
        off = {"distill" if flash else "transfer"}
        off |= set() if config.pretrain.steps else {"pretrain"}
        stages = [stage for stage in stages if stage not in off]
    if "pretrain" in stages:
        pretrain.check_pretrain(made)
    elif config.pretrain.steps and not storage.is_complete(
        teachers.pretrained_folder(home)
    ):
        raise UserError(
            f"pretrain.steps is {config.pretrain.steps}, and {teachers.pretrained_folder(home)} "
            "is not there; run the job pretrain first"
        )
    # Labelled rows are read, and refused, before anything is trained.
    tasks = {} if name == "pretrain" else proxy_inputs.proxy_tasks(made, home, stages)
    if "search" in stages and config.latency.target:
        estimate.check_target(config.latency.target)
    if {"search", "rank"} & set(stages):
        multihost.on_first_process(
            lambda: study_storage.check_storage(config.search.storage, home)
        )
    if "finetune" in stages:
        tasks["finetune"] = finetune.pending_tasks(made, home)
    first = {"pretrain", "distill"}
    first |= {"search"} if config.search.proxy == "flash" else set()
    if name == "pretrain":
        text_rows.text_rows(made, home, "heldout")
    elif first & set(stages) or (home / "data" / "rows.npz").exists():
        enough = functools.partial(proxy_inputs.check_heldout, made)
        held_out = text_rows.text_rows(made, home, "heldout", enough)
        if {"distill", "search", "rank"} & set(stages):
            enough(held_out)
    if (home / "config.json").exists():
        workdir.write_config(config, home)  # Some fields may differ from last time.
    try:
        for i, stage in enumerate(stages, 1):
            told = f"[{i}/{len(stages)} {stage}]" if name == "run" else stage
            rest = (tasks[stage],) if stage in tasks else ()
            _STAGES[stage](made, home, *rest, stage=told)
            if stage == "pretrain" and name == "run":
                made = experiment.load_experiment(
                    config, home
                )  # Under the teacher there now is.
    finally:
        log.upload_metrics(home)
    multihost.on_first_process(lambda: None)  # The end comes for all at once.
    log.say(f"{name}: done in {time.monotonic() - start:.0f} s, workdir {home}")
    return 0


def _check_same_everywhere(name: str, config: ConfigDict) -> None:
    """Raises UserError, on all processes, where not all were asked for the same."""
    theirs = multihost.on_first_process(
        lambda: {"job": name, **schema.flatten(schema.to_json(config))}
    )
    mine = {"job": name, **schema.flatten(schema.to_json(config))}
    if multihost.all_processes(mine == theirs):
        return
    differ = [
        f"{key} is {mine.get(key)!r} here and {theirs.get(key)!r} there"
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key)
    ]
    raise UserError(
        "the processes were given different jobs or flags"
        + (f": {'; '.join(differ[:3])} (the first process)" if differ else "")
        + "; give all the same"
    )
