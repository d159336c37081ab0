"""Job `transfer`: the best of a search by Flash Distillation, trained by all its steps."""

import jax
from etils import epath

from autodistill_jax import log, sharding, storage
from autodistill_jax.data import loader
from autodistill_jax.experiment import programs
from autodistill_jax.experiment import workdir as common
from autodistill_jax.experiment.experiment import Experiment, latency_conditions
from autodistill_jax.experiment.text_rows import text_rows
from autodistill_jax.latency import table
from autodistill_jax.models import heads
from autodistill_jax.train import checkpoint, flash_distillation


def run_transfer(
    experiment: Experiment, workdir: epath.Path, stage: str = "transfer"
) -> None:
    """Leaves transfer/<name>/, the weights of the chosen Arch and of the next best of the
    front, `flash_distillation.top_k` in all; goes on from the last checkpoints."""
    config = experiment.config
    if config.search.proxy != "flash":
        log.say(f"{stage}: off (search.proxy is {config.search.proxy}, not flash)")
        return
    settings = programs.transfer_settings(experiment)
    writer = log.MetricsWriter(workdir, config.tensorboard)
    for arch in common.student_archs(config, common.read_front(config, workdir)):
        path = common.transfer_path(config, workdir, arch)
        if path.exists():
            log.say(f"{stage}: done already, {path}")
            continue
        made = programs.blockwise_transfer(experiment, arch)
        if experiment.teacher.mlm_head is None:
            log.say(
                f"{stage}: the teacher has no masked-word head: the last stage has no "
                f"soft labels, but {' + '.join(made.objective.weights)}"
            )
        params = flash_distillation.train_blockwise(
            made,
            loader.train_batches(
                text_rows(experiment, workdir, "train"),
                settings["batch_size"],
                config.seed,
            ),
            settings,
            1.0,
            experiment.mesh,
            config.seed,
            f"{stage} {arch.name}",
            tell=lambda done, values, arch=arch: writer.write(
                f"transfer/{arch.name}", done, values
            ),
            kept=checkpoint.checkpoint_manager(path.parent / "checkpoints"),
            save_every=config.distill.checkpoint_every_steps,
        )
        weights = jax.tree.map(sharding.to_host, heads.encoder_params(params))
        _remeasure_latency(experiment, workdir, arch, weights, stage)
        storage.write_arrays(path, weights)
        log.say(f"{stage}: made {path}")


def _remeasure_latency(experiment, workdir, arch, weights, stage) -> None:
    """The latency of what is handed over stands in front.json: of its own weights."""
    how = latency_conditions(experiment.config)
    path = workdir / "search" / "latency.json"
    known = table.read_table(path)
    networks = {str(arch): (arch, experiment.dims, weights)}
    made = table.take_latencies(
        known, networks, how, True, lambda text: log.say(f"{stage}: {text}")
    )
    storage.write_json(path, known)
    found = common.require_json(workdir / "search" / "front.json", "search")
    now = table.trial_fields(made[str(arch)])
    common.find_trial(found, arch).update(now)
    bound = experiment.budget.bounds(found["teacher"]).get("latency_ms")
    if bound and now["latency_ms"] > bound:
        log.say(
            f"{stage}: {arch.name} takes {now['latency_ms']:.3g} ms by its own weights, "
            f"over the {bound:.3g} ms that the search took it to meet"
        )
    storage.write_json(workdir / "search" / "front.json", found)
