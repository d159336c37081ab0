"""Job `preflight`: does the experiment fit a TPU slice, before one is rented?"""

import math
import time
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from autodistill_jax import sharding
from autodistill_jax.cost import cost
from autodistill_jax.data.tokens import Special
from autodistill_jax.errors import UserError
from autodistill_jax.jobs import experiment, fields, teachers, training
from autodistill_jax.jobs.experiment import Experiment
from autodistill_jax.latency import compile, hlo, slices
from autodistill_jax.space import Space
from autodistill_jax.train import log, sandwich, terms

# Steps whose sub-networks are averaged.
_STEPS = 200


def run(config: ConfigDict) -> bool:
    """Compiles the experiment's programs for `mesh.topology` (the devices at hand if
    ''), runs none, and prints one JSON object on stdout. Does it fit?

    The training step is the very program that the job distill runs. Bytes are of one
    device; seconds are `compiled`: the compiler's cycles with every sub-network at its
    largest, times the share of the multiply-adds that the sandwich's have on average.

    Raises:
      UserError: what cannot work on that mesh; no such topology; no libtpu.
    """
    fields.check(config)
    if config.search.proxy == "flash":
        raise UserError(
            "search.proxy is flash, which trains each student by itself; preflight "
            "compiles the step of a SuperLM, which the other proxies search in"
        )
    topology = config.mesh.topology
    part = slices.find(topology) if topology else None
    made = _experiment(config, part)
    chip = compile.CHIPS[part.chip] if part else None
    here = jax.devices()[0].memory_stats() or {}  # A CPU says nothing.
    limit = int(chip.memory) if chip else here.get("bytes_limit")
    start = time.monotonic()
    batch_size = config.distill.batch_size
    programs: dict[str, slices.Compiled] = {}
    rates = []
    for name, space in made.spaces.items():
        program = _program(made, space)
        step = _step(made, space, program, batch_size, name)
        programs[f"step/{name}"] = step
        if step.parts:
            rates.append(_rate(made, space, step, chip))
            programs[f"evaluation/{name}"] = _evaluation(made, space, program, name)
    needed = max(one.needed for one in programs.values())
    fits = all(one.parts for one in programs.values())
    fits = fits and (limit is None or needed <= limit)
    told: dict[str, Any] = {
        "fits": fits,
        "topology": part.name if part else "",
        "device": made.mesh.devices.flat[0].device_kind,
        "mesh": dict(made.mesh.shape),
        "batch_size": batch_size,
        "hbm_bytes_per_device": needed,
        "hbm_limit_bytes": limit,
        "programs": {
            k: one.parts | {"total": one.needed} for k, one in programs.items()
        },
    }
    if fits:
        told |= _told(made, rates, part)
        told |= {"student": _student(made, part)} if part else {}
    else:
        told["largest_batch_size"] = _largest(made, programs, batch_size, limit)
    told["compile_seconds"] = round(time.monotonic() - start, 1)
    for name in ("jax", "libtpu") if part else ("jax",):
        told[name] = metadata.version(name)
    log.result(told)
    if not fits:
        most = told["largest_batch_size"]
        log.say(
            f"preflight: it does not fit: {needed / 2**30:.2f} GiB a device of "
            f"{limit / 2**30:.2f}; "
            + (f"the largest batch that does is {most}" if most else "no batch does")
            + "; mesh.fsdp, mesh.accumulate and mesh.remat save memory"
        )
    return fits


def _experiment(config: ConfigDict, part: slices.Slice | None) -> Experiment:
    """As `experiment.read`, on the slice's mesh."""
    teacher = teachers.sized(config)
    mesh = sharding.make_mesh(config.mesh, part.devices if part else None)
    experiment.check_batches(config, mesh)
    special = Special(pad=0, cls=1, sep=2, hide=3)  # Numbers that cost nothing.
    made = Experiment(config, teacher, teacher, None, special, mesh)
    return experiment.complete(made)


def _like(tree: Any, where: Any) -> Any:
    return jax.tree.map(
        lambda x, there: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there),
        tree,
        where,
    )


