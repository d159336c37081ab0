"""Which Archs may a search choose from, and which does a budget allow?"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping

import numpy as np

from autodistill_jax.arch import AnyArch, Arch, MobileArch, check_split
from autodistill_jax.budget import Budget
from autodistill_jax.cost import Sizes, cost
from autodistill_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Space:
    """A finite grid of Archs of one family: every combination of the axes' values.

    The ffn width is either an axis of its own (`ffn`) or follows the hidden width
    (`ffn_ratio`: int(hidden * ratio)). An empty `heads` ties the heads to the width,
    heads = hidden / head_size, which is what a stock Hugging Face BertModel can hold.

    With `bottleneck` and `stacks` it is a grid of MobileArchs: all axes but ffn_ratio
    are given then, and head_size means nothing.
    """

    layers: tuple[int, ...]
    hidden: tuple[int, ...]
    heads: tuple[int, ...] = ()
    ffn: tuple[int, ...] = ()
    ffn_ratio: tuple[float, ...] = ()
    head_size: int = 64
    bottleneck: tuple[int, ...] = ()
    stacks: tuple[int, ...] = ()

    def __post_init__(self):
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "head_size"
        }
        for field in ("layers", "hidden"):
            if not given[field]:
                raise UserError(f"space.{field} is empty; give at least one size")
        for field, values in given.items():
            if any(value <= 0 for value in values):
                raise UserError(f"space.{field} is {values}; sizes must be above 0")
        if self.family is MobileArch:
            self._check_mobile(given)
            return
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

    def _check_mobile(self, given: Mapping[str, tuple]) -> None:
        for axis in MobileArch.axes:
            if not given[axis]:
                raise UserError(
                    f"space.{axis} is empty; a space of MobileBERTs (with bottleneck or "
                    f"stacks) needs {', '.join(MobileArch.axes)}"
                )
        if self.ffn_ratio:
            raise UserError(
                f"space.ffn_ratio is {self.ffn_ratio} in a space of MobileBERTs; give "
                "their widths as space.ffn and leave ffn_ratio ()"
            )
        for bottleneck, heads in itertools.product(self.bottleneck, self.heads):
            check_split(bottleneck, heads, "space")

    @property
    def family(self) -> type[AnyArch]:
        return MobileArch if self.bottleneck or self.stacks else Arch

    def arch(self, sizes: Mapping[str, int]) -> AnyArch:
        """The Arch of these sizes, {axis: size}, in this space's family."""
        own = {axis: int(sizes[axis]) for axis in self.family.axes}
        if self.family is MobileArch:
            return MobileArch(**own)
        return Arch(**own, head_size=self.head_size)

    def choices(self) -> dict[str, tuple]:
        """The values of each of its own axes, {field: values}: what a search chooses
        from. `ffn_ratio` stands for ffn where that follows the width, and heads that
        follow it are no choice."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: v for name, v in fields.items() if name != "head_size" and v}

    def at(self, chosen: Mapping[str, float]) -> AnyArch:
        """The Arch of one value of each of `choices`."""
        return dataclasses.replace(
            self, **{field: (value,) for field, value in chosen.items()}
        ).grid()[0]

    def chosen(self, arch: AnyArch) -> dict[str, float]:
        """One value of each of `choices` that gives this Arch of the space."""
        axes = self.choices()
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values))
            if self.at(chosen) == arch:
                return chosen
        raise ValueError(f"{arch} is not in {self}")

    def grid(self) -> list[AnyArch]:
        """All Archs, smallest axis values first, each once."""
        return list(_archs(self))

    def __contains__(self, arch: AnyArch) -> bool:
        return arch in _members(self)

    def envelope(self) -> AnyArch:
        """The smallest Arch that holds all others: the width of the SuperLM."""
        return self.arch(dict(zip(self.family.axes, _ranges(self)[1])))

    def corners(self) -> list[AnyArch]:
        """The Archs at the ends of every axis (at most 2 ** axes)."""
        ends = {
            field.name: _ends(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "head_size"
        }
        return dataclasses.replace(self, **ends).grid()

    def largest(self) -> AnyArch:
        """By parameter count, as the first paper means it."""
        return _by_params(self)[-1]

    def smallest(self) -> AnyArch:
        return _by_params(self)[0]

    def sample(self, rng: np.random.Generator, n: int) -> list[AnyArch]:
        """n Archs, uniform over the grid, drawn with replacement."""
        archs = _archs(self)
        return [archs[i] for i in rng.integers(len(archs), size=n)]

    def sandwich(self, rng: np.random.Generator, n_random: int) -> list[AnyArch]:
        """The largest, the smallest and n random ones: a training step's Archs."""
        return [self.largest(), self.smallest(), *self.sample(rng, n_random)]

    def encode(self, arch: AnyArch) -> np.ndarray:
        """Coordinates in [0, 1], one an axis (0 where an axis has one value)."""
        low, high = np.asarray(_ranges(self), np.float64)
        here = np.asarray(
            [getattr(arch, axis) for axis in self.family.axes], np.float64
        )
        return (here - low) / np.maximum(high - low, 1)

    def within(
        self,
        budget: Budget,
        teacher: Mapping[str, float],
        costs: Mapping[AnyArch, Mapping[str, float]] | None = None,
        sizes: Sizes | None = None,
        length: int = 128,
    ) -> list[AnyArch]:
        """The Archs that meet every bound of the budget that can be told already.

        Args:
          budget: the bounds.
          teacher: what the teacher costs (`cost` keys, and latency_ms where known).
          costs: further costs an Arch, e.g. {arch: {"latency_ms": 3.1}}. An Arch without
            a latency is not judged by it.
          sizes: of vocabulary and positions, for the parameter count; None: BERT's
            or MobileBERT's.
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


def only(arch: AnyArch) -> Space:
    """The space of one Arch."""
    sizes = {axis: (getattr(arch, axis),) for axis in arch.axes}
    return Space(**sizes, head_size=arch.head_size)


# A training step asks for these: over a space of thousands of Archs, once is enough.
@functools.lru_cache(maxsize=64)
def _archs(space: Space) -> tuple[AnyArch, ...]:
    if space.family is MobileArch:
        grid = itertools.product(*(getattr(space, axis) for axis in MobileArch.axes))
        return tuple(sorted({MobileArch(*sizes) for sizes in grid}))
    archs = set()
    for layers, hidden in itertools.product(space.layers, space.hidden):
        heads = space.heads or (hidden // space.head_size,)
        ffns = space.ffn or tuple(int(hidden * ratio) for ratio in space.ffn_ratio)
        for head, ffn in itertools.product(heads, ffns):
            archs.add(Arch(layers, hidden, head, ffn, space.head_size))
    return tuple(sorted(archs))


@functools.lru_cache(maxsize=64)
def _members(space: Space) -> frozenset[AnyArch]:
    return frozenset(_archs(space))


@functools.lru_cache(maxsize=64)
def _by_params(space: Space) -> tuple[AnyArch, AnyArch]:
    """The Archs of the fewest and of the most parameters."""
    order = [(cost(arch)["params"], arch) for arch in _archs(space)]
    return min(order)[1], max(order)[1]


@functools.lru_cache(maxsize=64)
def _ranges(space: Space) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The least and the greatest value of each axis."""
    sizes = [
        [getattr(arch, axis) for axis in space.family.axes] for arch in _archs(space)
    ]
    return tuple(map(min, zip(*sizes))), tuple(map(max, zip(*sizes)))


def _ends(values: tuple) -> tuple:
    return tuple(sorted({min(values), max(values)})) if values else ()
