"""The training steps of an experiment, and what they start from.

`jobs/preflight` compiles these very steps (see `lowering`) without running them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from autodistill_jax import sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import MOBILEBERT_DIMS
from autodistill_jax.archs.space import Space
from autodistill_jax.data.mlm import MlmMasking
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.interop import huggingface
from autodistill_jax.models import build
from autodistill_jax.models.build import Params
from autodistill_jax.models.heads import PROJECTION, encoder_params
from autodistill_jax.models.word_map import WORD_MAP, WORDS, fit_word_map
from autodistill_jax.pruning import projection
from autodistill_jax.train import distillation, optimizer, sandwich
from autodistill_jax.train.flash_distillation import (
    BLOCK_PROJECTIONS,
    BlockwiseTransfer,
)
from autodistill_jax.train.objective import transfer_objective
from autodistill_jax.train.pretraining import make_pretraining_step


class TrainStep(NamedTuple):
    """A training step and what it starts from.

    Attributes:
      step: jitted; of a SuperLM see `sandwich.make_sandwich_step`, of pre-training
        `pretraining.make_pretraining_step`.
      tx: the optimizer, an optax transform.
      params: what is trained, {name: array}: of a SuperLM the experiment's
        `initial_params` sliced to its widths, with its projections and heads.
      frozen: the parameters that keep their values.
      axes: the logical axes of params and frozen.
      teacher_params: the teacher's, with its MLM head where a loss needs one.
      teacher_axes: the logical axes of the teacher's parameters.
      module: what is trained.
    """

    step: jax.stages.Wrapped
    tx: optax.GradientTransformation
    params: dict
    frozen: dict
    axes: optimizer.ParamAxes
    teacher_params: dict
    teacher_axes: optimizer.ParamAxes
    module: build.Module


def superlm_step(
    experiment: Experiment, space: Space, mlm_head: dict, start: Params | None = None
) -> TrainStep:
    """The step that distils the teacher into the SuperLM of a space.

    Args:
      experiment: complete.
      space: of the SuperLM.
      mlm_head: of `superlm.teacher_mlm_head`.
      start: the network and heads to start from; None: the experiment's
        `start_params`, and heads cut from the teacher's.

    Returns:
      The step; parameters are not placed on devices yet.
    """
    settings = experiment.config.distill
    superlm = experiment.superlm(space)
    same_family = experiment.dims.family == experiment.teacher.dims.family
    layers = experiment.superlm_layers(space)
    params: dict = dict(start or experiment.start_params(superlm.arch, layers))
    params = (
        distillation.init_projections(
            experiment.objective,
            superlm.arch.hidden,
            experiment.teacher.arch.hidden,
            mlm_head if same_family else None,
            experiment.dims,
        )
        | params
    )
    params |= _fitted_projections(experiment, superlm.arch, params)
    if (mapped_words := _mapped_words(experiment, params)) is not None:
        params |= mapped_words
        superlm = superlm.clone(word_width=params[WORDS].shape[1])
    axes = build.param_axes(superlm)
    frozen = {name: params.pop(name) for name in settings.freeze}
    tx = optimizer.make_optimizer(settings.to_dict(), settings.steps, axes)
    teacher = experiment.teacher_module()
    step = sandwich.make_sandwich_step(
        superlm,
        teacher,
        experiment.objective,
        tx,
        experiment.config.mesh.gradient_accumulation_steps,
    )
    teacher_params = {**experiment.teacher.params, **mlm_head}
    teacher_axes = build.param_axes(teacher)
    return TrainStep(
        step, tx, params, frozen, axes, teacher_params, teacher_axes, superlm
    )


def _mapped_words(experiment: Experiment, params: dict) -> dict[str, Any] | None:
    """The teacher's word table and the map that makes it the network's, where
    `distill.word_map` asks for it: the table stays frozen and the map is trained."""
    teacher, settings = experiment.teacher, experiment.config.distill
    for dims in (experiment.dims, teacher.dims):
        if dims.embedding or dims.family == MOBILEBERT_DIMS.family:
            return None
    # A masked-LM head is tied to the table.
    if experiment.objective.needs("mlm"):
        return None
    if not settings.word_map or WORDS not in settings.freeze:
        return None
    table = np.asarray(teacher.params[WORDS])
    fitted = fit_word_map(table, np.asarray(params[WORDS]))
    return None if fitted is None else {WORDS: table, WORD_MAP: fitted}


def _fitted_projections(
    experiment: Experiment, arch: AnyArch, params: dict
) -> dict[str, np.ndarray]:
    """Projections fitted to the teacher's outputs, where there is text to fit them on."""
    projections = [name for name in params if name.startswith(PROJECTION)]
    if experiment.calibration_rows is None or not projections:
        return {}
    weights = encoder_params(params)
    of_embeddings, of_states = experiment.fitted_projections(arch, weights)
    fitted = {"pooled": of_embeddings} | dict.fromkeys(
        ("hidden", "cosine", "layers"), of_states
    )
    if f"{PROJECTION}embeddings" in projections:  # Of the first state: TinyBERT's.
        (fitted["embeddings"],) = _state_projections(
            experiment, arch, weights, [(0, 0)]
        )
    return {name: fitted[name.removeprefix(PROJECTION)] for name in projections}


