"""The experiment that a config describes, as values, for all jobs."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from autodistill_jax.archs.arch import AnyArch, spread_layers
from autodistill_jax.archs.budget import Budget, loosest_budget
from autodistill_jax.archs.cost import ModelDims, cost, student_dims
from autodistill_jax.archs.space import Space
from autodistill_jax.data import tokenization
from autodistill_jax.interop import huggingface
from autodistill_jax.latency.table import LatencyConditions
from autodistill_jax.models import build, extract
from autodistill_jax.models.build import Module
from autodistill_jax.models.heads import PROJECTION
from autodistill_jax.pruning import projection, prune
from autodistill_jax.train.objective import Objective

_CALIBRATION_BATCH = 64  # rows


@dataclasses.dataclass(frozen=True)
class TeacherSide:
    """What of a checked config hangs on no space: all that the job pretrain needs.

    Attributes:
      config: all fields, at their final values.
      named_teacher: what the field `teacher` names, see `teacher.load_teachers`.
      teacher: who teaches: the same, or what the job pretrain makes of it.
      tokenizer: the teacher's, a `tokenizers.Tokenizer`.
      special_tokens: its `tokenization.SpecialTokens`.
      mesh: the devices, along data, fsdp and tensor.
    """

    config: ConfigDict
    named_teacher: huggingface.Teacher
    teacher: huggingface.Teacher
    tokenizer: Any
    special_tokens: tokenization.SpecialTokens
    mesh: jax.sharding.Mesh

    @property
    def teacher_name(self) -> str:
        """The teacher, in words."""
        if self.config.pretrain.steps:
            return f"{self.teacher.arch.name}, pre-trained in the same run"
        return self.config.teacher

    def teacher_module(self) -> Module:
        """The teacher's module, as distillation runs it."""
        return build.build_module(
            self.teacher.arch,
            self.teacher.dims,
            dtype=jnp.dtype(self.config.distill.compute_dtype),
            mesh=self.mesh,
        )


