"""Are batches of like lengths the same rows, each once an epoch, and none cut short?"""

import itertools

import numpy as np
import pytest

from autodistill_jax.data import loader


def rows(count, length=16):
    rng = np.random.default_rng(0)
    real = np.arange(length) < rng.integers(3, length + 1, (count, 1))
    ids = np.arange(count)[:, None] * real
    return {
        "input_ids": ids.astype(np.int32),
        "attention_mask": real.astype(np.int8),
        "row": np.arange(count),
    }


@pytest.mark.parametrize("buckets", [2, 4])
def test_rows_of_like_length_come_together(buckets):
    """An epoch of 128 rows in 32 batches of 4; as a function of the step alone."""
    data = rows(128)
    batches = loader.train_batches(data, 4, seed=3, length_buckets=buckets)
    row_numbers, lengths = [], []
    for step in range(32):
        batch = batches[step]
        row_numbers += batch["row"].tolist()
        lengths.append(batch["input_ids"].shape[1])
        real = data["attention_mask"][batch["row"]].sum(axis=1)
        assert (batch["attention_mask"].sum(axis=1) == real).all()  # Nothing is lost.
    assert sorted(row_numbers) == list(range(128))
    assert 1 < len(set(lengths)) <= buckets
    padded = sum(4 * length for length in lengths)
    assert padded < 0.9 * data["attention_mask"].size
    assert lengths != sorted(lengths)  # In no order of length.
    fresh = loader.train_batches(data, 4, seed=3, length_buckets=buckets)
    assert np.array_equal(fresh[40]["row"], batches[40]["row"])
    # A host reads its own rows of the same batch.
    part = fresh.rows_at(7, range(2, 4))
    assert np.array_equal(part["row"], batches[7]["row"][2:])


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_batches_have_the_lengths_that_leave_the_least_padding(count):
    lengths = np.random.default_rng(count).choice([2, 3, 5, 6, 9, 12], 40)

    def padded(cuts):
        return sum(min(cut for cut in cuts if cut >= length) for length in lengths)

    cuts = loader.batch_lengths(lengths, count).tolist()
    every = sorted(set(lengths.tolist()))
    size = min(count, len(every))
    assert cuts == sorted(cuts) and len(cuts) == size
    options = itertools.combinations(every[:-1], size - 1)
    assert padded(cuts) == min(padded((*option, every[-1])) for option in options)


def test_one_bucket_is_whole_rows():
    data = rows(12)
    batch = loader.train_batches(data, 4, seed=3)[0]
    assert batch["input_ids"].shape == (4, 16)


def test_rows_that_stand_for_all():
    data = rows(100)
    picked = loader.evenly_spaced_rows(data, 12)
    numbers = picked["row"]
    assert numbers[0] == 0 and numbers[-1] == 99
    assert set(np.diff(numbers)) == {9}
    assert (picked["input_ids"] == data["input_ids"][numbers]).all()
    every = loader.evenly_spaced_rows(data, 640)
    assert (every["row"] == data["row"]).all()


def test_shifted_rows_stand_further_on_behind_their_first_token():
    positions = loader.shifted_positions(400, 16, 0.25, 64, seed=0)
    offsets = positions[:, 1] - 1
    assert (positions[:, 0] == 0).all()
    assert (positions[:, 1:] == offsets[:, None] + np.arange(1, 16)).all()
    assert 60 < (offsets > 0).sum() < 140
    assert offsets.max() == 48 and positions.max() == 63
    # Rows as long as what is read stay where they are.
    of_long_rows = loader.shifted_positions(8, 64, 1.0, 64, seed=0)
    assert (of_long_rows == np.arange(64)).all()
