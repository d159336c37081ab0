"""The compiled training steps of an experiment, and what they start from."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from autodistill_jax import sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.space import Space
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.interop import huggingface
from autodistill_jax.models import build, extract
from autodistill_jax.train import (
    distillation,
    flash_distillation,
    optimizer,
    sandwich,
)
from autodistill_jax.train import objective as objectives
from autodistill_jax.train import pretraining as pretrain


def init_training(experiment: Experiment, space: Space, of_words: dict) -> tuple:
    """(state, frozen parameters, step function, the teacher's parameters), on devices."""
    made, mesh = superlm_step(experiment, space, of_words), experiment.mesh
    return (
        optimizer.init_state(made.tx, made.params, made.axes, mesh),
        sharding.place_params(made.frozen, made.axes, mesh),
        made.step,
        sharding.place_params(made.teacher_params, made.teacher_axes, mesh),
    )


class TrainStep(NamedTuple):
    """A training step, of a space `sandwich.make_sandwich_step`, and what it starts from.

    params, frozen: the SuperLM's with its matchers, `experiment.initial_params`'s truncated to its
    widths. teacher_params: the teacher's, with its masked-word head where one is needed. module:
    what is trained.
    """

    step: Callable
    tx: optax.GradientTransformation
    params: dict
    frozen: dict
    axes: optimizer.ParamAxes
    teacher_params: dict
    teacher_axes: optimizer.ParamAxes
    module: build.Module


def superlm_step(experiment: Experiment, space: Space, of_words: dict) -> TrainStep:
    """of_words: see `teacher_mlm_head`."""
    settings = experiment.config.distill
    superlm = experiment.superlm(space)
    there, params = experiment.initial_params
    params = extract.extract(
        params, there, superlm.arch
    ) | distillation.init_projections(
        experiment.objective,
        superlm.arch.hidden,
        experiment.teacher.arch.hidden,
        of_words if experiment.dims.family == experiment.teacher.dims.family else None,
        experiment.dims,
    )
    axes = build.param_axes(superlm)
    frozen = {name: params.pop(name) for name in settings.freeze}
    moves = optimizer.make_optimizer(settings.to_dict(), settings.steps, axes)
    teacher = experiment.teacher_module()
    step = sandwich.make_sandwich_step(
        superlm,
        teacher,
        experiment.objective,
        moves,
        experiment.config.mesh.gradient_accumulation_steps,
    )
    theirs = {**experiment.teacher.params, **of_words}
    of_teacher = build.param_axes(teacher)
    return TrainStep(step, moves, params, frozen, axes, theirs, of_teacher, superlm)


def pretraining_step(experiment: Experiment, start: huggingface.Teacher) -> TrainStep:
    """The step of the job pretrain, `pretraining_step.make_pretraining_step`, from `teacher.pretraining_start`."""
    settings, config = experiment.config.pretrain, experiment.config
    module = build.build_module(
        start.arch,
        start.dims,
        dtype=jnp.dtype(settings.compute_dtype),
        dropout=settings.dropout,
        mesh=experiment.mesh,
        remat=config.mesh.remat,
    )
    axes = build.param_axes(module)
    moves = optimizer.make_optimizer(settings.to_dict(), settings.steps, axes)
    step = pretrain.make_pretraining_step(
        module,
        moves,
        experiment.special_tokens,
        settings.mlm_probability,
        settings.max_predictions_per_seq,
        config.mesh.gradient_accumulation_steps,
    )
    params = {**start.params, **start.mlm_head, **(start.nsp_head or {})}
    return TrainStep(step, moves, params, {}, axes, {}, {}, module)


def blockwise_transfer(
    experiment: Experiment, arch: AnyArch
) -> flash_distillation.BlockwiseTransfer:
    """Of the teacher's knowledge to a student of this Arch, from where training starts."""
    teacher, config = experiment.teacher, experiment.config
    there, params = experiment.initial_params
    objective = objectives.transfer_objective(
        config.distill.to_dict(),
        arch.layers,
        teacher,
        experiment.special_tokens,
        config.data.row_format == "pair",
    )
    same = experiment.dims.family == teacher.dims.family
    student = extract.extract(params, there, arch) | distillation.init_projections(
        objective,
        arch.hidden,
        teacher.arch.hidden,
        teacher.mlm_head if same else None,
        experiment.dims,
    )
    word = "embeddings_word"
    return flash_distillation.BlockwiseTransfer(
        build.build_module(
            arch,
            experiment.dims,
            dtype=jnp.dtype(config.distill.compute_dtype),
            dropout=config.distill.dropout,
            mesh=experiment.mesh,
            remat=config.mesh.remat,
        ),
        student,
        experiment.teacher_module(),
        teacher.params | (teacher.mlm_head or {}),
        objective,
        # Equal to the teacher's own, not a cut or a projection of them.
        embeddings_copied=np.array_equal(student[word], teacher.params[word]),
        parts=config.mesh.gradient_accumulation_steps,
    )


def transfer_settings(experiment: Experiment) -> dict[str, Any]:
    """The settings of a transfer: the section flash, what is common from distill."""
    distill = experiment.config.distill
    common = ("batch_size", "weight_decay", "grad_clip_norm")
    return experiment.config.flash_distillation.to_dict() | {
        name: distill[name] for name in common
    }
