"""Do parameters move as told, and does an encoder learn a labelled task?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import BIG, DIMS, mesh_of

from autodistill_jax import sharding
from autodistill_jax.archs.arch import Arch, MobileArch
from autodistill_jax.errors import UserError
from autodistill_jax.models import build
from autodistill_jax.models.bert import Bert
from autodistill_jax.train import classification, optimizer

SETTINGS = {
    "learning_rate": 1e-2,
    "warmup_ratio": 0.2,
    "weight_decay": 0.01,
    "grad_clip_norm": 1.0,
}


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("arch", [BIG, MobileArch(2, 8, 4, 2, 6, 3)])
def test_only_matrices_decay(arch, name):
    axes = build.param_axes(build.build_module(arch, DIMS._replace(embedding=10)))
    settings = SETTINGS | {
        "learning_rate": 1.0,
        "warmup_ratio": 0.0,
        "weight_decay": 0.5,
        "optimizer": name,
    }
    tx = optimizer.make_optimizer(settings, 100, axes)
    params = {name: jnp.ones([2] * len(names)) for name, names in axes.items()}
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = tx.init(params)
    change, _ = tx.update(zeros, state, params)
    decayed = {name for name, value in change.items() if np.any(value)}
    assert decayed == {
        name for name in axes if name.endswith(("kernel", "word", "position", "type"))
    }


@pytest.mark.parametrize("arch", [BIG, MobileArch(2, 8, 4, 2, 6, 3)])
def test_muon_turns_every_matrix_of_the_layers(arch):
    axes = build.param_axes(build.build_module(arch, DIMS._replace(embedding=10)))
    settings = SETTINGS | {"optimizer": "muon", "learning_rate": 1.0}
    settings |= {"warmup_ratio": 0.0, "weight_decay": 0.0}
    tx = optimizer.make_optimizer(settings, 10**6, axes)
    rng = np.random.default_rng(0)
    grads, turned = {}, set()

    def places_of(names):
        return [i for i, a in enumerate(names) if a not in sharding.STACKED_AXES]

    for name, names in axes.items():
        size = [2] * len(names)
        for place, length in zip(places_of(names), (6, 24)):
            size[place] = length
        grads[name] = jnp.float32(rng.normal(size=size))
    change, _ = tx.update(grads, tx.init(grads), grads)
    for name, names in axes.items():
        update = np.asarray(change[name])
        if np.ptp(np.abs(update)) < 1e-3:  # AdamW's first step goes by the sign.
            continue
        turned.add(name)
        matrices = np.moveaxis(update, places_of(names), (-2, -1))
        values = np.linalg.svd(matrices, compute_uv=False)
        assert (values.max(-1) < 2 * values.min(-1)).all(), name
        assert np.sqrt((matrices**2).mean()) == pytest.approx(0.2, rel=0.3), name
    matrices = {name for name in axes if name.endswith("kernel")}
    assert turned == {name for name in matrices if name.startswith("layers")}


def test_devices_and_batches():
    with pytest.raises(UserError, match="batch_size 12 does not divide over 8 devices"):
        sharding.check_batch(mesh_of(8), 12)
    for wrong in ({"data": 9}, {"data": 2, "fsdp": 2}, {"data": -1, "tensor": 3}):
        with pytest.raises(UserError, match=r"do not multiply to the 8 devices"):
            sharding.make_mesh(wrong)
    with pytest.raises(UserError, match="only one axis can be -1"):
        sharding.make_mesh({"data": -1, "fsdp": -1})


@pytest.mark.parametrize(("classes", "metric"), [(2, "accuracy"), (1, "spearman")])
def test_fine_tuning_learns_and_keeps_the_best_epoch(classes, metric):
    """The label is whether (or how often) a token stands in the text."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 12, (160, 6)).astype(np.int32)
    count = (ids == 5).sum(axis=1)
    label = (count > 0).astype(np.int32) if classes == 2 else count.astype(np.float32)
    side = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    side["label"] = label
    data = classification.ClassificationData(
        {k: v[:120] for k, v in side.items()},
        {k: v[120:] for k, v in side.items()},
        classes,
        metric,
        extra_dev={"again": {k: v[120:] for k, v in side.items()}},
        test={"X": {k: v[:7] for k, v in side.items() if k != "label"}},
    )
    module = Bert(Arch(1, 16, 2, 16, 8), DIMS, dropout=0.1)
    settings = SETTINGS | {"epochs": 8, "batch_size": 16, "learning_rate": 2e-2}
    params = build.init_params(module, jax.random.key(0))
    mesh = mesh_of(8)
    results = classification.finetune_classifier(
        module, lambda seed: params, data, settings, "mean", mesh, (0, 1), "test"
    )
    for result in results:
        assert len(result.scores) == 8 and max(result.scores) > 0.85
        assert result.params["head_kernel"].shape == (16, classes)
        assert max(result.metrics.values()) == pytest.approx(max(result.scores))
        assert result.extra_scores == {"again": pytest.approx(max(result.scores))}
        assert result.test_predictions["X"].shape == (7,)
    assert results[0].scores != results[1].scores
    encoder = {k: v for k, v in results[0].params.items() if "head_" not in k}
    score = classification.frozen_score(module, encoder, data, "mean", 16, mesh)
    assert score > 0.8


