"""A switch over one piece of a layer at several static sizes, with its own backward.

Forward and backward are a `lax.switch` each, over the same options. Nothing is stored
for the backward pass but the arguments, at full size.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def channel_mask(n: Any, size: int) -> jax.Array:
    """1 for the first n of `size` channels, 0 for those out of use; f32 [size]."""
    return (jnp.arange(size) < n).astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def switch_with_vjp(
    branches: Callable[..., tuple],
    full: jax.ShapeDtypeStruct,
    args: tuple[jax.Array, ...],
    nondiff_args: tuple[jax.Array, dict, tuple],
) -> jax.Array:
    """The branch of an index, on arguments at full size, with its own backward pass.

    Args:
      branches: (full, counts) -> (forward, backward), see `branch_pairs`.
      full: shape and dtype of the result.
      args: arguments at full size.
      nondiff_args: (index, counts, constants); no gradient goes there.

    Returns:
      The result at full size.
    """
    index, counts, constants = nondiff_args
    forward, _ = branches(full, counts)
    return lax.switch(index, forward, args, constants)


def _switch_forward(
    branches: Callable[..., tuple],
    full: jax.ShapeDtypeStruct,
    args: tuple[jax.Array, ...],
    nondiff_args: tuple[jax.Array, dict, tuple],
) -> tuple[jax.Array, tuple]:
    return switch_with_vjp(branches, full, args, nondiff_args), (args, nondiff_args)


def _switch_backward(
    branches: Callable[..., tuple],
    full: jax.ShapeDtypeStruct,
    residuals: tuple,
    gradient: jax.Array,
) -> tuple[tuple[jax.Array, ...], None]:
    args, (index, counts, constants) = residuals
    _, backward = branches(full, counts)
    return lax.switch(index, backward, gradient, args, constants), None


switch_with_vjp.defvjp(_switch_forward, _switch_backward)


def branch_pairs(
    fns: Sequence[Callable[..., jax.Array]],
    options: Sequence[Mapping[str, int]],
    in_axes: Sequence[tuple],
    out_axes: tuple,
    parts: Mapping[str, int],
    full: jax.ShapeDtypeStruct,
    counts: Mapping[str, jax.Array],
) -> tuple[tuple[Callable, ...], tuple[Callable, ...]]:
    """Forward and backward functions of full-size arrays, one each an option.

    Args:
      fns: the piece of a layer, once an option.
      options: static sizes, {axis: size} each.
      in_axes: for each argument the axis name, or None, of each of its dimensions.
      out_axes: likewise for the result.
      parts: {axis: int}, axes that are interleaved in so many parts.
      full: shape and dtype of the result at full size.
      counts: {axis: int32}, exact sizes in use where options were rounded up.

    Returns:
      ((args, constants) -> result, ...), ((gradient, args, constants) -> gradients of
      args, ...).
    """
    result_parts = [parts.get(axis, 1) for axis in out_axes]

    def pair(fn, option):
        def run(constants, *args):
            y = fn(*slice_args(args, in_axes, option, parts), *constants)
            for dimension, axis in enumerate(out_axes):
                if axis in counts:  # Rounded up: what is above n must be 0.
                    shape = [1] * y.ndim
                    shape[dimension] = y.shape[dimension]
                    count = result_parts[dimension]
                    in_use = channel_mask(
                        counts[axis] // count, shape[dimension] // count
                    )
                    y = y * jnp.tile(in_use, count).reshape(shape)
            return y

        def forward(args, constants):
            y = run(constants, *args)
            return _apply_by_part(_pad_to, y, full.shape, result_parts)

        def backward(gradient, args, constants):
            # The vjp of a slice pads: gradients come out at full size.
            y, pull = jax.vjp(functools.partial(run, constants), *args)
            return pull(_apply_by_part(_slice_first, gradient, y.shape, result_parts))

        return forward, backward

    return tuple(zip(*map(pair, fns, options)))


def with_off_branch(
    branches: Callable[..., tuple],
    full: jax.ShapeDtypeStruct,
    counts: Mapping[str, jax.Array],
) -> tuple[tuple[Callable, ...], tuple[Callable, ...]]:
    """The branches, and one more, the last, of nothing but zeros.

    Args:
      branches: (full, counts) -> (forward, backward), as for `switch_with_vjp`.
      full: shape and dtype of the result at full size.
      counts: passed on to `branches`.

    Returns:
      (forward, backward), as of `branch_pairs`.
    """
    forward, backward = branches(full, counts)

    def off(args, constants):
        return jnp.zeros(full.shape, full.dtype)

    def off_backward(gradient, args, constants):
        return jax.tree.map(jnp.zeros_like, args)

    return (*forward, off), (*backward, off_backward)


def slice_args(
    args: Sequence[jax.Array],
    in_axes: Sequence[tuple],
    option: Mapping[str, int],
    parts: Mapping[str, int],
) -> list[jax.Array]:
    """The first channels of each argument, as many as the option says.

    Args:
      args: arrays at full size.
      in_axes: for each argument the axis name, or None, of each of its dimensions.
      option: {axis: size}; other axes stay whole.
      parts: {axis: int}, axes that are interleaved in so many parts.

    Returns:
      The sliced arrays.
    """
    return [
        _apply_by_part(
            _slice_first,
            x,
            [option.get(axis, size) for axis, size in zip(axes, x.shape)],
            [parts.get(axis, 1) for axis in axes],
        )
        for x, axes in zip(args, in_axes)
    ]


def _apply_by_part(
    fn: Callable[..., jax.Array],
    x: jax.Array,
    sizes: Sequence[int],
    parts: Sequence[int],
) -> jax.Array:
    """fn(x, sizes), and of a dimension in parts the same of each of them."""
    if all(count == 1 for count in parts):
        return fn(x, sizes)
    part_shape = [(count, n // count) for count, n in zip(parts, x.shape)]
    part_sizes = [(count, n // count) for count, n in zip(parts, sizes)]
    result = fn(x.reshape(np.ravel(part_shape).tolist()), np.ravel(part_sizes).tolist())
    return result.reshape(sizes)


def _slice_first(x, sizes):
    return x[tuple(slice(n) for n in sizes)]


def _pad_to(x, sizes):
    return jnp.pad(x, [(0, n - size) for n, size in zip(sizes, x.shape)])
