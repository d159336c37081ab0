"""How does an encoder learn a labelled task? A head on it, all of it trained."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from autodistill_jax import metrics, sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.data import loader
from autodistill_jax.models import build
from autodistill_jax.models.build import Module
from autodistill_jax.models.heads import encoder_params
from autodistill_jax.models.layers import dropout
from autodistill_jax.train import loop, losses, optimizer

Split = Mapping[str, np.ndarray]


class ClassificationData(NamedTuple):
    """A task's token rows: {"input_ids", "attention_mask", "token_type_ids", "label"} for train and dev.

    Of a pair that is embedded apart the second text is {"other_input_ids", "other_attention_mask",
    "other_token_type_ids"}. more: further labelled sides by name; tests: sides without labels.
    """

    train: Split
    dev: Split
    classes: int
    metric: str
    more: Mapping[str, Split] = {}
    tests: Mapping[str, Split] = {}

    @property
    def embeds_separately(self) -> bool:
        return "other_input_ids" in self.train

    @property
    def label_scale(self) -> tuple[float, float]:
        """(mean, deviation) of numbers as labels, which training sees standardised."""
        if self.classes > 1:
            return 0.0, 1.0
        label = self.train["label"]
        return float(label.mean()), float(label.std()) or 1.0


class FinetuneResult(NamedTuple):
    """What one seed gave.

    scores: dev score of every epoch. params: of the best epoch. parts: the single
    figures behind its score. more: scores of the further sides. tests: predictions.
    """

    scores: list[float]
    params: dict[str, np.ndarray]
    parts: dict[str, float]
    more: dict[str, float]
    tests: dict[str, np.ndarray]


def init_task_head(
    key: jax.Array, hidden: int, rows: ClassificationData
) -> dict[str, jax.Array]:
    """The parameters of a task's head: one linear layer on `task_features`.

    Of the similarity of two texts it is a line through the cosine, at first the one
    that takes 0 to the lowest label and 1 to the highest (Sentence-BERT, section 3).
    """
    if rows.embeds_separately and rows.classes == 1:
        label, (mean, deviation) = rows.train["label"], rows.label_scale
        low, high = float(label.min()), float(label.max())
        return {
            "head_kernel": jnp.full((1, 1), (high - low) / deviation, jnp.float32),
            "head_bias": jnp.full((1,), (low - mean) / deviation, jnp.float32),
        }
    width = 4 * hidden if rows.embeds_separately else hidden
    return {
        "head_kernel": 0.02 * jax.random.normal(key, (width, rows.classes)),
        "head_bias": jnp.zeros((rows.classes,)),
    }


def task_features(
    module: Module,
    params: dict,
    batch: Mapping[str, jax.Array],
    pooling: str,
    classes: int,
    arch: AnyArch | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """What the head reads, [B, F]: a text's embedding; of two texts that are embedded
    apart `losses.pair_features`, or their cosine where the label is a number.

    Of a network, or of a sub-network (`arch`) of a SuperLM: channels out of use are 0.
    """
    encoder = encoder_params(params)
    apart = "other_input_ids" in batch

    def both(name):
        if not apart:
            return batch[name]
        return jnp.concatenate([batch[name], batch[f"other_{name}"]])

    out = module.apply(
        {"params": encoder},
        both("input_ids"),
        both("attention_mask"),
        arch,
        token_type_ids=both("token_type_ids"),
        key=key,
    )
    pooled = losses.pool_tokens(out.hidden, out.pooler, both("attention_mask"), pooling)
    if not apart:
        return pooled
    one, other = jnp.split(pooled, 2)
    if classes == 1:
        return losses.cosine(one, other)[:, None]
    return losses.pair_features(one, other)


def task_logits(
    module: Module,
    params: dict,
    batch: Mapping[str, jax.Array],
    pooling: str,
    classes: int,
    arch: AnyArch | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """[B, classes]; see `task_features`. Numbers are standardised, see `ClassificationData.label_scale`."""
    keys = (None, None) if key is None else jax.random.split(key)
    read = task_features(module, params, batch, pooling, classes, arch, keys[0])
    read = dropout(read, module.dropout if read.shape[1] > 1 else 0.0, keys[1])
    return read @ params["head_kernel"] + params["head_bias"]


def classification_step(
    module: Module,
    rows: ClassificationData,
    moves: optax.GradientTransformation,
    pooling: str,
) -> Callable:
    """step(state, batch, key, arch=None) -> (state, {"loss": ...}), not yet compiled."""
    classes, (mean, deviation) = rows.classes, rows.label_scale

    def step(state, batch, key, arch=None):
        def loss(params):
            made = task_logits(module, params, batch, pooling, classes, arch, key)
            if classes == 1:
                wanted = (batch["label"] - mean) / deviation
                return jnp.square(made[:, 0] - wanted).mean()
            return losses.cross_entropy(made, batch["label"]).mean()

        value, gradient = jax.value_and_grad(loss)(state["params"])
        return optimizer.apply_gradients(moves, gradient, state), {"loss": value}

    return step


def finetune_classifier(
    module: Module,
    params: Callable[[int], dict],
    rows: ClassificationData,
    settings: Mapping[str, Any],
    pooling: str,
    mesh: Mesh,
    seeds: Sequence[int],
    what: str,
) -> list[FinetuneResult]:
    """Trains encoder and head, once a seed; keeps the best dev epoch of each.

    Args:
      module: a standalone network; its dropout is in force.
      params: a seed's parameters to start from.
      settings: epochs, batch_size, learning_rate, warmup, weight_decay, clip.
      pooling: what the head reads, see `losses.pool_tokens`.
      seeds: of the head's first weights, the order of the rows, and dropout.
      what: for the progress line.
    """
    # Unrolled: stacks of layers are copied at every step, which takes a CPU up to a
    # third of the time of small networks.
    module = module.clone(unroll=True)
    batch_size = settings["batch_size"]
    steps = loop.total_steps(rows.train, settings)
    moves = optimizer.make_optimizer(settings, steps, build.param_axes(module))
    step = jax.jit(classification_step(module, rows, moves, pooling), donate_argnums=0)
    predict = jax.jit(
        lambda params, batch: task_logits(module, params, batch, pooling, rows.classes)
    )

    def predicted(params, side):
        made = loader.map_batches(partial(predict, params), side, batch_size, mesh)
        return predictions_from_logits(made, rows)

    def first(seed, key):
        return build.unstack_layers(params(seed)) | init_task_head(
            key, module.arch.hidden, rows
        )

    def judge(params):
        made = predicted(params, rows.dev)
        return metrics.METRICS[rows.metric](rows.dev["label"], made)

    results = []
    for seed in seeds:
        told = f"{what}, seed {seed}" if len(seeds) > 1 else what
        scores, best = loop.train_epochs(
            step, moves, first, rows.train, judge, settings, mesh, seed, told
        )
        dev = predicted(best, rows.dev)
        results.append(
            FinetuneResult(
                scores,
                build.stack_layers(best),
                metrics.metric_parts(rows.metric, rows.dev["label"], dev),
                {
                    name: metrics.METRICS[rows.metric](
                        side["label"], predicted(best, side)
                    )
                    for name, side in rows.more.items()
                },
                {name: predicted(best, side) for name, side in rows.tests.items()},
            )
        )
    return results


def predictions_from_logits(logits: np.ndarray, rows: ClassificationData) -> np.ndarray:
    """Classes, or numbers on the labels' scale, of logits [rows, classes]."""
    if rows.classes > 1:
        return logits.argmax(axis=1)
    mean, deviation = rows.label_scale
    return logits[:, 0] * deviation + mean


def frozen_score(
    module: Module,
    params: dict,
    rows: ClassificationData,
    pooling: str,
    batch_size: int,
    mesh: Mesh,
) -> float:
    """The dev score of a linear head on an encoder that is not trained."""
    return linear_probe_score(
        jax.jit(lambda p, b: task_features(module, p, b, pooling, rows.classes)),
        jax.device_put(params, sharding.replicated(mesh)),
        rows,
        batch_size,
        mesh,
    )


def linear_probe_score(
    read: Callable, params: dict, rows: ClassificationData, batch_size: int, mesh: Mesh
) -> float:
    """The dev score of a linear head on what `read(params, batch)` gives, [B, F].

    Logistic regression (ridge regression for numbers) on standardised features.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def over(side):
        return loader.map_batches(partial(read, params), side, batch_size, mesh)

    line = Ridge() if rows.classes == 1 else LogisticRegression(C=0.1, max_iter=300)
    model = make_pipeline(StandardScaler(), line)
    model.fit(over(rows.train), rows.train["label"])
    return metrics.METRICS[rows.metric](
        rows.dev["label"], model.predict(over(rows.dev))
    )
