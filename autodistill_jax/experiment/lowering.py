"""Which steps does an experiment train by, and what judges them? For `preflight`: lowered
for a mesh, without a value in them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from autodistill_jax import sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import Sizes, cost
from autodistill_jax.archs.space import Space
from autodistill_jax.experiment import superlm, trials
from autodistill_jax.experiment import teacher as teachers
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.models import build
from autodistill_jax.search import proxies, proxy_flash, proxy_programs
from autodistill_jax.train import distillation, flash_distillation, sandwich

# Steps, or Archs, whose multiply-adds are averaged.
_DRAWN = 200


class Step(NamedTuple):
    """A training step, and how much there is of it.

    lower: of a batch of so many rows. steps: of the whole recipe. mean, most: operations
    of a row (two a multiply-add; three passes where there is a gradient) on average, and
    as it is compiled: with every choice at its largest. arch: the largest that it trains.
    judged: by which programs, (name, lowered), one after the other; each is told how the
    one before it was compiled.
    """

    lower: Callable[[int], jax.stages.Lowered]
    batch_size: int
    steps: int
    mean: float
    most: float
    arch: AnyArch
    judged: Sequence[tuple[str, Callable[[Any], jax.stages.Lowered]]] = ()


def of(made: Experiment) -> dict[str, Step]:
    """{name: Step} of all that the job `run` would train, but for what labels ask for."""
    found = {}
    if made.config.pretrain.steps:
        found["pretrain"] = _pretraining(made)
    if made.config.search.proxy == "flash":
        return found | dict(_transfer(made))
    return found | {name: _superlm(made, space) for name, space in made.spaces.items()}


def _superlm(made: Experiment, space: Space) -> Step:
    config, mesh = made.config, made.mesh
    of_words = made.teacher.head if made.objective.needs("words") else None
    program = superlm.program(made, space, of_words or {})
    drawn = [sandwich.archs(space, config.distill.random, 0, i) for i in range(_DRAWN)]
    teacher = _row(made, made.teacher.arch, made.teacher.sizes)
    each = [sum(_row(made, arch) for arch in archs) for archs in drawn]
    largest = space.largest()

    def lower(batch_size):
        return program.step.lower(
            _state(program.moves, program.params, program.axes, mesh),
            _placed(program.frozen, program.axes, mesh),
            _placed(program.theirs, program.teacher_axes, mesh),
            _rows(made, batch_size),
            _everywhere(lambda: sandwich.as_arrays(drawn[0]), mesh),
            _everywhere(lambda: jax.random.key(0), mesh),
        )

    return Step(
        lower,
        config.distill.batch_size,
        config.distill.steps,
        teacher + 3 * float(np.mean(each)),
        teacher + 3 * len(drawn[0]) * _row(made, largest),
        largest,
        _judged(made, space, program),
    )


def _judged(made: Experiment, space: Space, program: superlm.Program) -> list:
    """What `search.proxy` runs of a batch, see `search.programs`; nothing of one that
    needs labels: how they are read is known with them alone."""
    config, mesh, name = made.config, made.mesh, made.config.search.proxy
    size = config.search.batch_size
    module, teacher = program.module.clone(dropout=0.0), made.teacher_module()
    params = _everywhere(lambda: {**program.params, **program.frozen}, mesh)
    theirs = _everywhere(lambda: program.theirs, mesh)
    one = _everywhere(lambda: sandwich.as_arrays([space.largest()]), mesh)
    batch = _rows(made, size)
    if name in proxies.LABELLED:
        return []
    if name in ("similarity", "hidden"):
        of_teacher, of_student = proxy_programs.of_outputs(
            module, teacher, made.objective, pooled=name != "hidden"
        )
        body = {k: v for k, v in theirs.items() if not k.startswith("words_")}
        return [
            ("teacher", lambda _: of_teacher.lower(body, batch)),
            ("evaluation", lambda _: of_student.lower(params, batch, one)),
        ]
    objective = proxies.judged_by(name, made.objective)
    key, vocab = jax.random.key(0), module.sizes.vocab
    shown = jax.eval_shape(
        lambda b: dict(distillation.shown(b, objective, vocab, key)), batch
    )
    shown["rows"] = jax.ShapeDtypeStruct((size,), jnp.bool_)
    batch = _like(shown, jax.tree.map(lambda _: sharding.batch(mesh, size), shown))
    targets, sums = proxy_programs.of_losses(module, teacher, objective)

    def of_student(before):
        target = _like(before.out_info, before.output_shardings)
        return sums.lower(params, batch, target, one)

    return [
        ("teacher", lambda _: targets.lower(theirs, batch)),
        ("evaluation", of_student),
    ]


def _transfer(made: Experiment) -> Iterator[tuple[str, Step]]:
    """The two steps of Flash Distillation, of the largest Arch that may be tried: the
    trials' share of the recipe, and all of it for the winners."""
    config, mesh = made.config, made.mesh
    (space,) = made.spaces.values()
    drawn = [a for a in space.some(_DRAWN, config.seed) if a in made.affordable]
    drawn = drawn or [next(iter(made.affordable))]
    costs = {arch: _row(made, arch) for arch in drawn}
    arch = max(drawn, key=costs.get)
    transfer, how = trials.transfer(made, arch), trials.recipe(made)
    found = flash_distillation.programs(transfer, how, 1.0)
    tried = 1 if config.search.arch else config.search.trials
    counts = [
        tried * short + min(tried, config.flash.winners) * full
        for short, full in zip(
            flash_distillation.plan(how, arch.layers, how["fraction"]), found.stages
        )
    ]
    axes, size = build.axes(transfer.module), config.distill.batch_size
    theirs = _placed(transfer.teacher_params, build.axes(transfer.teacher), mesh)
    k, key = _everywhere(lambda: (jnp.int32(0), jax.random.key(0)), mesh)
    teacher = _row(made, made.teacher.arch, made.teacher.sizes)
    mean = teacher + 3 * float(np.mean(list(costs.values())))
    most = teacher + 3 * costs[arch]

    def of_block(rows):
        state = _state(found.blocks, found.params, axes, mesh)
        return found.of_block.lower(state, theirs, _rows(made, rows), k, key)

    def of_last(rows):
        state = _state(found.last, found.params, axes, mesh)
        one = _everywhere(lambda: sandwich.as_arrays([arch]), mesh)
        return found.of_last.lower(state, {}, theirs, _rows(made, rows), one, key)

    def judged(_):
        params = _placed(found.params, axes, mesh)
        whole = _everywhere(lambda: dict(transfer.teacher_params), mesh)
        return proxy_flash.of_block(transfer).lower(params, whole, _rows(made, size), k)

    layers = arch.layers
    # Block k runs the network up to it.
    half = float(np.mean([(i + 1) / layers for i in range(layers)]))
    given = (size, sum(counts[:layers]), half * mean, most, arch)
    yield "block", Step(of_block, *given, [("evaluation", judged)])
    if len(counts) > layers:
        yield "last", Step(of_last, size, counts[layers], mean, most, arch)


