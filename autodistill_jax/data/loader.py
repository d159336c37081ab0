"""Batches of rows, indexed by step so that a resume is exact, fed through grain."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from autodistill_jax import sharding
from autodistill_jax.errors import UserError

_GROUP = 32  # batches whose rows are sorted by length


class _RowSource:
    """Arrays with a common first axis, as a random-access source of rows."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = dict(arrays)

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, i):
        return {key: value[i] for key, value in self.arrays.items()}


class TrainBatches(NamedTuple):
    """Batches without end: `batches[step]` is the whole batch of a step.

    Attributes:
      rows: {name: array} each, one by one in the order of the steps.
      batch_size: rows of a batch, of all hosts together.
      bucketed_batch: (step) -> (the numbers in `rows` of its batch, the tokens that its
        rows are cut to); None: the next rows, whole.
    """

    rows: grain.MapDataset
    batch_size: int
    bucketed_batch: Callable[[int], tuple[np.ndarray, int]] | None = None

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        return self.rows_at(step, range(self.batch_size))

    def rows_at(self, step: int, positions: Iterable[int]) -> dict[str, np.ndarray]:
        """Some rows of a step's batch; no other is read.

        Args:
          step: the step's number.
          positions: the rows' indices in the batch.

        Returns:
          {name: [len(positions), ...]}.
        """
        if self.bucketed_batch is None:
            rows = [self.rows[step * self.batch_size + p] for p in positions]
            return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        numbers, length = self.bucketed_batch(step)
        rows = [self.rows[int(numbers[position])] for position in positions]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return {name: x[:, :length] if x.ndim > 1 else x for name, x in batch.items()}


