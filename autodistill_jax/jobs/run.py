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
    "pretrain": pretrain.run,
    "distill": distill.run,
    "search": search.run,
    "transfer": transfer.run,
    "export": export.run,
    "baselines": baselines.run,
    "finetune": finetune.run,
    "rank": rank.run,
    "report": report.run,
}


def job(
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
        cost.run(config, arch)
        return 0
    _check_alike(name, config)
    if name == "latency":
        latency.run(config, folder, arch, calibrate)
        return 0
    if name == "preflight":
        return 0 if preflight.run(config) else 1
    if config.mesh.topology:
        raise UserError(
            f"mesh.topology is {config.mesh.topology}, which only the job preflight "
            "compiles for; take it out to run on the devices at hand"
        )
    start = time.monotonic()
    schema.check(config)
    home = workdir.open_workdir(config, folder)
    if name == "pretrain":  # A teacher need not fit this config's space.
        made = experiment.basis(config)
    else:
        made = experiment.read(config, home)
        baselines.check(made)
        trials.check(made)
    stages = [stage for stage in _STAGES if name in ("run", stage)]
    if name == "run":
        flash = config.search.proxy == "flash"
        off = {"distill" if flash else "transfer"}
        off |= set() if config.pretrain.steps else {"pretrain"}
        stages = [stage for stage in stages if stage not in off]
    if "pretrain" in stages:
        pretrain.check(made)
    elif config.pretrain.steps and not storage.there(teachers.pretrained(home)):
        raise UserError(
            f"pretrain.steps is {config.pretrain.steps}, and {teachers.pretrained(home)} "
            "is not there; run the job pretrain first"
        )
    # Labelled rows are read, and refused, before anything is trained.
    tasks = {} if name == "pretrain" else proxy_inputs.tasks(made, home, stages)
    if "search" in stages and config.latency.target:
        estimate.check(config.latency.target)
    if {"search", "rank"} & set(stages):
        multihost.once(lambda: study_storage.check(config.search.storage, home))
    if "finetune" in stages:
        tasks["finetune"] = finetune.read(made, home)
    first = {"pretrain", "distill"}
    first |= {"search"} if config.search.proxy == "flash" else set()
    if name == "pretrain":
        text_rows.rows(made, home, "heldout")
    elif first & set(stages) or (home / "data" / "rows.npz").exists():
        enough = functools.partial(proxy_inputs.check_text, made)
        held_out = text_rows.rows(made, home, "heldout", enough)
        if {"distill", "search", "rank"} & set(stages):
            enough(held_out)
    if (home / "config.json").exists():
        workdir.settle(config, home)  # Some fields may differ from last time.
    try:
        for i, stage in enumerate(stages, 1):
            told = f"[{i}/{len(stages)} {stage}]" if name == "run" else stage
            rest = (tasks[stage],) if stage in tasks else ()
            _STAGES[stage](made, home, *rest, stage=told)
            if stage == "pretrain" and name == "run":
                made = experiment.read(config, home)  # Under the teacher there now is.
    finally:
        log.keep(home)
    multihost.once(lambda: None)  # The end comes for all at once.
    log.say(f"{name}: done in {time.monotonic() - start:.0f} s, workdir {home}")
    return 0


def _check_alike(name: str, config: ConfigDict) -> None:
    """Raises UserError, on all processes, where not all were asked for the same."""
    theirs = multihost.once(lambda: {"job": name, **schema.flat(workdir.plain(config))})
    mine = {"job": name, **schema.flat(workdir.plain(config))}
    if multihost.every(mine == theirs):
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
