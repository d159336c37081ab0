"""What do proxies run of each batch? One program of the teacher, one of all sub-networks."""

from collections.abc import Callable

import jax

from autodistill_jax.models.build import Module
from autodistill_jax.models.heads import encoder_params
from autodistill_jax.train import distillation, losses
from autodistill_jax.train.objective import Objective


def loss_programs(
    module: Module, teacher: Module, objective: Objective
) -> tuple[Callable, Callable]:
    """(targets(teacher_params, batch), sums(params, batch, targets, archs)): {term: its sum
    over the batch's real `rows`} of one Arch, with "total"."""

    def sums(params, batch, target, archs):
        arch = jax.tree.map(lambda x: x[0], archs)
        made = distillation.distillation_losses(
            module, params, batch, target, objective, arch
        )
        return {
            name: (value * batch["valid_rows"]).sum() for name, value in made.items()
        }

    targets = jax.jit(
        lambda p, b: distillation.teacher_targets(teacher, p, b, objective)
    )
    return targets, jax.jit(sums)


def output_programs(
    module: Module, teacher: Module, objective: Objective, pooled: bool
) -> tuple[Callable, Callable]:
    """(of_teacher(teacher_params, batch), of_student(params, batch, archs)): embeddings
    [B, D], or the last hidden states [B, L, D]."""

    def run(module, params, batch, archs):
        arch = None if archs is None else jax.tree.map(lambda x: x[0], archs)
        out = module.apply(
            {"params": encoder_params(params)},
            batch["input_ids"],
            batch["attention_mask"],
            arch,
            token_type_ids=batch.get("token_type_ids"),
        )
        if not pooled:
            return out.hidden
        return losses.pool_tokens(
            out.hidden, out.pooler, batch["attention_mask"], objective.pooling
        )

    return (
        jax.jit(lambda p, b: run(teacher, p, b, None)),
        jax.jit(lambda p, b, a: run(module, p, b, a)),
    )
