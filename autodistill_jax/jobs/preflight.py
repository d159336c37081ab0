"""Job `preflight`: memory, time and collectives of an experiment on a TPU slice."""

import dataclasses
import math
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from autodistill_jax import log, sharding
from autodistill_jax.data.tokenization import SpecialTokens
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import loading, lowering, schema, trials
from autodistill_jax.experiment.experiment import Experiment, TeacherSide
from autodistill_jax.experiment.teacher import abstract_teacher
from autodistill_jax.latency import chips, estimate, hlo
from autodistill_jax.latency import topology as topologies
from autodistill_jax.search import proxies


class _PreflightPlan(NamedTuple):
    """What is compiled, and for which devices.

    Attributes:
      experiment: on the mesh that it is compiled for; its teacher holds no weights.
      tpu_slice: of `mesh.topology`; None: the devices at hand.
      limit: bytes that a program may take of one device; None: not known.
    """

    experiment: Experiment
    tpu_slice: topologies.TpuSlice | None
    limit: int | None

    @property
    def chip(self) -> chips.Chip | None:
        """What one chip of the slice can do; None: the devices at hand."""
        return chips.CHIPS[self.tpu_slice.chip] if self.tpu_slice else None


class _CompiledRecipe(NamedTuple):
    """What compiling gave.

    Attributes:
      steps: {name: the step that trains}.
      programs: {"step/<name>", "teacher", "evaluation/<name>": its program}.
      student: the largest student's latency, or {"error": why there is none}; {} where
        no chip is named.
      over: what does not fit: names of programs, and "student".
      largest_batch_size: of what trains and takes most, rows that fit; None: all fit.
      seconds: that compiling took.
    """

    steps: dict[str, lowering.LoweredStep]
    programs: dict[str, topologies.CompiledProgram]
    student: dict[str, Any]
    over: list[str]
    largest_batch_size: int | None
    seconds: float

    @property
    def needed_bytes(self) -> int:
        """Bytes of one device that the largest program takes."""
        return max(program.total_bytes for program in self.programs.values())


def run_preflight(config: ConfigDict) -> dict[str, Any]:
    """Compiles the experiment's programs for `mesh.topology` (the devices at hand if
    ''), runs none, and prints one JSON object on stdout.

    The steps are the very programs that distill, finish, transfer and pretrain run, of
    the largest Archs. Bytes are
    of one device; seconds are `compiled`: the compiler's cycles with every sub-network
    at its largest, times the share of the multiply-adds that the sandwich's have on
    average. Not in them is what `left_out` names: baselines, what labels ask for
    (fine-tuning, search.proxy=proxy or probe), and an MLM head that the teacher lacks.

    Args:
      config: of an experiment; its teacher is known by its sizes alone.

    Returns:
      What it prints; `fits` says whether all of it does.

    Raises:
      UserError: what cannot work on that mesh; no such topology; no libtpu.
    """
    plan = _plan_preflight(config)
    compiled = _compile_recipe(plan)
    record = _preflight_record(plan, compiled)
    log.print_result(record)
    if plan.limit is None:
        log.say(
            f"preflight: compiled for the {plan.experiment.mesh.size} device(s) here, "
            "whose memory is not known; mesh.topology names a TPU slice, v5litepod-64, "
            "say"
        )
    if compiled.over:
        log.say(f"preflight: {_advice(compiled, plan.limit)}")
    return record


def _plan_preflight(config: ConfigDict) -> _PreflightPlan:
    schema.check_config(config)
    topology = config.mesh.topology
    tpu_slice = topologies.find_slice(topology) if topology else None
    experiment = _abstract_experiment(config, tpu_slice)
    if tpu_slice:
        limit = int(chips.CHIPS[tpu_slice.chip].memory)
    else:  # A CPU says nothing.
        limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return _PreflightPlan(experiment, tpu_slice, limit)


def _abstract_experiment(
    config: ConfigDict, tpu_slice: topologies.TpuSlice | None
) -> Experiment:
    """As `loading.load_experiment`, on the slice's mesh."""
    teacher = abstract_teacher(config)
    mesh = sharding.make_mesh(config.mesh, tpu_slice.devices if tpu_slice else None)
    loading.check_batches(config, mesh)
    special_tokens = SpecialTokens(
        pad_token_id=0, cls_token_id=1, sep_token_id=2, mask_token_id=3
    )  # Numbers that cost nothing.
    experiment = loading.with_spaces(
        TeacherSide(config, teacher, teacher, None, special_tokens, mesh)
    )
    if config.distill.kept_layers == "evidence" and experiment.starts_from_teacher:
        # Which layers each depth keeps the text will say; that they are nested is known.
        depths = {depth for s in experiment.spaces.values() for depth in s.layers}
        nested = {depth: tuple(range(depth)) for depth in depths}
        experiment = dataclasses.replace(experiment, kept_by_depth=nested)
    search = config.search
    proxies.check_proxy(
        search.proxy, "search.proxy", experiment.objective.weights, search.proxy_task
    )
    trials.check_search(experiment)
    return experiment


