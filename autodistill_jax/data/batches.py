"""Which rows does step i see? Feeding through grain, by position, so a resume is exact."""

from collections.abc import Callable, Mapping

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autodistill_jax.errors import UserError


class _Rows:
    """Arrays with a common first axis, as a random-access source of rows."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = dict(arrays)

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, i):
        return {key: value[i] for key, value in self.arrays.items()}


def training(arrays: Mapping[str, np.ndarray], batch_size: int, seed: int):
    """Batches without end, shuffled anew each epoch; `made[step]` is a step's batch.

    The batch is a function of the step alone: nothing has to be stored to resume.
    """
    rows = len(next(iter(arrays.values())))
    if rows < batch_size:
        raise UserError(
            f"batch_size {batch_size} is larger than the {rows} rows there are; "
            "use a smaller batch or more text"
        )
    data = grain.MapDataset.source(_Rows(arrays)).seed(seed).shuffle().repeat()
    return data.batch(batch_size)


def evaluation(arrays: Mapping[str, np.ndarray], batch_size: int):
    """Batches in order, once; the last is filled up with `rows` (bool) telling which
    rows are real."""
    rows = len(next(iter(arrays.values())))
    for start in range(0, rows, batch_size):
        batch = {k: v[start : start + batch_size] for k, v in arrays.items()}
        there = min(batch_size, rows - start)
        if there < batch_size:
            batch = {
                k: np.concatenate([v, np.repeat(v[:1], batch_size - there, axis=0)])
                for k, v in batch.items()
            }
        yield batch | {"rows": np.arange(batch_size) < there}


def over(
    read: Callable, arrays: Mapping[str, np.ndarray], batch_size: int, mesh: Mesh
) -> np.ndarray:
    """What `read(batch)` gives for every row, in order: [rows, ...]."""
    made = [
        np.asarray(read(put(batch, mesh))) for batch in evaluation(arrays, batch_size)
    ]
    return np.concatenate(made)[: len(next(iter(arrays.values())))]


def put(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A host batch on the devices, split along `data`."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.device_put(dict(batch), sharding)