def _rows(made: Experiment, count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of token rows as `text.rows` and `pairs.rows` make them."""
    data, there = made.config.data, sharding.batch(made.mesh, count)
    shape = (count, data.length)
    rows = {"ids": (shape, jnp.int32), "tokens": (shape, jnp.int8)}
    if data.unit == "pair":
        rows |= {"types": (shape, jnp.int8), "next": ((count,), jnp.int32)}
    return {
        name: jax.ShapeDtypeStruct(*one, sharding=there) for name, one in rows.items()
    }


def _program(made: Experiment, space: Space) -> training.Program:
    of_words = made.teacher.head if made.objective.needs("words") else None
    return training.program(made, space, of_words or {})


def _step(
    made: Experiment,
    space: Space,
    program: training.Program,
    batch_size: int,
    name: str,
) -> slices.Compiled:
    """The training step of a space's SuperLM."""
    config, mesh = made.config, made.mesh
    log.say(f"preflight: compiling the step of {name}, batch {batch_size} ...")
    where = sharding.state(program.moves, program.params, program.axes, mesh)
    moments = jax.eval_shape(program.moves.init, program.params)
    state = _like({"params": program.params, "optimizer": moments}, where)
    frozen = _like(
        program.frozen, sharding.parameters(program.frozen, program.axes, mesh)
    )
    theirs = _like(
        program.theirs, sharding.parameters(program.theirs, program.teacher_axes, mesh)
    )
    archs = sandwich.as_arrays(sandwich.archs(space, config.distill.random, 0, 0))
    rest = jax.eval_shape(lambda: (archs, jax.random.key(0)))
    everywhere = jax.tree.map(lambda _: sharding.replicated(mesh), rest)
    lowered = program.step.lower(
        state, frozen, theirs, _rows(made, batch_size), *_like(rest, everywhere)
    )
    return slices.compiled(lowered)


def _evaluation(
    made: Experiment, space: Space, program: training.Program, name: str
) -> slices.Compiled:
    """What the proxies run of a SuperLM: hidden states of `search.batch_size` rows."""
    log.say(f"preflight: compiling the evaluation of {name} ...")
    mesh, superlm = made.mesh, made.superlm(space).clone(dropout=0.0)
    params = terms.network({**program.params, **program.frozen})
    where = jax.tree.map(lambda _: sharding.replicated(mesh), dict(params))
    arch = jax.eval_shape(lambda: jax.tree.map(jnp.int32, space.largest()))
    arch = _like(arch, jax.tree.map(lambda _: sharding.replicated(mesh), arch))

    def hidden(params, batch, arch):
        return superlm.apply(
            {"params": params},
            batch["ids"],
            batch["tokens"],
            arch if superlm.space is not None else None,
            types=batch.get("types"),
        ).hidden

    rows = _rows(made, made.config.search.batch_size)
    return slices.compiled(jax.jit(hidden).lower(_like(params, where), rows, arch))


def _rate(
    made: Experiment, space: Space, step: slices.Compiled, chip: Any
) -> dict | None:
    """Seconds of a step by three estimates, and its collectives."""
    if chip is None:
        return None
    config = made.config
    found = hlo.executed(step.text)
    mean, most = _operations(made, space)
    share = mean / most
    collectives = {
        kind: {"count": count, "bytes": moved}
        for kind, (count, moved) in found.collectives.items()
    }
    moved = sum(size for _, size in found.collectives.values())
    three = {
        "cycles_seconds": found.cycles / chip.clock * share,
        "roofline_seconds": mean
        * config.distill.batch_size
        / made.mesh.size
        / chip.peak,
        "collective_seconds": 2 * moved / chip.links,
    }
    return {"step_seconds": max(three.values()), **three, "collectives": collectives}


def _operations(made: Experiment, space: Space) -> tuple[float, float]:
    """(on average, with all sub-networks at their largest) of a row's step: three times
    the forward pass's where there is a gradient."""
    config, length = made.config, made.config.data.length

    def of(arch, sizes):
        return 2 * cost(arch, sizes, length)["flops"]

    teacher = of(made.teacher.arch, made.teacher.sizes)
    drawn = [
        [
            of(arch, made.sizes)
            for arch in sandwich.archs(space, config.distill.random, 0, i)
        ]
        for i in range(_STEPS)
    ]
    largest = of(space.largest(), made.sizes) * len(drawn[0])
    mean = float(np.mean([sum(one) for one in drawn]))
    return teacher + 3 * mean, teacher + 3 * largest


def _told(made: Experiment, rates: list, part: slices.Slice | None) -> dict[str, Any]:
    """Time and cost of the whole recipe, a SuperLM after the other."""
    if part is None:
        return {"step_seconds": None, "source": "not estimated", "collectives": {}}
    config = made.config
    tokens = config.distill.batch_size * config.data.length
    steps = config.distill.steps
    hours = sum(one["step_seconds"] for one in rates) * steps / 3600
    slowest = max(rates, key=lambda one: one["step_seconds"])
    price = config.mesh.price
    return {
        **slowest,
        "source": "compiled",
        "tokens_per_second": tokens / slowest["step_seconds"],
        "steps": steps * len(rates),
        "hours": hours,
        "chip_hours": hours * made.mesh.size,
        **({"cost": hours * made.mesh.size * price} if price else {}),
    }


def _student(made: Experiment, part: slices.Slice) -> dict[str, Any]:
    """The largest student's forward pass on one chip, see `compile.estimate`."""
    how = made.config.latency
    arch = max(space.largest() for space in made.spaces.values())
    given = {"batch": how.batch, "length": how.length, "dtype": how.dtype}
    log.say(f"preflight: compiling the student {arch} ...")
    return compile.estimate(arch, made.sizes, target=part.chip, **given)


def _largest(
    made: Experiment, programs: dict[str, slices.Compiled], size: int, limit: int
) -> int:
    """The largest batch whose step fits: guessed from what a row takes, and compiled."""
    unit = sharding.rows(made.mesh) * made.config.mesh.accumulate
    steps = {k: one for k, one in programs.items() if k.startswith("step/")}
    worst = max(steps, key=lambda name: steps[name].needed).removeprefix("step/")
    space, most = made.spaces[worst], size
    needed = steps[f"step/{worst}"].needed
    program = _program(made, space)
    fixed = _step(made, space, program, unit, worst)
    if not fixed.parts or fixed.needed > limit:
        return 0
    low, known = unit, fixed.needed
    while most - low > unit:
        a_row = max(needed - known, 1) / (most - low)
        guess = low + math.floor((limit - known) / a_row)
        guess = min(max(guess // unit * unit, low + unit), most - unit)
        found = _step(made, space, program, guess, worst)
        if found.parts and found.needed <= limit:
            low, known = guess, found.needed
            if (limit - known) / a_row < unit:
                break
        else:
            most, needed = guess, found.needed
    return low
