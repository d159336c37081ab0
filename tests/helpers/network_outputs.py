"""A network's outputs as NumPy arrays, and an Arch as the arrays that a SuperLM takes."""

import functools

import jax
import numpy as np

from autodistill_jax.train.sandwich import stack_archs


def outputs(module, params, batch, **more):
    """What a network gives; one program, not one an operation."""
    apply = jax.jit(functools.partial(module.apply, **more))
    out = apply({"params": params}, batch["input_ids"], batch["attention_mask"])
    return jax.tree.map(np.asarray, out)


def arrays(arch):
    return jax.tree.map(lambda x: x[0], stack_archs([arch]))
