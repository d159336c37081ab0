"""An experiment's training steps and proxies, lowered for a mesh without any values.

For the job preflight: the very programs that distill, transfer and pretrain run.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from autodistill_jax import sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import ModelDims, cost
from autodistill_jax.archs.space import Space, single
from autodistill_jax.data.mlm import mask_tokens
from autodistill_jax.experiment import programs
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.teacher import pretraining_start
from autodistill_jax.experiment.text_rows import has_positions
from autodistill_jax.models import build, heads
from autodistill_jax.search import proxies, proxy_flash, proxy_programs
from autodistill_jax.train import flash_distillation, sandwich
from autodistill_jax.train.optimizer import ParamAxes

# Steps, or Archs, whose multiply-adds are averaged.
_NUM_SAMPLED = 200

# A name, and a function that lowers its program; it is told how the program before it
# was compiled.
LoweredProgram = tuple[str, Callable[[Any], jax.stages.Lowered]]


class LoweredStep(NamedTuple):
    """A training step, and how much there is of it.

    Attributes:
      lower: lowers the step for a batch of so many rows.
      batch_size: rows.
      steps: of the whole recipe.
      mean_operations: of a row (two a multiply-add; three passes where there is a
        gradient), on average over the sandwiches or Archs of the recipe.
      max_operations: the same as it is compiled: every choice at its largest.
      arch: the largest that the step trains.
      proxy_programs: what judges, one program after the other.
    """

    lower: Callable[[int], jax.stages.Lowered]
    batch_size: int
    steps: int
    mean_operations: float
    max_operations: float
    arch: AnyArch
    proxy_programs: Sequence[LoweredProgram] = ()


def lowered_steps(experiment: Experiment) -> dict[str, LoweredStep]:
    """All that the job run would train, but for what labels ask for.

    Args:
      experiment: complete; its teacher's weights may be abstract
        (`teacher.abstract_teacher`).

    Returns:
      {name: step}: "pretrain", the space's name of a SuperLM, "finish", "block" and
      "last" of a transfer.
    """
    steps = {}
    if experiment.config.pretrain.steps:
        steps["pretrain"] = _pretraining_step(experiment)
    if experiment.config.search.proxy == "flash":
        return steps | dict(_transfer_steps(experiment))
    for name, space in experiment.spaces.items():
        steps[name] = _superlm_step(experiment, space)
    if experiment.config.distill.finish_steps:
        steps["finish"] = _finish_step(experiment)
    return steps


def _finish_step(experiment: Experiment) -> LoweredStep:
    """The step of the job finish, of the largest Arch that may be chosen; the steps of
    all budgets' students."""
    arch = max(experiment.affordable, key=lambda a: _row_operations(experiment, a))
    alone = experiment.config.copy_and_resolve_references()
    alone.distill.steps = alone.distill.finish_steps * len(experiment.budgets)
    space = single(arch)
    variant = dataclasses.replace(experiment, config=alone, spaces={"finish": space})
    # Nothing is judged by it.
    return _superlm_step(variant, space)._replace(proxy_programs=())


def _superlm_step(experiment: Experiment, space: Space) -> LoweredStep:
    config, mesh = experiment.config, experiment.mesh
    teacher = experiment.teacher
    mlm_head = teacher.mlm_head if experiment.objective.needs("mlm") else None
    program = programs.superlm_step(experiment, space, mlm_head or {})
    sandwiches = [
        sandwich.sandwich_archs(space, config.distill.random_subnetworks, 0, i)
        for i in range(_NUM_SAMPLED)
    ]
    teacher_operations = _row_operations(experiment, teacher.arch, teacher.dims)
    student_operations = [
        sum(_row_operations(experiment, arch) for arch in archs) for archs in sandwiches
    ]
    largest = space.largest()
    max_students = len(sandwiches[0]) * _row_operations(experiment, largest)

    def lower(batch_size):
        return program.step.lower(
            _abstract_state(program.tx, program.params, program.axes, mesh),
            _abstract_params(program.frozen, program.axes, mesh),
            _abstract_params(program.teacher_params, program.teacher_axes, mesh),
            _distillation_batch(experiment, batch_size),
            _abstract_replicated(lambda: sandwich.stack_archs(sandwiches[0]), mesh),
            _abstract_replicated(lambda: jax.random.key(0), mesh),
        )

    return LoweredStep(
        lower,
        config.distill.batch_size,
        config.distill.steps,
        teacher_operations + 3 * float(np.mean(student_operations)),
        teacher_operations + 3 * max_students,
        largest,
        _superlm_proxy(experiment, space, program),
    )


