"""How does the cost of a sub-network follow its sizes, under one trace?

A piece of a layer is written once, as a plain function of arrays. `sliced_call` runs it on the
first n channels that the sub-network has in use, by a `lax.switch` over the static
slices that the space can ask for, and pads the results back with zeros. Forward and
backward are a switch each (a custom vjp that keeps nothing but the arguments), so that
neither time nor memory grows with the number of branches. `scan_layers` does the same for
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

from autodistill_jax.archs.arch import AnyArch, kept_layers
from autodistill_jax.archs.space import Space
from autodistill_jax.models import elastic_vjp

# platform -> (branches, tile). Above so many pairs of sizes, sizes are rounded up to a
# tile: a branch each would take minutes to compile. On a TPU compiling takes longer, and
# sizes inside one tile of 128 lanes cost the same.
BRANCH_LIMITS = {"cpu": (16, 32), "tpu": (4, 128)}


channel_mask = elastic_vjp.channel_mask


class SliceChoice(NamedTuple):
    """The sizes that one piece of a layer can be asked for, and which it is now.

    `options` are static sizes, a dict {axis: size} each; `index` (int32) picks one.
    `counts` {axis: int32} are the exact sizes in use where options were rounded up,
    else empty. `parts` {axis: int}: its channels are dealt out in so many parts (see
    `sharding.interleave`), of each of which the first are in use. `on`: does the layer run at
    all? Where it does not, its pieces are 0 and cost nothing; None: it always does.
    """

    options: tuple[dict[str, int], ...]
    index: jax.Array
    counts: dict[str, jax.Array]
    parts: dict[str, int]
    on: jax.Array | None = None


def choose_slices(
    space: Space,
    arch: AnyArch,
    *axes: str,
    exact: bool = False,
    parts: int = 1,
    units: Mapping[str, int] | None = None,
    platform: str = "cpu",
) -> SliceChoice:
    """The Cut of these axes for a (traced) Arch of the space.

    `exact` never rounds up, at the price of a branch for each size. `parts`: the axes in
    `units` {axis: channels of a unit} are dealt out in so many. `platform`: see BRANCHES.
    """
    most, first_tile = BRANCH_LIMITS.get(platform, BRANCH_LIMITS["cpu"])
    dealt = units if units and parts > 1 else {}
    whole = {axis: parts * unit for axis, unit in dealt.items()}
    big = space.largest()
    limits = {axis: big.num_channels(axis) for axis in axes}
    archs = (
        dataclasses.replace(big, **dict(zip(axes, some)))
        for some in space.axis_values_product(*axes)
    )
    sizes = [tuple(other.num_channels(axis) for axis in axes) for other in archs]
    tile, tiles, rounded = 1, [1] * len(axes), sizes
    while len(rounded) > most and not exact:
        tile = first_tile if tile == 1 else tile * 2
        tiles = [math.lcm(tile, whole.get(axis, 1)) for axis in axes]
        rounded = sorted({_round_up(size, tiles, limits.values()) for size in sizes})
    # Every size of the space -> its branch; the position in `sizes` is found at run
    # time by comparison, so the index costs nothing next to a product.
    branch = np.asarray(
        [rounded.index(_round_up(s, tiles, limits.values())) for s in sizes]
    )
    now = jnp.stack([jnp.asarray(arch.num_channels(axis), jnp.int32) for axis in axes])
    position = jnp.argmax((jnp.asarray(sizes) == now).all(axis=1))
    counts = dict(zip(axes, now)) if tile > 1 else {}
    options = tuple(dict(zip(axes, size)) for size in rounded)
    own = {axis: parts for axis in axes if axis in dealt}
    return SliceChoice(options, jnp.asarray(branch, jnp.int32)[position], counts, own)


def _round_up(sizes, tiles, limits):
    return tuple(
        min(-(-size // tile) * tile, limit)
        for size, tile, limit in zip(sizes, tiles, limits)
    )


def sliced_call(
    fn: Callable,
    cut: SliceChoice | None,
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
                *elastic_vjp.slice_args(a, in_axes, option, cut.parts), *constants
            ),
            *args,
        )
        for f, option in zip(fns, cut.options)
    ]
    sizes = zip(*(made.shape for made in shapes))
    full = jax.ShapeDtypeStruct(tuple(map(max, sizes)), shapes[0].dtype)
    pairs = functools.partial(
        elastic_vjp.branch_pairs, fns, cut.options, tuple(in_axes), out_axes, cut.parts
    )
    index = cut.index
    if cut.on is not None:
        pairs = functools.partial(elastic_vjp.with_off_branch, pairs)
        index = jnp.where(cut.on, index, len(cut.options))
    return elastic_vjp.switch_with_vjp(
        pairs, full, args, (index, cut.counts, constants)
    )


def scan_layers(
    body: Callable,
    stack: Any,
    carry: Any,
    arch: AnyArch,
    space: Space | None,
    depth: Any = None,
) -> Any:
    """carry = body(layer's parameters, carry), layer after layer.

    Args:
      body: one layer; with a space it is told whether it is on, see `masked_scan`.
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
        return scan_first_n(lambda i, own, carry: body(own, carry), stack, carry, depth)
    if space is None:
        return lax.scan(lambda c, layer: (body(layer, c), None), carry, stack)[0]
    there = jax.tree.leaves(stack)[0].shape[0]
    deepest = max(space.layers)
    table = np.zeros((deepest + 1, deepest), np.int32)
    for count in space.layers:
        table[count, :count] = kept_layers(count, there)
    index = jnp.asarray(table)[arch.layers]
    gathered = jax.tree.map(lambda x: x[index], stack)
    return masked_scan(lambda i, *rest: body(*rest), gathered, carry, arch.layers)


def scan_first_n(body: Callable, stack: dict, carry: Any, n: Any) -> Any:
    """carry = body(i, parameters, carry) for the first n of a stack, i = 0 .. n - 1.

    n: an int, or int32: what is behind it costs nothing then. The body is whole: for one
    of pieces that are cut see `masked_scan`.
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


def masked_scan(body: Callable, stack: Any, carry: Any, n: Any) -> Any:
    """carry = body(i, parameters, carry, on) for all of a stack; where `on`, i < n, is
    false the carry stays as it is. The body hands `on` to its Cuts, so that its products
    cost nothing then.

    Not a conditional around the body: libtpu 0.0.42 aborts where one holds others, with
    a failed check of its memory space assignment ("Aliased use").
    """

    def step(carry, inputs):
        i, own = inputs
        on = i < n
        new = body(i, own, carry, on)
        return jax.tree.map(lambda x, y: jnp.where(on, x, y), new, carry), None

    there = jax.tree.leaves(stack)[0].shape[0]
    return lax.scan(step, carry, (jnp.arange(there), stack))[0]
