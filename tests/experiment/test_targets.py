"""Are the teacher's outputs made once, kept in 16 bits, and the same as live ones?"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_networks import BIG, DIMS, mesh_of

from autodistill_jax.archs.cost import MOBILEBERT_DIMS
from autodistill_jax.data.mlm import MlmMasking
from autodistill_jax.experiment import targets
from autodistill_jax.models import build
from autodistill_jax.train.distillation import (
    TEACHER_EMBEDDING,
    TEACHER_HIDDEN,
    TEACHER_QKV,
    teacher_targets,
)
from autodistill_jax.train.objective import Objective

POOLED = Objective({"pooled": 1.0})
TOKENS = Objective({"pooled": 1.0, "cosine": 3.0})


# Of ten rows, of 6 to 2 tokens.
MASK = (np.arange(6) < 6 - np.arange(10)[:, None] % 5).astype(np.int32)


def experiment(objective=POOLED):
    """What a reader asks of an experiment."""
    module = build.build_module(BIG, DIMS)
    params = {
        name: np.asarray(value)
        for name, value in build.init_params(module, jax.random.key(0)).items()
    }
    return SimpleNamespace(
        teacher=SimpleNamespace(arch=BIG, params=params),
        teacher_module=lambda: module,
        objective=objective,
        mesh=mesh_of(1),
    )


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 60, (4, 6)).astype(np.int32)
    rows = np.asarray([5, 0, 9, 2])
    return {"input_ids": ids, "attention_mask": MASK[rows], targets.ROW: rows}


def test_a_row_is_asked_of_the_teacher_once(tmp_path, batch, monkeypatch):
    num_asked = []
    eval_batches = targets.loader.eval_batches

    def counted(rows, batch_size):
        num_asked.append(len(rows["input_ids"]))
        return eval_batches(rows, batch_size)

    monkeypatch.setattr(targets.loader, "eval_batches", counted)
    run = experiment()
    read = targets.target_reader(run, tmp_path, MASK, 4)
    first = read(batch)
    assert targets.ROW not in first and num_asked == [4]
    rows = {k: v for k, v in first.items() if k != TEACHER_EMBEDDING}
    live = jax.jit(
        lambda params, rows: teacher_targets(run.teacher_module(), params, rows, POOLED)
    )(run.teacher.params, rows)
    # The live ones are rounded, too; at most a last bit of 16 differs.
    assert np.abs(first[TEACHER_EMBEDDING] - live["embedding"]).max() < 2e-3
    assert (first[TEACHER_EMBEDDING] == live["embedding"]).mean() > 0.99
    # Another reader of the same folder goes on where the first one was.
    second_reader = targets.target_reader(run, tmp_path, MASK, 4)
    assert np.array_equal(
        second_reader(batch)[TEACHER_EMBEDDING], first[TEACHER_EMBEDDING]
    )
    assert num_asked == [4]
    changed_batch = {**batch, targets.ROW: np.asarray([5, 0, 9, 7])}
    assert np.array_equal(
        second_reader(changed_batch)[TEACHER_EMBEDDING], first[TEACHER_EMBEDDING]
    )
    assert num_asked == [4, 1]
    # With them a step runs no teacher.
    assert (
        teacher_targets(None, {}, first, POOLED)["embedding"]
        is first[TEACHER_EMBEDDING]
    )


def test_a_file_that_was_cut_short_is_made_anew(tmp_path, batch):
    read = targets.target_reader(experiment(), tmp_path, MASK, 4)
    expected = read(batch)[TEACHER_EMBEDDING]
    path = tmp_path / "targets" / "embedding.f16"
    path.write_bytes(path.read_bytes()[:100])
    read = targets.target_reader(experiment(), tmp_path, MASK, 4)
    assert np.array_equal(read(batch)[TEACHER_EMBEDDING], expected)


def test_hidden_states_are_kept_token_by_token(tmp_path, batch):
    run = experiment(TOKENS)
    read = targets.target_reader(run, tmp_path, MASK, 4)
    first = read(batch)
    tokens = int(MASK.sum())
    size = (tmp_path / "targets" / "hidden.f16").stat().st_size
    assert size == 2 * tokens * BIG.hidden  # Padding takes no room.
    rows = {name: batch[name] for name in ("input_ids", "attention_mask")}
    live = jax.jit(
        lambda params, rows: teacher_targets(run.teacher_module(), params, rows, TOKENS)
    )(run.teacher.params, rows)
    real = rows["attention_mask"].astype(bool)
    assert np.abs(first[TEACHER_HIDDEN] - live["hidden"])[real].max() < 5e-3
    assert (first[TEACHER_HIDDEN] == live["hidden"])[real].mean() > 0.99
    assert not first[TEACHER_HIDDEN][~real].any()
    assert set(teacher_targets(None, {}, first, TOKENS)) == {"embedding", "hidden"}
    # Others ask for embeddings alone: of the same files, cut to other lengths.
    short = {name: x[:, :4] for name, x in rows.items()} | {targets.ROW: np.arange(4)}
    alone = targets.target_reader(experiment(), tmp_path, MASK, 4)(short)
    assert TEACHER_HIDDEN not in alone
    read_anew = targets.target_reader(run, tmp_path, MASK, 4)(batch)
    for name in (TEACHER_EMBEDDING, TEACHER_HIDDEN):
        assert np.array_equal(read_anew[name], first[name])


@pytest.mark.parametrize("more", [{}, {"pooled": 2.0, "hidden": 1.0}])
def test_relations_are_made_of_kept_queries_keys_and_values(tmp_path, batch, more):
    objective = Objective({"relation": 1.0, **more}, relation_heads=3)
    run = experiment(objective)
    module = run.teacher_module()
    first = targets.target_reader(run, tmp_path, MASK, 4)(batch)
    assert first[TEACHER_QKV].shape == (4, 6, 3 * BIG.width)
    rows = {name: batch[name] for name in ("input_ids", "attention_mask")}
    live, stored = (
        jax.jit(lambda p, b: teacher_targets(module, p, b, objective))(params, texts)
        for params, texts in ((run.teacher.params, rows), ({}, first))
    )
    assert (
        live.keys()
        == stored.keys()
        == {"relation"} | ({"embedding", "hidden"} if more else set())
    )
    real = rows["attention_mask"].astype(bool)
    for i, is_token in enumerate(real):
        of_row = [
            x["relation"][i][..., is_token, :][..., is_token] for x in (live, stored)
        ]
        assert np.abs(of_row[0] - of_row[1]).max() < 5e-3
        assert np.abs(of_row[0]).max() > 0.01
    read_anew = targets.target_reader(run, tmp_path, MASK, 4)(batch)
    assert np.array_equal(read_anew[TEACHER_QKV], first[TEACHER_QKV])


def test_what_overflows_16_bits_is_made_live(tmp_path):
    run = experiment(TOKENS)
    module = SimpleNamespace(dims=MOBILEBERT_DIMS)
    run.teacher_module = lambda: module
    assert targets.target_reader(run, tmp_path, MASK, 4) is None
    assert not (tmp_path / "targets").exists()


def test_tokens_too_large_to_keep_are_made_live(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(targets, "_MAX_BYTES", 100)
    for objective in (TOKENS, Objective({"relation": 1.0})):
        assert targets.target_reader(experiment(objective), tmp_path, MASK, 4) is None
        assert "GiB, more than 0: it runs every step" in capfd.readouterr().err
    assert targets.target_reader(experiment(), tmp_path, MASK, 4) is not None


@pytest.mark.parametrize(
    "objective",
    [
        Objective({"attention": 1.0, "pooled": 1.0}),
        Objective({"logits": 1.0}),
        Objective({"pooled": 1.0}, masking=MlmMasking(0.15)),
    ],
    ids=["attention", "logits", "masked"],
)
def test_other_targets_are_made_live(tmp_path, objective):
    run = experiment(objective)
    assert targets.target_reader(run, tmp_path, MASK, 4) is None
    assert not (tmp_path / "targets").exists()
