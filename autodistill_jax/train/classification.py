"""Fine-tuning on a labelled task: a linear head on an encoder, all of it trained."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
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
from autodistill_jax.models.encoder import pool_tokens
from autodistill_jax.models.heads import encoder_params
from autodistill_jax.models.layers import dropout
from autodistill_jax.models.static_table import StaticTable
from autodistill_jax.train import loop, losses, optimizer

Split = Mapping[str, np.ndarray]
_SCHEDULE = ("warmup_ratio", "weight_decay", "grad_clip_norm", "lr_decay")


class ClassificationData(NamedTuple):
    """A task's token rows and labels.

    Attributes:
      train: {"input_ids", "attention_mask", "token_type_ids", [N, L] each, "label",
        [N]}. Of a pair that is embedded apart the second text is {"other_input_ids",
        "other_attention_mask", "other_token_type_ids"}.
      dev: the same, of the rows that are scored.
      classes: how many; 1 where the label is a number.
      metric: a name in `metrics.METRICS`.
      extra_dev: further labelled splits by name.
      test: splits without labels by name.
    """

    train: Split
    dev: Split
    classes: int
    metric: str
    extra_dev: Mapping[str, Split] = {}
    test: Mapping[str, Split] = {}

    @property
    def embeds_separately(self) -> bool:
        """Whether the two texts of a pair are embedded apart."""
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

    Attributes:
      scores: dev score of every epoch.
      params: of the best epoch, {name: array}, the head's among them.
      metrics: the single figures behind its score, {name: fraction}.
      dev_predictions: of the best epoch, [N].
      extra_scores: scores of the further splits by name.
      test_predictions: predictions of the splits without labels by name, [N] each.
    """

    scores: list[float]
    params: dict[str, np.ndarray]
    metrics: dict[str, float]
    dev_predictions: np.ndarray
    extra_scores: dict[str, float]
    test_predictions: dict[str, np.ndarray]


def init_task_head(
    key: jax.Array, hidden: int, data: ClassificationData
) -> dict[str, jax.Array]:
    """The parameters of a task's head: one linear layer on `task_features`.

    Of the similarity of two texts it is a line through the cosine, at first the one
    that takes 0 to the lowest label and 1 to the highest (Sentence-BERT, section 3).

    Args:
      key: of the first weights.
      hidden: the encoder's width.
      data: the task; its training labels where the head is a line.

    Returns:
      {"head_kernel": [F, classes], "head_bias": [classes]}.
    """
    if data.embeds_separately and data.classes == 1:
        label, (mean, deviation) = data.train["label"], data.label_scale
        low, high = float(label.min()), float(label.max())
        return {
            "head_kernel": jnp.full((1, 1), (high - low) / deviation, jnp.float32),
            "head_bias": jnp.full((1,), (low - mean) / deviation, jnp.float32),
        }
    width = 4 * hidden if data.embeds_separately else hidden
    return {
        "head_kernel": 0.02 * jax.random.normal(key, (width, data.classes)),
        "head_bias": jnp.zeros((data.classes,)),
    }


def task_features(
    module: Module | StaticTable,
    params: dict,
    batch: Mapping[str, jax.Array],
    pooling: str,
    classes: int,
    arch: AnyArch | None = None,
    key: jax.Array | None = None,
    dense: np.ndarray | None = None,
) -> jax.Array:
    """What the head reads: the embedding of a text, or features of two texts.

    Of two texts that are embedded apart these are `losses.pair_features`, or their
    cosine where the label is a number.

    Args:
      module: a network, a SuperLM or a static table.
      params: its parameters; heads among them are left out.
      batch: token rows, as in `ClassificationData`, [B, L] each.
      pooling: see `encoder.pool_tokens`.
      classes: of the task; 1 where the label is a number.
      arch: the sub-network of a SuperLM; its channels out of use are 0.
      key: for dropout; None turns it off.
      dense: [D, E], the linear map behind the pooling, where the network has one.

    Returns:
      The features, [B, F].
    """
    encoder = encoder_params(params)
    separate = "other_input_ids" in batch

    def joined(name):  # The second texts follow the first ones along the batch.
        if not separate:
            return batch[name]
        return jnp.concatenate([batch[name], batch[f"other_{name}"]])

    out = module.apply(
        {"params": encoder},
        joined("input_ids"),
        joined("attention_mask"),
        arch,
        token_type_ids=joined("token_type_ids"),
        key=key,
    )
    pooled = pool_tokens(out.hidden, out.pooler, joined("attention_mask"), pooling)
    pooled = pooled if dense is None else pooled @ dense
    if not separate:
        return pooled
    first, second = jnp.split(pooled, 2)
    if classes == 1:
        return losses.cosine(first, second)[:, None]
    return losses.pair_features(first, second)


