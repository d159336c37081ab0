"""Which architectures are there, and which does a budget allow?

An `Arch` is a value. With Python ints it sizes a model; with int32 arrays it selects a
sub-network inside a SuperLM, under one trace. A `Space` is a finite grid of Archs.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from autodistill_jax.budget import Budget
from autodistill_jax.cost import BERT_SIZES, Sizes, cost
from autodistill_jax.errors import UserError

AXES = ("layers", "hidden", "heads", "ffn")


@dataclasses.dataclass(frozen=True, order=True)
class Arch:
    """The sizes of one network of the `bert` family.

    The fields but the last are the parameters' logical axis names. `head_size`, the
    channels of a head, is static: the q/k/v width is heads * head_size.
    """

    layers: Any
    hidden: Any
    heads: Any
    ffn: Any
    head_size: int = 64

    def __str__(self) -> str:
        return ",".join(f"{axis}={getattr(self, axis)}" for axis in AXES)

    @property
    def name(self) -> str:  # of a folder: 3x192-h6-f768
        return f"{self.layers}x{self.hidden}-h{self.heads}-f{self.ffn}"

    @property
    def exportable(self) -> bool:
        """Does Hugging Face's own BertModel have this shape, without custom code?"""
        return self.heads * self.head_size == self.hidden


jax.tree_util.register_dataclass(
    Arch, data_fields=list(AXES), meta_fields=["head_size"]
)


BERT_BASE = Arch(layers=12, hidden=768, heads=12, ffn=3072)


def parse(text: str, head_size: int, field: str = "--arch") -> Arch:
    """Reads `layers=3,hidden=192,ffn=768,heads=6`.

    `head_size=...` may stand beside them; without it the given one is used. `field` is
    what the errors call the text.

    Raises:
      UserError: a size that is missing, given twice, unknown or no number from 1 on.
    """
    needed = "needed: layers=3,hidden=192,heads=6,ffn=768 (head_size=... optional)"
    values = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        key, _, value = part.partition("=")
        # More than seven digits are a slip; of thousands int() itself would raise.
        number = re.fullmatch("0*[1-9][0-9]{0,6}", value, re.ASCII)
        if key not in (*AXES, "head_size") or key in values or not number:
            raise UserError(f"{field} has {part!r}; {needed}")
        values[key] = int(value)
    missing = [axis for axis in AXES if axis not in values]
    if missing:
        raise UserError(f"{field}={text} lacks {', '.join(missing)}; {needed}")
    return Arch(**{"head_size": head_size, **values})


@dataclasses.dataclass(frozen=True)
class Space:
    """A finite grid of Archs: every combination of the values of each axis.

    The ffn width is either an axis of its own (`ffn`) or follows the hidden width
    (`ffn_ratio`: int(hidden * ratio)). An empty `heads` ties the heads to the width,
    heads = hidden / head_size, which is what a stock Hugging Face BertModel can hold.
    """

    layers: tuple[int, ...]
    hidden: tuple[int, ...]
    heads: tuple[int, ...] = ()
    ffn: tuple[int, ...] = ()
    ffn_ratio: tuple[float, ...] = ()
    head_size: int = 64

    def __post_init__(self):
        for field in ("layers", "hidden"):
            if not getattr(self, field):
                raise UserError(f"space.{field} is empty; give at least one size")
        for field in ("layers", "hidden", "heads", "ffn", "ffn_ratio"):
            if any(value <= 0 for value in getattr(self, field)):
                raise UserError(
                    f"space.{field} is {getattr(self, field)}; sizes must be above 0"
                )
        if bool(self.ffn) == bool(self.ffn_ratio):
            raise UserError(
                f"space.ffn is {self.ffn} and space.ffn_ratio is {self.ffn_ratio}; "
                "give exactly one of the two"
            )
        if not self.heads and any(hidden % self.head_size for hidden in self.hidden):
            raise UserError(
                f"space.heads is empty, so heads = hidden / head_size, but head_size "
                f"{self.head_size} does not divide all of space.hidden {self.hidden}"
            )

    def grid(self) -> list[Arch]:
        """All Archs, smallest axis values first, each once."""
        return list(_archs(self))

    def __contains__(self, arch: Arch) -> bool:
        return arch in _members(self)

    def envelope(self) -> Arch:
        """The smallest Arch that holds all others: the width of the SuperLM."""
        return Arch(*_ranges(self)[1], head_size=self.head_size)

    def corners(self) -> list[Arch]:
        """The Archs at the ends of every axis (at most 16)."""
        ends = dataclasses.replace(
            self,
            layers=_ends(self.layers),
            hidden=_ends(self.hidden),
            heads=_ends(self.heads),
            ffn=_ends(self.ffn),
            ffn_ratio=_ends(self.ffn_ratio),
        )
        return ends.grid()

    def largest(self) -> Arch:
        """By parameter count, as the first paper means it."""
        return _by_params(self)[-1]

    def smallest(self) -> Arch:
        return _by_params(self)[0]

    def sample(self, rng: np.random.Generator, n: int) -> list[Arch]:
        """n Archs, uniform over the grid, drawn with replacement."""
        archs = _archs(self)
        return [archs[i] for i in rng.integers(len(archs), size=n)]

    def sandwich(self, rng: np.random.Generator, n_random: int) -> list[Arch]:
        """The largest, the smallest and n random ones: a training step's Archs."""
        return [self.largest(), self.smallest(), *self.sample(rng, n_random)]

    def encode(self, arch: Arch) -> np.ndarray:
        """Coordinates in [0, 1], one an axis (0 where an axis has one value)."""
        low, high = np.asarray(_ranges(self), np.float64)
        here = np.asarray([getattr(arch, axis) for axis in AXES], np.float64)
        return (here - low) / np.maximum(high - low, 1)

    def within(
        self,
        budget: Budget,
        teacher: Mapping[str, float],
        costs: Mapping[Arch, Mapping[str, float]] | None = None,
        sizes: Sizes = BERT_SIZES,
        length: int = 128,
    ) -> list[Arch]:
        """The Archs that meet every bound of the budget that can be told already.

        Args:
          budget: the bounds.
          teacher: what the teacher costs (`cost` keys, and latency_ms where known).
          costs: further costs an Arch, e.g. {arch: {"latency_ms": 3.1}}. An Arch without
            a latency is not judged by it.
          sizes: of vocabulary and positions, for the parameter count.
          length: tokens of the text that FLOPs are counted for.

        Raises:
          UserError: no Arch is left: says which bound excludes all, and what the nearest
            Arch costs.
        """
        bounds = budget.bounds(teacher)
        grid = self.grid()
        table = {
            arch: {
                **budget.counted(cost(arch, sizes, length)),
                **(costs or {}).get(arch, {}),
            }
            for arch in grid
        }
        inside = [
            arch
            for arch in grid
            if all(table[arch].get(key, 0) <= bound for key, bound in bounds.items())
        ]
        if inside:
            return inside
        raise budget.nothing_left(bounds, table)


