"""Are the teacher's embeddings made once, kept in 16 bits, and the same as live ones?"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_networks import BIG, DIMS, mesh_of

from autodistill_jax.data.mlm import MlmMasking
from autodistill_jax.experiment import targets
from autodistill_jax.models import build
from autodistill_jax.train.distillation import TEACHER_EMBEDDING, teacher_targets
from autodistill_jax.train.objective import Objective

POOLED = Objective({"pooled": 1.0})


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
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        targets.ROW: np.asarray([5, 0, 9, 2]),
    }


def test_a_row_is_asked_of_the_teacher_once(tmp_path, batch, monkeypatch):
    num_asked = []
    map_batches = targets.loader.map_batches

    def counted(fn, rows, *args):
        num_asked.append(len(rows["input_ids"]))
        return map_batches(fn, rows, *args)

    monkeypatch.setattr(targets.loader, "map_batches", counted)
    run = experiment()
    read = targets.target_reader(run, tmp_path, 10, 4)
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
    second_reader = targets.target_reader(run, tmp_path, 10, 4)
    assert np.array_equal(
        second_reader(batch)[TEACHER_EMBEDDING], first[TEACHER_EMBEDDING]
    )
    assert num_asked == [4]
    changed_batch = {**batch, targets.ROW: np.asarray([5, 0, 9, 3])}
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
    read = targets.target_reader(experiment(), tmp_path, 10, 4)
    expected = read(batch)[TEACHER_EMBEDDING]
    path = tmp_path / "targets" / "embeddings.f16"
    path.write_bytes(path.read_bytes()[:100])
    read = targets.target_reader(experiment(), tmp_path, 10, 4)
    assert np.array_equal(read(batch)[TEACHER_EMBEDDING], expected)


@pytest.mark.parametrize(
    "objective",
    [
        Objective({"relation": 1.0, "pooled": 1.0}),
        Objective({"logits": 1.0}),
        Objective({"pooled": 1.0}, masking=MlmMasking(0.15)),
    ],
    ids=["relations", "logits", "masked"],
)
def test_other_targets_are_made_live(tmp_path, objective):
    run = experiment(objective)
    assert targets.target_reader(run, tmp_path, 10, 4) is None
    assert not (tmp_path / "targets").exists()
