"""Which steps does an experiment train by, and what judges them? For `preflight`: lowered
for a mesh, without a value in them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from autodistill_jax import sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import ModelDims, cost
from autodistill_jax.archs.space import Space
from autodistill_jax.experiment import programs
from autodistill_jax.experiment import teacher as teachers
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.models import build, heads
from autodistill_jax.search import proxies, proxy_flash, proxy_programs
from autodistill_jax.train import distillation, flash_distillation, sandwich

# Steps, or Archs, whose multiply-adds are averaged.
_NUM_DRAWN = 200


class LoweredStep(NamedTuple):
    """A training step, and how much there is of it.

    lower: of a batch of so many rows. steps: of the whole recipe. mean_operations, max_operations: operations
    of a row (two a multiply-add; three passes where there is a gradient) on average, and
    as it is compiled: with every choice at its largest. arch: the largest that it trains.
    proxy_programs: by which programs, (name, lowered), one after the other; each is told how the
    one before it was compiled.
    """

    lower: Callable[[int], jax.stages.Lowered]
    batch_size: int
    steps: int
    mean_operations: float
    max_operations: float
    arch: AnyArch
    proxy_programs: Sequence[tuple[str, Callable[[Any], jax.stages.Lowered]]] = ()


def lowered_steps(made: Experiment) -> dict[str, LoweredStep]:
    """{name: Step} of all that the job `run` would train, but for what labels ask for."""
    found = {}
    if made.config.pretrain.steps:
        found["pretrain"] = _pretraining_step(made)
    if made.config.search.proxy == "flash":
        return found | dict(_transfer_steps(made))
    return found | {
        name: _superlm_step(made, space) for name, space in made.spaces.items()
    }


def _superlm_step(made: Experiment, space: Space) -> LoweredStep:
    config, mesh = made.config, made.mesh
    of_words = made.teacher.mlm_head if made.objective.needs("mlm") else None
    program = programs.superlm_step(made, space, of_words or {})
    drawn = [
        sandwich.sandwich_archs(space, config.distill.random_subnetworks, 0, i)
        for i in range(_NUM_DRAWN)
    ]
    teacher = _row_operations(made, made.teacher.arch, made.teacher.dims)
    each = [sum(_row_operations(made, arch) for arch in archs) for archs in drawn]
    largest = space.largest()

    def lower(batch_size):
        return program.step.lower(
            _abstract_state(program.tx, program.params, program.axes, mesh),
            _abstract_params(program.frozen, program.axes, mesh),
            _abstract_params(program.teacher_params, program.teacher_axes, mesh),
            _abstract_batch(made, batch_size),
            _abstract_replicated(lambda: sandwich.stack_archs(drawn[0]), mesh),
            _abstract_replicated(lambda: jax.random.key(0), mesh),
        )

    return LoweredStep(
        lower,
        config.distill.batch_size,
        config.distill.steps,
        teacher + 3 * float(np.mean(each)),
        teacher + 3 * len(drawn[0]) * _row_operations(made, largest),
        largest,
        _proxy_programs(made, space, program),
    )


def _proxy_programs(
    made: Experiment, space: Space, program: programs.TrainStep
) -> list:
    """What `search.proxy` runs of a batch, see `search.programs`; nothing of one that
    needs labels: how they are read is known with them alone."""
    config, mesh, name = made.config, made.mesh, made.config.search.proxy
    size = config.search.batch_size
    module, teacher = program.module.clone(dropout=0.0), made.teacher_module()
    params = _abstract_replicated(lambda: {**program.params, **program.frozen}, mesh)
    theirs = _abstract_replicated(lambda: program.teacher_params, mesh)
    one = _abstract_replicated(lambda: sandwich.stack_archs([space.largest()]), mesh)
    batch = _abstract_batch(made, size)
    if name in proxies.LABELLED_PROXIES:
        return []
    if name in ("similarity", "hidden"):
        of_teacher, of_student = proxy_programs.output_programs(
            module, teacher, made.objective, pooled=name != "hidden"
        )
        body = heads.encoder_params(theirs)
        return [
            ("teacher", lambda _: of_teacher.lower(body, batch)),
            ("evaluation", lambda _: of_student.lower(params, batch, one)),
        ]
    objective = proxies.proxy_objective(name, made.objective)
    key, vocab = jax.random.key(0), module.dims.vocab
    shown = jax.eval_shape(
        lambda b: dict(distillation.shown(b, objective, vocab, key)), batch
    )
    shown["valid_rows"] = jax.ShapeDtypeStruct((size,), jnp.bool_)
    batch = _with_shardings(
        shown, jax.tree.map(lambda _: sharding.batch_sharding(mesh, size), shown)
    )
    targets, sums = proxy_programs.loss_programs(module, teacher, objective)

    def of_student(before):
        target = _with_shardings(before.out_info, before.output_shardings)
        return sums.lower(params, batch, target, one)

    return [
        ("teacher", lambda _: targets.lower(theirs, batch)),
        ("evaluation", of_student),
    ]


def _transfer_steps(made: Experiment) -> Iterator[tuple[str, LoweredStep]]:
    """The two steps of Flash Distillation, of the largest Arch that may be tried: the
    trials' share of the recipe, and all of it for the winners."""
    config, mesh = made.config, made.mesh
    (space,) = made.spaces.values()
    drawn = [a for a in space.subset(_NUM_DRAWN, config.seed) if a in made.affordable]
    drawn = drawn or [next(iter(made.affordable))]
    costs = {arch: _row_operations(made, arch) for arch in drawn}
    arch = max(drawn, key=costs.get)
    transfer, how = (
        programs.blockwise_transfer(made, arch),
        programs.transfer_settings(made),
    )
    found = flash_distillation.transfer_steps(transfer, how, 1.0)
    tried = 1 if config.search.fixed_arch else config.search.trials
    counts = [
        tried * short + min(tried, config.flash_distillation.top_k) * full
        for short, full in zip(
            flash_distillation.stage_steps(how, arch.layers, how["step_fraction"]),
            found.stages,
        )
    ]
    axes, size = build.param_axes(transfer.module), config.distill.batch_size
    theirs = _abstract_params(
        transfer.teacher_params, build.param_axes(transfer.teacher), mesh
    )
    k, key = _abstract_replicated(lambda: (jnp.int32(0), jax.random.key(0)), mesh)
    teacher = _row_operations(made, made.teacher.arch, made.teacher.dims)
    mean = teacher + 3 * float(np.mean(list(costs.values())))
    most = teacher + 3 * costs[arch]

    def of_block(rows):
        state = _abstract_state(found.block_tx, found.params, axes, mesh)
        return found.block_step.lower(
            state, theirs, _abstract_batch(made, rows), k, key
        )

    def of_last(rows):
        state = _abstract_state(found.last_tx, found.params, axes, mesh)
        one = _abstract_replicated(lambda: sandwich.stack_archs([arch]), mesh)
        return found.last_step.lower(
            state, {}, theirs, _abstract_batch(made, rows), one, key
        )

    def judged(_):
        params = _abstract_params(found.params, axes, mesh)
        whole = _abstract_replicated(lambda: dict(transfer.teacher_params), mesh)
        return proxy_flash.block_loss_program(transfer).lower(
            params, whole, _abstract_batch(made, size), k
        )

    layers = arch.layers
    # Block k runs the network up to it.
    half = float(np.mean([(i + 1) / layers for i in range(layers)]))
    given = (size, sum(counts[:layers]), half * mean, most, arch)
    yield "block", LoweredStep(of_block, *given, [("evaluation", judged)])
    if len(counts) > layers:
        yield "last", LoweredStep(of_last, size, counts[layers], mean, most, arch)