def nearest(archs: Iterable[Arch], arch: Arch) -> Arch:
    """The one of `archs` whose sizes are closest, in ratios.

    Heads count by their channels where `arch` has another head size.
    """
    return min(archs, key=lambda other: _distance(arch, other))


def front(points: Iterable[Sequence[float]]) -> list[int]:
    """Indices of the Pareto set when every coordinate is to be small."""
    points = np.asarray(list(points), np.float64)
    keep = []
    for i, point in enumerate(points):
        no_worse = (points <= point).all(axis=1)
        better = (points < point).any(axis=1)
        twin = (points[:i] == point).all(axis=1).any() if i else False
        if not (no_worse & better).any() and not twin:
            keep.append(i)
    return keep


def kept_layers(depth: int, layers: int) -> tuple[int, ...]:
    """Which of the teacher's layers a sub-network of this depth keeps.

    floor(i * layers / depth), i = 0..depth-1 (AutoDistil's code; 12 -> 4: 0, 3, 6, 9).
    """
    return tuple(i * layers // depth for i in range(depth))


# A training step asks for these: over a space of thousands of Archs, once is enough.
@functools.lru_cache(maxsize=64)
def _archs(space: Space) -> tuple[Arch, ...]:
    archs = set()
    for layers, hidden in itertools.product(space.layers, space.hidden):
        heads = space.heads or (hidden // space.head_size,)
        ffns = space.ffn or tuple(int(hidden * ratio) for ratio in space.ffn_ratio)
        for head, ffn in itertools.product(heads, ffns):
            archs.add(Arch(layers, hidden, head, ffn, space.head_size))
    return tuple(sorted(archs))


@functools.lru_cache(maxsize=64)
def _members(space: Space) -> frozenset[Arch]:
    return frozenset(_archs(space))


@functools.lru_cache(maxsize=64)
def _by_params(space: Space) -> tuple[Arch, Arch]:
    """The Archs of the fewest and of the most parameters."""
    order = [(cost(arch)["params"], arch) for arch in _archs(space)]
    return min(order)[1], max(order)[1]


@functools.lru_cache(maxsize=64)
def _ranges(space: Space) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The least and the greatest value of each axis."""
    sizes = [[getattr(arch, axis) for axis in AXES] for arch in _archs(space)]
    return tuple(map(min, zip(*sizes))), tuple(map(max, zip(*sizes)))


def _ends(values: tuple) -> tuple:
    return tuple(sorted({min(values), max(values)})) if values else ()


def _distance(one: Arch, other: Arch) -> float:
    # Heads by their channels: twelve of 32 are as wide as six of 64.
    scale = {"heads": one.head_size / other.head_size}
    ratios = (
        scale.get(axis, 1) * getattr(one, axis) / getattr(other, axis) for axis in AXES
    )
    return sum(abs(math.log(ratio)) for ratio in ratios)