def _compile_recipe(plan: _PreflightPlan) -> _CompiledRecipe:
    start = time.monotonic()
    steps = lowering.lowered_steps(plan.experiment)
    programs = _compile_programs(steps)
    over = [
        name for name, program in programs.items() if not _fits(program, plan.limit)
    ]
    student = {}
    if plan.tpu_slice:
        student = _student_estimate(plan.experiment, steps, plan.tpu_slice)
        if "error" in student:
            over.append("student")
    largest = None
    if oversized := {n: step for n, step in steps.items() if f"step/{n}" in over}:
        largest = _largest_batch(plan.experiment, oversized, programs, plan.limit)
    seconds = time.monotonic() - start
    return _CompiledRecipe(steps, programs, student, over, largest, seconds)


def _compile_programs(
    steps: Mapping[str, lowering.LoweredStep],
) -> dict[str, topologies.CompiledProgram]:
    """The steps' programs, and those that judge what a step that fits has trained."""
    programs: dict[str, topologies.CompiledProgram] = {}
    for name, step in steps.items():
        program = _compile_step(name, step, step.batch_size)
        programs[f"step/{name}"] = program
        for kind, lower in step.proxy_programs:
            if not program.bytes_by_part:
                break
            # The teacher is one, however many spaces learn from it.
            key = kind if kind == "teacher" else f"{kind}/{name}"
            if key not in programs:
                log.say(f"preflight: compiling the {kind} of {name} ...")
                programs[key] = topologies.compile_program(lower(program.executable))
            program = programs[key]
    return programs


def _compile_step(
    name: str, step: lowering.LoweredStep, batch_size: int
) -> topologies.CompiledProgram:
    log.say(f"preflight: compiling the step of {name}, batch {batch_size} ...")
    return topologies.compile_program(step.lower(batch_size))


def _fits(program: topologies.CompiledProgram, limit: int | None) -> bool:
    if not program.bytes_by_part:
        return False
    return limit is None or program.total_bytes <= limit


def _student_estimate(
    experiment: Experiment,
    steps: Mapping[str, lowering.LoweredStep],
    tpu_slice: topologies.TpuSlice,
) -> dict[str, Any]:
    """The largest student's forward pass on one chip, see `estimate.estimate_latency`;
    {"error": why} of a batch that one chip has no room for."""
    settings = experiment.config.latency
    arch = max(step.arch for name, step in steps.items() if name != "pretrain")
    log.say(f"preflight: compiling the student {arch} ...")
    try:
        return estimate.estimate_latency(
            arch,
            experiment.dims,
            target=tpu_slice.chip,
            batch=settings.batch,
            length=settings.max_seq_length,
            dtype=settings.compute_dtype,
        )
    except UserError as error:
        return {"error": str(error)}


