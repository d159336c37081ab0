"""The device mesh, and which logical axis is split along which mesh axis.

A mesh has three axes. The rows of a batch are split along `data` and `fsdp`, so is the
work. Parameters and their moments are split along `fsdp` as well, by their `hidden`
axis (ZeRO, arXiv 1910.02054; FSDP), and gathered one layer at a time where they are
used.
Heads and ffn channels, relation heads and the vocabulary of logits are split along
`tensor` (Megatron-LM, arXiv 1909.08053). Where a `mesh` is None nothing is split.
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
from jax.tree_util import DictKey

from autodistill_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
# The logical axes that are split along `tensor`.
TENSOR_AXES = ("heads", "ffn")
# Along `fsdp` by the first of these that divides; else by the largest axis that does.
_FSDP_AXES = ("hidden", "bottleneck", "embedding")
# Axes that only stack what has axes of its own.
STACKED_AXES = ("layers", "qkv", "stacks", "first", "second", "norms")
# Name of a gathered parameter for rematerialization: it is not saved for the backward
# pass, which gathers it again; else every device would hold all layers after all.
GATHERED_NAME = "gathered"


def make_mesh(
    axis_sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Makes a mesh of all devices.

    Args:
      axis_sizes: {axis of MESH_AXES: devices along it}, 1 where it names none; at most
        one is -1, which takes what is left.
      devices: those of the mesh; None: all there are.

    Returns:
      The mesh, with all of MESH_AXES.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [axis_sizes.get(axis, 1) for axis in MESH_AXES]
    product = " x ".join(f"mesh.{axis}={size}" for axis, size in zip(MESH_AXES, sizes))
    available = f"{len(devices)} device{'s' * (len(devices) > 1)}"
    if sizes.count(-1) > 1:
        raise UserError(f"{product}: only one axis can be -1, which takes what is left")
    fixed = math.prod(size for size in sizes if size != -1)
    if fixed < 1 or len(devices) % fixed or (-1 not in sizes and fixed < len(devices)):
        raise UserError(
            f"{product} do not multiply to the {available} there; "
            f"set mesh.data to -1 and the others to a divisor of {len(devices)}"
        )
    sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
    return jax.make_mesh(
        sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


def check_batch(
    mesh: Mesh, size: int, label: str = "batch_size", accumulation_steps: int = 1
) -> None:
    """Checks that a batch divides over the devices.

    Args:
      mesh: of the devices.
      size: rows of the batch.
      label: the name of the size, for the error.
      accumulation_steps: in how many parts, one after another, the batch is computed.

    Raises:
      UserError: it does not divide.
    """
    unit = num_batch_shards(mesh) * accumulation_steps
    if size % unit:
        of = " of mesh.data x mesh.fsdp" if num_tensor_shards(mesh) > 1 else ""
        of += (
            f" in {accumulation_steps} parts (mesh.gradient_accumulation_steps)"
            if accumulation_steps > 1
            else ""
        )
        raise UserError(
            f"{label} {size} does not divide over {num_batch_shards(mesh)} devices"
            f"{of}; use a multiple of {unit}"
        )


def check_tensor_split(mesh: Mesh, axis: str, sizes: Sequence[int]) -> None:
    """Checks that the mesh's tensor axis divides all sizes of a logical axis.

    Args:
      mesh: of the devices.
      axis: name of the logical axis.
      sizes: the axis' sizes, of one network or of the sub-networks.

    Raises:
      UserError: one of them is not divided.
    """
    parts = num_tensor_shards(mesh)
    if uneven := [size for size in sizes if size % parts]:
        fits = math.gcd(*sizes)
        raise UserError(
            f"mesh.tensor is {parts}, which does not divide {axis}={uneven[0]} of the "
            f"{'sub-networks' if len(sizes) > 1 else 'network'}; "
            f"use a divisor of {fits}"
        )


def num_batch_shards(mesh: Mesh) -> int:
    """In how many parts the mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def platform(mesh: Mesh | None) -> str:
    """cpu, gpu or tpu: of a mesh's devices; None: of those at hand."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def num_tensor_shards(mesh: Mesh | None) -> int:
    """In how many parts heads and ffn channels are split; without a mesh 1."""
    return 1 if mesh is None else mesh.shape["tensor"]


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds all of."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, count: int = 0) -> NamedSharding:
    """The sharding of arrays whose first axis is a batch's rows.

    Args:
      mesh: of the devices.
      count: rows. Where they do not divide over all devices, they are split along one
        axis only, or not at all: every device does the same then (a small evaluation,
        say).

    Returns:
      The sharding; the other axes are not split.
    """
    for axes in (BATCH_AXES, *BATCH_AXES):
        if not count % math.prod(mesh.shape[axis] for axis in np.ravel(axes)):
            return NamedSharding(mesh, PartitionSpec(axes))
    return replicated(mesh)


@functools.cache  # Asked at every step.
def local_rows(mesh: Mesh, count: int) -> list[int]:
    """The numbers of a batch's rows that this process' devices hold, in order.

    Args:
      mesh: of the devices.
      count: rows of the batch.

    Returns:
      Numbers below count, ascending.
    """
    parts = (
        batch_sharding(mesh, count).addressable_devices_indices_map((count,)).values()
    )
    return sorted({row for (part,) in parts for row in range(*part.indices(count))})


def to_host(x: jax.Array) -> np.ndarray:
    """All of an array on this host, whichever hosts' devices it lies on."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return np.asarray(x)
    if x.is_fully_replicated:
        return np.asarray(x.addressable_data(0))
    return multihost_utils.process_allgather(x, tiled=True)


