"""The table of latencies, kept as JSON, by all that a latency depends on.

Measured and compiled ones stand apart in it, and no look-up finds one for the other.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from etils import epath

from autodistill_jax import multihost
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.latency import estimate, measure

# {"measured": entries, "compiled": entries, "corrections": see `find_correction`}; an
# entry is a latency with its "network" and, if measured, its "weights".
LatencyTable = dict[str, list[dict[str, Any]]]


class LatencyConditions(NamedTuple):
    """How latencies are to be taken.

    Attributes:
      target: the TPU that is compiled for; "": measured on the device at hand.
      batch: texts a pass.
      length: tokens a text.
      dtype: of the products.
      runs: timed executions of each network; of measured latencies alone.
    """

    target: str
    batch: int
    length: int
    dtype: str
    runs: int

    @property
    def source(self) -> str:
        """ "compiled" or "measured"."""
        return "compiled" if self.target else "measured"

    def record(self) -> dict[str, Any]:
        """What a latency depends on besides the network, as its record has it."""
        if self.target:
            return estimate.compiled_conditions(
                self.target, self.batch, self.length, self.dtype
            )
        return measure.measured_conditions(self.batch, self.length, self.dtype)


def empty_table() -> LatencyTable:
    """A table without entries."""
    return {"measured": [], "compiled": [], "corrections": []}


def read_table(path: epath.Path) -> LatencyTable:
    """The table in a file; an empty one where there is no file."""
    table = empty_table()
    stored = json.loads(path.read_text()) if path.exists() else {}
    # Version 0.2.0 wrote {name: latency}, without the networks: no look-up can match.
    return table | {kind: stored[kind] for kind in table if kind in stored}


def find_latency(
    table: LatencyTable,
    arch: AnyArch,
    dims: ModelDims,
    conditions: LatencyConditions,
    trained: bool = False,
) -> dict[str, Any] | None:
    """Looks up the latency of a network.

    Args:
      table: see `LatencyTable`.
      arch: the network's Arch.
      dims: its dimensions that are not elastic.
      conditions: how the latency is to have been taken.
      trained: whether only one measured on trained weights counts, not on random ones.

    Returns:
      The newest entry that matches; None: there is none.
    """
    required = {"network": _network_key(arch, dims), **conditions.record()}
    if trained and not conditions.target:
        required["weights"] = "trained"
    for entry in reversed(table[conditions.source]):
        if _matches(entry, required):
            return entry
    return None


def take_latencies(
    table: LatencyTable,
    networks: Mapping[str, tuple[AnyArch, ModelDims, dict | None]],
    conditions: LatencyConditions,
    trained: bool,
    log_fn: Callable[[str], None],
    reference: str = "",
    once_more: Collection[str] = (),
) -> dict[str, dict[str, Any]]:
    """The latencies of networks, from the table, or taken now and added to it.

    Args:
      table: see `LatencyTable`; it is changed.
      networks: {name: (arch, its dims, its weights)}; what is only compiled needs no
        weights.
      conditions: how latencies are taken.
      trained: whether the weights are trained; those of random weights in the table do
        not count then.
      log_fn: takes a line for the log.
      reference: the name of a network that is measured again, in turn with all that are
        new, where the table has it: what the machine has become slower or faster since
        is divided out of the new ones, as their `drift` says.
      once_more: names of networks to measure once more where the table has them; their
        new entry is the mean of its `rounds`.

    Returns:
      {name: entry of the table}.

    Raises:
      UserError: as `estimate.estimate_latency` or `measure.measure_latency`.
    """
    latencies = multihost.on_first_process(
        lambda: {
            name: find_latency(table, *network[:2], conditions, trained)
            for name, network in networks.items()
        }
    )
    earlier_rounds = {name: latencies[name] for name in once_more if latencies[name]}
    missing = {
        name: networks[name]
        for name, latency in latencies.items()
        if latency is None or name in earlier_rounds
    }
    if not missing:
        return latencies
    fields = conditions.record()
    doing = "compiling for" if conditions.target else "measuring on"
    log_fn(f"latency: {doing} {fields['device']}: {len(missing)} network(s) ...")
    settings = {key: fields[key] for key in ("batch", "length", "dtype")}
    if conditions.target:
        new = multihost.on_first_process(
            lambda: {
                name: estimate.estimate_latency(
                    arch, dims, target=conditions.target, **settings
                )
                for name, (arch, dims, _) in missing.items()
            }
        )
    else:  # Every process measures on its own device; the first one's values count.
        earlier = latencies.get(reference)
        in_turn = missing | ({reference: networks[reference]} if earlier else {})
        new = measure.measure_latency(in_turn, **settings, runs=conditions.runs)
        new = multihost.on_first_process(lambda: new)
        if earlier:
            drift = new[reference]["seconds"] / earlier["seconds"]
            new = {name: _without_drift(entry, drift) for name, entry in new.items()}
        for name, entry in earlier_rounds.items():
            new[name] = _mean_of_rounds(entry, new[name])
    for name, (arch, dims, _) in missing.items():
        weights = (
            {} if conditions.target else {"weights": "trained" if trained else "random"}
        )
        latencies[name] = {"network": _network_key(arch, dims), **weights, **new[name]}
        table[conditions.source].append(latencies[name])
        log_fn(f"{name}: {format_latency(latencies[name])}")
    return latencies


def _without_drift(latency: Mapping[str, Any], drift: float) -> dict[str, Any]:
    """A measured latency as it would have been when the reference was first measured."""
    times = {name: latency[name] / drift for name in ("seconds", "minimum", "spread")}
    return {**latency, **times, "drift": drift}


def _mean_of_rounds(
    earlier: Mapping[str, Any], latest: Mapping[str, Any]
) -> dict[str, Any]:
    """A measured latency after one more round: the mean of the rounds' medians."""
    rounds = earlier.get("rounds", 1)
    mean = {
        name: (rounds * earlier[name] + latest[name]) / (rounds + 1)
        for name in ("seconds", "spread")
    }
    minimum = min(earlier["minimum"], latest["minimum"])
    return {**latest, **mean, "minimum": minimum, "rounds": rounds + 1}