def _state_projections(
    experiment: Experiment, arch: AnyArch, params: dict, pairs: list[tuple[int, int]]
) -> np.ndarray:
    """Fitted maps of a network's states to the teacher's, see `fit_state_projections`."""
    return projection.fit_state_projections(
        build.build_module(arch, experiment.dims),
        params,
        build.build_module(experiment.teacher.arch, experiment.teacher.dims),
        experiment.teacher.params,
        experiment.calibration_batches(),
        pairs,
    )


def init_training(
    experiment: Experiment, space: Space, mlm_head: dict, start: Params | None = None
) -> tuple:
    """Places what `superlm_step` starts from on the devices.

    Args:
      experiment, space, mlm_head, start: as of `superlm_step`.

    Returns:
      (state, frozen parameters, step function, the teacher's parameters).
    """
    train_step = superlm_step(experiment, space, mlm_head, start)
    mesh = experiment.mesh
    return (
        optimizer.init_state(train_step.tx, train_step.params, train_step.axes, mesh),
        sharding.place_params(train_step.frozen, train_step.axes, mesh),
        train_step.step,
        sharding.place_params(train_step.teacher_params, train_step.teacher_axes, mesh),
    )


def pretraining_step(experiment: Experiment, start: huggingface.Teacher) -> TrainStep:
    """The step of the job pretrain.

    Args:
      experiment: of `loading.load_teacher_side`, or complete.
      start: of `teacher.pretraining_start`.

    Returns:
      The step; it has no teacher, and nothing frozen.
    """
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
    tx = optimizer.make_optimizer(settings.to_dict(), settings.steps, axes)
    step = make_pretraining_step(
        module,
        tx,
        MlmMasking(
            settings.mlm_probability,
            settings.max_predictions_per_seq,
            experiment.special_tokens,
        ),
        config.mesh.gradient_accumulation_steps,
    )
    assert start.mlm_head is not None  # `pretraining_start` sees to it.
    params = {**start.params, **start.mlm_head, **(start.nsp_head or {})}
    return TrainStep(step, tx, params, {}, axes, {}, {}, module)


def blockwise_transfer(experiment: Experiment, arch: AnyArch) -> BlockwiseTransfer:
    """Flash Distillation of the teacher into one student, from where training starts.

    Args:
      experiment: complete.
      arch: of the student.

    Returns:
      Modules, parameters and objective, for `flash_distillation.train_blockwise`.
    """
    teacher, config = experiment.teacher, experiment.config
    objective = transfer_objective(
        config.distill.to_dict(),
        arch.layers,
        teacher,
        experiment.special_tokens,
        config.data.row_format == "pair",
    )
    same_family = experiment.dims.family == teacher.dims.family
    student = experiment.start_params(arch)
    student |= distillation.init_projections(
        objective,
        arch.hidden,
        teacher.arch.hidden,
        teacher.mlm_head if same_family else None,
        experiment.dims,
    )
    if experiment.calibration_rows is not None:
        pairs = [(i + 1, layer + 1) for i, layer in enumerate(objective.layer_map)]
        student[BLOCK_PROJECTIONS] = _state_projections(
            experiment, arch, encoder_params(student), pairs
        )
    return BlockwiseTransfer(
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
        embeddings_copied=np.array_equal(student[WORDS], teacher.params[WORDS]),
        gradient_accumulation_steps=config.mesh.gradient_accumulation_steps,
    )


def transfer_settings(experiment: Experiment) -> dict[str, Any]:
    """The settings of a transfer: the section flash_distillation, and of the section
    distill what both have in common."""
    distill = experiment.config.distill
    common = ("batch_size", "weight_decay", "grad_clip_norm")
    return experiment.config.flash_distillation.to_dict() | {
        name: distill[name] for name in common
    }