def task_logits(
    module: Module,
    params: dict,
    batch: Mapping[str, jax.Array],
    pooling: str,
    classes: int,
    arch: AnyArch | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The head's logits.

    Args:
      module, batch, pooling, classes, arch, key: see `task_features`.
      params: the network's and `init_task_head`'s.

    Returns:
      [B, classes]; numbers are standardised, see `ClassificationData.label_scale`.
    """
    keys = (None, None) if key is None else jax.random.split(key)
    features = task_features(module, params, batch, pooling, classes, arch, keys[0])
    features = dropout(
        features, module.dropout if features.shape[1] > 1 else 0.0, keys[1]
    )
    return features @ params["head_kernel"] + params["head_bias"]


def classification_step(
    module: Module,
    classes: int,
    label_scale: tuple[float, float],
    tx: optax.GradientTransformation,
    pooling: str,
) -> Callable:
    """A training step of encoder and head, not yet compiled.

    The loss is the mean cross-entropy, or the mean squared error of numbers.

    Args:
      module: a network, or a SuperLM.
      classes, label_scale: of the task, see `ClassificationData`.
      tx: the optimizer.
      pooling: see `encoder.pool_tokens`.

    Returns:
      step(state, batch, key, arch=None) -> (state, {"loss": ...}); state is {"params",
      "optimizer"}.
    """
    mean, deviation = label_scale

    def step(state, batch, key, arch=None):
        def loss_fn(params):
            logits = task_logits(module, params, batch, pooling, classes, arch, key)
            if classes == 1:
                targets = (batch["label"] - mean) / deviation
                return jnp.square(logits[:, 0] - targets).mean()
            return losses.cross_entropy(logits, batch["label"]).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state["params"])
        return optimizer.apply_gradients(tx, grads, state), {"loss": loss}

    return step


def finetune_classifier(
    module: Module,
    params_fn: Callable[[int], dict],
    data: ClassificationData,
    settings: Mapping[str, Any],
    pooling: str,
    mesh: Mesh,
    seeds: Sequence[int],
    label: str,
) -> list[FinetuneResult]:
    """Trains encoder and head, once a seed; keeps the best dev epoch of each.

    Args:
      module: a standalone network; its dropout is in force.
      params_fn: a seed -> the network's parameters to start from.
      data: the task.
      settings: epochs, batch_size, learning_rate, warmup_ratio, weight_decay,
        grad_clip_norm.
      pooling: what the head reads, see `encoder.pool_tokens`.
      mesh: the devices; each has a share of every batch.
      seeds: of the head's first weights, the order of the rows, and dropout.
      label: of the progress line.

    Returns:
      A result for each seed.
    """
    # Unrolled: stacks of layers are copied at every step, which takes a CPU up to a
    # third of the time of small networks.
    module, batch_size = module.clone(unroll=True), settings["batch_size"]
    steps = loop.total_steps(data.train, settings)
    tx = optimizer.optimizer_of_any_rate(settings, steps, build.param_axes(module))
    schedule = tuple((k, settings[k]) for k in _SCHEDULE if k in settings)
    step, logits_fn = _programs_of_any_rate(
        module, data.classes, data.label_scale, pooling, schedule, steps
    )

    def predict(params, split):
        logits = loader.map_batches(partial(logits_fn, params), split, batch_size, mesh)
        return predictions_from_logits(logits, data)

    def init_fn(seed, key):
        return build.unstack_layers(params_fn(seed)) | init_task_head(
            key, module.arch.hidden, data
        )

    dev_by_epoch = []

    def score_fn(params):
        dev_by_epoch.append(predict(params, data.dev))
        return metrics.METRICS[data.metric](data.dev["label"], dev_by_epoch[-1])

    results = []
    for scores, best in loop.train_seeds(
        step, tx, init_fn, data.train, score_fn, settings, mesh, seeds, label
    ):
        best_epoch = max(range(len(scores)), key=lambda i: (scores[i], i))
        dev = dev_by_epoch[best_epoch - len(scores)]
        results.append(
            FinetuneResult(
                scores,
                build.stack_layers(best),
                metrics.metric_parts(data.metric, data.dev["label"], dev),
                dev,
                {
                    name: metrics.METRICS[data.metric](
                        split["label"], predict(best, split)
                    )
                    for name, split in data.extra_dev.items()
                },
                {name: predict(best, split) for name, split in data.test.items()},
            )
        )
    return results


# Student, twin and scratch are networks of one Arch: a task compiles them once.
@lru_cache(maxsize=4)
def _programs_of_any_rate(
    module: Module,
    classes: int,
    label_scale: tuple[float, float],
    pooling: str,
    schedule: tuple,
    steps: int,
) -> tuple[Callable, Callable]:
    """(the step of `classification_step`, (params, batch) -> logits), compiled."""
    settings = {**dict(schedule), "learning_rate": 0.0}
    tx = optimizer.optimizer_of_any_rate(settings, steps, build.param_axes(module))
    step = classification_step(module, classes, label_scale, tx, pooling)
    logits_fn = jax.jit(lambda p, b: task_logits(module, p, b, pooling, classes))
    return jax.jit(step, donate_argnums=0), logits_fn


def predictions_from_logits(logits: np.ndarray, data: ClassificationData) -> np.ndarray:
    """The predictions that logits [N, classes] of a task stand for, [N]: classes, or
    numbers on the labels' scale."""
    if data.classes > 1:
        return logits.argmax(axis=1)
    mean, deviation = data.label_scale
    return logits[:, 0] * deviation + mean


def frozen_score(
    module: Module | StaticTable,
    params: dict,
    data: ClassificationData,
    pooling: str,
    batch_size: int,
    mesh: Mesh,
) -> float:
    """The dev score of a linear head on an encoder that is not trained.

    Args:
      module, params: the encoder.
      data: the task.
      pooling: see `encoder.pool_tokens`.
      batch_size: in rows.
      mesh: the devices.

    Returns:
      The score by the task's metric.
    """
    return linear_probe_score(
        jax.jit(lambda p, b: task_features(module, p, b, pooling, data.classes)),
        jax.device_put(params, sharding.replicated(mesh)),
        data,
        batch_size,
        mesh,
    )


def linear_probe_score(
    features_fn: Callable,
    params: dict,
    data: ClassificationData,
    batch_size: int,
    mesh: Mesh,
) -> float:
    """The dev score of a linear head on given features.

    Logistic regression (ridge regression for numbers) on standardised features.

    Args:
      features_fn: (params, batch) -> features, [B, F].
      params: its first argument.
      data: the task.
      batch_size: in rows.
      mesh: the devices.

    Returns:
      The score by the task's metric.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def features(split):
        return loader.map_batches(partial(features_fn, params), split, batch_size, mesh)

    regressor = (
        Ridge() if data.classes == 1 else LogisticRegression(C=0.1, max_iter=300)
    )
    model = make_pipeline(StandardScaler(), regressor)
    model.fit(features(data.train), data.train["label"])
    return metrics.METRICS[data.metric](
        data.dev["label"], model.predict(features(data.dev))
    )
