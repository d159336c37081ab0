"""Job `preflight`: does the experiment fit a TPU slice, before one is rented?"""

import math
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
from ml_collections import ConfigDict

from autodistill_jax import log, sharding
from autodistill_jax.data.tokenization import SpecialTokens
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import experiment, lowering, schema, trials
from autodistill_jax.experiment import teacher as teachers
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.latency import estimate, hlo
from autodistill_jax.latency import topology as topologies
from autodistill_jax.search import proxies


def run_preflight(config: ConfigDict) -> bool:
    """Compiles the experiment's programs for `mesh.topology` (the devices at hand if
    ''), runs none, and prints one JSON object on stdout. Does it fit?

    The steps are the very programs that distill, transfer and pretrain run. Bytes are of
    one device; seconds are `compiled`: the compiler's cycles with every sub-network at its
    largest, times the share of the multiply-adds that the sandwich's have on average.
    Not in them is what `left_out` names: baselines, what labels ask for (fine-tuning,
    search.proxy=proxy or probe), and a masked-word head that the teacher lacks.

    Raises:
      UserError: what cannot work on that mesh; no such topology; no libtpu.
    """
    schema.check_config(config)
    topology = config.mesh.topology
    part = topologies.find_slice(topology) if topology else None
    made = _abstract_experiment(config, part)
    chip = estimate.CHIPS[part.chip] if part else None
    here = jax.devices()[0].memory_stats() or {}  # A CPU says nothing.
    limit = int(chip.memory) if chip else here.get("bytes_limit")
    start = time.monotonic()
    programs: dict[str, topologies.CompiledProgram] = {}
    rates: dict[str, dict] = {}
    trained = lowering.lowered_steps(made)
    for name, step in trained.items():
        found = _compile_step(name, step, step.batch_size)
        programs[f"step/{name}"] = found
        if not found.bytes_by_part:
            continue
        if chip:
            rates[name] = _step_estimates(made, step, found.text, chip)
        for what, lower in step.proxy_programs:
            # The teacher is one, however many spaces learn from it.
            key = what if what == "teacher" else f"{what}/{name}"
            if key not in programs:
                log.say(f"preflight: compiling the {what} of {name} ...")
                programs[key] = topologies.compile_program(lower(found.executable))
            found = programs[key]
            if not found.bytes_by_part:
                break
    needed = max(one.total_bytes for one in programs.values())
    over = [
        name
        for name, one in programs.items()
        if not one.bytes_by_part or (limit is not None and one.total_bytes > limit)
    ]
    try:
        student = {"student": _student_estimate(made, trained, part)} if part else {}
    except UserError as error:  # Of a batch that one chip has no room for.
        student = {"student": {"error": str(error)}}
        over.append("student")
    told: dict[str, Any] = {
        "fits": not over,
        "over": over,
        "topology": part.name if part else "",
        "device": made.mesh.devices.flat[0].device_kind,
        "mesh": dict(made.mesh.shape),
        "batch_size": {name: step.batch_size for name, step in trained.items()},
        "steps": {name: step.steps for name, step in trained.items()},
        "hbm_bytes_per_device": needed,
        "hbm_limit_bytes": limit,
        "programs": {
            k: one.bytes_by_part | {"total": one.total_bytes}
            for k, one in programs.items()
        },
    }
    told |= _recipe_estimates(made, trained, rates) | student
    told["left_out"] = ["baselines", "finetune", "the head of a task, or of words"]
    if config.search.proxy in proxies.LABELLED_PROXIES:
        told["left_out"].append(f"search.proxy={config.search.proxy}, by its labels")
    if training := {n: one for n, one in trained.items() if f"step/{n}" in over}:
        told["largest_batch_size"] = _largest_batch(made, training, programs, limit)
    told["compile_seconds"] = round(time.monotonic() - start, 1)
    for name in ("jax", "libtpu") if part else ("jax",):
        told[name] = metadata.version(name)
    log.print_result(told)
    if limit is None:
        log.say(
            f"preflight: compiled for the {made.mesh.size} device(s) here, whose memory is "
            "not known; mesh.topology names a TPU slice, v5litepod-64, say"
        )
    if over:
        log.say(f"preflight: {_advice(over, needed, limit, told)}")
    return not over


def _advice(over: list[str], needed: int, limit: int, told: Mapping[str, Any]) -> str:
    """What does not fit, and what to do."""
    text = f"{', '.join(over)}: it does not fit"
    if over != ["student"]:
        text += f": {needed / 2**30:.2f} GiB a device of {limit / 2**30:.2f}"
    if "largest_batch_size" in told:
        most = told["largest_batch_size"]
        text += (
            f"; the largest batch that does is {most}" if most else "; no batch does"
        )
        text += (
            "; mesh.fsdp, mesh.gradient_accumulation_steps and mesh.remat save memory"
        )
    if any(name.startswith(("teacher", "evaluation/")) for name in over):
        text += "; what judges is of search.batch_size rows (of flash, distill's)"
    if "student" in over:
        text += f"; {told['student']['error']}"
    return text


