"""How far text similarities agree with the teacher's, or with a task's labels."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from autodistill_jax import log, metrics
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.data import loader, tasks
from autodistill_jax.experiment import labelled_data
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.interop import embedding
from autodistill_jax.interop.huggingface import Teacher
from autodistill_jax.models import build
from autodistill_jax.models.static_table import StaticTable
from autodistill_jax.train import classification


def similarity_agreement(
    experiment: Experiment,
    held_out: Mapping[str, np.ndarray],
    arch: AnyArch,
    networks: Mapping[str, tuple[dict, np.ndarray | None]],
) -> dict[str, Any]:
    """Spearman of the cosines of held-out pairs of texts with the teacher's own.

    Half of the pairs are drawn at random, which mostly have nothing to do with each
    other; half are a text and its nearest neighbour by the teacher, where an order is
    harder to keep.

    Args:
      experiment: `export.pairs` of its config says how many.
      held_out: token rows, [N, L] each.
      arch: of the networks.
      networks: {name: (parameters, the linear map behind its pooling or None)}.

    Returns:
      {"pairs", "seed", "teacher": 1.0, and each network's name: its Spearman}.
    """
    max_pairs = experiment.config.export.pairs
    pairs = min(max_pairs, len(held_out["input_ids"]) // 2)
    if pairs < max_pairs:
        log.say(f"only {pairs} of {max_pairs} pairs: there is no more held-out text")
    rng = np.random.default_rng(experiment.config.seed)
    pick = rng.choice(len(held_out["input_ids"]), 2 * pairs, replace=False)
    texts = {name: value[pick] for name, value in held_out.items()}
    teacher = experiment.teacher

    def unit_embeddings(module, params, dense=None):
        vectors = embedding.embed_rows(module, params, texts, teacher.pooling)
        vectors = vectors if dense is None else vectors @ dense
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    of_teacher = unit_embeddings(
        build.build_module(teacher.arch, teacher.dims), teacher.params
    )
    first, second = similarity_pairs(of_teacher, pairs)
    module = build.build_module(arch, experiment.dims)

    def cosines(vectors):
        return (vectors[first] * vectors[second]).sum(axis=1)

    return {"pairs": pairs, "seed": experiment.config.seed, "teacher": 1.0} | {
        name: metrics.spearman(
            cosines(of_teacher), cosines(unit_embeddings(module, *network))
        )
        for name, network in networks.items()
    }


def similarity_pairs(
    embeddings: np.ndarray, pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of texts: the first half as the texts come, the others near neighbours.

    Args:
      embeddings: the teacher's, [2 * pairs, D], of unit length.
      pairs: how many.

    Returns:
      The numbers of the pairs' texts, (first [pairs], second [pairs]).
    """
    num_random = pairs // 2
    anchors = np.arange(2 * num_random, num_random + pairs)
    similarities = embeddings[anchors] @ embeddings.T
    similarities[np.arange(len(anchors)), anchors] = -np.inf
    first = np.concatenate([np.arange(num_random), anchors])
    second = np.concatenate(
        [np.arange(num_random, 2 * num_random), similarities.argmax(axis=1)]
    )
    return first, second


def cosine_spearman(
    experiment: Experiment,
    module: build.Module | StaticTable,
    network: Teacher,
    params: dict,
    pooling: str,
    task: tasks.Task,
) -> dict[str, float]:
    """Of a task of scored pairs, without any fine-tuning.

    Args:
      experiment: its section finetune says how many rows, and its mesh where.
      module: that computes the network.
      network: with the linear map behind its pooling, where there is one.
      params: of the network.
      pooling: see `encoder.pool_tokens`.
      task: of `labelled_data.load_task`.

    Returns:
      The Spearman of the pairs' cosines with the labels, on dev ("similarity") and
      further sides ("similarity_test"); nothing for a task whose labels are not numbers
      of pairs.
    """
    if task.classes != 1 or isinstance(task.dev[0][0], str):
        return {}
    cosines = jax.jit(
        lambda p, b: classification.task_features(
            module, p, b, pooling, 1, dense=network.dense
        )
    )
    scores = {}
    for name, side in {"": None, **task.extra_dev}.items():
        rows = labelled_data.separate_pairs(experiment, task, side)
        similarities = loader.map_batches(
            functools.partial(cosines, params),
            rows,
            experiment.config.finetune.batch_size,
            experiment.mesh,
        )
        key = "_".join(filter(None, ("similarity", name)))
        scores[key] = metrics.spearman(rows["label"], similarities[:, 0])
    return scores
