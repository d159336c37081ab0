"""Is a map behind the word table found again, and the same once it is multiplied in?"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from network_outputs import arrays, outputs
from tiny_networks import BIG, DIMS, SPACE

from autodistill_jax.archs.cost import MOBILEBERT_DIMS
from autodistill_jax.experiment import programs
from autodistill_jax.models import build, extract
from autodistill_jax.models.bert import Bert
from autodistill_jax.models.word_map import (
    WORD_MAP,
    WORDS,
    fit_word_map,
    merge_word_map,
)
from autodistill_jax.train.objective import Objective


@pytest.fixture
def mapped_params():
    rng = np.random.default_rng(0)
    params = build.init_params(Bert(BIG, DIMS, word_width=30), jax.random.key(0))
    return {
        name: np.asarray(x) + rng.normal(0, 0.2, x.shape).astype(np.float32)
        for name, x in params.items()
    }


def test_the_map_is_found_where_there_is_one():
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(60, 8)).astype(np.float32)
    assert np.array_equal(fit_word_map(teacher, teacher[:, :5]), np.eye(8, 5))
    true_map = rng.normal(size=(8, 5)).astype(np.float32)
    fitted = fit_word_map(teacher, teacher @ true_map)
    np.testing.assert_allclose(fitted, true_map, atol=1e-4)
    # Words that moved on their own, and another vocabulary, have none.
    shifted = teacher[:, :5] + rng.normal(0, 0.1, (60, 5))
    assert fit_word_map(teacher, shifted) is None
    assert fit_word_map(teacher[:50], teacher[:, :5]) is None


def test_a_map_is_trained_where_it_can_stand_for_the_words():
    table = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)

    def mapped(dims=DIMS, teacher_dims=DIMS, loss="pooled", freeze=(WORDS,), on=True):
        settings = SimpleNamespace(word_map=on, freeze=freeze)
        experiment = SimpleNamespace(
            teacher=SimpleNamespace(dims=teacher_dims, params={WORDS: table}),
            config=SimpleNamespace(distill=settings),
            dims=dims,
            objective=Objective({loss: 1.0}),
        )
        return programs._mapped_words(experiment, {WORDS: table[:, :5]})

    assert set(mapped()) == {WORDS, WORD_MAP}
    electra = DIMS._replace(embedding=8)
    for kwargs in (
        {"dims": electra},
        {"teacher_dims": electra},
        {"dims": MOBILEBERT_DIMS},
        {"teacher_dims": MOBILEBERT_DIMS},
        {"loss": "mlm"},
        {"loss": "logits"},
        {"freeze": ()},
        {"on": False},
    ):
        assert mapped(**kwargs) is None, kwargs


def test_a_merged_network_is_the_mapped_one(mapped_params, batch):
    assert mapped_params[WORDS].shape == (60, 30)
    assert mapped_params[WORD_MAP].shape == (30, BIG.hidden)
    merged = jax.tree.map(np.asarray, merge_word_map(mapped_params))
    assert merged[WORDS].shape == (60, BIG.hidden) and WORD_MAP not in merged
    inside = outputs(Bert(BIG, DIMS, word_width=30), mapped_params, batch)
    alone = outputs(Bert(BIG, DIMS), merged, batch)
    np.testing.assert_allclose(inside.hidden, alone.hidden, atol=2e-5)


def test_a_sub_network_sees_the_first_columns_of_the_map(mapped_params, batch):
    module = Bert(BIG, DIMS, space=SPACE, word_width=30)
    arch = SPACE.smallest()
    run = jax.jit(module.apply)
    inputs = (batch["input_ids"], batch["attention_mask"], arrays(arch))
    inside = run({"params": mapped_params}, *inputs).hidden
    student = extract.extract(merge_word_map(mapped_params), BIG, arch)
    alone = outputs(Bert(arch, DIMS), student, batch).hidden
    real = np.asarray(batch["attention_mask"], bool)
    assert np.abs(inside[..., : arch.hidden] - alone)[real].max() < 2e-5
    assert not np.any(inside[..., arch.hidden :])