def constrain(x: jax.Array, mesh: Mesh | None, *axes: Any) -> jax.Array:
    """Lays an array out on the mesh, inside a compiled program.

    Args:
      x: the array.
      mesh: of the devices; None: x stays as it is.
      *axes: for each dimension the mesh axis, or axes, that it is split along, or None.

    Returns:
      x, constrained.
    """
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(
        x, NamedSharding(mesh, PartitionSpec(*axes))
    )


def split_channels(x: jax.Array, mesh: Mesh | None, gather: bool = False) -> jax.Array:
    """Lays out activations: rows split as a batch's, channels along `tensor`.

    Args:
      x: [T, ..., channels].
      mesh: of the devices; None: x stays as it is.
      gather: whether every device gets all channels instead.

    Returns:
      x, constrained.
    """
    between = (None,) * (x.ndim - 2)
    return constrain(x, mesh, BATCH_AXES, *between, None if gather else "tensor")


def param_spec(
    axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh
) -> PartitionSpec:
    """How a parameter is stored on the mesh.

    Args:
      axes: its logical axis names, None for a dimension without one.
      shape: its shape.
      mesh: of the devices.

    Returns:
      The mesh axis of each dimension. A vector is not split: there is little of it.
    """
    unstacked = [i for i, axis in enumerate(axes) if axis not in STACKED_AXES]
    spec: list[str | None] = [None] * len(shape)
    if len(unstacked) < 2:
        return PartitionSpec()
    for i in unstacked:
        if axes[i] in TENSOR_AXES and "tensor" not in spec:
            spec[i] = "tensor" if not shape[i] % mesh.shape["tensor"] else None

    def order(i):
        return axes[i] not in _FSDP_AXES, -shape[i]

    for i in sorted(unstacked, key=order):
        if spec[i] is None and not shape[i] % mesh.shape["fsdp"]:
            spec[i] = "fsdp"
            break
    return PartitionSpec(*spec)


def param_shardings(
    params: Mapping[str, Any], axes: Mapping[str, Sequence[str | None]], mesh: Mesh
) -> dict[str, NamedSharding]:
    """How parameters are stored on the mesh.

    Args:
      params: {name: array, or its shape}.
      axes: {name: its logical axis names}; projections and heads are not in it.
      mesh: of the devices.

    Returns:
      {name: sharding}.
    """
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
    """Puts parameters on their devices; arguments as of `param_shardings`."""
    return jax.device_put(dict(params), param_shardings(params, axes, mesh))


def state_shardings(
    tx: optax.GradientTransformation,
    params: Mapping[str, Any],
    axes: Mapping[str, Sequence[str | None]],
    mesh: Mesh,
) -> dict[str, Any]:
    """How the train state is stored: the moments of a parameter as the parameter is.

    Args:
      tx: the optimizer.
      params: {name: array, or its shape}.
      axes: {name: its logical axis names}, see `param_shardings`.
      mesh: of the devices.

    Returns:
      {"params": shardings, "optimizer": shardings of its state}.
    """
    of_params = param_shardings(params, axes, mesh)

    def of_leaf(path, leaf):
        # A moment stands under its parameter's name, in whatever the optimizer is of.
        name = path[-1].key if isinstance(path[-1], DictKey) else None
        if name in of_params and leaf.shape == np.shape(params[name]):
            return of_params[name]
        return replicated(mesh)

    of_moments = jax.tree_util.tree_map_with_path(
        of_leaf, jax.eval_shape(tx.init, dict(params))
    )
    return {"params": of_params, "optimizer": of_moments}


def gather_params(
    params: Mapping[str, jax.Array],
    axes: Mapping[str, Sequence[str | None]],
    mesh: Mesh | None,
    interleave_units: Mapping[str, int] | None = None,
) -> dict[str, jax.Array]:
    """Parameters as they are used: gathered along `fsdp`, split along `tensor`.

    Args:
      params: {name: array}.
      axes: {name: its logical axis names}.
      mesh: of the devices; None: the parameters stay as they are.
      interleave_units: inside a SuperLM {axis of TENSOR_AXES: channels of a unit}, see
        `interleave`; None: channels keep their order.

    Returns:
      {name: array}.
    """
    if mesh is None or mesh.size == 1:
        return dict(params)
    parts = num_tensor_shards(mesh)
    gathered = {}
    for name, value in params.items():
        along: list[str | None] = [None] * value.ndim
        for i, axis in enumerate(axes[name]):
            if axis in TENSOR_AXES and parts > 1:
                along[i] = "tensor"
                if interleave_units is not None:
                    value = interleave(value, i, parts, interleave_units[axis])
        gathered[name] = checkpoint_name(constrain(value, mesh, *along), GATHERED_NAME)
    return gathered


def interleave(x: jax.Array, dimension: int, parts: int, unit: int = 1) -> jax.Array:
    """Deals the units of a dimension out in turn: part p gets p, p + parts, ...

    So the first n units of an elastic axis are the first n / parts of every part, and
    the devices that hold a part each have the same work, whatever n.

    Args:
      x: the array.
      dimension: that is reordered.
      parts: how many, one after another in the result.
      unit: channels that stay together.

    Returns:
      x in the new order.
    """
    return _swap_blocks(
        x, dimension, (x.shape[dimension] // (parts * unit), parts, unit)
    )


def deinterleave(x: jax.Array, dimension: int, parts: int, unit: int = 1) -> jax.Array:
    """The inverse of `interleave`, with the same arguments."""
    return _swap_blocks(
        x, dimension, (parts, x.shape[dimension] // (parts * unit), unit)
    )


def _swap_blocks(x, dimension, sizes):
    leading, trailing = x.shape[:dimension], x.shape[dimension + 1 :]
    parted = x.reshape(*leading, *sizes, *trailing)
    return jnp.swapaxes(parted, dimension, dimension + 1).reshape(x.shape)
