"""The SuperLMs of a workdir: trained, resumed and read back, for all jobs."""

from collections.abc import Callable

import jax
import numpy as np
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import log, sharding, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.space import Space
from autodistill_jax.data import loader
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import targets
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.programs import init_training
from autodistill_jax.experiment.text_rows import (
    heldout_splits,
    text_rows,
    training_rows,
)
from autodistill_jax.experiment.workdir import finish_folder, superlm_folder
from autodistill_jax.models.build import Params
from autodistill_jax.models.word_map import merge_word_map
from autodistill_jax.train import checkpoint, loop, sandwich
from autodistill_jax.train.pretraining import fit_mlm_head


def train_superlm(
    experiment: Experiment,
    workdir: epath.Path,
    folder: epath.Path,
    space: Space,
    name: str,
    stage: str,
    start_params: Params | None = None,
) -> None:
    """Trains the SuperLM of a space until `distill.steps`, or goes on with it.

    Args:
      experiment: complete.
      workdir: with the text's rows; metrics.jsonl goes there.
      folder: of its checkpoints.
      space: of the SuperLM; of one Arch: that network alone is trained.
      name: under which its losses stand in metrics.jsonl ("distill", a baseline's).
      stage: of the log's lines.
      start_params: the network and heads to start from; None: see
        `programs.superlm_step`.

    Raises:
      UserError: text that cannot be used; a loss that is not finite.
    """
    settings = experiment.config.distill
    checkpoints = checkpoint.checkpoint_manager(folder)
    start = checkpoints.latest_step() or 0
    if start >= settings.steps:
        log.say(f"{stage}: trained already ({start} steps)")
        return
    inputs_at_step = training_inputs(experiment, workdir, space)
    mlm_head = teacher_mlm_head(experiment, workdir, stage)
    state, frozen, step, teacher_params = init_training(
        experiment, space, mlm_head, start_params
    )
    if start:
        state = checkpoint.restore_checkpoint(checkpoints, {**state, "frozen": frozen})
        frozen = state.pop("frozen")
        log.say(f"{stage}: going on after step {start}")
    else:
        overview = parameter_overview.count_parameters({**frozen, **state["params"]})
        trained = parameter_overview.count_parameters(state["params"])
        count = len(space)
        scope = f"for {count:,} sub-networks" if count > 1 else f"({space[0]})"
        log.say(
            f"{stage}: {'a SuperLM' if count > 1 else 'one network'} of {overview:,} "
            f"parameters ({trained:,} trained) {scope}; losses "
            f"{'+'.join(experiment.objective.weights)}; "
            f"{experiment.mesh.size} device(s); compiling ..."
        )
    writer = log.MetricsWriter(workdir, experiment.config.tensorboard)

    def inputs(i):
        return frozen, teacher_params, *inputs_at_step(i)

    with checkpoint.wait_until_saved(checkpoints):
        loop.fit(
            step,
            state,
            inputs,
            settings.steps,
            label=stage,
            start=start,
            # A checkpoint is the whole SuperLM, frozen parameters too.
            save_fn=lambda done, state: checkpoint.save_checkpoint(
                checkpoints, done, {**state, "frozen": frozen}
            ),
            save_every=settings.checkpoint_every_steps,
            log_fn=lambda done, values: writer.write(name, done, values),
        )
    log.say(f"{stage}: made {folder / str(settings.steps)}")


def config_alone(config: ConfigDict, steps: int) -> ConfigDict:
    """A config under which one network trains alone, a student's finish or a baseline.

    Args:
      config: of the experiment.
      steps: of that training.

    Returns:
      A copy with those steps, and the rows in another order than the SuperLM's, the same
      for all that train alone.
    """
    alone = config.copy_and_resolve_references()
    alone.distill.steps = steps
    alone.seed = config.seed + 1
    return alone


def training_inputs(
    experiment: Experiment, workdir: epath.Path, space: Space
) -> Callable[[int], tuple]:
    """What the steps of a SuperLM's training read.

    Args:
      experiment, workdir, space: as of `train_superlm`.

    Returns:
      (step) -> (its batch on the devices, the Archs that it trains, stacked, its key).
    """
    batch_at_step = _batch_reader(experiment, workdir)
    count, seed = experiment.config.distill.random_subnetworks, experiment.config.seed

    def inputs_at_step(i):
        archs = sandwich.sandwich_archs(space, count, seed, i)
        key = jax.random.fold_in(jax.random.key(seed), i)
        return batch_at_step(i), sandwich.stack_archs(archs), key

    return inputs_at_step


