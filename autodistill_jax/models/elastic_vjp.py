"""How does one piece of a layer run at one of several static sizes, there and back?

Forward and backward are a `lax.switch` each, over the same options. Nothing is kept for
the backward pass but the arguments, at full size.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def channel_mask(n: Any, size: int) -> jax.Array:
    """1 for the first n of `size` channels, 0 for those out of use."""
    return (jnp.arange(size) < n).astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def switch_with_vjp(branches, full, args, rest):
    """The branch of an index, on arguments at full size, with its own backward pass.

    branches: (full, counts) -> (forward, backward), see `branch_pairs`. full: shape and dtype of
    the result. rest: (index, counts, constants); no gradient goes there.
    """
    index, counts, constants = rest
    forward, _ = branches(full, counts)
    return lax.switch(index, forward, args, constants)


def _switch_forward(branches, full, args, rest):
    return switch_with_vjp(branches, full, args, rest), (args, rest)


def _switch_backward(branches, full, saved, gradient):
    args, (index, counts, constants) = saved
    _, backward = branches(full, counts)
    return lax.switch(index, backward, gradient, args, constants), None


switch_with_vjp.defvjp(_switch_forward, _switch_backward)


def branch_pairs(fns, options, in_axes, out_axes, parts, full, counts):
    """Forward and backward functions of full-size arrays, one each an option."""
    of_result = [parts.get(axis, 1) for axis in out_axes]

    def pair(fn, option):
        def run(constants, *args):
            y = fn(*slice_args(args, in_axes, option, parts), *constants)
            for dimension, axis in enumerate(out_axes):
                if axis in counts:  # Rounded up: what is above n must be 0.
                    shape = [1] * y.ndim
                    shape[dimension] = y.shape[dimension]
                    count = of_result[dimension]
                    kept = channel_mask(
                        counts[axis] // count, shape[dimension] // count
                    )
                    y = y * jnp.tile(kept, count).reshape(shape)
            return y

        def forward(args, constants):
            y = run(constants, *args)
            return _apply_by_part(_pad_to, y, full.shape, of_result)

        def backward(gradient, args, constants):
            # The vjp of a slice pads: gradients come out at full size.
            y, pull = jax.vjp(functools.partial(run, constants), *args)
            return pull(_apply_by_part(_slice_first, gradient, y.shape, of_result))

        return forward, backward

    return tuple(zip(*map(pair, fns, options)))


def with_off_branch(branches, full, counts):
    """The branches, and one more of nothing but zeros."""
    forward, backward = branches(full, counts)

    def off(args, constants):
        return jnp.zeros(full.shape, full.dtype)

    def off_backward(gradient, args, constants):
        return jax.tree.map(jnp.zeros_like, args)

    return (*forward, off), (*backward, off_backward)


def slice_args(args, in_axes, option, parts):
    """The first channels of each argument, as many as the option says."""
    return [
        _apply_by_part(
            _slice_first,
            x,
            [option.get(axis, size) for axis, size in zip(axes, x.shape)],
            [parts.get(axis, 1) for axis in axes],
        )
        for x, axes in zip(args, in_axes)
    ]


def _apply_by_part(fn, x, sizes, parts):
    """fn(x, sizes), and of a dimension in parts the same of each of them."""
    if all(count == 1 for count in parts):
        return fn(x, sizes)
    split = [(count, n // count) for count, n in zip(parts, x.shape)]
    wanted = [(count, n // count) for count, n in zip(parts, sizes)]
    made = fn(x.reshape(np.ravel(split).tolist()), np.ravel(wanted).tolist())
    return made.reshape(sizes)


def _slice_first(x, sizes):
    return x[tuple(slice(n) for n in sizes)]


def _pad_to(x, sizes):
    return jnp.pad(x, [(0, n - own) for n, own in zip(sizes, x.shape)])
