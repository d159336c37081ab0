"""Which architectures are there, and which does a budget allow?

An `Arch` is a value. With Python ints it sizes a model; with int32 arrays it selects a
sub-network inside a SuperLM, under one trace. A `Space` is a finite grid of Archs.
"""

import dataclasses
import functools
import itertools
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


def parse(text: str, head_size: int) -> Arch:
    """Reads `layers=3,hidden=192,ffn=768,heads=6`.

    `head_size=...` may stand beside them; without it the given one is used.
    """
    needed = "needed: layers=3,hidden=192,heads=6,ffn=768 (head_size=... optional)"
    values = {"head_size": head_size}
    for part in filter(None, text.replace(" ", "").split(",")):
        key, _, value = part.partition("=")
        if key not in (*AXES, "head_size") or not value.isdigit() or int(value) < 1:
            raise UserError(f"--arch has {part!r}; {needed}")
        values[key] = int(value)
    missing = [axis for axis in AXES if axis not in values]
    if missing:
        raise UserError(f"--arch={text} lacks {', '.join(missing)}; {needed}")
    return Arch(**values)


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
        return list(_grid(self))

    def __contains__(self, arch: Arch) -> bool:
        return arch in _grid(self)

    def check(self, arch: Arch) -> Arch:
        """`arch` itself, or an error that names the nearest Arch of the space."""
        if arch not in self:
            nearest = min(self.grid(), key=lambda other: _distance(arch, other))
            raise UserError(
                f"the Arch {arch} is outside the space; the nearest inside is {nearest}"
            )
        return arch

    def envelope(self) -> Arch:
        """The smallest Arch that holds all others: the width of the SuperLM."""
        return Arch(
            *(max(getattr(arch, axis) for arch in self.grid()) for axis in AXES),
            head_size=self.head_size,
        )

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
        return max(self.grid(), key=lambda arch: (cost(arch)["params"], arch))

    def smallest(self) -> Arch:
        return min(self.grid(), key=lambda arch: (cost(arch)["params"], arch))

    def sample(self, rng: np.random.Generator, n: int) -> list[Arch]:
        """n Archs, uniform over the grid, drawn with replacement."""
        return [self.grid()[i] for i in rng.integers(len(self.grid()), size=n)]

    def sandwich(self, rng: np.random.Generator, n_random: int) -> list[Arch]:
        """The largest, the smallest and n random ones: a training step's Archs."""
        return [self.largest(), self.smallest(), *self.sample(rng, n_random)]

    def encode(self, arch: Arch) -> np.ndarray:
        """Coordinates in [0, 1], one an axis (0 where an axis has one value)."""
        point = []
        for axis in AXES:
            values = [getattr(other, axis) for other in self.grid()]
            low, high = min(values), max(values)
            point.append((getattr(arch, axis) - low) / max(high - low, 1))
        return np.asarray(point, np.float64)

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


# The last of four values an axis, of BERT-base's 12 layers, 768 wide, 12 heads: the
# first paper's tiny, small and base sub-spaces (AutoDistil, table 1).
_ANCHORS = np.array(
    [
        # layers, hidden, ffn ratio, heads
        [7 / 12, 224 / 768, 3.5, 10 / 12],
        [12 / 12, 352 / 768, 4.0, 10 / 12],
        [12 / 12, 640 / 768, 4.0, 12 / 12],
    ]
)


def partition(teacher: Arch, k: int) -> list[Space]:
    """Cuts the Archs under a teacher into k compact sub-spaces, smallest first.

    The heuristics of the first paper (AutoDistil, section 3.1): compact sub-spaces, four
    neighbouring values an axis (at most 256 Archs), so that sub-networks that share
    weights are alike; every width a fraction of the teacher's, in steps of a layer of
    twelve, 1/24 of the hidden width, 1/8 of the ffn ratio, a head of twelve. BERT-base
    with k=3 gives the paper's table; other k lie on the line between its three (ours).
    """
    if k < 1:
        raise UserError(f"partition into {k} sub-spaces; it takes 1 or more")
    spaces = []
    fuller = teacher.ffn / teacher.hidden / 4  # 1 for BERT
    positions = np.linspace(0, 2, k) if k > 1 else np.array([1.0])
    for position in positions:
        layers, hidden, ratio, heads = (
            np.interp(position, (0, 1, 2), _ANCHORS[:, axis]) for axis in range(4)
        )
        spaces.append(
            Space(
                layers=_window(layers * teacher.layers, teacher.layers / 12),
                hidden=_window(hidden * teacher.hidden, teacher.hidden / 24),
                heads=_window(heads * teacher.heads, teacher.heads / 12),
                ffn_ratio=tuple(
                    fuller * (round(2 * ratio) / 2 - 0.5 * i) for i in range(3, -1, -1)
                ),
                head_size=teacher.head_size,
            )
        )
    return spaces


def _window(last: float, step: float) -> tuple[int, ...]:
    """Four whole values, `step` (at least 1) apart, that end at `last`; none below 1."""
    step = max(1, round(step))
    last = max(1, round(last / step) * step)
    return tuple(value for i in range(3, -1, -1) if (value := last - i * step) >= 1)


@functools.lru_cache(maxsize=64)
def _grid(space: Space) -> dict[Arch, None]:
    archs = set()
    for layers, hidden in itertools.product(space.layers, space.hidden):
        heads = space.heads or (hidden // space.head_size,)
        ffns = space.ffn or tuple(int(hidden * ratio) for ratio in space.ffn_ratio)
        for head, ffn in itertools.product(heads, ffns):
            archs.add(Arch(layers, hidden, head, ffn, space.head_size))
    return dict.fromkeys(sorted(archs))


def _ends(values: tuple) -> tuple:
    return tuple(sorted({min(values), max(values)})) if values else ()


def _distance(one: Arch, other: Arch) -> float:
    return sum(abs(np.log(getattr(one, a) / getattr(other, a))) for a in AXES)
