"""Where does training go on after a stop? Orbax checkpoints, one folder a step."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from autodistill_jax import storage


def checkpoint_manager(folder: epath.Path, keep: int = 2) -> ocp.CheckpointManager:
    """Keeps the last few steps; writes in the background, whole or not at all."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=True
    )
    return ocp.CheckpointManager(
        # A bucket's is absolute already.
        folder if storage.is_remote(folder) else folder.absolute(),
        options=options,
        item_handlers=ocp.StandardCheckpointHandler(),
    )


def save_checkpoint(kept: ocp.CheckpointManager, step: int, state: Any) -> None:
    if kept.latest_step() != step:
        kept.save(step, args=ocp.args.StandardSave(state), force=True)


def restore_checkpoint(kept: ocp.CheckpointManager, like: Any) -> Any:
    """The latest state, shaped and placed like `like`."""
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return kept.restore(kept.latest_step(), args=ocp.args.StandardRestore(like))


def restore_sharded(
    kept: ocp.CheckpointManager, sharding: jax.sharding.Sharding
) -> Any:
    """The latest state, placed so, on whatever devices it was written from."""
    step = kept.latest_step()
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        kept.item_metadata(step).tree,
    )
    return kept.restore(step, args=ocp.args.StandardRestore(like))


@contextlib.contextmanager
def wait_until_saved(kept: ocp.CheckpointManager | None) -> Iterator[None]:
    """Behind it what was saved is on disk, however it is left."""
    try:
        yield
    finally:
        if kept is not None:
            kept.wait_until_finished()