def _superlm_proxy(
    experiment: Experiment, space: Space, program: programs.TrainStep
) -> list[LoweredProgram]:
    """What `search.proxy` runs of a batch, see `search.proxy_programs`; nothing of one
    that needs labels: how they are read is known with them alone."""
    name, mesh = experiment.config.search.proxy, experiment.mesh
    size = experiment.config.search.batch_size
    module, teacher = program.module.clone(dropout=0.0), experiment.teacher_module()
    params = _abstract_replicated(lambda: {**program.params, **program.frozen}, mesh)
    teacher_params = _abstract_replicated(lambda: program.teacher_params, mesh)
    archs = _abstract_replicated(lambda: sandwich.stack_archs([space.largest()]), mesh)
    batch = _abstract_batch(experiment, size)
    if name in proxies.LABELLED_PROXIES:
        return []
    if name in ("similarity", "hidden"):
        of_teacher, of_student = proxy_programs.output_programs(
            module, teacher, experiment.objective, pooled=name != "hidden"
        )
        teacher_encoder = heads.encoder_params(teacher_params)
        return [
            ("teacher", lambda _: of_teacher.lower(teacher_encoder, batch)),
            ("evaluation", lambda _: of_student.lower(params, batch, archs)),
        ]
    objective = proxies.proxy_objective(name, experiment.objective)
    key, vocab = jax.random.key(0), module.dims.vocab
    masked_batch = jax.eval_shape(
        lambda b: mask_tokens(key, b, vocab, objective.masking), batch
    )
    masked_batch["valid_rows"] = jax.ShapeDtypeStruct((size,), jnp.bool_)
    rows_sharding = sharding.batch_sharding(mesh, size)
    batch = _with_shardings(
        masked_batch, jax.tree.map(lambda _: rows_sharding, masked_batch)
    )
    targets, sums = proxy_programs.loss_programs(module, teacher, objective)

    def lower_sums(teacher_program):
        target = _with_shardings(
            teacher_program.out_info, teacher_program.output_shardings
        )
        return sums.lower(params, batch, target, archs)

    return [
        ("teacher", lambda _: targets.lower(teacher_params, batch)),
        ("evaluation", lower_sums),
    ]


def _transfer_steps(experiment: Experiment) -> Iterator[tuple[str, LoweredStep]]:
    """The two steps of Flash Distillation, of the largest Arch that may be tried: the
    trials' share of the recipe, and all of it for the winners."""
    config, mesh, teacher = experiment.config, experiment.mesh, experiment.teacher
    (space,) = experiment.spaces.values()
    affordable = experiment.affordable
    sampled = [a for a in space.subset(_NUM_SAMPLED, config.seed) if a in affordable]
    sampled = sampled or [next(iter(affordable))]
    costs = {arch: _row_operations(experiment, arch) for arch in sampled}
    arch = max(sampled, key=lambda candidate: costs[candidate])
    transfer = programs.blockwise_transfer(experiment, arch)
    settings = programs.transfer_settings(experiment)
    steps = flash_distillation.transfer_steps(transfer, settings, 1.0)
    trial_stages = flash_distillation.stage_steps(
        settings, arch.layers, settings["step_fraction"]
    )
    num_trials = 1 if config.search.fixed_arch else config.search.trials
    num_winners = min(num_trials, config.flash_distillation.top_k)
    counts = [
        num_trials * short + num_winners * full
        for short, full in zip(trial_stages, steps.stages)
    ]
    axes, size = build.param_axes(transfer.module), config.distill.batch_size
    teacher_params = _abstract_params(
        transfer.teacher_params, build.param_axes(transfer.teacher), mesh
    )
    k, key = _abstract_replicated(lambda: (jnp.int32(0), jax.random.key(0)), mesh)
    teacher_operations = _row_operations(experiment, teacher.arch, teacher.dims)
    mean_operations = teacher_operations + 3 * float(np.mean(list(costs.values())))
    max_operations = teacher_operations + 3 * costs[arch]

    def lower_block(rows):
        state = _abstract_state(steps.block_tx, steps.params, axes, mesh)
        return steps.block_step.lower(
            state, teacher_params, _distillation_batch(experiment, rows), k, key
        )

    def lower_last(rows):
        state = _abstract_state(steps.last_tx, steps.params, axes, mesh)
        archs = _abstract_replicated(lambda: sandwich.stack_archs([arch]), mesh)
        return steps.last_step.lower(
            state, {}, teacher_params, _distillation_batch(experiment, rows), archs, key
        )

    def lower_evaluation(_):
        params = _abstract_params(steps.params, axes, mesh)
        replicated = _abstract_replicated(lambda: dict(transfer.teacher_params), mesh)
        return proxy_flash.block_loss_program(transfer).lower(
            params, replicated, _abstract_batch(experiment, size), k
        )

    layers = arch.layers
    # Block k runs the network up to it.
    mean_depth = float(np.mean([(i + 1) / layers for i in range(layers)]))
    yield (
        "block",
        LoweredStep(
            lower_block,
            size,
            sum(counts[:layers]),
            mean_depth * mean_operations,
            max_operations,
            arch,
            [("evaluation", lower_evaluation)],
        ),
    )
    if len(counts) > layers:
        yield (
            "last",
            LoweredStep(
                lower_last, size, counts[layers], mean_operations, max_operations, arch
            ),
        )


