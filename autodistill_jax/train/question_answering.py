"""How does an encoder learn where answers stand? A linear layer on every token."""

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
    """What is learned from, see `squad_windows.training_windows`, and what is answered.

    train: also "soft" [N, L, 2], where a teacher's logits are learned from.
    """

    train: dict[str, np.ndarray]
    dev: squad_windows.Windows
    questions: Sequence[squad.Question]


class SpanFinetuneResult(NamedTuple):
    """What one seed gave.

    scores: F1 of every epoch. params: of the best epoch. parts: {"exact_match", "f1"}
    of it, fractions. answers: its answers by the questions' ids.
    """

    scores: list[float]
    params: dict[str, np.ndarray]
    parts: dict[str, float]
    answers: dict[str, str]


def init_span_head(key: jax.Array, hidden: int) -> dict[str, jax.Array]:
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
    """[B, L, 2]: of each token as the first and as the last of the answer; -1e30 where
    there is padding."""
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
    made = hidden @ params["head_kernel"] + params["head_bias"]
    return jnp.where(batch["attention_mask"][:, :, None] > 0, made, -1e30)


def span_step(
    module: Module,
    moves: optax.GradientTransformation,
    soft: float,
    temperature: float,
    frozen: bool,
) -> Callable:
    """step(state, batch, key) -> (state, {"loss": ...}), not yet compiled.

    The mean of both ends' cross-entropies over the tokens of a window (BERT, arXiv
    1810.04805, section 4.2), and `soft` of it instead the teacher's soft labels, see
    `losses.soft_label_loss`, out of batch["soft"].
    """

    def step(state, batch, key):
        def loss(params):
            if frozen:
                params = {
                    name: value
                    if _is_head_param(name)
                    else jax.lax.stop_gradient(value)
                    for name, value in params.items()
                }
            made = span_logits(module, params, batch, key).swapaxes(1, 2)
            value = losses.cross_entropy(made, batch["label"]).mean()
            if soft:
                theirs = batch["soft"].swapaxes(1, 2)
                taught = losses.soft_label_loss(made, theirs, temperature).mean()
                value = (1 - soft) * value + soft * taught
            return value

        value, gradient = jax.value_and_grad(loss)(state["params"])
        return optimizer.apply_gradients(moves, gradient, state), {"loss": value}

    return step


def finetune_spans(
    module: Module,
    params: Callable[[int], dict],
    rows: SpanData,
    settings: Mapping[str, Any],
    mesh: Mesh,
    seeds: Sequence[int],
    what: str,
    frozen: bool = False,
) -> list[SpanFinetuneResult]:
    """Trains encoder and head, or with `frozen` the head alone, once a seed; keeps the
    epoch of the best F1 of each.

    Args:
      settings: as of `classification.finetune_classifier`; to learn from rows.train["soft"] also
        "soft" (its weight, 0 to 1) and "temperature".
      module, params, seeds, what: as there.
    """
    module = module.clone(unroll=True)  # As there.
    rate = {"learning_rate": _FROZEN_RATE} if frozen else {}
    steps = loop.total_steps(rows.train, settings)
    moves = optimizer.make_optimizer(
        {**settings, **rate}, steps, build.param_axes(module)
    )
    if frozen:
        # Their gradient is 0, and weight decay must not move them either.
        moves = optax.chain(
            moves,
            optax.masked(
                optax.set_to_zero(),
                lambda params: {name: not _is_head_param(name) for name in params},
            ),
        )
    soft = (settings.get("soft", 0.0), settings.get("temperature", 1.0))
    step = jax.jit(span_step(module, moves, *soft, frozen), donate_argnums=0)
    read = jax.jit(partial(span_logits, module))

    def first(seed, key):
        return build.unstack_layers(params(seed)) | init_span_head(
            key, module.arch.hidden
        )

    def answered(params):
        found = loader.map_batches(
            partial(read, params), rows.dev.rows, settings["batch_size"], mesh
        )
        return squad_windows.decode_answers(rows.dev, rows.questions, found)

    def judge(params):
        return squad.squad_score(answered(params), rows.questions)["f1"] / 100

    results = []
    for seed in seeds:
        told = f"{what}, seed {seed}" if len(seeds) > 1 else what
        scores, best = loop.train_epochs(
            step, moves, first, rows.train, judge, settings, mesh, seed, told
        )
        told = answered(best)
        figures = squad.squad_score(told, rows.questions)
        parts = {name: value / 100 for name, value in figures.items()}
        results.append(
            SpanFinetuneResult(scores, build.stack_layers(best), parts, told)
        )
    return results


def teacher_span_logits(
    module: Module, params: dict, rows: SpanData, batch_size: int, mesh: Mesh
) -> np.ndarray:
    """A fine-tuned teacher's logits of the rows to learn from, [N, L, 2], made once
    for all students, seeds and epochs: 3 KB a row of 384 tokens."""
    read = partial(jax.jit(partial(span_logits, module)), params)
    train = {
        name: rows.train[name]
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    return loader.map_batches(read, train, batch_size, mesh)


def _is_head_param(name: str) -> bool:
    return name.startswith("head_")
