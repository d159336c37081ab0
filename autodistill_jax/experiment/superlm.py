"""How is a SuperLM, or one network alone, trained in a workdir? One way for all jobs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from clu import parameter_overview
from etils import epath

from autodistill_jax import log, sharding, storage
from autodistill_jax.archs.space import Space
from autodistill_jax.data import loader
from autodistill_jax.errors import UserError
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.text_rows import held_out, rows
from autodistill_jax.experiment.workdir import superlm_folder
from autodistill_jax.interop import huggingface
from autodistill_jax.models import build, extract
from autodistill_jax.train import (
    checkpoint,
    distillation,
    head,
    loop,
    optimizer,
    sandwich,
)
from autodistill_jax.train import pretraining as pretrain


def train(
    experiment: Experiment,
    workdir: epath.Path,
    folder: epath.Path,
    space: Space,
    name: str,
    stage: str,
) -> None:
    """Trains the SuperLM of a space until `distill.steps`, or goes on with it.

    Args:
      folder: of its checkpoints.
      name: under which its losses stand in metrics.jsonl ("distill", a baseline's).
    """
    settings = experiment.config.distill
    kept = checkpoint.manager(folder)
    start = kept.latest_step() or 0
    if start >= settings.steps:
        log.say(f"{stage}: the SuperLM is trained already ({start} steps)")
        return
    data = rows(experiment, workdir, "train")
    seed = experiment.config.seed
    feed = loader.training(data, settings.batch_size, seed)
    of_words = teacher_head(experiment, workdir, stage)
    state, frozen, step, teacher_params = prepare(experiment, space, of_words)
    if start:
        state = checkpoint.restore(kept, {**state, "frozen": frozen})
        frozen = state.pop("frozen")
        log.say(f"{stage}: going on after step {start}")
    else:
        overview = parameter_overview.count_parameters({**frozen, **state["params"]})
        trained = parameter_overview.count_parameters(state["params"])
        count = len(space)
        what = f"for {count:,} sub-networks" if count > 1 else f"({space[0]})"
        log.say(
            f"{stage}: {'a SuperLM' if count > 1 else 'one network'} of {overview:,} "
            f"parameters ({trained:,} trained) {what}; terms "
            f"{'+'.join(experiment.objective.weights)}; "
            f"{experiment.mesh.size} device(s); compiling ..."
        )
    writer = log.Writer(workdir, experiment.config.tensorboard)

    def inputs(i):
        archs = sandwich.archs(space, settings.random, seed, i)
        return (
            frozen,
            teacher_params,
            loader.of_step(feed, i, experiment.mesh),
            sandwich.as_arrays(archs),
            jax.random.fold_in(jax.random.key(seed), i),
        )

    with checkpoint.finished(kept):
        loop.fit(
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
            tell=lambda done, values: writer.write(name, done, values),
        )
    log.say(f"{stage}: made {folder / str(settings.steps)}")


def prepare(experiment: Experiment, space: Space, of_words: dict) -> tuple:
    """(state, frozen parameters, step function, the teacher's parameters), on devices."""
    made, mesh = program(experiment, space, of_words), experiment.mesh
    return (
        optimizer.begin(made.moves, made.params, made.axes, mesh),
        sharding.place(made.frozen, made.axes, mesh),
        made.step,
        sharding.place(made.theirs, made.teacher_axes, mesh),
    )


class Program(NamedTuple):
    """A training step, of a space `sandwich.make_step`, and what it starts from.

    params, frozen: the SuperLM's with its matchers, `experiment.start`'s truncated to its
    widths. theirs: the teacher's, with its masked-word head where one is needed. module:
    what is trained.
    """

    step: Callable
    moves: optax.GradientTransformation
    params: dict
    frozen: dict
    axes: optimizer.Axes
    theirs: dict
    teacher_axes: optimizer.Axes
    module: build.Module


def program(experiment: Experiment, space: Space, of_words: dict) -> Program:
    """of_words: see `teacher_head`."""
    settings = experiment.config.distill
    superlm = experiment.superlm(space)
    there, params = experiment.start
    params = extract.extract(params, there, superlm.arch) | distillation.matcher(
        experiment.objective,
        superlm.arch.hidden,
        experiment.teacher.arch.hidden,
        of_words
        if experiment.sizes.family == experiment.teacher.sizes.family
        else None,
        experiment.sizes,
    )
    axes = build.axes(superlm)
    frozen = {name: params.pop(name) for name in settings.freeze}
    moves = optimizer.make(settings.to_dict(), settings.steps, axes)
    teacher = experiment.teacher_module()
    step = sandwich.make_step(
        superlm,
        teacher,
        experiment.objective,
        moves,
        experiment.config.mesh.accumulate,
    )
    theirs = {**experiment.teacher.params, **of_words}
    of_teacher = build.axes(teacher)
    return Program(step, moves, params, frozen, axes, theirs, of_teacher, superlm)


def pretraining(experiment: Experiment, start: huggingface.Teacher) -> Program:
    """The step of the job pretrain, `pretraining.make_step`, from `teacher.start`."""
    settings, config = experiment.config.pretrain, experiment.config
    module = build.module(
        start.arch,
        start.sizes,
        dtype=jnp.dtype(settings.dtype),
        dropout=settings.dropout,
        mesh=experiment.mesh,
        remat=config.mesh.remat,
    )
    axes = build.axes(module)
    moves = optimizer.make(settings.to_dict(), settings.steps, axes)
    step = pretrain.make_step(
        module,
        moves,
        experiment.special,
        settings.hide,
        settings.hide_at_most,
        config.mesh.accumulate,
    )
    params = {**start.params, **start.head, **(start.next or {})}
    return Program(step, moves, params, {}, axes, {}, {}, module)


def teacher_head(experiment: Experiment, workdir: epath.Path, stage: str) -> dict:
    """The teacher's masked-word head where a term needs one, else nothing.

    Its own if it came with one; else one is trained on the frozen teacher, kept in the
    workdir, and what that took is written beside it (words.json).
    """
    if not experiment.objective.needs("words"):
        return {}
    if experiment.teacher.head is not None:
        return experiment.teacher.head
    path = workdir / "teacher" / "words.npz"
    if path.exists():
        return storage.read_arrays(path)
    settings = experiment.config.distill
    data = rows(experiment, workdir, "train")
    what = f"{stage}: masked-word head"
    log.say(f"{what}: the teacher has none; training one on the frozen teacher ...")
    made, accuracy = head.train(
        experiment.teacher_module(),
        experiment.teacher.params,
        loader.training(data, settings.batch_size, experiment.config.seed),
        held_out(experiment, workdir)[0],
        settings.to_dict(),
        experiment.objective,
        experiment.mesh,
        experiment.config.seed,
        what,
    )
    report = {
        "steps": settings.head_steps,
        "tokens": settings.head_steps
        * settings.batch_size
        * experiment.config.data.length,
        "params": int(parameter_overview.count_parameters(made)),
        "accuracy": accuracy,
    }
    storage.write_json(path.with_suffix(".json"), report)
    storage.write_arrays(path, made)  # Last: with it the head is there.
    log.say(f"{what}: names {accuracy:.1%} of the hidden words of held-out text")
    return made


def trained_superlm(experiment: Experiment, workdir: epath.Path, space: str) -> dict:
    """The parameters of a space's trained SuperLM, matchers included, on the devices.

    Raises:
      UserError: it is not trained, or not to the end.
    """
    steps = experiment.config.distill.steps
    folder = superlm_folder(workdir, space)
    kept = checkpoint.manager(folder)
    if (kept.latest_step() or 0) < steps:
        raise UserError(
            f"{folder} has {kept.latest_step() or 0} of {steps} steps; "
            "run the job distill first"
        )
    state = checkpoint.restore_on(kept, sharding.replicated(experiment.mesh))
    return {**state["params"], **state["frozen"]}