def _largest_batch(
    experiment: Experiment,
    steps: Mapping[str, lowering.LoweredStep],
    programs: Mapping[str, topologies.CompiledProgram],
    limit: int,
) -> int:
    """The largest batch that fits of the step that takes most, 0 if none does: guessed
    from what a row takes, and compiled."""
    unit = (
        sharding.num_batch_shards(experiment.mesh)
        * experiment.config.mesh.gradient_accumulation_steps
    )
    largest = max(steps, key=lambda name: programs[f"step/{name}"].total_bytes)
    step, high = steps[largest], steps[largest].batch_size
    high_bytes = programs[f"step/{largest}"].total_bytes
    program = _compile_step(largest, step, unit)
    if not _fits(program, limit):
        return 0
    low, low_bytes = unit, program.total_bytes
    while high - low > unit:
        row_bytes = max(high_bytes - low_bytes, 1) / (high - low)
        guess = low + math.floor((limit - low_bytes) / row_bytes)
        guess = min(max(guess // unit * unit, low + unit), high - unit)
        program = _compile_step(largest, step, guess)
        if _fits(program, limit):
            low, low_bytes = guess, program.total_bytes
            if (limit - low_bytes) / row_bytes < unit:
                break
        else:
            high, high_bytes = guess, program.total_bytes
    return low


def _preflight_record(
    plan: _PreflightPlan, compiled: _CompiledRecipe
) -> dict[str, Any]:
    """What is printed, for people and programs."""
    tpu_slice, mesh, steps = plan.tpu_slice, plan.experiment.mesh, compiled.steps
    record: dict[str, Any] = {
        "fits": not compiled.over,
        "over": compiled.over,
        "topology": tpu_slice.name if tpu_slice else "",
        "device": mesh.devices.flat[0].device_kind,
        "mesh": dict(mesh.shape),
        "batch_size": {name: step.batch_size for name, step in steps.items()},
        "steps": {name: step.steps for name, step in steps.items()},
        "hbm_bytes_per_device": compiled.needed_bytes,
        "hbm_limit_bytes": plan.limit,
        "programs": {
            name: program.bytes_by_part | {"total": program.total_bytes}
            for name, program in compiled.programs.items()
        },
        **_recipe_estimates(plan.experiment, steps, _step_rates(plan, compiled)),
    }
    if compiled.student:
        record["student"] = compiled.student
    record["left_out"] = [
        "baselines",
        "finetune",
        "the head of a task, or of masked LM",
    ]
    proxy = plan.experiment.config.search.proxy
    if plan.experiment.config.distill.optimizer == "muon" and proxy != "flash":
        record["left_out"].append("the products of Muon, in operations")
    if proxy in proxies.LABELLED_PROXIES:
        record["left_out"].append(f"search.proxy={proxy}, by its labels")
    if compiled.largest_batch_size is not None:
        record["largest_batch_size"] = compiled.largest_batch_size
    record["compile_seconds"] = round(compiled.seconds, 1)
    for name in ("jax", "libtpu") if tpu_slice else ("jax",):
        record[name] = metadata.version(name)
    return record


def _step_rates(
    plan: _PreflightPlan, compiled: _CompiledRecipe
) -> dict[str, dict[str, Any]]:
    """{name: `_step_estimates`} of the steps that a chip has room for."""
    chip = plan.chip
    if not chip:
        return {}
    programs = {name: compiled.programs[f"step/{name}"] for name in compiled.steps}
    return {
        name: _step_estimates(
            step, programs[name].text, chip, plan.experiment.mesh.size
        )
        for name, step in compiled.steps.items()
        if programs[name].bytes_by_part
    }


def _step_estimates(
    step: lowering.LoweredStep, text: str, chip: chips.Chip, num_devices: int
) -> dict[str, Any]:
    """Seconds of a step by three estimates, and its collectives. text: its HLO."""
    executed = hlo.count_executed(text)
    collectives = {
        kind: {"count": count, "bytes": size}
        for kind, (count, size) in executed.collectives.items()
    }
    collective_bytes = sum(size for _, size in executed.collectives.values())
    device_operations = step.mean_operations * step.batch_size / num_devices
    three = {
        "cycles_seconds": executed.cycles
        / chip.clock
        * step.mean_operations
        / step.max_operations,
        "roofline_seconds": device_operations / chip.peak,
        "collective_seconds": 2 * collective_bytes / chip.links,
    }
    return {"step_seconds": max(three.values()), **three, "collectives": collectives}


def _recipe_estimates(
    experiment: Experiment,
    steps: Mapping[str, lowering.LoweredStep],
    rates: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """Time and cost of the whole recipe, one kind of step after the other; of them all
    the figures of the slowest stand first. rates: {name: `_step_estimates`}."""
    if len(rates) < len(steps):
        return {"step_seconds": None, "source": "not estimated", "collectives": {}}
    training = {
        name: {**rate, "hours": rate["step_seconds"] * steps[name].steps / 3600}
        for name, rate in rates.items()
    }
    slowest = max(training, key=lambda name: training[name]["step_seconds"])
    tokens = steps[slowest].batch_size * experiment.config.data.max_seq_length
    hours = sum(rate["hours"] for rate in training.values())
    price = experiment.config.mesh.chip_price_per_hour
    return {
        **training[slowest],
        "source": "compiled",
        "tokens_per_second": tokens / training[slowest]["step_seconds"],
        "hours": hours,
        "chip_hours": hours * experiment.mesh.size,
        **({"cost": hours * experiment.mesh.size * price} if price else {}),
        "training": {
            name: {"arch": str(steps[name].arch), **rate}
            for name, rate in training.items()
        },
    }


def _advice(compiled: _CompiledRecipe, limit: int | None) -> str:
    """What does not fit, and what to do."""
    over, largest = compiled.over, compiled.largest_batch_size
    text = f"{', '.join(over)}: it does not fit"
    if over != ["student"]:
        text += (
            f": {compiled.needed_bytes / 2**30:.2f} GiB a device of {limit / 2**30:.2f}"
        )
    if largest is not None:
        text += (
            f"; the largest batch that does is {largest}"
            if largest
            else "; no batch does"
        )
        text += (
            "; mesh.fsdp, mesh.gradient_accumulation_steps and mesh.remat save memory"
        )
    if any(name.startswith(("teacher", "evaluation/")) for name in over):
        text += "; what judges is of search.batch_size rows (of flash, distill's)"
    if "student" in over:
        text += f"; {compiled.student['error']}"
    return text
