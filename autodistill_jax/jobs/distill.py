"""Job `distill`: trains the SuperLM of the space from the teacher."""

import jax
import jax.numpy as jnp
from clu import parameter_overview
from etils import epath

from autodistill_jax import sharding
from autodistill_jax.data import batches
from autodistill_jax.jobs.experiment import Experiment, rows, superlm_folder
from autodistill_jax.model import extract
from autodistill_jax.train import checkpoint, fit, log, objectives, optimizer, sandwich


def run(experiment: Experiment, workdir: epath.Path, stage: str = "distill") -> None:
    """Trains until `distill.steps`; goes on from the last checkpoint."""
    settings = experiment.config.distill
    kept = checkpoint.manager(superlm_folder(workdir))
    start = kept.latest_step() or 0
    if start >= settings.steps:
        log.say(f"{stage}: the SuperLM is trained already ({start} steps)")
        return
    data = rows(experiment, workdir)["train"]
    feed = batches.training(data, settings.batch_size, experiment.config.seed)
    state, frozen, step, teacher_params = prepare(experiment)
    if start:
        state = checkpoint.restore(kept, {**state, "frozen": frozen})
        frozen = state.pop("frozen")
        log.say(f"{stage}: going on after step {start}")
    else:
        overview = parameter_overview.count_parameters({**frozen, **state["params"]})
        trained = parameter_overview.count_parameters(state["params"])
        log.say(
            f"{stage}: a SuperLM of {overview:,} parameters ({trained:,} trained) "
            f"for {len(experiment.space.grid())} sub-networks; terms "
            f"{'+'.join(experiment.objective.weights)}; "
            f"{experiment.mesh.size} device(s); compiling ..."
        )
    writer = log.Writer(workdir, experiment.config.tensorboard)
    seed = experiment.config.seed

    def inputs(i):
        archs = sandwich.archs(experiment.space, settings.random, seed, i)
        return (
            frozen,
            teacher_params,
            batches.put(feed[i], experiment.mesh),
            sandwich.as_arrays(archs),
            jax.random.fold_in(jax.random.key(seed), i),
        )

    fit.fit(
        step,
        state,
        inputs,
        settings.steps,
        what=stage,
        start=start,
        # A checkpoint is the whole SuperLM, frozen parameters too.
        save=lambda done, state: checkpoint.save(
            kept, done, {**state, "frozen": frozen}
        ),
        save_every=settings.save_every,
        tell=lambda done, values: writer.write("distill", done, values),
    )
    kept.wait_until_finished()
    log.say(f"{stage}: made {superlm_folder(workdir) / str(settings.steps)}")


def prepare(experiment: Experiment) -> tuple:
    """(state, frozen parameters, step function, the teacher's parameters), on devices.

    The SuperLM starts as the teacher's own weights, truncated to the space's widths.
    """
    settings = experiment.config.distill
    superlm = experiment.superlm()
    params = extract.truncate(
        experiment.teacher.params, experiment.teacher.arch, experiment.space.envelope()
    ) | objectives.matcher(
        experiment.objective, experiment.envelope.hidden, experiment.teacher.arch.hidden
    )
    everywhere = sharding.replicated(experiment.mesh)
    params = jax.device_put({k: jnp.array(v) for k, v in params.items()}, everywhere)
    frozen = {name: params.pop(name) for name in settings.freeze}
    moves = optimizer.make(settings, settings.steps, extract.axes(superlm))
    state = jax.device_put(
        {"params": params, "optimizer": moves.init(params)}, everywhere
    )
    step = sandwich.make_step(
        superlm, experiment.teacher_module(), experiment.objective, moves
    )
    teacher_params = jax.device_put(experiment.teacher.params, everywhere)
    return state, frozen, step, teacher_params
