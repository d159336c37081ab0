"""What does an optimised module's text say: what runs, how often, at what estimate?"""

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
    """Of one execution of a module, or of a part of it.

    cycles: the compiler's `estimated_cycles`, summed. collectives: {kind: (how many
    times, bytes of their results on one device)}.
    """

    cycles: int
    collectives: dict[str, tuple[int, int]]

    def scaled(self, count: int) -> Self:
        made = {
            k: (n * count, size * count) for k, (n, size) in self.collectives.items()
        }
        return ExecutedOps(self.cycles * count, made)

    def plus(self, other: Self) -> Self:
        made = dict(self.collectives)
        for kind, (n, size) in other.collectives.items():
            before = made.get(kind, (0, 0))
            made[kind] = (before[0] + n, before[1] + size)
        return ExecutedOps(self.cycles + other.cycles, made)


def count_executed(hlo: str) -> ExecutedOps:
    """What a module runs, by its text.

    A loop's body counts as often as it runs: its condition compares with a constant. Of
    a conditional the dearest branch counts: of a SuperLM's step that is the one where
    every sub-network is the largest. A fusion's cycles are in its own; collectives inside
    it count, those of one channel once: they may stand in several, begun, overlapped with
    something else, and done.

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
    known: dict[str, ExecutedOps] = {}

    def total(name: str) -> ExecutedOps:
        if name not in known:
            made, seen = ExecutedOps(0, {}), set()
            for line in bodies[name]:
                made = made.plus(one(line))
                for channel, kind, size in moves(line):
                    if channel is None or channel not in seen:
                        made = made.plus(ExecutedOps(0, {kind: (1, size)}))
                    seen.add(channel)
            known[name] = made
        return known[name]

    def one(line: str) -> ExecutedOps:
        own = re.search(r'"estimated_cycles":"(\d+)"', line)
        made = ExecutedOps(int(own[1]) if own else 0, {})
        if loop := re.search(
            r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line
        ):
            made = made.plus(total(loop[2]).scaled(trips(loop[1])))
        if " conditional(" in line:
            branches = re.search(r"branch_computations=\{([^}]*)\}", line)
            names = (
                branches[1].split(",")
                if branches
                else re.findall(r"(?:true|false)_computation=(%?[\w.\-]+)", line)
            )
            each = [total(name.strip().lstrip("%")) for name in names]
            made = made.plus(max(each, key=lambda one: one.cycles))
        if call := re.search(r" call\(.*to_apply=%?([\w.\-]+)", line):
            made = made.plus(total(call[1]))
        return made

    def moves(line: str) -> list[tuple[str | None, str, int]]:
        if fusion := re.search(r" fusion\(.*calls=%?([\w.\-]+)", line):
            return [one for inner in bodies.get(fusion[1], ()) for one in moves(inner)]
        return _parse_collective(line)

    def trips(condition: str) -> int:
        text = "\n".join(bodies[condition])
        constants = re.findall(r" = s32\[\]\S* constant\((\d+)\)", text)
        if len(constants) != 1:
            raise ValueError(f"the loop condition {condition} has {constants}")
        return int(constants[0])

    return total(entry)


def _parse_collective(line: str) -> list[tuple[str | None, str, int]]:
    """[(its channel, its kind, bytes of its result)] of a line with one, else nothing."""
    kinds = "|".join(_COLLECTIVES)
    found = re.search(rf" = (.*?) (?:all-reduce-scatter|({kinds}))(-start)?\(", line)
    if not found:
        return []
    kind, shapes = found[2] or "reduce-scatter", found[1]
    if found[3] and kind in ("all-gather", "collective-permute"):
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
