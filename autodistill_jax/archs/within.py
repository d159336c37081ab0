"""Which Archs of a config's spaces does a budget allow?"""

from collections.abc import Iterator, Mapping

from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.budget import Budget
from autodistill_jax.archs.cost import Sizes, cost
from autodistill_jax.archs.space import Space


class Within(Mapping[AnyArch, str]):
    """{Arch: name of its space} of the Archs that meet a budget's bounds on parameters
    and FLOPs. An Arch of several spaces is of the first. They are listed only where it
    is iterated over; whether it holds an Arch takes no list.

    Args:
      spaces: {name: Space}.
      budget: its bounds; one on latency is not judged here.
      teacher: what the teacher costs (`cost` keys).
      sizes: of vocabulary and positions, for the parameter count; None: BERT's
        or MobileBERT's.
      length: tokens of the text that FLOPs are counted for.

    Raises:
      UserError: no Arch is left: says which bound excludes all, and what the nearest
        Arch costs.
    """

    def __init__(
        self,
        spaces: Mapping[str, Space],
        budget: Budget,
        teacher: Mapping[str, float],
        sizes: Sizes | None = None,
        length: int = 128,
    ):
        self._spaces, self._budget = spaces, budget
        self._sizes, self._length = sizes, length
        bounds = budget.bounds(teacher)
        self._bounds = {
            key: bounds[key] for key in ("params", "flops") if key in bounds
        }
        least = {space.smallest() for space in spaces.values()}
        if not any(map(self._meets, least)):
            count = sum(map(len, spaces.values()))
            costs = {arch: self._costs(arch) for arch in sorted(least)}
            raise budget.nothing_left(self._bounds, costs, f"{count} Archs")

    def __getitem__(self, arch: AnyArch) -> str:
        for name, space in self._spaces.items():
            if arch in space and self._meets(arch):
                return name
        raise KeyError(arch)

    def __iter__(self) -> Iterator[AnyArch]:
        before: list[Space] = []
        for space in self._spaces.values():
            for arch in space:
                if self._meets(arch) and not any(arch in other for other in before):
                    yield arch
            before.append(space)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _costs(self, arch: AnyArch) -> dict[str, float]:
        return self._budget.counted(cost(arch, self._sizes, self._length))

    def _meets(self, arch: AnyArch) -> bool:
        if not self._bounds:
            return True
        costs = self._costs(arch)
        return all(costs[key] <= bound for key, bound in self._bounds.items())
