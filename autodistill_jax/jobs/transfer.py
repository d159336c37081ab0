"""Job `transfer`: the best of a search by Flash Distillation, trained to the end."""

import math

import jax
import numpy as np
from etils import epath

from autodistill_jax import log, sharding, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.data import loader
from autodistill_jax.experiment import programs
from autodistill_jax.experiment.experiment import Experiment, latency_conditions
from autodistill_jax.experiment.text_rows import training_rows
from autodistill_jax.experiment.workdir import (
    arch_from_json,
    find_trial,
    read_front,
    require_json,
    student_archs,
    transfer_path,
)
from autodistill_jax.latency import table
from autodistill_jax.models import heads
from autodistill_jax.train import checkpoint, flash_distillation


def run_transfer(
    experiment: Experiment, workdir: epath.Path, stage: str = "transfer"
) -> None:
    """Leaves transfer/<name>/, the weights of the chosen Arch and of the next best of
    the front, `flash_distillation.top_k` in all; goes on from the last checkpoints.

    Args:
      experiment: of a search by the proxy flash; with another there is nothing to do.
      workdir: with the front.json of the job search, whose latencies become those of
        the trained weights.
      stage: what log lines begin with.

    Raises:
      UserError: there was no search under these settings.
    """
    config = experiment.config
    if config.search.proxy != "flash":
        log.say(f"{stage}: off (search.proxy is {config.search.proxy}, not flash)")
        return
    settings = programs.transfer_settings(experiment)
    writer = log.MetricsWriter(workdir, config.tensorboard)
    for arch in student_archs(config, read_front(config, workdir)):
        path = transfer_path(config, workdir, arch)
        if path.exists():
            log.say(f"{stage}: done already, {path}")
            continue
        transfer = programs.blockwise_transfer(experiment, arch)
        if experiment.teacher.mlm_head is None:
            log.say(
                f"{stage}: the teacher has no masked-LM head: the last stage has no "
                f"soft labels, but {' + '.join(transfer.objective.weights)}"
            )
        params = flash_distillation.train_blockwise(
            transfer,
            loader.train_batches(
                training_rows(experiment, workdir),
                settings["batch_size"],
                config.seed,
            ),
            settings,
            1.0,
            experiment.mesh,
            config.seed,
            f"{stage} {arch.name}",
            log_fn=lambda done, values, arch=arch: writer.write(
                f"transfer/{arch.name}", done, values
            ),
            checkpoints=checkpoint.checkpoint_manager(path.parent / "checkpoints"),
            save_every=config.distill.checkpoint_every_steps,
        )
        weights = jax.tree.map(sharding.to_host, heads.encoder_params(params))
        _remeasure_latency(experiment, workdir, arch, weights, stage)
        storage.write_arrays(path, weights)
        log.say(f"{stage}: made {path}")


def _remeasure_latency(
    experiment: Experiment,
    workdir: epath.Path,
    arch: AnyArch,
    weights: dict[str, np.ndarray],
    stage: str,
) -> None:
    """The latency of what is handed over stands in front.json: of its own weights."""
    conditions = latency_conditions(experiment.config)
    path = workdir / "search" / "latency.json"
    latencies = table.read_table(path)
    networks = {str(arch): (arch, experiment.dims, weights)}
    records = table.take_latencies(
        latencies, networks, conditions, True, lambda text: log.say(f"{stage}: {text}")
    )
    storage.write_json(path, latencies)
    front = require_json(workdir / "search" / "front.json", "search")
    fields = table.trial_fields(records[str(arch)])
    find_trial(front, arch).update(fields)
    # Its own budget's, the tightest; those of the front that no budget chose have any.
    bounds = [
        budget.bounds(front["teacher"]).get("latency_ms", math.inf)
        for budget, choice in zip(experiment.budgets, front["choices"])
        if arch_from_json(choice["arch"]) == arch
    ] or [experiment.budget.bounds(front["teacher"]).get("latency_ms", math.inf)]
    bound = min(bounds)
    if fields["latency_ms"] > bound:
        log.say(
            f"{stage}: {arch.name} takes {fields['latency_ms']:.3g} ms by its own "
            f"weights, over the {bound:.3g} ms that the search took it to meet"
        )
    storage.write_json(workdir / "search" / "front.json", front)
