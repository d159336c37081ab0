"""Fine-tuning on extractive question answering: a linear layer on every token."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from autodistill_jax.data import loader, squad, squad_windows
from autodistill_jax.models import build
from autodistill_jax.models.build import Module
from autodistill_jax.models.heads import encoder_params
from autodistill_jax.models.layers import dropout
from autodistill_jax.train import loop, losses, optimizer

# The head alone, on an encoder that is not trained, bears more.
_FROZEN_RATE = 5e-3


class SpanData(NamedTuple):
    """What is learned from, and what is answered.

    Attributes:
      train: of `squad_windows.training_windows`, [N, L] each; also "soft" [N, L, 2],
        where a teacher's logits are learned from.
      dev: windows of the questions that are answered.
      questions: those questions, with their gold answers.
    """

    train: dict[str, np.ndarray]
    dev: squad_windows.Windows
    questions: Sequence[squad.Question]


class SpanFinetuneResult(NamedTuple):
    """What one seed gave.

    Attributes:
      scores: F1 of every epoch, fractions.
      params: of the best epoch, {name: array}, the head's among them.
      metrics: {"exact_match", "f1"} of it, fractions.
      answers: its answers by the questions' ids.
    """

    scores: list[float]
    params: dict[str, np.ndarray]
    metrics: dict[str, float]
    answers: dict[str, str]


def init_span_head(key: jax.Array, hidden: int) -> dict[str, jax.Array]:
    """A head from [.., hidden] to the two ends of an answer, drawn by `key`."""
    return {
        "head_kernel": 0.02 * jax.random.normal(key, (hidden, 2)),
        "head_bias": jnp.zeros((2,)),
    }


def span_logits(
    module: Module,
    params: dict,
    batch: Mapping[str, jax.Array],
    key: jax.Array | None = None,
) -> jax.Array:
    """The logits of each token as the first and as the last of the answer.

    Args:
      module: the encoder.
      params: its parameters and `init_span_head`'s.
      batch: token rows, [B, L] each.
      key: for dropout; None turns it off.

    Returns:
      [B, L, 2]; -1e30 where there is padding.
    """
    encoder = encoder_params(params)
    keys = (None, None) if key is None else jax.random.split(key)
    out = module.apply(
        {"params": encoder},
        batch["input_ids"],
        batch["attention_mask"],
        token_type_ids=batch["token_type_ids"],
        key=keys[0],
    )
    hidden = dropout(out.hidden, module.dropout, keys[1])
    logits = hidden @ params["head_kernel"] + params["head_bias"]
    return jnp.where(batch["attention_mask"][:, :, None] > 0, logits, -1e30)


def span_step(
    module: Module,
    tx: optax.GradientTransformation,
    soft_label_weight: float,
    temperature: float,
    frozen: bool,
) -> Callable:
    """A training step of encoder and head, not yet compiled.

    The loss is the mean of both ends' cross-entropies over the tokens of a window
    (BERT, arXiv 1810.04805, section 4.2).

    Args:
      module: the encoder.
      tx: the optimizer.
      soft_label_weight: from 0 to 1, how much of the loss the teacher's soft labels are
        instead, see `losses.soft_label_loss`, out of batch["soft"].
      temperature: of the soft labels.
      frozen: whether the head alone has a gradient.

    Returns:
      step(state, batch, key) -> (state, {"loss": ...}); state is {"params",
      "optimizer"}.
    """

    def step(state, batch, key):
        def loss_fn(params):
            if frozen:
                params = {
                    name: value
                    if _is_head_param(name)
                    else jax.lax.stop_gradient(value)
                    for name, value in params.items()
                }
            logits = span_logits(module, params, batch, key).swapaxes(1, 2)
            loss = losses.cross_entropy(logits, batch["label"]).mean()
            if soft_label_weight:
                teacher_logits = batch["soft"].swapaxes(1, 2)
                soft_loss = losses.soft_label_loss(
                    logits, teacher_logits, temperature
                ).mean()
                loss = (1 - soft_label_weight) * loss + soft_label_weight * soft_loss
            return loss

        loss, grads = jax.value_and_grad(loss_fn)(state["params"])
        return optimizer.apply_gradients(tx, grads, state), {"loss": loss}

    return step


def finetune_spans(
    module: Module,
    params_fn: Callable[[int], dict],
    data: SpanData,
    settings: Mapping[str, Any],
    mesh: Mesh,
    seeds: Sequence[int],
    label: str,
    frozen: bool = False,
) -> list[SpanFinetuneResult]:
    """Trains encoder and head, once a seed; keeps the epoch of the best F1 of each.

    Args:
      module, params_fn, mesh, seeds, label: see `classification.finetune_classifier`.
      data: what is learned from, and what is answered.
      settings: as there; to learn from data.train["soft"] also "soft" (its weight, 0 to
        1) and "temperature".
      frozen: whether the head alone is trained, at a learning rate of its own.

    Returns:
      A result for each seed.
    """
    module = module.clone(unroll=True)  # As in `finetune_classifier`.
    rate = {"learning_rate": _FROZEN_RATE} if frozen else {}
    steps = loop.total_steps(data.train, settings)
    tx = optimizer.make_optimizer({**settings, **rate}, steps, build.param_axes(module))
    if frozen:
        # Their gradient is 0, and weight decay must not move them either.
        tx = optax.chain(
            tx,
            optax.masked(
                optax.set_to_zero(),
                lambda params: {name: not _is_head_param(name) for name in params},
            ),
        )
    soft = (settings.get("soft", 0.0), settings.get("temperature", 1.0))
    step = jax.jit(span_step(module, tx, *soft, frozen), donate_argnums=0)
    logits_fn = jax.jit(partial(span_logits, module))

    def init_fn(seed, key):
        return build.unstack_layers(params_fn(seed)) | init_span_head(
            key, module.arch.hidden
        )

    def answer(params):
        logits = loader.map_batches(
            partial(logits_fn, params), data.dev.rows, settings["batch_size"], mesh
        )
        return squad_windows.decode_answers(data.dev, data.questions, logits)

    def score_fn(params):
        return squad.squad_score(answer(params), data.questions)["f1"] / 100

    results = []
    for scores, best in loop.train_seeds(
        step, tx, init_fn, data.train, score_fn, settings, mesh, seeds, label
    ):
        answers = answer(best)
        percentages = squad.squad_score(answers, data.questions)
        metrics = {name: value / 100 for name, value in percentages.items()}
        results.append(
            SpanFinetuneResult(scores, build.stack_layers(best), metrics, answers)
        )
    return results


def teacher_span_logits(
    module: Module, params: dict, data: SpanData, batch_size: int, mesh: Mesh
) -> np.ndarray:
    """A fine-tuned teacher's logits of the rows to learn from.

    Made once for all students, seeds and epochs: 3 KB a row of 384 tokens.

    Args:
      module, params: the teacher and its head.
      data: the rows, as `train`.
      batch_size: in rows.
      mesh: the devices.

    Returns:
      `span_logits` of all rows, [N, L, 2].
    """
    logits_fn = partial(jax.jit(partial(span_logits, module)), params)
    train = {
        name: data.train[name]
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    return loader.map_batches(logits_fn, train, batch_size, mesh)


def _is_head_param(name: str) -> bool:
    return name.startswith("head_")
