"""Which rows does step i see? Feeding through grain, by position, so a resume is exact."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from autodistill_jax import sharding
from autodistill_jax.errors import UserError


class _RowSource:
    """Arrays with a common first axis, as a random-access source of rows."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = dict(arrays)

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, i):
        return {key: value[i] for key, value in self.arrays.items()}


class TrainBatches(NamedTuple):
    """Batches without end; `feed[step]` is a step's, whole.

    rows: one by one, in the order of the steps. batch_size: of all hosts together.
    """

    rows: grain.MapDataset
    batch_size: int

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        return self.rows_at(step, range(self.batch_size))

    def rows_at(self, step: int, places: Iterable[int]) -> dict[str, np.ndarray]:
        """The rows of a step at these places of its batch; no other is read."""
        made = [self.rows[step * self.batch_size + place] for place in places]
        return {name: np.stack([row[name] for row in made]) for name in made[0]}


def train_batches(
    arrays: Mapping[str, np.ndarray], batch_size: int, seed: int
) -> TrainBatches:
    """Rows shuffled anew each epoch.

    The batch is a function of the step alone, however many hosts there are: nothing has
    to be stored to resume.
    """
    rows = len(next(iter(arrays.values())))
    if rows < batch_size:
        raise UserError(
            f"batch_size {batch_size} is larger than the {rows} rows there are; "
            "use a smaller batch or more text"
        )
    data = grain.MapDataset.source(_RowSource(arrays)).seed(seed).shuffle().repeat()
    return TrainBatches(data, batch_size)


def eval_batches(arrays: Mapping[str, np.ndarray], batch_size: int):
    """Batches in order, once; the last is filled up with `valid_rows` (bool) telling which
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
        yield batch | {"valid_rows": np.arange(batch_size) < there}


def map_batches(
    read: Callable, arrays: Mapping[str, np.ndarray], batch_size: int, mesh: Mesh
) -> np.ndarray:
    """What `read(batch)` gives for every row, in order: [rows, ...]."""
    made = [
        sharding.to_host(read(to_devices(batch, mesh)))
        for batch in eval_batches(arrays, batch_size)
    ]
    return np.concatenate(made)[: len(next(iter(arrays.values())))]


def to_devices(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch that every host has whole on the devices, its rows split over them."""
    count = len(next(iter(batch.values())))
    here = sharding.local_rows(mesh, count)
    return _shard_rows(
        {name: value[here] for name, value in batch.items()}, mesh, count
    )


def batch_at_step(feed: TrainBatches, step: int, mesh: Mesh) -> dict[str, jax.Array]:
    """The batch of a step on the devices; a host reads the rows of its own alone."""
    here = sharding.local_rows(mesh, feed.batch_size)
    return _shard_rows(feed.rows_at(step, here), mesh, feed.batch_size)


def _shard_rows(mine, mesh, count):
    where = sharding.batch_sharding(mesh, count)
    return {
        name: jax.make_array_from_process_local_data(
            where, value, (count, *value.shape[1:])
        )
        for name, value in mine.items()
    }
