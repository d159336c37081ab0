"""Elastic width and depth: a sub-network costs what its sizes say, under one trace.

A piece of a layer is written once, as a plain function of arrays. `sliced_call` runs it
on the first n channels that the sub-network has in use, by a `lax.switch` over the
static slices that the space can ask for, and pads the results back with zeros. Forward
and backward are a switch each (a custom vjp that keeps nothing but the arguments), so
that neither time nor memory grows with the number of branches. `scan_layers` does the
same for depth. With an Arch of Python ints both do nothing: a student has no overhead.
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

from autodistill_jax.archs.arch import AnyArch, spread_layers
from autodistill_jax.archs.space import Space
from autodistill_jax.models import elastic_vjp

# platform -> (branches, tile). Above so many pairs of sizes, sizes are rounded up to a
# tile: a branch each would take minutes to compile. On a TPU compiling takes longer,
# and sizes inside one tile of 128 lanes cost the same.
BRANCH_LIMITS = {"cpu": (16, 32), "tpu": (4, 128)}

channel_mask = elastic_vjp.channel_mask


class SliceChoice(NamedTuple):
    """The sizes that one piece of a layer can be asked for, and which of them it has.

    Attributes:
      options: static sizes, a dict {axis: size} each.
      index: the option that is in use, int32.
      counts: {axis: int32}, the exact sizes in use where options were rounded up; else
        empty.
      parts: {axis: int}, its channels are interleaved in so many parts (see
        `sharding.interleave`), of each of which the first are in use.
      on: whether the layer runs at all, a boolean array. Where it does not, its pieces
        are 0 and cost nothing; None: it always does.
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
    """The slices of these axes for a (traced) Arch of the space.

    Args:
      space: whose sizes are the options.
      arch: the sub-network; its fields may be traced.
      *axes: axes that are sliced together, in one piece of a layer.
      exact: never round up, at the price of a branch for each size.
      parts: in how many parts the axes in `units` are interleaved.
      units: {axis: channels of a unit} of the axes that are interleaved.
      platform: where the program will run, see `BRANCH_LIMITS`.

    Returns:
      The `SliceChoice` of a piece that these axes size.
    """
    max_branches, first_tile = BRANCH_LIMITS.get(platform, BRANCH_LIMITS["cpu"])
    interleaved_units = units if units and parts > 1 else {}
    multiples = {axis: parts * unit for axis, unit in interleaved_units.items()}
    largest = space.largest()
    limits = {axis: largest.num_channels(axis) for axis in axes}
    archs = (
        dataclasses.replace(largest, **dict(zip(axes, values)))
        for values in space.axis_values_product(*axes)
    )
    sizes = [
        tuple(candidate.num_channels(axis) for axis in axes) for candidate in archs
    ]
    tile, tiles, rounded_sizes = 1, [1] * len(axes), sizes
    while len(rounded_sizes) > max_branches and not exact:
        tile = first_tile if tile == 1 else tile * 2
        tiles = [math.lcm(tile, multiples.get(axis, 1)) for axis in axes]
        rounded_sizes = sorted(
            {_round_up(size, tiles, limits.values()) for size in sizes}
        )
    # Every size of the space -> its branch; the position in `sizes` is found at run
    # time by comparison, so the index costs nothing next to a product.
    branch = np.asarray(
        [rounded_sizes.index(_round_up(s, tiles, limits.values())) for s in sizes]
    )
    size_in_use = jnp.stack(
        [jnp.asarray(arch.num_channels(axis), jnp.int32) for axis in axes]
    )
    position = jnp.argmax((jnp.asarray(sizes) == size_in_use).all(axis=1))
    counts = dict(zip(axes, size_in_use)) if tile > 1 else {}
    options = tuple(dict(zip(axes, size)) for size in rounded_sizes)
    parts_by_axis = {axis: parts for axis in axes if axis in interleaved_units}
    return SliceChoice(
        options, jnp.asarray(branch, jnp.int32)[position], counts, parts_by_axis
    )