@dataclasses.dataclass(frozen=True)
class Experiment(TeacherSide):
    """A checked config and what it stands for: nothing in it can still be refused.

    Attributes:
      spaces: {name: Space}; a SuperLM each.
      budgets: bounds on the students' costs, a student each.
      objective: the losses that students learn by.
      affordable: {Arch under the budget: the name of its space}.
      initial_params: what training starts from, (its Arch, its parameters).
      kept_by_depth: {depth: the layers of `initial_params` that a network of so many
        keeps}; for other depths they are spread, see `arch.spread_layers`.
      calibration_rows: token rows that projections and cuts of `initial_params` are
        fitted on; None: before there is text, when sizes alone count.
      hidden_order: where each of the teacher's hidden channels stood in its checkpoint;
        None: where it stands, and cuts of `initial_params` are plain slices.
    """

    spaces: dict[str, Space]
    budgets: tuple[Budget, ...]
    objective: Objective
    affordable: Mapping[AnyArch, str]
    initial_params: tuple[AnyArch, dict]
    kept_by_depth: Mapping[int, tuple[int, ...]]
    calibration_rows: Mapping[str, np.ndarray] | None = None
    hidden_order: np.ndarray | None = None

    @property
    def budget(self) -> Budget:
        """The loosest of the budgets, which all students meet."""
        return loosest_budget(self.budgets)

    @property
    def family(self) -> type[AnyArch]:
        """The class of the students' Archs."""
        return next(iter(self.spaces.values())).family

    @property
    def dims(self) -> ModelDims:
        """Of SuperLMs and students; the teacher's may be of another family."""
        norm = self.config.space.norm
        return student_dims(self.teacher.dims, self.family, norm)

    @property
    def starts_from_teacher(self) -> bool:
        """Whether students start as cuts of the teacher."""
        is_same_family = self.dims.family == self.teacher.dims.family
        return self.config.distill.init_from == "teacher" and is_same_family

    def kept_layers(self, depth: int) -> tuple[int, ...]:
        """The layers of `initial_params` that a network of so many layers keeps."""
        if depth in self.kept_by_depth:
            return self.kept_by_depth[depth]
        return spread_layers(depth, self.initial_params[0].layers)

    def superlm_layers(self, space: Space) -> tuple[int, ...]:
        """The layers of `initial_params` that some sub-network of a space keeps."""
        layers = (layer for depth in space.layers for layer in self.kept_layers(depth))
        return tuple(sorted(set(layers)))

    def superlm_arch(self, space: Space) -> AnyArch:
        """Sizes of the parameters of a space's SuperLM: its widths, and the layers of
        `superlm_layers`; a space of one Arch is that network and no more."""
        if len(space) == 1:
            return space[0]
        depth = len(self.superlm_layers(space))
        return dataclasses.replace(space.largest(), layers=depth)

    def superlm(self, space: Space) -> Module:
        """The module of a space's SuperLM, as distillation runs it."""
        settings, several = self.config.distill, len(space) > 1
        return build.build_module(
            self.superlm_arch(space),
            self.dims,
            space=space if several else None,
            kept_layers=self._superlm_table(space) if several else (),
            dtype=jnp.dtype(settings.compute_dtype),
            dropout=settings.dropout,
            mesh=self.mesh,
            remat=self.config.mesh.remat,
        )

    def _superlm_table(self, space: Space) -> tuple[tuple[int, ...], ...]:
        """Which layers of a SuperLM each depth runs."""
        stack = self.superlm_layers(space)
        return tuple(
            tuple(stack.index(i) for i in self.kept_layers(depth))
            for depth in sorted(set(space.layers))
        )

    def extract_student(
        self, space: Space, params: dict, arch: AnyArch, is_folded: bool = False
    ) -> dict:
        """The parameters of a sub-network, out of those of a space's SuperLM.

        Args:
          space: of the SuperLM.
          params: of its encoder.
          arch: of the sub-network.
          is_folded: where the channels are ordered, what the sub-network does without
            is folded into it, as when it is cut out of the teacher.

        Returns:
          {name: array}: a slice of `params`, or what is fitted to do as much.
        """
        source, layers = self.superlm_arch(space), tuple(range(arch.layers))
        if len(space) > 1:
            (layers,) = (
                layers
                for layers in self._superlm_table(space)
                if len(layers) == arch.layers
            )
        if not is_folded or self.hidden_order is None:
            return extract.extract(params, source, arch, layers)
        module = build.build_module(source, self.dims)
        return prune.prune(module, params, arch, layers, self.calibration_batches())

    def start_params(self, arch: AnyArch, kept_layers: Sequence[int] = ()) -> dict:
        """What training of a network starts from: a cut of `initial_params`.

        Args:
          arch: its Arch.
          kept_layers: the indices of its layers; (): those of `kept_layers`.

        Returns:
          {name: array}.
        """
        source, params = self.initial_params
        layers = tuple(kept_layers) or self.kept_layers(arch.layers)
        if self.hidden_order is None:
            return extract.extract(params, source, arch, layers)
        module = build.build_module(source, self.dims)
        return prune.prune(module, params, arch, layers, self.calibration_batches())

    def calibration_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """The calibration rows in batches, all full."""
        rows = self.calibration_rows
        assert rows is not None
        count = len(rows["input_ids"])
        size = min(_CALIBRATION_BATCH, count)
        for start in range(0, count - size + 1, size):
            yield {k: np.asarray(v[start : start + size]) for k, v in rows.items()}

    def fitted_projections(
        self, arch: AnyArch, params: dict
    ) -> tuple[np.ndarray, np.ndarray]:
        """The maps of a network's embeddings and last hidden states to the teacher's.

        Args:
          arch: of the network.
          params: of its encoder.

        Returns:
          See `projection.fit_projections`.
        """
        return projection.fit_projections(
            build.build_module(arch, self.dims),
            params,
            build.build_module(self.teacher.arch, self.teacher.dims),
            self.teacher.params,
            self.calibration_batches(),
            self.objective.pooling,
        )

    def aligning_map(
        self, arch: AnyArch, params: Mapping[str, Any]
    ) -> np.ndarray | None:
        """What takes a network's embeddings to the teacher's, for `export.align`.

        Args:
          arch: of the network.
          params: its projections are looked at; without one to embeddings the network
            is as wide as the teacher.

        Returns:
          [hidden, teacher's hidden], the teacher's channels as its checkpoint has them;
          None where it is not to go out.
        """
        if not self.config.export.align:
            return None
        width = self.teacher.arch.hidden
        to_teacher = params.get(f"{PROJECTION}pooled", np.eye(width, dtype=np.float32))
        to_teacher = np.asarray(to_teacher)[: arch.hidden]
        if self.hidden_order is None:
            return to_teacher
        return to_teacher[:, np.argsort(self.hidden_order)]

    def fitted_map(self, arch: AnyArch, params: dict) -> np.ndarray | None:
        """As `aligning_map`, of a network that no projection was trained with: what fits
        the calibration text best."""
        if not self.config.export.align:
            return None
        of_embeddings, _ = self.fitted_projections(arch, params)
        return self.aligning_map(arch, {f"{PROJECTION}pooled": of_embeddings})

    def cost(self, arch: AnyArch) -> dict[str, Any]:
        """The costs of a student, or of the teacher, see `cost.cost`."""
        dims = student_dims(self.teacher.dims, type(arch))
        return cost(arch, dims, self.config.latency.max_seq_length)

    def archs_within(self, archs: Iterable[AnyArch], budget: Budget) -> list[AnyArch]:
        """Those Archs that are within a budget's bounds on parameters and FLOPs.

        Raises:
          UserError: none is.
        """
        costs = {arch: self.cost(arch) for arch in archs}
        teacher = self.cost(self.teacher.arch)
        admitted = [arch for arch in costs if budget.admits(costs[arch], teacher)]
        if not admitted:
            counted = {arch: budget.convention_costs(costs[arch]) for arch in costs}
            raise budget.infeasible_error(
                budget.bounds(teacher), counted, f"{len(costs)} Archs"
            )
        return admitted

    def num_archs(self) -> int:
        """How many Archs all spaces together have."""
        first, *more_spaces = self.spaces.values()
        return len(set(first).union(*more_spaces)) if more_spaces else len(first)


def latency_conditions(config: ConfigDict) -> LatencyConditions:
    """What a config's section `latency` says of how latencies are taken."""
    settings = config.latency
    return LatencyConditions(
        settings.target,
        settings.batch,
        settings.max_seq_length,
        settings.compute_dtype,
        settings.runs,
    )
