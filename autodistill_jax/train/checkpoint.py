"""Orbax checkpoints, one folder a step: where training goes on after a stop."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from autodistill_jax import storage


def checkpoint_manager(
    folder: epath.Path, max_to_keep: int = 2
) -> ocp.CheckpointManager:
    """A manager that writes in the background, a step whole or not at all.

    Args:
      folder: of the checkpoints, local or in a bucket.
      max_to_keep: so many of the last steps stay.

    Returns:
      The manager; `save_checkpoint` and `restore_checkpoint` take it.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep, enable_async_checkpointing=True
    )
    return ocp.CheckpointManager(
        # A bucket's is absolute already.
        folder if storage.is_remote(folder) else folder.absolute(),
        options=options,
        item_handlers=ocp.StandardCheckpointHandler(),
    )


def save_checkpoint(checkpoints: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Begins to write the state of a step, unless it is the latest there already."""
    if checkpoints.latest_step() != step:
        checkpoints.save(step, args=ocp.args.StandardSave(state), force=True)


def restore_checkpoint(checkpoints: ocp.CheckpointManager, like: Any) -> Any:
    """The latest state, shaped and placed like `like`, a tree of arrays."""
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return checkpoints.restore(
        checkpoints.latest_step(), args=ocp.args.StandardRestore(like)
    )


def restore_sharded(
    checkpoints: ocp.CheckpointManager, sharding: jax.sharding.Sharding
) -> Any:
    """The latest state, every array placed by `sharding`, whatever devices wrote it."""
    step = checkpoints.latest_step()
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        checkpoints.item_metadata(step).tree,
    )
    return checkpoints.restore(step, args=ocp.args.StandardRestore(like))


@contextlib.contextmanager
def wait_until_saved(checkpoints: ocp.CheckpointManager | None) -> Iterator[None]:
    """A context behind which what was saved is on disk, however it is left.

    Args:
      checkpoints: the manager; None where nothing is saved.

    Yields:
      Nothing.
    """
    try:
        yield
    finally:
        if checkpoints is not None:
            checkpoints.wait_until_finished()
