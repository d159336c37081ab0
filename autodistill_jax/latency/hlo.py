"""Reading an optimised HLO module: estimated cycles and collectives of a run."""

import math
import re
from typing import NamedTuple, Self

_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "token": 0}


class ExecutedOps(NamedTuple):
    """What one execution of a module, or of a part of it, runs.

    Attributes:
      cycles: the compiler's `estimated_cycles`, summed.
      collectives: {kind: (how many times, bytes of their results on one device)}.
    """

    cycles: int
    collectives: dict[str, tuple[int, int]]

    def scaled(self, count: int) -> Self:
        """The same, executed `count` times."""
        collectives = {
            k: (n * count, size * count) for k, (n, size) in self.collectives.items()
        }
        return ExecutedOps(self.cycles * count, collectives)

    def plus(self, addend: Self) -> Self:
        """This and the addend, one after the other."""
        collectives = dict(self.collectives)
        for kind, (n, size) in addend.collectives.items():
            previous = collectives.get(kind, (0, 0))
            collectives[kind] = (previous[0] + n, previous[1] + size)
        return ExecutedOps(self.cycles + addend.cycles, collectives)


def count_executed(hlo: str) -> ExecutedOps:
    """Counts what a module runs.

    A loop's body counts as often as it runs: its condition compares with a constant. Of
    a conditional the dearest branch counts: of a SuperLM's step that is the one where
    every sub-network is the largest. The cycles on a fusion's line hold those of its
    instructions. Collectives inside a fusion count, those of one channel once: they may
    stand in several fusions, begun, overlapped with something else, and done.

    Args:
      hlo: the text of an optimised module.

    Returns:
      The `ExecutedOps` of one execution.

    Raises:
      ValueError: a loop whose condition holds no single constant.
    """
    bodies: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in hlo.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = head[2]
            entry = name if head[1] else entry
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    totals: dict[str, ExecutedOps] = {}

    def total(name: str) -> ExecutedOps:
        if name not in totals:
            ops, channels = ExecutedOps(0, {}), set()
            for line in bodies[name]:
                ops = ops.plus(ops_of_line(line))
                for channel, kind, size in collectives_of_line(line):
                    if channel is None or channel not in channels:
                        ops = ops.plus(ExecutedOps(0, {kind: (1, size)}))
                    channels.add(channel)
            totals[name] = ops
        return totals[name]

    def ops_of_line(line: str) -> ExecutedOps:
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
        ops = ExecutedOps(int(cycles[1]) if cycles else 0, {})
        if loop := re.search(
            r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line
        ):
            ops = ops.plus(total(loop[2]).scaled(trips(loop[1])))
        if " conditional(" in line:
            branches = re.search(r"branch_computations=\{([^}]*)\}", line)
            names = (
                branches[1].split(",")
                if branches
                else re.findall(r"(?:true|false)_computation=(%?[\w.\-]+)", line)
            )
            branch_ops = [total(name.strip().lstrip("%")) for name in names]
            ops = ops.plus(max(branch_ops, key=lambda branch: branch.cycles))
        if call := re.search(r" call\(.*to_apply=%?([\w.\-]+)", line):
            ops = ops.plus(total(call[1]))
        return ops

    def collectives_of_line(line: str) -> list[tuple[str | None, str, int]]:
        if fusion := re.search(r" fusion\(.*calls=%?([\w.\-]+)", line):
            return [
                collective
                for inner in bodies.get(fusion[1], ())
                for collective in collectives_of_line(inner)
            ]
        return _parse_collective(line)

    def trips(condition: str) -> int:
        text = "\n".join(bodies[condition])
        constants = re.findall(r" = s32\[\]\S* constant\((\d+)\)", text)
        if len(constants) != 1:
            raise ValueError(f"the loop condition {condition} has {constants}")
        return int(constants[0])

    return total(entry)


def _parse_collective(line: str) -> list[tuple[str | None, str, int]]:
    """[(channel, kind, bytes of its result)] of a line with a collective, else []."""
    kinds = "|".join(_COLLECTIVES)
    match = re.search(rf" = (.*?) (?:all-reduce-scatter|({kinds}))(-start)?\(", line)
    if not match:
        return []
    kind, shapes = match[2] or "reduce-scatter", match[1]
    if match[3] and kind in ("all-gather", "collective-permute"):
        # (operand, result, ...), either of them a tuple where there are several.
        bare = re.sub(r"\{[^}]*\}", "", shapes)[1:]  # Without layouts.
        parts = re.findall(r"\([^()]*\)|\w+\[[\d,]*\]", bare)
        shapes = parts[1]
    channel = re.search(r"channel_id=(\d+)", line)
    return [(channel and channel[1], kind, _shape_bytes(shapes))]


def _shape_bytes(shapes: str) -> int:
    """Of a result's type, or of a tuple of them."""
    count = 0
    for kind, sizes in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes):
        width = _BYTES.get(kind) or int(re.sub(r"\D", "", kind) or 8) // 8
        count += width * math.prod(int(size) for size in sizes.split(",") if size)
    return count
