"""Job `run`, and every other job by its name."""

import time

from ml_collections import ConfigDict

from autodistill_jax.jobs import (
    cost,
    distill,
    experiment,
    export,
    finetune,
    report,
    search,
)
from autodistill_jax.train import log

_STAGES = {
    "distill": distill.run,
    "search": search.run,
    "export": export.run,
    "finetune": finetune.run,
    "report": report.run,
}


def job(name: str, config: ConfigDict, workdir: str | None, arch: str | None) -> None:
    """Runs one job. Everything that can be refused is refused before it starts.

    Raises:
      UserError: the input cannot work.
    """
    if name == "cost":
        cost.run(config, arch)
        return
    start = time.monotonic()
    made = experiment.read(config)
    folder = experiment.open_workdir(config, workdir)
    tasks = finetune.read(config, folder) if name in ("run", "finetune") else []
    stages = list(_STAGES) if name == "run" else [name]
    if "distill" in stages:
        experiment.rows(made, folder)
    if (folder / "config.json").exists():
        experiment.settle(config, folder)  # Some fields may differ from last time.
    for i, stage in enumerate(stages, 1):
        told = f"[{i}/{len(stages)} {stage}]" if name == "run" else stage
        rest = (tasks,) if stage == "finetune" else ()
        _STAGES[stage](made, folder, *rest, stage=told)
    log.say(f"{name}: done in {time.monotonic() - start:.0f} s, workdir {folder}")
