"""What each of the compared models costs: to keep, to run, and to train."""

import json
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import log
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.experiment.workdir import (
    baseline_folder,
    find_trial,
    finish_job,
    student_archs,
)

COSTS_FILE = "costs.json"  # In a baseline's folder.
_KEYS = ("params", "flops", "latency_ms", "seconds")


def superlm_seconds(
    config: ConfigDict, workdir: epath.Path, front: dict, arch: AnyArch
) -> float:
    """A student's part of the SuperLM's training seconds.

    Args:
      config: of the experiment.
      workdir: with metrics.jsonl.
      front: front.json; the SuperLM is parted among its students.
      arch: of the student.

    Returns:
      Seconds, without what compiling took; a step of the SuperLM has a pass for each of
      its sub-networks.
    """
    space = find_trial(front, arch)["space"]
    # One SuperLM alone has no name.
    seconds = log.training_seconds(workdir, f"distill/{space}")
    seconds = seconds or log.training_seconds(workdir, "distill")
    return seconds / len(student_archs(config, front))


def model_costs(
    config: ConfigDict, workdir: epath.Path, front: dict, arch: AnyArch
) -> dict[str, dict[str, Any]]:
    """The costs of a student and of all that it is compared with.

    Args:
      config: of the experiment.
      workdir: with the folders that the job baselines left.
      front: front.json.
      arch: of the student.

    Returns:
      {model: {"params", "flops" (multiply-adds), "latency_ms", "seconds" (of
      training)}}, each where it is there, under the front's conditions; {} where the
      config has no baselines.
    """
    if not config.baselines:
        return {}
    trial = find_trial(front, arch)
    costs = {"teacher": front["teacher"], "student": trial}
    if config.search.proxy != "flash":
        seconds = superlm_seconds(config, workdir, front, arch)
        if config.distill.finish_steps:
            seconds += log.training_seconds(workdir, finish_job(config, arch))
        costs["student"] = {**trial, "seconds": seconds or None}
    for baseline in config.baselines:
        path = baseline_folder(workdir, baseline, arch) / COSTS_FILE
        if path.exists():
            costs[baseline] = json.loads(path.read_text())
            if costs[baseline].get("conditions") != front["latency"]:
                costs[baseline] = {"seconds": costs[baseline]["seconds"]}
        elif baseline == "scratch":
            costs[baseline] = {**trial, "seconds": 0.0}
    return {
        model: {key: record[key] for key in _KEYS if record.get(key) is not None}
        for model, record in costs.items()
    }