def train_batches(
    arrays: Mapping[str, np.ndarray],
    batch_size: int,
    seed: int,
    length_buckets: int = 1,
) -> TrainBatches:
    """Batches of rows that are shuffled anew each epoch.

    A batch is a function of the step alone, however many hosts there are: nothing has
    to be stored to resume.

    Args:
      arrays: {name: [rows, ...]}.
      batch_size: rows of a batch, of all hosts together.
      seed: of the shuffling.
      length_buckets: above 1, of the rows of some batches in a row those of like length
        come together, and each batch is cut to one of so many lengths.

    Returns:
      Batches by step.

    Raises:
      UserError: there are fewer rows than a batch has.
    """
    num_rows = len(next(iter(arrays.values())))
    if num_rows < batch_size:
        raise UserError(
            f"batch_size {batch_size} is larger than the {num_rows} rows there are; "
            "use a smaller batch or more text"
        )
    dataset = grain.MapDataset.source(_RowSource(arrays)).seed(seed).shuffle().repeat()
    if length_buckets == 1:
        return TrainBatches(dataset, batch_size)
    lengths = np.asarray(arrays["attention_mask"]).sum(axis=1)
    cuts = batch_lengths(lengths, length_buckets)
    source = _RowSource({"length": lengths})
    length_at = grain.MapDataset.source(source).seed(seed).shuffle().repeat()

    @functools.lru_cache(2)
    def sorted_group(group: int) -> np.ndarray:
        first = group * _GROUP * batch_size
        numbers = np.arange(first, first + _GROUP * batch_size)
        of_numbers = np.asarray([length_at[int(i)]["length"] for i in numbers])
        batches = numbers[np.argsort(of_numbers, kind="stable")].reshape(_GROUP, -1)
        return np.random.default_rng((seed, group)).permutation(batches)

    def bucketed_batch(step: int) -> tuple[np.ndarray, int]:
        numbers = sorted_group(step // _GROUP)[step % _GROUP]
        longest = max(int(length_at[int(i)]["length"]) for i in numbers)
        return numbers, int(cuts[np.searchsorted(cuts, longest)])

    return TrainBatches(dataset, batch_size, bucketed_batch)


def batch_lengths(lengths: np.ndarray, count: int) -> np.ndarray:
    """The lengths to pad rows to that leave the least padding.

    Args:
      lengths: of the rows, in tokens, [N].
      count: of the lengths to pad to.

    Returns:
      [count], or one for each length that a row has where these are fewer; rising, the
      last as long as the longest row. Each row is padded to the least that holds it.
    """
    has_length = np.bincount(lengths)
    candidates = np.flatnonzero(has_length)
    rows_below = has_length.cumsum()[candidates]
    # Tokens of the rows up to each candidate where that is the last of 1, 2, ... cuts.
    tokens, previous_cuts = candidates * rows_below, []
    for _ in range(min(count, len(candidates)) - 1):
        options = tokens + candidates[:, None] * (rows_below[:, None] - rows_below)
        previous_cuts.append(options.argmin(axis=1))
        tokens = options.min(axis=1)
    cuts = [len(candidates) - 1]
    for previous_cut in reversed(previous_cuts):
        cuts.append(previous_cut[cuts[-1]])
    return candidates[np.unique(cuts)]


def eval_batches(
    arrays: Mapping[str, np.ndarray], batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of all rows in order, once.

    Args:
      arrays: {name: [rows, ...]}.
      batch_size: rows of a batch.

    Yields:
      {name: [batch_size, ...]} and `valid_rows` [batch_size] bool: the last batch is
      filled up with its first row, and these are False there.
    """
    num_rows = len(next(iter(arrays.values())))
    for start in range(0, num_rows, batch_size):
        batch = {k: v[start : start + batch_size] for k, v in arrays.items()}
        num_valid = min(batch_size, num_rows - start)
        if num_valid < batch_size:
            batch = {
                k: np.concatenate([v, np.repeat(v[:1], batch_size - num_valid, axis=0)])
                for k, v in batch.items()
            }
        yield batch | {"valid_rows": np.arange(batch_size) < num_valid}


def evenly_spaced_rows(
    rows: Mapping[str, np.ndarray], limit: int
) -> dict[str, np.ndarray]:
    """Rows that stand for all: the first ones are of a handful of documents.

    Args:
      rows: {name: [N, ...]}.
      limit: how many, at most.

    Returns:
      {name: [min(limit, N), ...]}, in order, from the first to the last.
    """
    count = len(next(iter(rows.values())))
    picked = np.linspace(0, count - 1, min(limit, count)).astype(int)
    return {name: np.asarray(x[picked]) for name, x in rows.items()}


def shifted_positions(
    count: int, length: int, ratio: float, max_positions: int, seed: int
) -> np.ndarray:
    """Where the tokens of rows stand: in a share of them further on, as if a longer text
    had begun before, with the first token where it was.

    A student learns so what its teacher makes of positions that no row reaches; without
    it a longer text is embedded the worse the longer it is.

    Args:
      count: of the rows.
      length: tokens a row.
      ratio: the share of the rows that are shifted.
      max_positions: no token stands there or behind.
      seed: which rows, and how far.

    Returns:
      [count, length] integers.
    """
    rng = np.random.default_rng(seed)
    offsets = rng.integers(0, max(max_positions - length, 0) + 1, count)
    offsets *= rng.random(count) < ratio
    positions = np.arange(length, dtype=np.int32) + offsets[:, None].astype(np.int32)
    positions[:, 0] = 0
    return positions


def map_batches(
    fn: Callable, arrays: Mapping[str, np.ndarray], batch_size: int, mesh: Mesh
) -> np.ndarray:
    """What a function gives for every row, in order.

    Args:
      fn: gives [batch_size, ...] for a batch of `eval_batches` on the devices.
      arrays: {name: [rows, ...]}.
      batch_size: rows of a batch.
      mesh: the devices.

    Returns:
      [rows, ...].
    """
    outputs = [
        sharding.to_host(fn(to_devices(batch, mesh)))
        for batch in eval_batches(arrays, batch_size)
    ]
    return np.concatenate(outputs)[: len(next(iter(arrays.values())))]


def to_devices(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch on the devices, its rows split over them.

    Args:
      batch: {name: [rows, ...]}, whole on every host.
      mesh: the devices.

    Returns:
      {name: [rows, ...]}.
    """
    num_rows = len(next(iter(batch.values())))
    host_rows = sharding.local_rows(mesh, num_rows)
    return _shard_rows(
        {name: value[host_rows] for name, value in batch.items()}, mesh, num_rows
    )


def batch_at_step(batches: TrainBatches, step: int, mesh: Mesh) -> dict[str, jax.Array]:
    """The batch of a step on the devices; a host reads its own rows alone.

    Args:
      batches: of `train_batches`.
      step: the step's number.
      mesh: the devices.

    Returns:
      {name: [batch_size, ...]}.
    """
    host_rows = sharding.local_rows(mesh, batches.batch_size)
    return _shard_rows(batches.rows_at(step, host_rows), mesh, batches.batch_size)


def _shard_rows(
    host_arrays: Mapping[str, np.ndarray], mesh: Mesh, num_rows: int
) -> dict[str, jax.Array]:
    row_sharding = sharding.batch_sharding(mesh, num_rows)
    return {
        name: jax.make_array_from_process_local_data(
            row_sharding, value, (num_rows, *value.shape[1:])
        )
        for name, value in host_arrays.items()
    }
