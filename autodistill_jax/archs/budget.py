"""A `Budget` of bounds on what a student costs, and the Archs that meet it."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import ModelDims, cost
from autodistill_jax.archs.space import Space
from autodistill_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Budget:
    """Upper bounds on what a student may cost; 0 means no bound.

    Attributes:
      latency_ms: milliseconds, as measured or compiled for the target.
      flops: multiply-adds of a forward pass.
      params: parameters.
      latency_fraction: of the teacher's latency.
      flops_fraction: of the teacher's FLOPs.
      params_fraction: of the teacher's parameters.
      convention: how params and FLOPs are counted, "executed" or "paper"; see `cost`.

    Raises:
      UserError: a bound below 0, or another convention.
    """

    latency_ms: float = 0.0
    flops: float = 0.0
    params: float = 0.0
    latency_fraction: float = 0.0
    flops_fraction: float = 0.0
    params_fraction: float = 0.0
    convention: str = "executed"

    def __post_init__(self):
        if self.convention not in ("executed", "paper"):
            raise UserError(
                f"budget.convention is {self.convention!r}; "
                "it must be 'executed' or 'paper'"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "convention" and value < 0:
                raise UserError(
                    f"budget.{field.name} is {value}; it must be above 0, or 0 for none"
                )

    @property
    def bounds_latency(self) -> bool:
        """Whether there is a bound on latency."""
        return bool(self.latency_ms or self.latency_fraction)

    def convention_costs(self, costs: Mapping[str, float]) -> dict[str, float]:
        """The costs that this budget's convention counts.

        Args:
          costs: of `cost`.

        Returns:
          {"params", "flops"}.
        """
        suffix = "_paper" if self.convention == "paper" else ""
        return {key: costs[key + suffix] for key in ("params", "flops")}

    def bounds(self, teacher: Mapping[str, float]) -> dict[str, float]:
        """The tighter of absolute and relative bound for each of the three costs.

        Args:
          teacher: what the teacher costs, of `cost`; a fraction of its latency counts
            where it has "latency_ms".

        Returns:
          {"params", "flops", "latency_ms"}, as far as they are bounded.
        """
        reference = {**teacher, **self.convention_costs(teacher)}
        bounds = {}
        for key in ("params", "flops", "latency_ms"):
            limits = [getattr(self, key)]
            if key in reference:
                fraction = getattr(self, key.replace("_ms", "") + "_fraction")
                limits.append(fraction * reference[key])
            limits = [limit for limit in limits if limit > 0]
            if limits:
                bounds[key] = min(limits)
        return bounds

    def admits(self, costs: Mapping[str, float], teacher: Mapping[str, float]) -> bool:
        """Whether costs are within the bounds on parameters and multiply-adds.

        Args:
          costs: of a student, of `cost`.
          teacher: of the teacher.

        Returns:
          Whether they are; a bound on latency is not judged here.
        """
        bounds, counted = self.bounds(teacher), self.convention_costs(costs)
        return all(counted[key] <= bounds.get(key, math.inf) for key in counted)

    def infeasible_error(
        self,
        bounds: Mapping[str, float],
        table: Mapping[Any, Mapping[str, float]],
        candidates: str,
    ) -> UserError:
        """The error for bounds that no Arch of a table meets.

        Args:
          bounds: {cost: its upper bound}.
          table: {arch: {cost: value}}.
          candidates: what was compared, as in "12 Archs".

        Returns:
          An error that says which bound excludes everything, and what the nearest Arch
          costs.
        """
        reasons = []
        for key, bound in bounds.items():
            nearest = min(table, key=lambda arch: table[arch].get(key, 0))
            if table[nearest].get(key, 0) > bound:
                reasons.append(
                    f"{key} <= {bound:.6g} excludes all {candidates}: the nearest, "
                    f"{nearest}, has {key} {table[nearest][key]:.6g}"
                )
        if not reasons:  # Each bound alone leaves some, together none.
            nearest = min(
                table,
                key=lambda arch: max(
                    table[arch].get(key, 0) / bound for key, bound in bounds.items()
                ),
            )
            reasons.append(
                "no Arch meets all bounds together ("
                + ", ".join(f"{key} <= {bound:.6g}" for key, bound in bounds.items())
                + f"): the nearest, {nearest}, has "
                + ", ".join(f"{key} {table[nearest].get(key, 0):.6g}" for key in bounds)
            )
        return UserError(
            f"the budget ({self.convention}) leaves nothing: {'; '.join(reasons)}. "
            "Raise the bound or give the space smaller Archs"
        )


def parse_budgets(settings: Mapping[str, Any]) -> tuple[Budget, ...]:
    """The budgets of a config's section `budget`: one, or as many as a bound is given.

    Args:
      settings: of the fields of `Budget`; a bound is a number, for all budgets, or a
        tuple with the bound of each.

    Returns:
      The budgets.

    Raises:
      UserError: tuples of different lengths, or an empty one.
    """
    counts = {
        name: len(value) for name, value in settings.items() if isinstance(value, tuple)
    }
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise UserError(
            "budget has "
            + ", ".join(f"{count} values of {name}" for name, count in counts.items())
            + "; give each as many as there are to be students, 1 at least"
        )
    return tuple(
        Budget(**{k: v[i] if k in counts else v for k, v in settings.items()})
        for i in range(max(counts.values(), default=1))
    )


def loosest_budget(budgets: Sequence[Budget]) -> Budget:
    """The budget that whatever meets some budget meets: the highest of each bound, none
    where one of the budgets has none."""
    names = {field.name for field in dataclasses.fields(Budget)} - {"convention"}
    bounds = {name: [getattr(b, name) for b in budgets] for name in names}
    return Budget(
        **{k: max(values) if all(values) else 0.0 for k, values in bounds.items()},
        convention=budgets[0].convention,
    )


class AffordableArchs(Mapping[AnyArch, str]):
    """The Archs that meet a budget's bounds on parameters and FLOPs.

    A mapping {Arch: name of its space}; an Arch of several spaces is of the first. The
    Archs are listed only where it is iterated over: to look one up takes no list.

    Args:
      spaces: {name: Space}.
      budget: the bounds; one on latency is not judged here.
      teacher: what the teacher costs, of `cost`.
      dims: of the students, for the parameter count; None: BERT's or MobileBERT's.
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
        dims: ModelDims | None = None,
        length: int = 128,
    ):
        self._spaces, self._budget = spaces, budget
        self._dims, self._length = dims, length
        bounds = budget.bounds(teacher)
        self._bounds: dict[str, float] = {
            key: bounds[key] for key in ("params", "flops") if key in bounds
        }
        smallest = {space.smallest() for space in spaces.values()}
        if not any(map(self._meets, smallest)):
            count = sum(map(len, spaces.values()))
            costs = {arch: self._costs(arch) for arch in sorted(smallest)}
            raise budget.infeasible_error(self._bounds, costs, f"{count} Archs")

    def __getitem__(self, arch: AnyArch) -> str:
        for name, space in self._spaces.items():
            if arch in space and self._meets(arch):
                return name
        raise KeyError(arch)

    def __iter__(self) -> Iterator[AnyArch]:
        earlier_spaces: list[Space] = []
        for space in self._spaces.values():
            for arch in space:
                is_first = not any(arch in earlier for earlier in earlier_spaces)
                if is_first and self._meets(arch):
                    yield arch
            earlier_spaces.append(space)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _costs(self, arch: AnyArch) -> dict[str, float]:
        return self._budget.convention_costs(cost(arch, self._dims, self._length))

    def _meets(self, arch: AnyArch) -> bool:
        if not self._bounds:
            return True
        costs = self._costs(arch)
        return all(costs[key] <= bound for key, bound in self._bounds.items())