def _batch_reader(
    experiment: Experiment, workdir: epath.Path
) -> Callable[[int], dict[str, jax.Array]]:
    """(step) -> its batch on the devices, with the teacher's targets where kept."""
    data = training_rows(experiment, workdir)
    settings, batch_size = experiment.config.data, experiment.config.distill.batch_size
    with_targets = targets.target_reader(
        experiment, workdir, data["attention_mask"], batch_size
    )
    if with_targets is not None:
        data = {**data, targets.ROW: np.arange(len(data["input_ids"]))}
    batches = loader.train_batches(
        data,
        batch_size,
        experiment.config.seed,
        settings.length_buckets,
    )

    def batch_at_step(i):
        if with_targets is None:
            return loader.batch_at_step(batches, i, experiment.mesh)
        return loader.to_devices(with_targets(batches[i]), experiment.mesh)

    return batch_at_step


def trained_superlm(experiment: Experiment, workdir: epath.Path, space: str) -> dict:
    """The parameters of a trained SuperLM, projections and heads included.

    Args:
      experiment: complete.
      workdir: where the job distill trained it.
      space: the name of its space.

    Returns:
      {name: array}, replicated over the devices.

    Raises:
      UserError: it is not trained, or not to the end.
    """
    return trained_params(
        experiment,
        superlm_folder(workdir, space),
        experiment.config.distill.steps,
        "distill",
    )


def trained_params(
    experiment: Experiment, folder: epath.Path, steps: int, job: str
) -> dict:
    """The parameters that `train_superlm` left, its word map multiplied in.

    Args:
      experiment: complete.
      folder: of the checkpoints.
      steps: that there must be.
      job: to be run where there are not.

    Returns:
      {name: array}, projections and heads included, replicated over the devices.

    Raises:
      UserError: it is not trained, or not to the end.
    """
    num_done = steps_done(folder)
    if num_done < steps:
        raise UserError(
            f"{folder} has {num_done} of {steps} steps; run the job {job} first"
        )
    replicated = sharding.replicated(experiment.mesh)
    checkpoints = checkpoint.checkpoint_manager(folder)
    state = checkpoint.restore_sharded(checkpoints, replicated)
    return merge_word_map({**state["params"], **state["frozen"]})


def steps_done(folder: epath.Path) -> int:
    """The steps of the last checkpoint in a folder; 0 where there is none."""
    if not folder.exists():  # A manager would make it.
        return 0
    return checkpoint.checkpoint_manager(folder).latest_step() or 0


def finished_student(
    experiment: Experiment, workdir: epath.Path, arch: AnyArch
) -> dict:
    """The parameters of a student that the job finish has trained alone.

    Args:
      experiment: complete.
      workdir: where the job finish trained it.
      arch: of the student.

    Returns:
      {name: array}, projections and heads included, replicated over the devices.

    Raises:
      UserError: it is not trained, or not to the end.
    """
    return trained_params(
        experiment,
        finish_folder(experiment.config, workdir, arch),
        experiment.config.distill.finish_steps,
        "finish",
    )


def teacher_mlm_head(experiment: Experiment, workdir: epath.Path, stage: str) -> dict:
    """The teacher's MLM head where a loss needs one.

    Its own if it came with one; else one is trained on the frozen teacher, kept in the
    workdir, and what that took is written beside it (mlm_head.json).

    Args:
      experiment: complete.
      workdir: with the text's rows; the head lies in teacher/mlm_head.npz.
      stage: of the log's lines.

    Returns:
      The head's parameters, {name: array}; {} where no loss needs one.
    """
    if not experiment.objective.needs("mlm"):
        return {}
    if experiment.teacher.mlm_head is not None:
        return experiment.teacher.mlm_head
    path = workdir / "teacher" / "mlm_head.npz"
    if path.exists():
        return storage.read_arrays(path)
    settings = experiment.config.distill
    data = text_rows(experiment, workdir, "train")
    label = f"{stage}: MLM head"
    log.say(f"{label}: the teacher has none; training one on the frozen teacher ...")
    head, accuracy = fit_mlm_head(
        experiment.teacher_module(),
        experiment.teacher.params,
        loader.train_batches(data, settings.batch_size, experiment.config.seed),
        heldout_splits(experiment, workdir)[0],
        settings.to_dict(),
        experiment.objective,
        experiment.mesh,
        experiment.config.seed,
        label,
    )
    report = {
        "steps": settings.mlm_head_steps,
        "tokens": settings.mlm_head_steps
        * settings.batch_size
        * experiment.config.data.max_seq_length,
        "params": int(parameter_overview.count_parameters(head)),
        "accuracy": accuracy,
    }
    storage.write_json(path.with_suffix(".json"), report)
    storage.write_arrays(path, head)  # Last: with it the head is there.
    log.say(f"{label}: names {accuracy:.1%} of the masked tokens of held-out text")
    return head
