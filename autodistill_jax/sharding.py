"""Which devices hold what? The mesh, and which logical axis lies along which of its own.

A mesh has three axes. The rows of a batch are split along `data` and `fsdp`, so is the
work. Parameters and their moments are split along `fsdp` as well, by their `hidden` axis
(ZeRO, arXiv 1910.02054; FSDP), and gathered one layer at a time where they are used.
Heads and ffn channels, relation heads and the vocabulary of logits are split along
`num_tensor_shards` (Megatron-LM, arXiv 1909.08053). What a `mesh` of None asks for is nothing.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autodistill_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
# The logical axes that are split along `num_tensor_shards`.
TENSOR_AXES = ("heads", "ffn")
# Along `fsdp` by the first of these that divides; else by the largest axis that does.
_FSDP_AXES = ("hidden", "bottleneck", "embedding")
# Axes that only stack what has axes of its own.
STACKED_AXES = ("layers", "qkv", "stacks", "first", "second", "norms")
# Of a parameter that was gathered for its use: never kept for the backward pass, which
# gathers it anew; else every device would hold all layers after all.
GATHERED_NAME = "gathered"


def make_mesh(
    asked: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of all `devices` (those there are, if None).

    asked: how many along each of AXES, 1 where it says nothing; at most one is -1, which
    takes what is left.

    Raises:
      UserError: they do not multiply to the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [asked.get(axis, 1) for axis in MESH_AXES]
    told = " x ".join(f"mesh.{axis}={size}" for axis, size in zip(MESH_AXES, sizes))
    there = f"{len(devices)} device{'s' * (len(devices) > 1)}"
    if sizes.count(-1) > 1:
        raise UserError(f"{told}: only one axis can be -1, which takes what is left")
    known = math.prod(size for size in sizes if size != -1)
    if known < 1 or len(devices) % known or (-1 not in sizes and known < len(devices)):
        raise UserError(
            f"{told} do not multiply to the {there} there; "
            f"set mesh.data to -1 and the others to a divisor of {len(devices)}"
        )
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    return jax.make_mesh(
        sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


def check_batch(
    mesh: Mesh, size: int, what: str = "batch_size", accumulate: int = 1
) -> None:
    """Raises UserError where a batch does not divide over the devices.

    what: its name. accumulate: in how many parts, one after another, it is computed.
    """
    unit = num_batch_shards(mesh) * accumulate
    if size % unit:
        of = " of mesh.data x mesh.fsdp" if num_tensor_shards(mesh) > 1 else ""
        of += (
            f" in {accumulate} parts (mesh.gradient_accumulation_steps)"
            if accumulate > 1
            else ""
        )
        raise UserError(
            f"{what} {size} does not divide over {num_batch_shards(mesh)} devices{of}; "
            f"use a multiple of {unit}"
        )


def check_tensor_split(mesh: Mesh, axis: str, sizes: Sequence[int]) -> None:
    """Raises UserError where `num_tensor_shards` does not divide each of an axis' sizes."""
    parts = num_tensor_shards(mesh)
    if uneven := [size for size in sizes if size % parts]:
        fits = math.gcd(*sizes)
        raise UserError(
            f"mesh.tensor is {parts}, which does not divide {axis}={uneven[0]} of the "
            f"{'sub-networks' if len(sizes) > 1 else 'network'}; use a divisor of {fits}"
        )


def num_batch_shards(mesh: Mesh) -> int:
    """In how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def platform(mesh: Mesh | None) -> str:
    """Of its devices, or of those at hand: cpu, gpu or tpu."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def num_tensor_shards(mesh: Mesh | None) -> int:
    """In how many parts heads and ffn channels are split."""
    return 1 if mesh is None else mesh.shape["tensor"]


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, count: int = 0) -> NamedSharding:
    """Of arrays whose first axis is a batch's rows.

    count: of rows. Where they do not divide over all devices, they are split along one
    axis only, or not at all: every device does the same then (a small evaluation, say).
    """
    for axes in (BATCH_AXES, *BATCH_AXES):
        if not count % math.prod(mesh.shape[axis] for axis in np.ravel(axes)):
            return NamedSharding(mesh, PartitionSpec(axes))
    return replicated(mesh)


@functools.cache  # Asked at every step.
def local_rows(mesh: Mesh, count: int) -> list[int]:
    """The rows of a batch of `count` that the devices of this process hold, in order."""
    parts = (
        batch_sharding(mesh, count).addressable_devices_indices_map((count,)).values()
    )
    return sorted({row for (part,) in parts for row in range(*part.indices(count))})