def _pretraining_step(experiment: Experiment) -> LoweredStep:
    settings = experiment.config.pretrain
    start = pretraining_start(experiment.config, experiment.named_teacher)
    program = programs.pretraining_step(experiment, start)
    operations = 3 * _row_operations(experiment, start.arch, start.dims)

    def lower(rows):
        mesh = experiment.mesh
        state = _abstract_state(program.tx, program.params, program.axes, mesh)
        key = _abstract_replicated(lambda: jax.random.key(0), mesh)
        return program.step.lower(state, _abstract_batch(experiment, rows), key)

    return LoweredStep(
        lower, settings.batch_size, settings.steps, operations, operations, start.arch
    )


def _row_operations(
    experiment: Experiment, arch: AnyArch, dims: ModelDims | None = None
) -> float:
    """Operations of one row's forward pass, of a student unless `dims` are given."""
    length = experiment.config.data.max_seq_length
    return 2.0 * cost(arch, dims or experiment.dims, length)["flops"]


def _distillation_batch(
    experiment: Experiment, count: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of `text_rows.training_rows`."""
    batch = _abstract_batch(experiment, count)
    if has_positions(experiment):
        batch["position_ids"] = batch["input_ids"]
    return batch


def _abstract_batch(
    experiment: Experiment, count: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of token rows as `corpus.corpus_rows` and `nsp.sentence_pair_rows` make
    them."""
    data = experiment.config.data
    row_shape = (count, data.max_seq_length)
    rows: dict[str, tuple[tuple[int, ...], Any]] = {
        "input_ids": (row_shape, jnp.int32),
        "attention_mask": (row_shape, jnp.int8),
    }
    if data.row_format == "pair":
        rows |= {
            "token_type_ids": (row_shape, jnp.int8),
            "next_sentence_label": ((count,), jnp.int32),
        }
    rows_sharding = sharding.batch_sharding(experiment.mesh, count)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows_sharding)
        for name, (shape, dtype) in rows.items()
    }


def _abstract_state(
    tx: optax.GradientTransformation,
    params: dict,
    axes: ParamAxes,
    mesh: jax.sharding.Mesh,
) -> dict:
    """The state of `optimizer.init_state`, as it lies on the mesh."""
    shardings = sharding.state_shardings(tx, params, axes, mesh)
    moments = jax.eval_shape(tx.init, params)
    return _with_shardings({"params": params, "optimizer": moments}, shardings)


def _abstract_params(params, axes, mesh) -> dict:
    return _with_shardings(dict(params), sharding.param_shardings(params, axes, mesh))


def _abstract_replicated(make: Callable[[], Any], mesh: jax.sharding.Mesh) -> Any:
    shapes = jax.eval_shape(make)
    return _with_shardings(
        shapes, jax.tree.map(lambda _: sharding.replicated(mesh), shapes)
    )


def _with_shardings(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        tree,
        shardings,
    )
