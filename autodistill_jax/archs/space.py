"""A `Space` of Archs: the grid of sizes that a search chooses from."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from autodistill_jax.archs.arch import (
    AnyArch,
    Arch,
    MobileArch,
    check_head_split,
    nearest_arch,
)
from autodistill_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Space:
    """A finite grid of Archs of one family.

    It holds every combination of the axes' values, each once, smallest first. It is not
    listed: `len`, `[i]` and `in` cost the same at any size.

    The ffn width is either an axis of its own (`ffn`) or follows the hidden width
    (`ffn_ratio`: int(hidden * ratio)). An empty `heads` ties the heads to the width,
    heads = hidden / head_size, which is what a stock Hugging Face BertModel can hold.

    With `bottleneck` and `stacks` it is a grid of MobileArchs: all axes but ffn_ratio
    are given then, and head_size means nothing.

    Attributes:
      layers: the depths.
      hidden: the hidden widths, in channels.
      heads: the numbers of attention heads; () ties them to the width.
      ffn: the ffn widths, in channels; () where `ffn_ratio` is given.
      ffn_ratio: ffn widths as multiples of the hidden width; () where `ffn` is given.
      head_size: channels of a head.
      bottleneck: a MobileArch's bottlenecks, in channels.
      stacks: a MobileArch's numbers of ffns in a block.

    Raises:
      UserError: an axis that is empty and may not be, sizes that are not above 0, both
        or neither of `ffn` and `ffn_ratio`, or heads that do not divide the width.
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
        axis_values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "head_size"
        }
        for field in ("layers", "hidden"):
            if not axis_values[field]:
                raise UserError(f"space.{field} is empty; give at least one size")
        for field, values in axis_values.items():
            if any(value <= 0 for value in values):
                raise UserError(f"space.{field} is {values}; sizes must be above 0")
        if self.family is MobileArch:
            self._check_mobile(axis_values)
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

    def _check_mobile(self, axis_values: Mapping[str, tuple]) -> None:
        for axis in MobileArch.axes:
            if not axis_values[axis]:
                raise UserError(
                    f"space.{axis} is empty; a space of MobileBERTs (with bottleneck "
                    f"or stacks) needs {', '.join(MobileArch.axes)}"
                )
        if self.ffn_ratio:
            raise UserError(
                f"space.ffn_ratio is {self.ffn_ratio} in a space of MobileBERTs; give "
                "their widths as space.ffn and leave ffn_ratio ()"
            )
        for bottleneck, heads in itertools.product(self.bottleneck, self.heads):
            check_head_split(bottleneck, heads, "space")

    @property
    def family(self) -> type[AnyArch]:
        """The class of its Archs."""
        return MobileArch if self.bottleneck or self.stacks else Arch

    def arch(self, sizes: Mapping[str, float]) -> AnyArch:
        """The Arch of these sizes, {axis: size}, in this space's family."""
        own_sizes = {axis: int(sizes[axis]) for axis in self.family.axes}
        if self.family is MobileArch:
            return MobileArch(**own_sizes)
        return Arch(**own_sizes, head_size=self.head_size)

    def search_axes(self) -> dict[str, tuple]:
        """What a search chooses from: {field: values} of each axis that is a choice.

        `ffn_ratio` stands for ffn where that follows the width, and heads that follow
        the width are no choice.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: v for name, v in fields.items() if name != "head_size" and v}

    def decode(self, values: Mapping[str, float]) -> AnyArch:
        """The Arch of one value of each of `search_axes`."""
        sizes = {"heads": values["hidden"] // self.head_size, **values}
        if "ffn_ratio" in values:
            sizes["ffn"] = int(values["hidden"] * values["ffn_ratio"])
        return self.arch(sizes)

    def encode(self, arch: AnyArch) -> dict[str, float]:
        """One value of each of `search_axes` that gives this Arch of the space."""
        sizes = {axis: getattr(arch, axis) for axis in arch.axes}
        for ratio in self.ffn_ratio:
            if int(arch.hidden * ratio) == arch.ffn:
                sizes["ffn_ratio"] = ratio
        return {field: sizes[field] for field in self.search_axes()}

    def __len__(self) -> int:
        widths = _axis_values(self).values()
        return len(set(self.layers)) * sum(map(_num_combinations, widths))

    def __getitem__(self, index: int) -> AnyArch:
        offset = range(len(self))[index]
        widths = _axis_values(self)
        depth, offset = divmod(offset, len(self) // len(set(self.layers)))
        for hidden, later_axes in widths.items():
            if offset < _num_combinations(later_axes):
                break
            offset -= _num_combinations(later_axes)
        ranks = np.unravel_index(offset, [len(values) for values in later_axes])
        sizes = (values[rank] for values, rank in zip(later_axes, ranks))
        return self._from_sizes(sorted(set(self.layers))[depth], hidden, *sizes)

    def __iter__(self) -> Iterator[AnyArch]:
        for layers in sorted(set(self.layers)):
            for hidden, later_axes in _axis_values(self).items():
                for sizes in itertools.product(*later_axes):
                    yield self._from_sizes(layers, hidden, *sizes)

    def __contains__(self, arch: AnyArch) -> bool:
        if type(arch) is not self.family:
            return False
        if self.family is Arch and arch.head_size != self.head_size:
            return False
        layers, hidden, *sizes = (getattr(arch, axis) for axis in arch.axes)
        later_axes = _axis_values(self).get(hidden)
        return (
            layers in self.layers
            and later_axes is not None
            and all(size in values for size, values in zip(sizes, later_axes))
        )

    def _from_sizes(self, *sizes: int) -> AnyArch:
        return self.arch(dict(zip(self.family.axes, sizes)))

    def axis_values_product(self, *axes: str) -> list[tuple[int, ...]]:
        """The tuples of sizes that these axes take together, smallest first."""
        combinations: set[tuple[int, ...]] = set()
        for hidden, later_axes in _axis_values(self).items():
            values = dict(zip(self.family.axes, (self.layers, (hidden,), *later_axes)))
            combinations.update(itertools.product(*(values[axis] for axis in axes)))
        return sorted(combinations)

    def largest(self) -> AnyArch:
        """Largest on every axis: the width of the SuperLM, which holds all others."""
        return self[-1]

    def smallest(self) -> AnyArch:
        """Smallest on every axis, and so the cheapest, in whatever convention."""
        return self[0]

    def nearest(self, arch: AnyArch) -> AnyArch:
        """The Arch of the space that is nearest to one of the same family.

        See `arch.nearest_arch` for what is near.
        """
        # At one hidden width, each axis is free.
        candidates = []
        for hidden, later_axes in _axis_values(self).items():
            closest = self._from_sizes(
                self.layers[0], hidden, *(values[0] for values in later_axes)
            )
            for axis, values in zip(
                self.family.axes, (self.layers, (hidden,), *later_axes)
            ):
                # mypy allows a union no field whose name is computed.
                variants = (
                    dataclasses.replace(closest, **{axis: v})  # type: ignore[arg-type]
                    for v in sorted(values)
                )
                closest = nearest_arch(variants, arch)
            candidates.append(closest)
        return nearest_arch(candidates, arch)

    def sample(self, rng: np.random.Generator, n: int) -> list[AnyArch]:
        """n Archs, uniform over the space, drawn with replacement."""
        return [self[i] for i in rng.integers(len(self), size=n)]

    def subset(self, max_archs: int, seed: int) -> list[AnyArch]:
        """All Archs, or of a larger space `max_archs`, drawn without replacement.

        Args:
          max_archs: the most Archs to give.
          seed: of the draw.

        Returns:
          Archs in the order of the space.
        """
        if len(self) <= max_archs:
            return list(self)
        indices = np.random.default_rng(seed).choice(
            len(self), max_archs, replace=False
        )
        return [self[i] for i in np.sort(indices)]

    def sandwich(self, rng: np.random.Generator, n_random: int) -> list[AnyArch]:
        """The largest, the smallest and n random ones: a training step's Archs."""
        return [self.largest(), self.smallest(), *self.sample(rng, n_random)]


def single(arch: AnyArch) -> Space:
    """The space of one Arch."""
    sizes = {axis: (getattr(arch, axis),) for axis in arch.axes}
    return Space(**sizes, head_size=arch.head_size)


# A training step asks for these.
@functools.lru_cache(maxsize=64)
def _axis_values(space: Space) -> dict[int, tuple[tuple[int, ...], ...]]:
    """{hidden: the sizes of the axes after it}, all in order.

    Hidden and layers are the first axes; what follows is free, but that heads and ffn
    may depend on hidden.
    """
    by_hidden = {}
    for hidden in sorted(set(space.hidden)):
        of_width = {
            "heads": space.heads or (hidden // space.head_size,),
            "ffn": space.ffn or tuple(int(hidden * ratio) for ratio in space.ffn_ratio),
        }
        values = (of_width.get(a) or getattr(space, a) for a in space.family.axes[2:])
        by_hidden[hidden] = tuple(tuple(sorted(set(sizes))) for sizes in values)
    return by_hidden


def _num_combinations(axes: tuple[tuple[int, ...], ...]) -> int:
    return math.prod(map(len, axes))
