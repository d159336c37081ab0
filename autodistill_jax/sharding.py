"""Which devices hold what?"""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autodistill_jax.errors import UserError


def make_mesh(batch_size: int, devices: int = -1, what: str = "batch_size") -> Mesh:
    """A mesh of one axis, `data`, over the devices there are (-1) or the first few.

    `what` names the batch size in the error.

    Raises:
      UserError: the batch does not divide over the devices, or they are not there.
    """
    there = jax.device_count()
    count = there if devices == -1 else devices
    if not 1 <= count <= there:
        raise UserError(
            f"mesh.data is {devices}, but there are {there} devices; "
            "use -1 for all of them"
        )
    if batch_size % count:
        raise UserError(
            f"{what} {batch_size} does not divide over {count} devices; "
            f"use a multiple of {count}"
        )
    return jax.make_mesh(
        (count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
