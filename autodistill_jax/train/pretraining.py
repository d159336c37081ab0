"""How is a network trained on text alone? Hidden words, and next sentences.

BERT (arXiv 1810.04805, section 3.1); MobileBERT (arXiv 2004.02984) has the same task.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from autodistill_jax import sharding
from autodistill_jax.data import loader
from autodistill_jax.data.mlm import mask_tokens
from autodistill_jax.data.tokenization import SpecialTokens
from autodistill_jax.models import build, heads
from autodistill_jax.models.build import Module
from autodistill_jax.models.heads import encoder_params
from autodistill_jax.train import distillation, loop, losses, optimizer
from autodistill_jax.train.objective import Objective


def pretraining_logits(
    module: Module,
    params: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """{"mlm": [B, K, V] at the batch's `masked_positions`, "nsp": [B, 2]}.

    "nsp" is there where `params` have its head. params: the network's and its heads',
    see `heads.init_mlm_head` and `heads.init_nsp_head`. key: for dropout; None turns it off.
    """
    out = module.apply(
        {"params": encoder_params(params)},
        batch["input_ids"],
        batch["attention_mask"],
        token_type_ids=batch.get("token_type_ids"),
        key=key,
    )
    made = {
        "mlm": heads.mlm_logits(
            params,
            params["embeddings_word"],
            out.hidden,
            batch["masked_positions"],
            module.arch.hidden,
            module.dims,
            module.dtype,
            module.mesh,
        )
    }
    if "nsp_kernel" in params:
        made["nsp"] = heads.nsp_logits(params, out.pooler)
    return made


def make_pretraining_step(
    module: Module,
    moves: optax.GradientTransformation,
    special: SpecialTokens,
    fraction: float,
    at_most: int,
    parts: int = 1,
) -> Callable:
    """step(state, batch, key) -> (state, {"loss", "mlm" and, of pairs, "nsp"}).

    The loss is the mean cross-entropy of the hidden words, hidden anew at every step,
    plus that of `nsp`. state: {"params": of `pretraining_logits`, "optimizer"}; fraction, at_most:
    of `hide`; parts: see `optimizer.accumulate_gradients`.
    """
    axes = build.param_axes(module)

    def step(state, batch, key):
        of_words, of_dropout = jax.random.split(key)
        vocab = module.dims.vocab
        batch = mask_tokens(of_words, batch, special, vocab, fraction, at_most)
        # Of a part's share of them: parts have not equally many.
        hidden = jnp.maximum(batch["masked_weights"].sum(), 1) / parts

        def loss(params, rows, i):
            key = None
            if module.dropout:
                key = of_dropout if parts == 1 else jax.random.fold_in(of_dropout, i)
            made = pretraining_logits(module, params, rows, key)
            each = losses.cross_entropy(made["mlm"], rows["masked_labels"])
            values = {"mlm": (each * rows["masked_weights"]).sum() / hidden}
            if "nsp" in made:
                values["nsp"] = losses.cross_entropy(
                    made["nsp"], rows["next_sentence_label"]
                ).mean()
            total = sum(values.values())
            return total, {"loss": total, **values}

        gradient, values = optimizer.accumulate_gradients(
            functools.partial(jax.grad(loss, has_aux=True), state["params"]),
            batch,
            parts,
            module.mesh,
        )
        return optimizer.apply_gradients(
            moves, gradient, state, axes, module.mesh
        ), values

    return jax.jit(step, donate_argnums=0)


def pretraining_accuracies(
    module: Module,
    params: Mapping[str, jax.Array],
    head: Mapping[str, jax.Array],
    rows: Mapping[str, np.ndarray],
    special: SpecialTokens,
    mesh: Mesh,
    *,
    fraction: float = 0.15,
    at_most: int = 20,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """{"mlm": of hidden words named right, "nsp": of next sentences told right}.

    The same words are hidden every time, for whatever network and batch size. "nsp" is
    there where the rows are pairs and the head has it.

    Args:
      module, params: the network.
      head: `heads.init_mlm_head`'s parameters, with or without `heads.init_nsp_head`'s.
      rows: held-out token rows; `token_type_ids` and `nsp` beside them where they are pairs.
      special, fraction, at_most: of `hide`.
    """
    asks_next = "next_sentence_label" in rows and "nsp_kernel" in head
    hidden = _mask_once(
        jax.random.key(seed),
        {
            name: rows[name]
            for name in rows
            if asks_next or name != "next_sentence_label"
        },
        special,
        module.dims.vocab,
        fraction,
        at_most,
    )
    both = jax.device_put({**params, **head}, sharding.replicated(mesh))
    counts = [
        jax.tree.map(
            sharding.to_host, _count_right(module, both, loader.to_devices(batch, mesh))
        )
        for batch in loader.eval_batches(jax.tree.map(np.asarray, hidden), batch_size)
    ]
    totals = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *counts)
    return {name: float(hit / max(of, 1)) for name, (hit, of) in totals.items()}


# Compiled once for a shape: many networks of one module are asked the same.
_mask_once = jax.jit(mask_tokens, static_argnums=(2, 3, 4, 5))


@functools.partial(jax.jit, static_argnums=0)
def _count_right(module, params, batch):
    """{name: (right, of how many)} of a batch with words hidden."""
    made, real = (
        pretraining_logits(module, params, batch),
        batch["valid_rows"].astype(jnp.float32),
    )

    def right(name, labels, weight):
        hit = made[name].argmax(axis=-1) == labels
        return jnp.stack([(hit * weight).sum(), weight.sum()])

    counts = {
        "mlm": right(
            "mlm", batch["masked_labels"], batch["masked_weights"] * real[:, None]
        )
    }
    if "next_sentence_label" in batch:
        counts["nsp"] = right("nsp", batch["next_sentence_label"], real)
    return counts


def fit_mlm_head(
    module: Module,
    params: dict,
    feed: Sequence[Mapping[str, np.ndarray]],
    held_out: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    objective: Objective,
    mesh: Mesh,
    seed: int,
    what: str,
) -> tuple[dict[str, np.ndarray], float]:
    """Trains a head tied to the teacher's word embeddings; the body stays as it is.

    Args:
      module, params: the teacher.
      feed: training batches by step.
      held_out: rows to judge it on.
      settings: the distill section; `mlm_head_steps` steps of it.

    Returns:
      (the head's parameters, see `heads.init_mlm_head`; the fraction of hidden words of the
      held-out rows that it names right).
    """
    dims = module.dims
    steps = settings["mlm_head_steps"]
    key = jax.random.key(seed)
    head = heads.init_mlm_head(module.arch.hidden, dims)
    moves = optimizer.make_optimizer(settings, steps, {})
    everywhere = sharding.replicated(mesh)
    state = {"params": head, "optimizer": moves.init(head)}
    state = jax.device_put(state, everywhere)
    body = jax.device_put(params, everywhere)

    def logits(head, body, batch):
        out = module.apply(
            {"params": body},
            batch["input_ids"],
            batch["attention_mask"],
            token_type_ids=batch.get("token_type_ids"),
        )
        return heads.mlm_logits(
            head,
            body["embeddings_word"],
            jax.lax.stop_gradient(out.hidden),
            batch["masked_positions"],
            module.arch.hidden,
            dims,
            module.dtype,
            module.mesh,
        )

    @jax.jit
    def step(state, body, batch, key):
        batch = distillation.shown(batch, objective, dims.vocab, key)

        def loss(head):
            made = logits(head, body, batch)
            each = losses.cross_entropy(made, batch["masked_labels"])
            return (each * batch["masked_weights"]).sum() / batch[
                "masked_weights"
            ].sum()

        value, gradient = jax.value_and_grad(loss)(state["params"])
        return optimizer.apply_gradients(moves, gradient, state), {"loss": value}

    state = loop.fit(
        step,
        state,
        lambda i: (
            body,
            loader.batch_at_step(feed, i, mesh),
            jax.random.fold_in(key, i),
        ),
        steps,
        what=what,
    )

    @jax.jit
    def right(head, body, batch, key):
        batch = distillation.shown(batch, objective, dims.vocab, key)
        hit = logits(head, body, batch).argmax(axis=-1) == batch["masked_labels"]
        weight = batch["masked_weights"] * batch["valid_rows"][:, None]
        return jnp.stack([(hit * weight).sum(), weight.sum()])

    counts = sum(
        sharding.to_host(
            right(state["params"], body, loader.to_devices(batch, mesh), key)
        )
        for batch in loader.eval_batches(held_out, settings["batch_size"])
    )
    return jax.tree.map(sharding.to_host, state["params"]), float(counts[0] / counts[1])
