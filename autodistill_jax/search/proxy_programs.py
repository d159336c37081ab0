"""The jitted programs of the proxies: one of the teacher, one of all sub-networks."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.models import encoder
from autodistill_jax.models.build import Module
from autodistill_jax.models.heads import encoder_params
from autodistill_jax.train import distillation
from autodistill_jax.train.objective import Objective


def loss_programs(
    module: Module, teacher: Module, objective: Objective
) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """The programs of the proxies that are held-out losses.

    Args:
      module: the SuperLM.
      teacher: the teacher's module.
      objective: its losses.

    Returns:
      targets(teacher_params, batch), what the teacher says of a batch; and sums(params,
      batch, targets, archs) of one Arch: {loss: its sum over the batch's `valid_rows`},
      with "total".
    """

    def sums(
        params: dict, batch: Mapping, target: Mapping, archs: AnyArch
    ) -> dict[str, jax.Array]:
        arch = jax.tree.map(lambda x: x[0], archs)
        values = distillation.distillation_losses(
            module, params, batch, target, objective, arch
        )
        return {
            name: (value * batch["valid_rows"]).sum() for name, value in values.items()
        }

    targets = jax.jit(
        lambda p, b: distillation.teacher_targets(teacher, p, b, objective)
    )
    return targets, jax.jit(sums)


def output_programs(
    module: Module, teacher: Module, objective: Objective, pooled: bool
) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """The programs of the proxies that compare outputs.

    Args:
      module: the SuperLM.
      teacher: the teacher's module.
      objective: its pooling makes the embeddings.
      pooled: embeddings, or the last hidden states?

    Returns:
      of_teacher(teacher_params, batch) and of_student(params, batch, archs), each
      embeddings [B, D] or the last hidden states [B, L, D].
    """

    def run(
        module: Module, params: dict, batch: Mapping, archs: AnyArch | None
    ) -> jax.Array:
        arch = None if archs is None else jax.tree.map(lambda x: x[0], archs)
        apply: Callable[..., Any] = module.apply
        out: encoder.Outputs = apply(
            {"params": encoder_params(params)},
            batch["input_ids"],
            batch["attention_mask"],
            arch,
            token_type_ids=batch.get("token_type_ids"),
        )
        if not pooled:
            return out.hidden
        return encoder.pool_tokens(
            out.hidden, out.pooler, batch["attention_mask"], objective.pooling
        )

    return (
        jax.jit(lambda p, b: run(teacher, p, b, None)),
        jax.jit(lambda p, b, a: run(module, p, b, a)),
    )
