"""The training step of a SuperLM: the sandwich of largest, smallest and random."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from autodistill_jax import sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.space import Space
from autodistill_jax.data.mlm import mask_tokens
from autodistill_jax.models import build
from autodistill_jax.models.build import Module
from autodistill_jax.train import distillation, optimizer
from autodistill_jax.train.objective import Objective

ROLES = ("largest", "smallest", "random")

# The key of the masked tokens; sub-networks fold in 0, 1, ... for their dropout.
_MASKING_KEY = 2**31 - 1


def sandwich_archs(space: Space, n_random: int, seed: int, step: int) -> list[AnyArch]:
    """The Archs of a step, the same on every device (AutoDistil, section 3.2).

    Args:
      space: of the SuperLM.
      n_random: how many random ones.
      seed: of the run.
      step: they are a function of the seed and of it.

    Returns:
      The largest, the smallest and the random ones; of a space of one Arch that one.
    """
    if len(space) == 1:
        return list(space)
    return space.sandwich(np.random.default_rng((seed, step)), n_random)


def stack_archs(archs: Sequence[AnyArch]) -> AnyArch:
    """Archs of one head size as one Arch of int32 arrays, [n] each."""
    return dataclasses.replace(
        archs[0],
        **{
            axis: jnp.asarray([getattr(arch, axis) for arch in archs], jnp.int32)
            for axis in archs[0].axes
        },
    )


def make_sandwich_step(
    superlm: Module,
    teacher: Module,
    objective: Objective,
    tx: optax.GradientTransformation,
    gradient_accumulation_steps: int = 1,
) -> jax.stages.Wrapped:
    """The compiled training step of a SuperLM, or of one network.

    The teacher runs once; each sub-network in turn adds its gradient; one update.

    Args:
      superlm: what is trained.
      teacher: what it learns from.
      objective: the losses.
      tx: the optimizer.
      gradient_accumulation_steps: micro-batches, see `optimizer.accumulate_gradients`.

    Returns:
      step(state, frozen, teacher_params, batch, archs, key) -> (state, values). state
      is {"params": trained ones, "optimizer": ...}; frozen are the other parameters;
      archs are of `stack_archs`, the largest first, the smallest second; values are
      the mean losses by role, {"largest/hidden": ...}, and their mean total, "loss".
    """
    axes, mesh = build.param_axes(superlm), superlm.mesh

    def gradients(params, frozen, teacher_params, batch, archs, key):
        """(the sum of the sub-networks' gradients, {loss: [n] of them})."""
        targets = distillation.teacher_targets(
            teacher, teacher_params, batch, objective
        )

        def loss_fn(params, arch, i):
            values = distillation.distillation_losses(
                superlm,
                {**frozen, **params},
                batch,
                targets,
                objective,
                arch,
                jax.random.fold_in(key, i) if superlm.dropout else None,
            )
            values = {name: value.mean() for name, value in values.items()}
            return values["total"], values

        def add_gradients(total, inputs):
            grads, values = jax.grad(loss_fn, has_aux=True)(params, *inputs)
            return jax.tree.map(jnp.add, total, grads), values

        zeros = jax.tree.map(jnp.zeros_like, params)
        if mesh is not None:
            shardings = sharding.param_shardings(params, axes, mesh)
            zeros = jax.lax.with_sharding_constraint(zeros, shardings)
        return jax.lax.scan(
            add_gradients, zeros, (archs, jnp.arange(archs.layers.shape[0]))
        )

    def step(state, frozen, teacher_params, batch, archs, key):
        # The same tokens are masked for the teacher and for every sub-network.
        masking_key = jax.random.fold_in(key, _MASKING_KEY)
        batch = mask_tokens(masking_key, batch, superlm.dims.vocab, objective.masking)

        def part_gradients(rows, i):
            part_key = (
                key
                if gradient_accumulation_steps == 1
                else jax.random.fold_in(key, _MASKING_KEY - 1 - i)
            )
            return gradients(
                state["params"], frozen, teacher_params, rows, archs, part_key
            )

        grads, loss_values = optimizer.accumulate_gradients(
            part_gradients, batch, gradient_accumulation_steps, mesh
        )
        count = archs.layers.shape[0]
        values = {"loss": loss_values["total"].mean()}
        for i, role in enumerate(ROLES[: min(count, 3)]):
            of_role = slice(i, None if role == "random" else i + 1)
            for name, value in loss_values.items():
                values[f"{role}/{name}"] = value[of_role].mean()
        return optimizer.apply_gradients(tx, grads, state, axes, mesh), values

    return jax.jit(step, donate_argnums=0)