def _round_up(sizes, tiles, limits):
    """Each size as a multiple of its tile, but no more than its limit."""
    return tuple(
        min(-(-size // tile) * tile, limit)
        for size, tile, limit in zip(sizes, tiles, limits)
    )


def sliced_call(
    fn: Callable,
    choice: SliceChoice | None,
    args: Sequence[jax.Array],
    in_axes: Sequence[tuple],
    out_axes: tuple,
    constants: Sequence[jax.Array] = (),
    size_kwargs: Sequence[str] = (),
) -> jax.Array:
    """fn(*args, *constants) on the channels in use.

    Args:
      fn: a pure function of arrays to one array; with a choice it sees smaller arrays.
        The backward pass runs it again inside its branch, so give it pieces whose
        forward pass is cheap to repeat (a product needs no repeat at all).
      choice: the channels in use; None runs fn as it is.
      args: arrays of numbers that get a gradient.
      in_axes: for each argument the axis name, or None, of each of its dimensions.
      out_axes: likewise for the result.
      constants: further arrays, never sliced, that get no gradient.
      size_kwargs: axes of the choice whose size, an int, fn takes by name; without a
        choice it has a default for them. (The choice is exact then.)

    Returns:
      The result at full size; channels out of use are exactly 0.
    """
    if choice is None:
        return fn(*args, *constants)
    args, constants = tuple(args), tuple(constants)
    fns = [
        functools.partial(fn, **{axis: option[axis] for axis in size_kwargs})
        for option in choice.options
    ]
    structs = [
        jax.eval_shape(
            lambda *a, f=f, option=option: f(
                *elastic_vjp.slice_args(a, in_axes, option, choice.parts), *constants
            ),
            *args,
        )
        for f, option in zip(fns, choice.options)
    ]
    sizes = zip(*(struct.shape for struct in structs))
    full = jax.ShapeDtypeStruct(tuple(map(max, sizes)), structs[0].dtype)
    pairs = functools.partial(
        elastic_vjp.branch_pairs,
        fns,
        choice.options,
        tuple(in_axes),
        out_axes,
        choice.parts,
    )
    index = choice.index
    if choice.on is not None:
        pairs = functools.partial(elastic_vjp.with_off_branch, pairs)
        index = jnp.where(choice.on, index, len(choice.options))
    return elastic_vjp.switch_with_vjp(
        pairs, full, args, (index, choice.counts, constants)
    )


def scan_layers(
    body: Callable,
    stack: Any,
    carry: Any,
    arch: AnyArch,
    space: Space | None,
    kept_layers: Sequence[tuple[int, ...]] = (),
    depth: Any = None,
) -> Any:
    """carry = body(layer's parameters, carry), layer after layer.

    Args:
      body: one layer, (parameters, carry) -> carry; with a space it takes a third
        argument, whether it is on, see `masked_scan`.
      stack: parameters, each with a leading axis over the layers there are; or a list
        of each layer's, which are then run one after another, without a loop.
      carry: what goes from layer to layer.
      arch: how many layers.
      space: None runs all layers of the stack. With a space, `arch.layers` of them run;
        the others cost nothing.
      kept_layers: with a space, the layers that run, a tuple for each depth that has
        others than `spread_layers`.
      depth: without a space, int32: only the first so many run.

    Returns:
      The carry after the last layer.
    """
    if isinstance(stack, list):
        return functools.reduce(lambda c, layer: body(layer, c), stack, carry)
    if depth is not None:
        return scan_first_n(
            lambda i, params, carry: body(params, carry), stack, carry, depth
        )
    if space is None:
        return lax.scan(lambda c, layer: (body(layer, c), None), carry, stack)[0]
    num_layers = jax.tree.leaves(stack)[0].shape[0]
    deepest = max(space.layers)
    table = np.zeros((deepest + 1, deepest), np.int32)
    kept_by_depth = {len(layers): layers for layers in kept_layers}
    for count in space.layers:
        table[count, :count] = kept_by_depth.get(
            count, spread_layers(count, num_layers)
        )
    index = jnp.asarray(table)[arch.layers]
    gathered_stack = jax.tree.map(lambda x: x[index], stack)
    return masked_scan(lambda i, *args: body(*args), gathered_stack, carry, arch.layers)


def scan_first_n(body: Callable, stack: dict, carry: Any, n: Any) -> Any:
    """carry = body(i, parameters, carry) for the first n of a stack, i = 0 .. n - 1.

    Args:
      body: runs as one piece; for one of pieces that are sliced see `masked_scan`.
      stack: {name: array}, stacked along a leading axis.
      carry: what goes from one to the next.
      n: an int, or int32; with int32 what is behind the first n costs nothing.

    Returns:
      The carry after the n-th.
    """
    if isinstance(n, int):
        for i in range(n):
            carry = body(i, jax.tree.map(lambda x, i=i: x[i], stack), carry)
        return carry

    def step(carry, inputs):
        i, params = inputs
        run = functools.partial(body, i, params)
        return lax.cond(i < n, run, lambda c: c, carry), None

    count = jax.tree.leaves(stack)[0].shape[0]
    return lax.scan(step, carry, (jnp.arange(count), stack))[0]


def masked_scan(body: Callable, stack: Any, carry: Any, n: Any) -> Any:
    """carry = body(i, parameters, carry, on) for the first n of a stack.

    The body runs for all of the stack; where `on`, i < n, is false the carry stays as
    it is. Not a conditional around the body: libtpu 0.0.42 aborts where one holds
    others, with a failed check of its memory space assignment ("Aliased use").

    Args:
      body: hands `on` to its slice choices, so that its products cost nothing where it
        is false.
      stack: parameters, stacked along a leading axis.
      carry: what goes from one to the next.
      n: how many are on, int32.

    Returns:
      The carry after the n-th.
    """

    def step(carry, inputs):
        i, params = inputs
        on = i < n
        new = body(i, params, carry, on)
        return jax.tree.map(lambda x, y: jnp.where(on, x, y), new, carry), None

    count = jax.tree.leaves(stack)[0].shape[0]
    return lax.scan(step, carry, (jnp.arange(count), stack))[0]
