"""How does the cost of a sub-network follow its sizes, under one trace?

A piece of a layer is written once, as a plain function of arrays. `call` runs it on the
first n channels that the sub-network has in use, by a `lax.switch` over the static
slices that the space can ask for, and pads the results back with zeros. Forward and
backward are a switch each (a custom vjp that keeps nothing but the arguments), so that
neither time nor memory grows with the number of branches. `repeat` does the same for
depth. With an Arch of Python ints both do nothing: a student has no overhead.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from autodistill_jax.arch import AnyArch, kept_layers
from autodistill_jax.space import Space

# Above this many pairs of sizes, sizes are rounded up to a tile: a branch each would
# take minutes to compile. On a TPU, sizes inside one 128-lane tile cost the same.
MAX_BRANCHES = 16


class Cut(NamedTuple):
    """The sizes that one piece of a layer can be asked for, and which it is now.

    `options` are static sizes, a dict {axis: size} each; `index` (int32) picks one.
    `counts` {axis: int32} are the exact sizes in use where options were rounded up,
    else empty. `parts` {axis: int}: its channels are dealt out in so many parts (see
    `sharding.deal`), of each of which the first are in use.
    """

    options: tuple[dict[str, int], ...]
    index: jax.Array
    counts: dict[str, jax.Array]
    parts: dict[str, int]


def cut(
    space: Space,
    arch: AnyArch,
    *axes: str,
    exact: bool = False,
    parts: int = 1,
    units: Mapping[str, int] | None = None,
) -> Cut:
    """The Cut of these axes for a (traced) Arch of the space.

    `exact` never rounds up, at the price of a branch for each size. `parts`: the axes in
    `units` {axis: channels of a unit} are dealt out in so many.
    """
    dealt = units if units and parts > 1 else {}
    whole = {axis: parts * unit for axis, unit in dealt.items()}
    big = space.largest()
    limits = {axis: big.channels(axis) for axis in axes}
    archs = (
        dataclasses.replace(big, **dict(zip(axes, some)))
        for some in space.combined(*axes)
    )
    sizes = [tuple(other.channels(axis) for axis in axes) for other in archs]
    tile, tiles, rounded = 1, [1] * len(axes), sizes
    while len(rounded) > MAX_BRANCHES and not exact:
        tile = 32 if tile == 1 else tile * 2
        tiles = [math.lcm(tile, whole.get(axis, 1)) for axis in axes]
        rounded = sorted({_round(size, tiles, limits.values()) for size in sizes})
    # Every size of the space -> its branch; the position in `sizes` is found at run
    # time by comparison, so the index costs nothing next to a product.
    branch = np.asarray(
        [rounded.index(_round(s, tiles, limits.values())) for s in sizes]
    )
    now = jnp.stack([jnp.asarray(arch.channels(axis), jnp.int32) for axis in axes])
    position = jnp.argmax((jnp.asarray(sizes) == now).all(axis=1))
    counts = dict(zip(axes, now)) if tile > 1 else {}
    options = tuple(dict(zip(axes, size)) for size in rounded)
    own = {axis: parts for axis in axes if axis in dealt}
    return Cut(options, jnp.asarray(branch, jnp.int32)[position], counts, own)


def _round(sizes, tiles, limits):
    return tuple(
        min(-(-size // tile) * tile, limit)
        for size, tile, limit in zip(sizes, tiles, limits)
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
    constants: Sequence[jax.Array] = (),
    told: Sequence[str] = (),
) -> jax.Array:
    """fn(*args, *constants) on the channels in use.

    Args:
      fn: a pure function of arrays to one array; it sees smaller arrays where a Cut is
        given. The backward pass runs it again inside its branch, so give it pieces
        whose forward pass is cheap to repeat (a product needs no repeat at all).
      cut: which channels; None runs fn as it is.
      args: arrays of numbers that get a gradient.
      in_axes: for each argument the axis name, or None, of each of its dimensions.
      out_axes: likewise for the result.
      constants: further arrays, never cut, that get no gradient.
      told: axes of the Cut whose size, an int, fn takes by name; without a Cut it has
        a default for them. (The Cut is exact then.)

    Returns:
      The result at full size; channels out of use are exactly 0.
    """
    if cut is None:
        return fn(*args, *constants)
    args, constants = tuple(args), tuple(constants)
    fns = [
        functools.partial(fn, **{axis: option[axis] for axis in told})
        for option in cut.options
    ]
    shapes = [
        jax.eval_shape(
            lambda *a, f=f, option=option: f(
                *_take(a, in_axes, option, cut.parts), *constants
            ),
            *args,
        ).shape
        for f, option in zip(fns, cut.options)
    ]
    full = tuple(max(sizes) for sizes in zip(*shapes))
    branches = functools.partial(
        _branches, fns, cut.options, tuple(in_axes), out_axes, cut.parts
    )
    return _switched(branches, full, args, (cut.index, cut.counts, constants))


def repeat(
    body: Callable,
    stack: Any,
    carry: Any,
    arch: AnyArch,
    space: Space | None,
    depth: Any = None,
) -> Any:
    """carry = body(layer's parameters, carry), layer after layer.

    Args:
      body: one layer.
      stack: parameters, each with a leading axis over the layers there are; or a list
        of each layer's, which are then run one after another, without a loop.
      carry: what goes from layer to layer.
      arch: how many layers.
      space: None runs all layers of the stack. With a space, `arch.layers` of them run,
        those that `kept_layers` names; the others cost nothing.
      depth: without a space, int32: only the first so many run.
    """
    if isinstance(stack, list):
        return functools.reduce(lambda c, layer: body(layer, c), stack, carry)
    if depth is not None:
        return first(lambda i, own, carry: body(own, carry), stack, carry, depth)
    if space is None:
        return lax.scan(lambda c, layer: (body(layer, c), None), carry, stack)[0]
    there = jax.tree.leaves(stack)[0].shape[0]
    deepest = max(space.layers)
    table = np.zeros((deepest + 1, deepest), np.int32)
    for count in space.layers:
        table[count, :count] = kept_layers(count, there)
    index = jnp.asarray(table)[arch.layers]
    gathered = jax.tree.map(lambda x: x[index], stack)

    def step(carry, inputs):
        i, layer = inputs
        run = functools.partial(body, layer)
        return lax.cond(i < arch.layers, run, lambda c: c, carry), None

    return lax.scan(step, carry, (jnp.arange(deepest), gathered))[0]


def first(body: Callable, stack: dict, carry: Any, n: Any) -> Any:
    """carry = body(i, parameters, carry) for the first n of a stack, i = 0 .. n - 1.

    n: an int, or int32 inside a SuperLM: what is behind it costs nothing then.
    """
    if isinstance(n, int):
        for i in range(n):
            carry = body(i, jax.tree.map(lambda x, i=i: x[i], stack), carry)
        return carry

    def step(carry, inputs):
        i, own = inputs
        run = functools.partial(body, i, own)
        return lax.cond(i < n, run, lambda c: c, carry), None

    there = jax.tree.leaves(stack)[0].shape[0]
    return lax.scan(step, carry, (jnp.arange(there), stack))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _switched(branches, full, args, rest):
    index, counts, constants = rest
    forward, _ = branches(full, counts)
    return lax.switch(index, forward, args, constants)


def _switched_forward(branches, full, args, rest):
    return _switched(branches, full, args, rest), (args, rest)


def _switched_backward(branches, full, saved, gradient):
    args, (index, counts, constants) = saved
    _, backward = branches(full, counts)
    return lax.switch(index, backward, gradient, args, constants), None


_switched.defvjp(_switched_forward, _switched_backward)


def _branches(fns, options, in_axes, out_axes, parts, full, counts):
    """Forward and backward functions of full-size arrays, one each an option."""
    of_result = [parts.get(axis, 1) for axis in out_axes]

    def pair(fn, option):
        def run(constants, *args):
            y = fn(*_take(args, in_axes, option, parts), *constants)
            for dimension, axis in enumerate(out_axes):
                if axis in counts:  # Rounded up: what is above n must be 0.
                    shape = [1] * y.ndim
                    shape[dimension] = y.shape[dimension]
                    count = of_result[dimension]
                    kept = keep(counts[axis] // count, shape[dimension] // count)
                    y = y * jnp.tile(kept, count).reshape(shape)
            return y

        def forward(args, constants):
            y = run(constants, *args)
            return _of_parts(_pad, y, full, of_result)

        def backward(gradient, args, constants):
            # The vjp of a slice pads: gradients come out at full size.
            y, pull = jax.vjp(functools.partial(run, constants), *args)
            return pull(_of_parts(_first, gradient, y.shape, of_result))

        return forward, backward

    return tuple(zip(*map(pair, fns, options)))


def _take(args, in_axes, option, parts):
    return [
        _of_parts(
            _first,
            x,
            [option.get(axis, size) for axis, size in zip(axes, x.shape)],
            [parts.get(axis, 1) for axis in axes],
        )
        for x, axes in zip(args, in_axes)
    ]


def _of_parts(fn, x, sizes, parts):
    """fn(x, sizes), and of a dimension in parts the same of each of them."""
    if all(count == 1 for count in parts):
        return fn(x, sizes)
    split = [(count, n // count) for count, n in zip(parts, x.shape)]
    wanted = [(count, n // count) for count, n in zip(parts, sizes)]
    made = fn(x.reshape(np.ravel(split).tolist()), np.ravel(wanted).tolist())
    return made.reshape(sizes)


def _first(x, sizes):
    return x[tuple(slice(n) for n in sizes)]


def _pad(x, sizes):
    return jnp.pad(x, [(0, n - own) for n, own in zip(sizes, x.shape)])
