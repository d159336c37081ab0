"""Latencies of the students that could be cut out of trained SuperLMs."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from autodistill_jax import log, multihost, sharding, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.experiment.experiment import Experiment, latency_conditions
from autodistill_jax.interop.huggingface import Teacher, network_module
from autodistill_jax.latency import measure
from autodistill_jax.latency import table as latency_table
from autodistill_jax.latency.calibration import latency_features
from autodistill_jax.models import build, heads
from autodistill_jax.search import latency_bound

# A machine may be busy: what is over a bound by less is decided after training.
_FAR = 1.5
# By what two rounds of one network differ, as a part of it, however close the runs of
# each lie: `tests/benchmarks/budgets.py` tells it of a table.
ROUND_NOISE = 0.03
# {Arch as text, or "teacher": an entry of the latency table}.
Latencies = Mapping[str, Mapping[str, Any]]


def student_latencies(
    experiment: Experiment,
    folder: epath.Path,
    superlms: Mapping[str, dict],
    archs: Sequence[AnyArch],
    stage: str,
    known_archs: Sequence[AnyArch] = (),
    once_more: bool = False,
) -> Latencies:
    """Latencies of extracted students, measured or compiled, and of the teacher.

    Args:
      experiment: whose config says how they are taken.
      folder: of latency.json, which keeps them.
      superlms: {space: parameters}.
      archs: of the students.
      stage: what log lines begin with.
      known_archs: more Archs, whose latency is given where it is known already.
      once_more: whether a latency of `archs` that is known already is measured once
        more, and the mean given.

    Returns:
      {"teacher", and Archs as text: an entry of the latency table}.
    """
    path, conditions = folder / "latency.json", latency_conditions(experiment.config)
    table = latency_table.read_table(path)
    teacher, dims = experiment.teacher, experiment.dims
    candidates = list(dict.fromkeys([*archs, *known_archs]))
    is_known = multihost.on_first_process(
        lambda: [
            latency_table.find_latency(table, arch, dims, conditions, True) is not None
            for arch in candidates
        ]
    )
    networks: dict[str, tuple[AnyArch, ModelDims, dict | None]] = {
        "teacher": (teacher.arch, teacher.dims, teacher.params)
    }

    @functools.cache  # On this host, whatever the mesh is.
    def weights_of(space):
        return jax.tree.map(sharding.to_host, heads.encoder_params(superlms[space]))

    for arch, has_latency in zip(candidates, is_known):
        student = None
        if not has_latency or (once_more and arch in archs):
            if arch not in archs:
                continue
            space = experiment.affordable[arch]
            student = experiment.extract_student(
                experiment.spaces[space], weights_of(space), arch
            )
            student = jax.tree.map(jnp.asarray, student)
        networks[str(arch)] = (arch, dims, student)
    latencies = latency_table.take_latencies(
        table,
        networks,
        conditions,
        True,
        lambda text: log.say(f"{stage}: {text}"),
        reference="teacher",
        once_more=[str(arch) for arch in archs] if once_more else (),
    )
    storage.write_json(path, table)
    return latencies


def check_latency_bound(experiment: Experiment) -> None:
    """Takes the latencies of the teacher and of the smallest Arch, before any work.

    Args:
      experiment: whose budgets are meant.

    Raises:
      UserError: not even the smallest is near a bound on the latency.
    """
    budgets = [budget for budget in experiment.budgets if budget.bounds_latency]
    if not budgets or experiment.config.search.fixed_arch:
        return
    conditions, teacher = latency_conditions(experiment.config), experiment.teacher
    archs = [space.smallest() for space in experiment.spaces.values()]
    smallest = min(archs, key=lambda arch: experiment.cost(arch)["flops"])
    dims, params = experiment.dims, None
    if not conditions.target:
        module = build.build_module(smallest, dims)
        params = build.init_params(module, jax.random.key(0))
    latencies = latency_table.take_latencies(
        latency_table.empty_table(),
        {
            "teacher": (teacher.arch, teacher.dims, teacher.params),
            "smallest": (smallest, dims, params),
        },
        conditions,
        False,
        lambda text: log.say(f"budget: {text}"),
    )
    costs = {
        name: latency_table.trial_fields(entry) for name, entry in latencies.items()
    }
    for budget in budgets:
        bound = budget.bounds(experiment.cost(teacher.arch) | costs["teacher"])
        limit = {"latency_ms": bound["latency_ms"]}
        if costs["smallest"]["latency_ms"] > _FAR * limit["latency_ms"]:
            raise budget.infeasible_error(
                limit, {smallest: costs["smallest"]}, f"{conditions.source} Archs"
            )


def baseline_latency(
    experiment: Experiment,
    workdir: epath.Path,
    front: dict,
    network: Teacher,
    stage: str,
) -> float | None:
    """The latency of a network that is no sub-network, taken as a student's is.

    Args:
      experiment: whose config says how it is taken.
      workdir: whose search/latency.json keeps it.
      front: front.json, whose latencies it is to stand beside.
      network: the network.
      stage: what log lines begin with.

    Returns:
      Milliseconds, in the front's own measure: what the machine has become slower or
      faster since is divided out by the teacher. None on another device.
    """
    if latency_conditions(experiment.config).record() != front["latency"]:
        return None
    path, teacher = workdir / "search" / "latency.json", experiment.teacher
    table = latency_table.read_table(path)
    params = jax.tree.map(sharding.to_host, network.params)
    networks = {
        "teacher": (teacher.arch, teacher.dims, teacher.params),
        "baseline": (network.arch, network.dims, params),
    }
    latencies = latency_table.take_latencies(
        table,
        networks,
        latency_conditions(experiment.config),
        True,
        lambda text: log.say(f"{stage}: {text}"),
        reference="teacher",
    )
    storage.write_json(path, table)
    drift = latencies["teacher"]["seconds"] * 1e3 / front["teacher"]["latency_ms"]
    return latencies["baseline"]["seconds"] * 1e3 / drift


def static_latency(
    experiment: Experiment, front: Mapping[str, Any], network: Teacher, stage: str
) -> float | None:
    """The latency of a static table: its look-ups and their mean.

    Args:
      experiment: whose config says how it is taken.
      front: front.json, whose latencies it is to stand beside.
      network: of `huggingface.static_network`.
      stage: what log lines begin with.

    Returns:
      Milliseconds. None on another device, and for a TPU that is compiled for, whose
      compiler's estimates are of products.
    """
    conditions = latency_conditions(experiment.config)
    if conditions.target or conditions.record() != front["latency"]:
        return None
    ids = jnp.ones((conditions.batch, conditions.length), jnp.int32)

    def look_up(params, input_ids, attention_mask):
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        module = network_module(network)
        return build.text_embeddings(module, params, batch, network.pooling)

    calls = [(look_up, (network.params, ids, ids))]
    (seconds,) = measure.device_times(calls, conditions.runs)
    latency = multihost.on_first_process(lambda: 1e3 * float(np.median(seconds)))
    log.say(f"{stage}: static table: {latency:.3g} ms measured")
    return latency


def latencies_at_bound(
    experiment: Experiment,
    folder: epath.Path,
    superlms: Mapping[str, dict],
    proxies: Mapping[AnyArch, float],
    stage: str,
) -> Latencies:
    """Latencies of the Archs that decide which is the best within the latency bound.

    At most `latency.max_measurements` are taken of each budget, see
    `latency_bound.search_within_latency`.

    Args:
      experiment, folder, superlms, stage: as of `student_latencies`.
      proxies: {Arch: its proxy}, of all that may be chosen.

    Returns:
      {"teacher", and Archs as text: an entry of the latency table}.
    """
    conditions = latency_conditions(experiment.config)
    take = functools.partial(student_latencies, experiment, folder, superlms)
    # What an earlier search has taken is known already.
    latencies = dict(take([], stage, list(proxies)))
    teacher = latency_table.trial_fields(latencies["teacher"])
    teacher |= experiment.cost(experiment.teacher.arch)
    count = experiment.config.latency.max_measurements

    def timing(entry: Mapping[str, Any]) -> tuple[float, float]:
        seconds, rounds = entry["seconds"], entry.get("rounds", 1)
        noise = 0.0 if conditions.target else ROUND_NOISE / rounds**0.5
        return seconds, noise * seconds

    for budget in experiment.budgets:
        if not budget.bounds_latency:
            continue
        bound = budget.bounds(teacher)["latency_ms"]
        archs = experiment.archs_within(proxies, budget)
        log.say(
            f"{stage}: looking for the best of {len(archs)} Archs within {bound:.4g} "
            f"ms {conditions.source}; the latency of {count} is taken at most"
        )

        def time_fn(indices: list[int], archs=archs) -> list[tuple[float, float]]:
            picks = [archs[i] for i in indices]
            latencies.update(take(picks, stage, once_more=True))
            return [timing(latencies[str(arch)]) for arch in picks]

        latency_bound.search_within_latency(
            [proxies[arch] for arch in archs],
            [
                latency_features(
                    arch, experiment.dims, conditions.batch, conditions.length
                )
                for arch in archs
            ],
            bound / 1e3,
            time_fn,
            count,
            {
                i: timing(latencies[str(arch)])
                for i, arch in enumerate(archs)
                if str(arch) in latencies
            },
        )
    return latencies
