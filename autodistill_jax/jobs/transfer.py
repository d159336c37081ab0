"""Job `transfer`: the best of a search by Flash Distillation, trained by all its steps."""

import jax
from etils import epath

from autodistill_jax import log, sharding, storage
from autodistill_jax.data import loader
from autodistill_jax.experiment import trials
from autodistill_jax.experiment import workdir as common
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.text_rows import rows
from autodistill_jax.latency import table
from autodistill_jax.train import checkpoint, distillation, flash_distillation


def run(experiment: Experiment, workdir: epath.Path, stage: str = "transfer") -> None:
    """Leaves transfer/<name>/, the weights of the chosen Arch and of the next best of the
    front, `flash.winners` in all; goes on from the last checkpoints."""
    config = experiment.config
    if config.search.proxy != "flash":
        log.say(f"{stage}: off (search.proxy is {config.search.proxy}, not flash)")
        return
    settings = trials.recipe(experiment)
    writer = log.Writer(workdir, config.tensorboard)
    for arch in common.students(config, common.front(config, workdir)):
        path = common.transferred(config, workdir, arch)
        if path.exists():
            log.say(f"{stage}: done already, {path}")
            continue
        made = trials.transfer(experiment, arch)
        if experiment.teacher.head is None:
            log.say(
                f"{stage}: the teacher has no masked-word head: the last stage has no "
                f"soft labels, but {' + '.join(made.objective.weights)}"
            )
        params = flash_distillation.run(
            made,
            loader.training(
                rows(experiment, workdir, "train"), settings["batch_size"], config.seed
            ),
            settings,
            1.0,
            experiment.mesh,
            config.seed,
            f"{stage} {arch.name}",
            tell=lambda done, values, arch=arch: writer.write(
                f"transfer/{arch.name}", done, values
            ),
            kept=checkpoint.manager(path.parent / "checkpoints"),
            save_every=config.distill.save_every,
        )
        weights = jax.tree.map(sharding.fetch, distillation.network(params))
        _remeasure(experiment, workdir, arch, weights, stage)
        storage.write_arrays(path, weights)
        log.say(f"{stage}: made {path}")


def _remeasure(experiment, workdir, arch, weights, stage) -> None:
    """The latency of what is handed over stands in front.json: of its own weights."""
    settings = experiment.config.latency
    how = table.How(*(settings[name] for name in table.How._fields))
    path = workdir / "search" / "latency.json"
    known = table.read(path)
    networks = {str(arch): (arch, experiment.sizes, weights)}
    made = table.latencies(
        known, networks, how, True, lambda text: log.say(f"{stage}: {text}")
    )
    storage.write_json(path, known)
    found = common.read_json(workdir / "search" / "front.json", "search")
    now = table.of_a_trial(made[str(arch)])
    common.trial_of(found, arch).update(now)
    bound = experiment.budget.bounds(found["teacher"]).get("latency_ms")
    if bound and now["latency_ms"] > bound:
        log.say(
            f"{stage}: {arch.name} takes {now['latency_ms']:.3g} ms by its own weights, "
            f"over the {bound:.3g} ms that the search took it to meet"
        )
    storage.write_json(workdir / "search" / "front.json", found)