def _pretraining(made: Experiment) -> Step:
    config, start = made.config, teachers.start(made.config, made.source)
    program = superlm.pretraining(made, start)
    operations = 3 * _row(made, start.arch, start.sizes)

    def lower(rows):
        state = _state(program.moves, program.params, program.axes, made.mesh)
        key = _everywhere(lambda: jax.random.key(0), made.mesh)
        return program.step.lower(state, _rows(made, rows), key)

    size, steps = config.pretrain.batch_size, config.pretrain.steps
    return Step(lower, size, steps, operations, operations, start.arch)


def _row(made: Experiment, arch: AnyArch, sizes: Sizes | None = None) -> float:
    """Operations of one row's forward pass, of a student unless `sizes` are given."""
    return 2.0 * cost(arch, sizes or made.sizes, made.config.data.length)["flops"]


def _rows(made: Experiment, count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of token rows as `corpus.rows` and `nsp.rows` make them."""
    data, there = made.config.data, sharding.batch(made.mesh, count)
    shape = (count, data.length)
    rows = {"ids": (shape, jnp.int32), "tokens": (shape, jnp.int8)}
    if data.unit == "pair":
        rows |= {"types": (shape, jnp.int8), "next": ((count,), jnp.int32)}
    return {
        name: jax.ShapeDtypeStruct(*one, sharding=there) for name, one in rows.items()
    }


def _state(moves, params, axes, mesh) -> dict:
    where = sharding.state(moves, params, axes, mesh)
    moments = jax.eval_shape(moves.init, params)
    return _like({"params": params, "optimizer": moments}, where)


def _placed(params, axes, mesh) -> dict:
    return _like(dict(params), sharding.parameters(params, axes, mesh))


def _everywhere(make: Callable[[], Any], mesh: jax.sharding.Mesh) -> Any:
    shapes = jax.eval_shape(make)
    return _like(shapes, jax.tree.map(lambda _: sharding.replicated(mesh), shapes))


def _like(tree: Any, where: Any) -> Any:
    return jax.tree.map(
        lambda x, there: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there),
        tree,
        where,
    )