def test_networks_of_one_arch_are_compiled_once(monkeypatch):
    """A second one starts otherwise and learns at a rate of its own."""
    traces, task_logits = [], classification.task_logits

    def traced(*args):
        traces.append(1)
        return task_logits(*args)

    monkeypatch.setattr(classification, "task_logits", traced)
    rows, mesh = rows_of_pairs(1), mesh_of(8)
    module, counts = Bert(Arch(1, 16, 2, 16, 8), DIMS, dropout=0.2), []
    for seed, rate in ((0, 2e-2), (1, 0.0)):
        params = build.init_params(module, jax.random.key(seed))
        settings = SETTINGS | {"epochs": 1, "batch_size": 16, "learning_rate": rate}
        (result,) = classification.finetune_classifier(
            module, {0: params}.get, rows, settings, "mean", mesh, (0,), "test"
        )
        learned = result.params["embeddings_word"] != params["embeddings_word"]
        assert learned.any() == (rate > 0)
        counts.append(len(traces))
    assert 0 < counts[0] == counts[1]


def rows_of_pairs(classes):
    """Pairs of texts; the label is how many of the first's words the second has."""
    rng = np.random.default_rng(0)
    first = rng.integers(1, 30, (160, 6)).astype(np.int32)
    second = np.where(rng.random((160, 6)) < rng.random((160, 1)), first, first[::-1])
    count = (first == second).sum(axis=1)
    label = count.astype(np.float32) if classes == 1 else (count > 3).astype(np.int32)
    side = {"label": label}
    for name, ids in (("", first), ("other_", second.astype(np.int32))):
        side |= {f"{name}input_ids": ids, f"{name}attention_mask": np.ones_like(ids)}
        side |= {f"{name}token_type_ids": np.zeros_like(ids)}
    train, dev = (
        {k: v[part] for k, v in side.items()} for part in (np.s_[:120], np.s_[120:])
    )
    return classification.ClassificationData(
        train, dev, classes, "spearman" if classes == 1 else "accuracy"
    )


def test_texts_of_a_pair_are_read_apart():
    rows = rows_of_pairs(1)
    assert rows.embeds_separately
    module = Bert(Arch(1, 16, 2, 16, 8), DIMS)
    params = build.init_params(module, jax.random.key(0))
    batch = {k: jnp.asarray(v[:8]) for k, v in rows.dev.items()}

    def embedded(name):
        out = module.apply(
            {"params": params},
            batch[f"{name}input_ids"],
            batch[f"{name}attention_mask"],
        )
        return np.asarray(out.hidden.mean(axis=1))

    first, second = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in map(embedded, ("", "other_"))
    )
    cosine = (first * second).sum(axis=1)
    read = classification.task_features(module, params, batch, "mean", 1)
    assert np.allclose(read[:, 0], cosine, atol=1e-5)
    # At first a cosine of 0 stands for the lowest label and 1 for the highest.
    head = classification.init_task_head(jax.random.key(0), 16, rows)
    predictions = classification.predictions_from_logits(
        np.asarray(read @ head["head_kernel"] + head["head_bias"]), rows
    )
    low, high = rows.train["label"].min(), rows.train["label"].max()
    assert np.allclose(predictions, low + (high - low) * cosine, atol=1e-4)
    read = classification.task_features(module, params, batch, "mean", 2)
    expected = 16 * np.concatenate(
        [first, second, abs(first - second), first * second], axis=1
    )
    assert np.allclose(read, expected, atol=1e-4)


@pytest.mark.parametrize("classes", [1, 2])
def test_pairs_are_learned(classes):
    rows = rows_of_pairs(classes)
    module = Bert(Arch(1, 16, 2, 16, 8), DIMS)
    params = build.init_params(module, jax.random.key(0))
    settings = SETTINGS | {"epochs": 4, "batch_size": 16}
    (result,) = classification.finetune_classifier(
        module,
        lambda seed: params,
        rows,
        settings,
        "mean",
        mesh_of(8),
        (0,),
        "test",
    )
    assert max(result.scores) > 0.6 and max(result.scores) >= result.scores[0]
    # Layers are stacked again, as the rest of the package has them.
    assert {k: v.shape for k, v in result.params.items() if "head_" not in k} == {
        k: v.shape for k, v in params.items()
    }