def _pretraining_step(made: Experiment) -> LoweredStep:
    config, start = (
        made.config,
        teachers.pretraining_start(made.config, made.named_teacher),
    )
    program = programs.pretraining_step(made, start)
    operations = 3 * _row_operations(made, start.arch, start.dims)

    def lower(rows):
        state = _abstract_state(program.tx, program.params, program.axes, made.mesh)
        key = _abstract_replicated(lambda: jax.random.key(0), made.mesh)
        return program.step.lower(state, _abstract_batch(made, rows), key)

    size, steps = config.pretrain.batch_size, config.pretrain.steps
    return LoweredStep(lower, size, steps, operations, operations, start.arch)


def _row_operations(
    made: Experiment, arch: AnyArch, dims: ModelDims | None = None
) -> float:
    """Operations of one row's forward pass, of a student unless `dims` are given."""
    return 2.0 * cost(arch, dims or made.dims, made.config.data.max_seq_length)["flops"]


def _abstract_batch(made: Experiment, count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of token rows as `corpus.corpus_rows` and `nsp.sentence_pair_rows` make them."""
    data, there = made.config.data, sharding.batch_sharding(made.mesh, count)
    shape = (count, data.max_seq_length)
    rows = {"input_ids": (shape, jnp.int32), "attention_mask": (shape, jnp.int8)}
    if data.row_format == "pair":
        rows |= {
            "token_type_ids": (shape, jnp.int8),
            "next_sentence_label": ((count,), jnp.int32),
        }
    return {
        name: jax.ShapeDtypeStruct(*one, sharding=there) for name, one in rows.items()
    }


def _abstract_state(moves, params, axes, mesh) -> dict:
    where = sharding.state_shardings(moves, params, axes, mesh)
    moments = jax.eval_shape(moves.init, params)
    return _with_shardings({"params": params, "optimizer": moments}, where)


def _abstract_params(params, axes, mesh) -> dict:
    return _with_shardings(dict(params), sharding.param_shardings(params, axes, mesh))


def _abstract_replicated(make: Callable[[], Any], mesh: jax.sharding.Mesh) -> Any:
    shapes = jax.eval_shape(make)
    return _with_shardings(
        shapes, jax.tree.map(lambda _: sharding.replicated(mesh), shapes)
    )


def _with_shardings(tree: Any, where: Any) -> Any:
    return jax.tree.map(
        lambda x, there: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there),
        tree,
        where,
    )