def trial_fields(latency: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial records of its network's latency.

    Args:
      latency: an entry of the table.

    Returns:
      {latency_ms, latency_source}, and latency_spread_ms of one that was measured.
    """
    fields = {
        "latency_ms": latency["seconds"] * 1e3,
        "latency_source": latency["source"],
    }
    if "spread" in latency:
        fields["latency_spread_ms"] = latency["spread"] * 1e3
    return fields


def describe_conditions(conditions: Mapping[str, Any]) -> str:
    """A phrase that says how latencies were taken.

    Args:
      conditions: of `LatencyConditions.record`.

    Returns:
      "measured by XLA's profiler, ..." or "compiled for v5e by libtpu ...".
    """
    where = (
        f"batch {conditions['batch']}, {conditions['length']} tokens, "
        f"{conditions['dtype']}"
    )
    if conditions["source"] == "measured":
        return (
            "measured by XLA's profiler, median device time of a forward pass, "
            f"{where}, on {conditions['device']}"
        )
    return (
        f"compiled for {conditions['device']} by libtpu {conditions['libtpu']}, an "
        f"estimate of a forward pass, {where}, that no TPU has measured"
    )


def format_latency(latency: Mapping[str, Any]) -> str:
    """A latency in words, with its source: "3.87 ms measured (spread 0.12 ms)"."""
    text = f"{latency['seconds'] * 1e3:.3g} ms {latency['source']}"
    if latency["source"] == "measured":
        return f"{text} (spread {latency['spread'] * 1e3:.2g} ms)"
    if latency["apart"] <= estimate.MAX_DISAGREEMENT:
        return text
    return (
        f"{text} (the compiler's two estimates disagree, {latency['apart']:.1f}-fold: "
        f"its cost analysis says {latency['optimal_seconds'] * 1e3:.3g} ms)"
    )


def find_correction(
    table: LatencyTable, conditions: LatencyConditions
) -> dict[str, Any] | None:
    """Looks up what corrects predicted latencies.

    Args:
      table: see `LatencyTable`.
      conditions: of the latencies that are to be corrected.

    Returns:
      The newest record of a `calibration.fit_latency` under these conditions; None:
      there is none.
    """
    required = conditions.record()
    for correction in reversed(table["corrections"]):
        if _matches(correction, required):
            return correction
    return None


def _matches(entry: Mapping[str, Any], required: Mapping[str, Any]) -> bool:
    return all(entry.get(key) == value for key, value in required.items())


def _network_key(arch: AnyArch, dims: ModelDims) -> dict[str, Any]:
    # The reference heads are the teacher's: no latency depends on them.
    return {
        "arch": dataclasses.asdict(arch),
        "sizes": dims._replace(reference_heads=0)._asdict(),
    }