def _abstract_experiment(
    config: ConfigDict, part: topologies.TpuSlice | None
) -> Experiment:
    """As `experiment.load_experiment`, on the slice's mesh."""
    teacher = teachers.abstract_teacher(config)
    mesh = sharding.make_mesh(config.mesh, part.devices if part else None)
    experiment.check_batches(config, mesh)
    special = SpecialTokens(
        pad_token_id=0, cls_token_id=1, sep_token_id=2, mask_token_id=3
    )  # Numbers that cost nothing.
    made = Experiment(config, teacher, teacher, None, special, mesh)
    made = experiment.with_spaces(made)
    search = config.search
    proxies.check_proxy(
        search.proxy, "search.proxy", made.objective.weights, search.proxy_task
    )
    trials.check_search(made)
    return made


def _compile_step(
    name: str, step: lowering.LoweredStep, batch_size: int
) -> topologies.CompiledProgram:
    log.say(f"preflight: compiling the step of {name}, batch {batch_size} ...")
    return topologies.compile_program(step.lower(batch_size))


def _step_estimates(
    made: Experiment, step: lowering.LoweredStep, text: str, chip: estimate.Chip
) -> dict:
    """Seconds of a step by three estimates, and its collectives."""
    found = hlo.count_executed(text)
    collectives = {
        kind: {"count": count, "bytes": moved}
        for kind, (count, moved) in found.collectives.items()
    }
    moved = sum(size for _, size in found.collectives.values())
    each = step.mean_operations * step.batch_size / made.mesh.size
    three = {
        "cycles_seconds": found.cycles
        / chip.clock
        * step.mean_operations
        / step.max_operations,
        "roofline_seconds": each / chip.peak,
        "collective_seconds": 2 * moved / chip.links,
    }
    return {"step_seconds": max(three.values()), **three, "collectives": collectives}


def _recipe_estimates(
    made: Experiment,
    trained: Mapping[str, lowering.LoweredStep],
    rates: Mapping[str, dict],
) -> dict[str, Any]:
    """Time and cost of the whole recipe, one kind of step after the other; of them all
    the figures of the slowest stand first."""
    if len(rates) < len(trained):
        return {"step_seconds": None, "source": "not estimated", "collectives": {}}
    for name, one in rates.items():
        one["hours"] = one["step_seconds"] * trained[name].steps / 3600
    slowest = max(rates, key=lambda name: rates[name]["step_seconds"])
    tokens = trained[slowest].batch_size * made.config.data.max_seq_length
    hours = sum(one["hours"] for one in rates.values())
    price = made.config.mesh.chip_price_per_hour
    return {
        **rates[slowest],
        "source": "compiled",
        "tokens_per_second": tokens / rates[slowest]["step_seconds"],
        "hours": hours,
        "chip_hours": hours * made.mesh.size,
        **({"cost": hours * made.mesh.size * price} if price else {}),
        "training": {
            name: {"arch": str(trained[name].arch), **one}
            for name, one in rates.items()
        },
    }


def _student_estimate(
    made: Experiment,
    trained: Mapping[str, lowering.LoweredStep],
    part: topologies.TpuSlice,
) -> dict[str, Any]:
    """The largest student's forward pass on one chip, see `estimate.estimate_latency`."""
    how = made.config.latency
    students = {step.arch: name for name, step in trained.items() if name != "pretrain"}
    arch = max(students)
    given = {
        "batch": how.batch,
        "length": how.max_seq_length,
        "dtype": how.compute_dtype,
    }
    log.say(f"preflight: compiling the student {arch} ...")
    return estimate.estimate_latency(arch, made.dims, target=part.chip, **given)


def _largest_batch(
    made: Experiment,
    trained: Mapping[str, lowering.LoweredStep],
    programs: Mapping[str, topologies.CompiledProgram],
    limit: int,
) -> int:
    """The largest batch of what takes most that fits: guessed from what a row takes, and
    compiled."""
    unit = (
        sharding.num_batch_shards(made.mesh)
        * made.config.mesh.gradient_accumulation_steps
    )
    worst = max(trained, key=lambda name: programs[f"step/{name}"].total_bytes)
    step, most = trained[worst], trained[worst].batch_size
    needed = programs[f"step/{worst}"].total_bytes
    fixed = _compile_step(worst, step, unit)
    if not fixed.bytes_by_part or fixed.total_bytes > limit:
        return 0
    low, known = unit, fixed.total_bytes
    while most - low > unit:
        a_row = max(needed - known, 1) / (most - low)
        guess = low + math.floor((limit - known) / a_row)
        guess = min(max(guess // unit * unit, low + unit), most - unit)
        found = _compile_step(worst, step, guess)
        if found.bytes_by_part and found.total_bytes <= limit:
            low, known = guess, found.total_bytes
            if (limit - known) / a_row < unit:
                break
        else:
            most, needed = guess, found.total_bytes
    return low