def to_host(x: jax.Array) -> np.ndarray:
    """An array on this host, whole, whichever hosts' devices it lies on."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return np.asarray(x)
    if x.is_fully_replicated:
        return np.asarray(x.addressable_data(0))
    return multihost_utils.process_allgather(x, tiled=True)


def constrain(x: jax.Array, mesh: Mesh | None, *axes: Any) -> jax.Array:
    """x, laid out so inside a compiled program: for each dimension None or mesh axes."""
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(
        x, NamedSharding(mesh, PartitionSpec(*axes))
    )


def split_channels(x: jax.Array, mesh: Mesh | None, whole: bool = False) -> jax.Array:
    """Activations [T, ..., channels]: channels along `num_tensor_shards`, or whole."""
    between = (None,) * (x.ndim - 2)
    return constrain(x, mesh, BATCH_AXES, *between, None if whole else "tensor")


def param_spec(
    axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh
) -> PartitionSpec:
    """How a parameter is stored. axes: its logical axis names, None where it has none.

    A vector is whole on every device: there is little of it.
    """
    own = [i for i, axis in enumerate(axes) if axis not in STACKED_AXES]
    made: list[str | None] = [None] * len(shape)
    if len(own) < 2:
        return PartitionSpec()
    for i in own:
        if axes[i] in TENSOR_AXES and "tensor" not in made:
            made[i] = "tensor" if not shape[i] % mesh.shape["tensor"] else None

    def order(i):
        return axes[i] not in _FSDP_AXES, -shape[i]

    for i in sorted(own, key=order):
        if made[i] is None and not shape[i] % mesh.shape["fsdp"]:
            made[i] = "fsdp"
            break
    return PartitionSpec(*made)


def param_shardings(
    params: Mapping[str, Any], axes: Mapping[str, Sequence[str | None]], mesh: Mesh
) -> dict[str, NamedSharding]:
    """Of {name: array or its shape}. axes: by name; matchers and heads have no names."""
    return {
        name: NamedSharding(
            mesh,
            param_spec(axes.get(name, (None,) * len(value.shape)), value.shape, mesh),
        )
        for name, value in params.items()
    }


def place_params(
    params: Mapping[str, Any], axes: Mapping[str, Sequence[str | None]], mesh: Mesh
) -> dict[str, jax.Array]:
    """The parameters on their devices."""
    return jax.device_put(dict(params), param_shardings(params, axes, mesh))


def state_shardings(
    moves: optax.GradientTransformation,
    params: Mapping[str, Any],
    axes: Mapping[str, Sequence[str | None]],
    mesh: Mesh,
) -> dict[str, Any]:
    """Of {"params", "optimizer"}: the moments of a parameter lie as it does."""
    of_params = param_shardings(params, axes, mesh)
    of_moments = optax.tree_utils.tree_map_params(
        moves,
        lambda _, one: one,
        jax.eval_shape(moves.init, dict(params)),
        of_params,
        transform_non_params=lambda _: replicated(mesh),
    )
    return {"params": of_params, "optimizer": of_moments}


def gather_params(
    params: Mapping[str, jax.Array],
    axes: Mapping[str, Sequence[str | None]],
    mesh: Mesh | None,
    dealt: Mapping[str, int] | None = None,
) -> dict[str, jax.Array]:
    """Parameters as they are used: whole along `fsdp`, split along `num_tensor_shards`.

    dealt: {an axis of SPLIT: channels of a unit} inside a SuperLM, see `interleave`.
    """
    if mesh is None or mesh.size == 1:
        return dict(params)
    parts = num_tensor_shards(mesh)
    made = {}
    for name, value in params.items():
        along: list[str | None] = [None] * value.ndim
        for i, axis in enumerate(axes[name]):
            if axis in TENSOR_AXES and parts > 1:
                along[i] = "tensor"
                if dealt is not None:
                    value = interleave(value, i, parts, dealt[axis])
        made[name] = checkpoint_name(constrain(value, mesh, *along), GATHERED_NAME)
    return made


def interleave(x: jax.Array, dimension: int, parts: int, unit: int = 1) -> jax.Array:
    """The units of a dimension dealt out in turn: part p of `parts` has p, p + parts, ...

    So the first n units of an elastic axis are the first n / parts of every part, and
    the devices that hold a part each have the same work, whatever n.
    """
    return _swap_blocks(
        x, dimension, (x.shape[dimension] // (parts * unit), parts, unit)
    )


def deinterleave(x: jax.Array, dimension: int, parts: int, unit: int = 1) -> jax.Array:
    """What `interleave` dealt out, in order again."""
    return _swap_blocks(
        x, dimension, (parts, x.shape[dimension] // (parts * unit), unit)
    )


def _swap_blocks(x, dimension, sizes):
    before, after = x.shape[:dimension], x.shape[dimension + 1 :]
    parted = x.reshape(*before, *sizes, *after)
    return jnp.swapaxes(parted, dimension, dimension + 1).reshape(x.shape)
