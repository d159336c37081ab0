"""How does the cost of a sub-network follow its sizes, under one trace?

A piece of a layer is written once, as a plain function of arrays. `call` runs it on the
first n channels that the sub-network has in use, by a `lax.switch` over the static
slices that the space can ask for, and pads the results back with zeros. Forward and
backward are a switch each (a custom vjp that keeps nothing but the arguments), so that
neither time nor memory grows with the number of branches. `repeat` does the same for
depth. With an Arch of Python ints both do nothing: a student has no overhead.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from autodistill_jax.arch import Arch, Space, kept_layers

# Above this many pairs of sizes, sizes are rounded up to a tile: a branch each would
# take minutes to compile. On a TPU, sizes inside one 128-lane tile cost the same.
MAX_BRANCHES = 16


class Cut(NamedTuple):
    """The sizes that one piece of a layer can be asked for, and which it is now.

    `options` are static sizes, a dict {axis: size} each; `index` (int32) picks one.
    `counts` {axis: int32} are the exact sizes in use where options were rounded up,
    else empty.
    """

    options: tuple[dict[str, int], ...]
    index: jax.Array
    counts: dict[str, jax.Array]


def is_static(arch: Arch) -> bool:
    """Python sizes: a standalone network, no sub-network."""
    return isinstance(arch.hidden, int)


def channels(arch: Arch, axis: str) -> Any:
    """Channels of an axis: an attention head has head_size of them."""
    size = getattr(arch, axis)
    return size * arch.head_size if axis == "heads" else size


def cut(space: Space, arch: Arch, *axes: str) -> Cut:
    """The Cut of these axes for a (traced) Arch of the space."""
    limits = {axis: channels(space.envelope(), axis) for axis in axes}
    sizes = sorted(
        {tuple(channels(other, axis) for axis in axes) for other in space.grid()}
    )
    tile, rounded = 1, sizes
    while len(rounded) > MAX_BRANCHES:
        tile = 32 if tile == 1 else tile * 2
        rounded = sorted({_round(size, tile, limits.values()) for size in sizes})
    # Every size of the space -> its branch; the position in `sizes` is found at run
    # time by comparison, so the index costs nothing next to a product.
    branch = np.asarray([rounded.index(_round(s, tile, limits.values())) for s in sizes])
    now = jnp.stack([jnp.asarray(channels(arch, axis), jnp.int32) for axis in axes])
    position = jnp.argmax((jnp.asarray(sizes) == now).all(axis=1))
    counts = dict(zip(axes, now)) if tile > 1 else {}
    options = tuple(dict(zip(axes, size)) for size in rounded)
    return Cut(options, jnp.asarray(branch, jnp.int32)[position], counts)


def _round(sizes, tile, limits):
    return tuple(
        min(-(-size // tile) * tile, limit) for size, limit in zip(sizes, limits)
    )


def keep(n: Any, size: int) -> jax.Array:
    """1 for the first n of `size` channels, 0 for those out of use."""
    return (jnp.arange(size) < n).astype(jnp.float32)


def call(
    fn: Callable,
    cut: Cut | None,
    args: Sequence[jax.Array],
    in_axes: Sequence[tuple],
    out_axes: tuple,
) -> jax.Array:
    """fn(*args) on the channels in use.

    Args:
      fn: a pure function of arrays to one array; it sees smaller arrays where a Cut is
        given. The backward pass runs it again inside its branch, so give it pieces
        whose forward pass is cheap to repeat (a product needs no repeat at all).
      cut: which channels; None runs fn as it is.
      args: arrays; those of whole numbers (tokens, random keys) get no gradient.
      in_axes: for each argument the axis name, or None, of each of its dimensions.
      out_axes: likewise for the result.

    Returns:
      The result at full size; channels out of use are exactly 0.
    """
    if cut is None:
        return fn(*args)
    shapes = [_shape(out_axes, option, fn, in_axes, args) for option in cut.options]
    full = tuple(max(sizes) for sizes in zip(*shapes))
    branches = functools.partial(_branches, fn, cut.options, tuple(in_axes), out_axes)
    return _switched(branches, full, (cut.index, cut.counts), tuple(args))


def repeat(
    body: Callable, stack: Any, carry: Any, arch: Arch, space: Space | None, **kwargs
) -> Any:
    """carry = body(layer's parameters, carry), layer after layer.

    Args:
      body: one layer.
      stack: parameters, each with a leading axis over the layers there are.
      carry: what goes from layer to layer.
      arch: how many layers.
      space: None runs all layers of the stack. With a space, `arch.layers` of them run,
        those that `kept_layers` names; the others cost nothing.
      **kwargs: for `lax.scan` (unroll).
    """
    if space is None:
        return lax.scan(lambda c, layer: (body(layer, c), None), carry, stack, **kwargs)[0]
    there = jax.tree.leaves(stack)[0].shape[0]
    deepest = max(space.layers)
    table = np.zeros((deepest + 1, deepest), np.int32)
    for depth in space.layers:
        table[depth, :depth] = kept_layers(depth, there)
    index = jnp.asarray(table)[arch.layers]
    gathered = jax.tree.map(lambda x: x[index], stack)

    def step(carry, inputs):
        i, layer = inputs
        run = functools.partial(body, layer)
        return lax.cond(i < arch.layers, run, lambda c: c, carry), None

    return lax.scan(step, carry, (jnp.arange(deepest), gathered), **kwargs)[0]


def _shape(out_axes, option, fn, in_axes, args):
    return jax.eval_shape(
        lambda *a: fn(*(_take(x, ax, option) for x, ax in zip(a, in_axes))), *args
    ).shape


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _switched(branches, full, which, args):
    index, counts = which
    return lax.switch(index, branches(full, counts), *args)


def _switched_forward(branches, full, which, args):
    return _switched(branches, full, which, args), (which, args)


def _switched_backward(branches, full, saved, gradient):
    (index, counts), args = saved
    grads = iter(
        lax.switch(index, branches(full, counts, backward=True), gradient, *args)
    )
    return None, tuple(next(grads) if _is_float(x) else None for x in args)


_switched.defvjp(_switched_forward, _switched_backward)


def _branches(fn, options, in_axes, out_axes, full, counts, backward=False):
    """One function of full-size arrays for each option."""

    def sliced(option):
        def run(*args):
            y = fn(*(_take(x, axes, option) for x, axes in zip(args, in_axes)))
            for dimension, axis in enumerate(out_axes):
                if axis in counts:  # Rounded up: what is above n must be 0.
                    shape = [1] * y.ndim
                    shape[dimension] = y.shape[dimension]
                    kept = keep(counts[axis], y.shape[dimension])
                    y = y * kept.astype(y.dtype).reshape(shape)
            return y

        def forward(*args):
            return _pad(run(*args), full)

        def vjp(gradient, *args):
            floats = [x for x in args if _is_float(x)]

            def of_floats(*floats):
                it = iter(floats)
                return run(*(next(it) if _is_float(x) else x for x in args))

            # The vjp of a slice pads: gradients come out at full size.
            y, pull = jax.vjp(of_floats, *floats)
            return pull(gradient[tuple(slice(n) for n in y.shape)])

        return vjp if backward else forward

    return [sliced(option) for option in options]


def _take(x, axes, option):
    if not any(axis in option for axis in axes if axis):
        return x
    return x[
        tuple(slice(option[a]) if a in option else slice(None) for a in axes)
    ]


def _pad(x, shape):
    return jnp.pad(x, [(0, full - now) for full, now in zip(shape, x.shape)])


def _is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)
