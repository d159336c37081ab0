"""What is one step of training a SuperLM? The sandwich: largest, smallest, random."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from autodistill_jax import sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.space import Space
from autodistill_jax.models import build
from autodistill_jax.models.build import Module
from autodistill_jax.train import distillation, optimizer
from autodistill_jax.train.objective import Objective

ROLES = ("largest", "smallest", "random")

# The key of the hidden words; sub-networks fold in 0, 1, ... for their dropout.
_MASKING_KEY = 2**31 - 1


def sandwich_archs(space: Space, n_random: int, seed: int, step: int) -> list[AnyArch]:
    """The Archs of a step: largest, smallest and n random ones; a function of the step,
    the same on every device (AutoDistil, section 3.2)."""
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
    moves: optax.GradientTransformation,
    parts: int = 1,
) -> Callable:
    """step(state, frozen, teacher_params, batch, archs, key) -> (state, values).

    The teacher runs once; each sub-network in turn adds its gradient; one update.
    parts: of the batch, one after another, see `optimizer.accumulate_gradients`.
    state: {"params": trained ones, "optimizer": ...}; frozen: the other parameters;
    archs: of `stack_archs`, the largest first, the smallest second. values: the mean
    terms by role, `loss` among them.
    """

    axes, mesh = build.param_axes(superlm), superlm.mesh

    def gradients(params, frozen, teacher_params, batch, archs, key):
        """(the sum of the sub-networks' gradients, {term: [n] of them})."""
        target = distillation.teacher_targets(teacher, teacher_params, batch, objective)

        def loss(params, arch, i):
            made = distillation.distillation_losses(
                superlm,
                {**frozen, **params},
                batch,
                target,
                objective,
                arch,
                jax.random.fold_in(key, i) if superlm.dropout else None,
            )
            made = {name: value.mean() for name, value in made.items()}
            return made["total"], made

        def one(total, inputs):
            gradient, made = jax.grad(loss, has_aux=True)(params, *inputs)
            return jax.tree.map(jnp.add, total, gradient), made

        zeros = jax.tree.map(jnp.zeros_like, params)
        if mesh is not None:
            where = sharding.param_shardings(params, axes, mesh)
            zeros = jax.lax.with_sharding_constraint(zeros, where)
        return jax.lax.scan(one, zeros, (archs, jnp.arange(archs.layers.shape[0])))

    def step(state, frozen, teacher_params, batch, archs, key):
        # The same words are hidden from the teacher and from every sub-network.
        batch = distillation.shown(
            batch, objective, superlm.dims.vocab, jax.random.fold_in(key, _MASKING_KEY)
        )

        def part(rows, i):
            now = key if parts == 1 else jax.random.fold_in(key, _MASKING_KEY - 1 - i)
            return gradients(state["params"], frozen, teacher_params, rows, archs, now)

        gradient, made = optimizer.accumulate_gradients(part, batch, parts, mesh)
        count = archs.layers.shape[0]
        values = {"loss": made["total"].mean()}
        for i, role in enumerate(ROLES[: min(count, 3)]):
            of_role = slice(i, None if role == "random" else i + 1)
            for name, value in made.items():
                values[f"{role}/{name}"] = value[of_role].mean()
        return optimizer.apply_gradients(moves, gradient, state, axes, mesh), values

    return jax.jit(step, donate_argnums=0)
