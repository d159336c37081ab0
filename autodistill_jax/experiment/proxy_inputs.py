"""What the proxies of an experiment read, for the jobs search and rank."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax.data.tasks import Task
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import labelled_data
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.fingerprints import (
    finetune_fingerprint,
    task_dirname,
    weight_source,
)
from autodistill_jax.experiment.superlm import teacher_mlm_head
from autodistill_jax.experiment.text_rows import heldout_splits, split_heldout
from autodistill_jax.experiment.workdir import chosen_arch, read_rank_table
from autodistill_jax.models.build import Module
from autodistill_jax.search import proxies
from autodistill_jax.train.classification import ClassificationData


def proxy_tasks(
    experiment: Experiment, workdir: epath.Path, stages: Sequence[str]
) -> dict[str, Task | None]:
    """The labelled tasks of the proxies, loaded where a result is still to be made.

    Args:
      experiment: complete.
      workdir: a search or ranking that is done there needs no task.
      stages: the names of the jobs that will run.

    Returns:
      {"search" and "rank", if among the stages: the task that it needs, None if none}.

    Raises:
      UserError: an unknown proxy, or a task that cannot be used.
    """
    config, weights = experiment.config, experiment.objective.weights
    tasks: dict[str, Task | None] = {}
    proxies.check_proxy(
        config.search.proxy, "search.proxy", weights, config.search.proxy_task
    )
    if config.rank.archs and not config.rank.task:
        raise UserError(
            f"rank.archs is {config.rank.archs}, but rank.task is empty; name the task "
            "that they are fine-tuned on, e.g. 'stsb'"
        )
    for name in ranked_proxies(config) if config.rank.archs else ():
        proxies.check_proxy(name, "rank.proxies", weights, config.rank.task)
    names = {
        "search": config.search.proxy_task
        if config.search.proxy in proxies.LABELLED_PROXIES
        else "",
        "rank": config.rank.task if config.rank.archs else "",
    }
    for stage, name in names.items():
        if stage in stages:
            tasks[stage] = None
            read = chosen_arch if stage == "search" else read_rank_table
            if name and not read(config, workdir):
                tasks[stage] = labelled_data.load_task(
                    config, name, experiment.teacher.class_names
                )
    return tasks


def check_heldout(experiment: Experiment, rows: Mapping[str, np.ndarray]) -> None:
    """Raises UserError if there are too few held-out rows for a proxy.

    Args:
      experiment: complete.
      rows: the held-out rows, {name: [rows, ...]}.
    """
    config = experiment.config
    proxies_by_field = {"search.proxy": (config.search.proxy,)}
    if config.rank.archs:
        proxies_by_field["rank.proxies"] = config.rank.proxies
    width = max(space.largest().hidden for space in experiment.spaces.values())
    for field, names in proxies_by_field.items():
        if "hidden" in names:
            proxies.check_heldout_size(split_heldout(experiment, rows)[0], width, field)


def ranked_proxies(config: ConfigDict) -> tuple[str, ...]:
    """The names of the proxies that the job rank compares: the one that the search
    chooses by, and those of `rank.proxies`."""
    return tuple(dict.fromkeys((config.search.proxy, *config.rank.proxies)))


def proxy_inputs(
    experiment: Experiment,
    workdir: epath.Path,
    space: str,
    params: dict,
    rows: ClassificationData | None,
    seed: int,
) -> proxies.ProxyInputs:
    """What a proxy reads of one trained SuperLM.

    Args:
      experiment: complete.
      workdir: with the held-out rows, and the teacher's MLM head where it was fitted.
      space: the name of the SuperLM's space.
      params: of `superlm.trained_superlm`.
      rows: a task's, where the proxy needs labels.
      seed: of what the proxy trains.

    Returns:
      For `proxies.make_proxy`.
    """
    settings = experiment.config.search
    head = teacher_mlm_head(experiment, workdir, "search")
    return proxies.ProxyInputs(
        experiment.superlm(experiment.spaces[space]).clone(dropout=0.0),
        params,
        experiment.teacher_module(),
        {**experiment.teacher.params, **head},
        heldout_splits(experiment, workdir)[0],
        settings.batch_size,
        experiment.objective,
        experiment.mesh,
        rows,
        finetune_settings(experiment, settings.proxy_steps),
        finetune_module(experiment, space),
        seed,
    )


def finetune_settings(experiment: Experiment, steps: int) -> dict[str, Any]:
    """The settings of fine-tuning in a SuperLM: the section finetune, and `steps`."""
    return experiment.config.finetune.to_dict() | {"steps": steps}


def finetune_module(experiment: Experiment, space: str) -> Module:
    """The module of the SuperLM of the space of that name, as fine-tuning runs it."""
    settings = experiment.config.finetune
    return experiment.superlm(experiment.spaces[space]).clone(
        dropout=settings.dropout, dtype=jnp.dtype(settings.compute_dtype)
    )


def study_name(experiment: Experiment) -> str:
    """The first part of a study's name: what its trials were judged by.

    Trials compare only where the same thing was asked.
    """
    settings = experiment.config.search
    if settings.proxy == "flash":
        return weight_source(experiment.config)
    if settings.proxy not in proxies.LABELLED_PROXIES:
        return settings.proxy
    task_text = task_dirname(experiment.config.finetune, settings.proxy_task)
    steps = settings.proxy_steps if settings.proxy == "proxy" else 0
    settings_bytes = repr([steps, finetune_fingerprint(experiment.config)]).encode()
    return f"{settings.proxy}-{task_text}-{zlib.crc32(settings_bytes):08x}"
