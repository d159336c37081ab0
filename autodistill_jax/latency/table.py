"""Which latencies are known already? A table kept as JSON, by all they depend on.

Measured and compiled ones stand apart in it, and no look-up finds one for the other.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from etils import epath

from autodistill_jax import multihost
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.latency import estimate, measure

# {"measured": entries, "compiled": entries, "corrections": see `find_correction`}; an entry
# is a latency with its "network" and, if measured, its "weights".
LatencyTable = dict[str, list[dict[str, Any]]]


class LatencyConditions(NamedTuple):
    """target "": measured on the device at hand. Else compiled for that TPU."""

    target: str
    batch: int
    length: int
    dtype: str
    runs: int

    @property
    def source(self) -> str:
        return "compiled" if self.target else "measured"

    def conditions(self) -> dict[str, Any]:
        """What a latency depends on besides the network."""
        if self.target:
            return estimate.compiled_conditions(
                self.target, self.batch, self.length, self.dtype
            )
        return measure.measured_conditions(self.batch, self.length, self.dtype)


def empty_table() -> LatencyTable:
    return {"measured": [], "compiled": [], "corrections": []}


def read_table(path: epath.Path) -> LatencyTable:
    """The table in a file; an empty one where there is none."""
    made = empty_table()
    found = json.loads(path.read_text()) if path.exists() else {}
    # Of 0.2.0 it was {name: latency}, whose networks nothing told: not to be found.
    return made | {kind: found[kind] for kind in made if kind in found}


def find_latency(
    table: LatencyTable,
    arch: AnyArch,
    dims: ModelDims,
    how: LatencyConditions,
    trained: bool = False,
) -> dict[str, Any] | None:
    """The latency of a network under these conditions; None: not known.

    trained: only one that was measured on trained weights, not on random ones.
    """
    wanted = {"network": _network_key(arch, dims), **how.conditions()}
    if trained and not how.target:
        wanted["weights"] = "trained"
    for entry in reversed(table[how.source]):
        if _matches(entry, wanted):
            return entry
    return None


def take_latencies(
    table: LatencyTable,
    networks: Mapping[str, tuple[AnyArch, ModelDims, dict | None]],
    how: LatencyConditions,
    trained: bool,
    tell: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """{name: latency} of networks, out of the table, or taken now and put into it.

    networks: {name: (arch, its sizes, its weights)}; what is only compiled needs none.
    trained: the weights are, and random ones' latencies in the table do not count.
    """
    made = multihost.on_first_process(
        lambda: {
            name: find_latency(table, *one[:2], how, trained)
            for name, one in networks.items()
        }
    )
    missing = {name: networks[name] for name, found in made.items() if found is None}
    if not missing:
        return made
    conditions = how.conditions()
    doing = "compiling for" if how.target else "measuring on"
    tell(f"latency: {doing} {conditions['device']}: {len(missing)} network(s) ...")
    given = {key: conditions[key] for key in ("batch", "length", "dtype")}
    if how.target:
        new = multihost.on_first_process(
            lambda: {
                name: estimate.estimate_latency(arch, dims, target=how.target, **given)
                for name, (arch, dims, _) in missing.items()
            }
        )
    else:  # By every process on a device of its own: the first one's is what stands.
        new = measure.measure_latency(missing, **given, runs=how.runs)
        new = multihost.on_first_process(lambda: new)
    for name, (arch, dims, _) in missing.items():
        kind = {} if how.target else {"weights": "trained" if trained else "random"}
        made[name] = {"network": _network_key(arch, dims), **kind, **new[name]}
        table[how.source].append(made[name])
        tell(f"{name}: {format_latency(made[name])}")
    return made


def trial_fields(latency: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial says of its network's latency: {latency_ms, latency_source}, and
    latency_spread_ms of one that was measured."""
    made = {
        "latency_ms": latency["seconds"] * 1e3,
        "latency_source": latency["source"],
    }
    if "spread" in latency:
        made["latency_spread_ms"] = latency["spread"] * 1e3
    return made


def describe_conditions(conditions: Mapping[str, Any]) -> str:
    """How latencies under these conditions were come by, for whoever reads them."""
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
    table: LatencyTable, how: LatencyConditions
) -> dict[str, Any] | None:
    """The last `calibration.fit_latency` under these conditions; None: there was none."""
    wanted = how.conditions()
    for made in reversed(table["corrections"]):
        if _matches(made, wanted):
            return made
    return None


def _matches(entry: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(entry.get(key) == value for key, value in wanted.items())


def _network_key(arch: AnyArch, dims: ModelDims) -> dict[str, Any]:
    # The heads in the sizes are the teacher's: nothing here depends on them.
    return {
        "arch": dataclasses.asdict(arch),
        "sizes": dims._replace(reference_heads=0)._asdict(),
    }
