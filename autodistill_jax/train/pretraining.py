"""Pre-training on text alone: masked LM and next-sentence prediction.

BERT (arXiv 1810.04805, section 3.1); MobileBERT (arXiv 2004.02984) has the same task.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from autodistill_jax import sharding
from autodistill_jax.data import loader
from autodistill_jax.data.mlm import MlmMasking, mask_tokens
from autodistill_jax.models import build, heads
from autodistill_jax.models.build import Module
from autodistill_jax.models.heads import encoder_params
from autodistill_jax.train import loop, losses, optimizer
from autodistill_jax.train.objective import Objective


def module_mlm_logits(
    module: Module,
    params: Mapping[str, jax.Array],
    hidden: jax.Array,
    positions: jax.Array,
    num_channels: Any = None,
) -> jax.Array:
    """The masked-LM logits of a network with its own head.

    Args:
      module: the network, or a SuperLM.
      params: its masked-LM head's, and `embeddings_word`, which the head is tied to.
      hidden: its last hidden states, [B, L, D].
      positions: of the masked tokens, [B, K] int32.
      num_channels: hidden channels in use, int32 inside a SuperLM; None: all.

    Returns:
      [B, K, V], see `heads.mlm_logits`.
    """
    return heads.mlm_logits(
        params,
        params["embeddings_word"],
        hidden,
        positions,
        module.arch.hidden if num_channels is None else num_channels,
        module.dims,
        module.dtype,
        module.mesh,
    )


def pretraining_logits(
    module: Module,
    params: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The logits of a network's masked-LM head, and of its next-sentence head.

    Args:
      module: the network.
      params: its own and its heads', see `heads.init_mlm_head`, `heads.init_nsp_head`.
      batch: of `mlm.mask_tokens`.
      key: for dropout; None turns it off.

    Returns:
      {"mlm": [B, K, V] at the batch's `masked_positions`}, and, where `params` have its
      head, "nsp": [B, 2].
    """
    out = module.apply(
        {"params": encoder_params(params)},
        batch["input_ids"],
        batch["attention_mask"],
        token_type_ids=batch.get("token_type_ids"),
        key=key,
    )
    logits = {
        "mlm": module_mlm_logits(module, params, out.hidden, batch["masked_positions"])
    }
    if "nsp_kernel" in params:
        logits["nsp"] = heads.nsp_logits(params, out.pooler)
    return logits


def make_pretraining_step(
    module: Module,
    tx: optax.GradientTransformation,
    masking: MlmMasking,
    gradient_accumulation_steps: int = 1,
) -> jax.stages.Wrapped:
    """The compiled step of pre-training.

    The loss is the mean cross-entropy of the masked tokens, masked anew at every step,
    plus that of the next sentence where the parameters have its head.

    Args:
      module: the network.
      tx: the optimizer.
      masking: see `mlm.mask_tokens`.
      gradient_accumulation_steps: micro-batches, see `optimizer.accumulate_gradients`.

    Returns:
      step(state, batch, key) -> (state, {"loss", "mlm" and, of pairs, "nsp"}); state is
      {"params": of `pretraining_logits`, "optimizer"}.
    """
    axes = build.param_axes(module)

    def step(state, batch, key):
        masking_key, dropout_key = jax.random.split(key)
        batch = mask_tokens(masking_key, batch, module.dims.vocab, masking)
        # Of a part's share of them: parts have not equally many.
        num_masked = jnp.maximum(batch["masked_weights"].sum(), 1)
        num_masked /= gradient_accumulation_steps

        def loss_fn(params, rows, i):
            key = None
            if module.dropout:
                key = (
                    dropout_key
                    if gradient_accumulation_steps == 1
                    else jax.random.fold_in(dropout_key, i)
                )
            logits = pretraining_logits(module, params, rows, key)
            token_losses = losses.cross_entropy(logits["mlm"], rows["masked_labels"])
            values = {"mlm": (token_losses * rows["masked_weights"]).sum() / num_masked}
            if "nsp" in logits:
                values["nsp"] = losses.cross_entropy(
                    logits["nsp"], rows["next_sentence_label"]
                ).mean()
            total = sum(values.values())
            return total, {"loss": total, **values}

        grads, values = optimizer.accumulate_gradients(
            functools.partial(jax.grad(loss_fn, has_aux=True), state["params"]),
            batch,
            gradient_accumulation_steps,
            module.mesh,
        )
        return optimizer.apply_gradients(tx, grads, state, axes, module.mesh), values

    return jax.jit(step, donate_argnums=0)


def pretraining_accuracies(
    module: Module,
    params: Mapping[str, jax.Array],
    head: Mapping[str, jax.Array],
    rows: Mapping[str, np.ndarray],
    masking: MlmMasking,
    mesh: Mesh,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """The accuracies of a network's heads on held-out rows.

    The same tokens are masked every time, for whatever network and batch size.

    Args:
      module, params: the network.
      head: `heads.init_mlm_head`'s parameters, with or without `heads.init_nsp_head`'s.
      rows: held-out token rows; `token_type_ids` and `next_sentence_label` beside them
        where they are pairs.
      masking: see `mlm.mask_tokens`.
      mesh: the devices.
      batch_size: in rows.
      seed: of the masked tokens.

    Returns:
      {"mlm": the fraction of masked tokens named right}, and, where the rows are pairs
      and the head has it, "nsp": of next sentences told right.
    """
    has_nsp = "next_sentence_label" in rows and "nsp_kernel" in head
    masked_rows = _mask_once(
        jax.random.key(seed),
        {name: rows[name] for name in rows if has_nsp or name != "next_sentence_label"},
        module.dims.vocab,
        masking,
    )
    all_params = jax.device_put({**params, **head}, sharding.replicated(mesh))
    counts = [
        jax.tree.map(
            sharding.to_host,
            _count_right(module, all_params, loader.to_devices(batch, mesh)),
        )
        for batch in loader.eval_batches(
            jax.tree.map(np.asarray, masked_rows), batch_size
        )
    ]
    totals = jax.tree.map(lambda *counts: np.sum(counts, axis=0), *counts)
    return {
        name: float(right / max(count, 1)) for name, (right, count) in totals.items()
    }


# Compiled once for a shape: many networks of one module are evaluated on the same rows.
_mask_once = jax.jit(mask_tokens, static_argnums=(2, 3))


@functools.partial(jax.jit, static_argnums=0)
def _count_right(module, params, batch):
    """{name: (right, of how many)} of a batch with masked tokens."""
    logits = pretraining_logits(module, params, batch)
    valid = batch["valid_rows"].astype(jnp.float32)

    def right_and_count(name, labels, weight):
        hit = logits[name].argmax(axis=-1) == labels
        return jnp.stack([(hit * weight).sum(), weight.sum()])

    counts = {
        "mlm": right_and_count(
            "mlm", batch["masked_labels"], batch["masked_weights"] * valid[:, None]
        )
    }
    if "next_sentence_label" in batch:
        counts["nsp"] = right_and_count("nsp", batch["next_sentence_label"], valid)
    return counts


def fit_mlm_head(
    module: Module,
    params: dict,
    train_batches: loader.TrainBatches,
    held_out: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    objective: Objective,
    mesh: Mesh,
    seed: int,
    label: str,
) -> tuple[dict[str, np.ndarray], float]:
    """Trains a masked-LM head tied to the teacher's word embeddings.

    The teacher's encoder stays as it is.

    Args:
      module, params: the teacher.
      train_batches: training batches by step.
      held_out: rows to evaluate it on.
      settings: the distill section; `mlm_head_steps` steps of it.
      objective: how tokens are masked.
      mesh: the devices.
      seed: of the masked tokens.
      label: of the progress line.

    Returns:
      (the head's parameters, see `heads.init_mlm_head`; the fraction of masked tokens
      of the held-out rows that it names right).
    """
    dims = module.dims
    steps = settings["mlm_head_steps"]
    key = jax.random.key(seed)
    head = heads.init_mlm_head(module.arch.hidden, dims)
    settings = {**settings, "optimizer": "adamw"}  # Muon is for a network's layers.
    tx = optimizer.make_optimizer(settings, steps, {})
    replicated = sharding.replicated(mesh)
    state = {"params": head, "optimizer": tx.init(head)}
    state = jax.device_put(state, replicated)
    encoder = jax.device_put(params, replicated)

    def logits_fn(head, encoder, batch):
        out = module.apply(
            {"params": encoder},
            batch["input_ids"],
            batch["attention_mask"],
            token_type_ids=batch.get("token_type_ids"),
        )
        hidden = jax.lax.stop_gradient(out.hidden)
        return module_mlm_logits(
            module, {**encoder, **head}, hidden, batch["masked_positions"]
        )

    @jax.jit
    def step(state, encoder, batch, key):
        batch = mask_tokens(key, batch, dims.vocab, objective.masking)

        def loss_fn(head):
            logits = logits_fn(head, encoder, batch)
            token_losses = losses.cross_entropy(logits, batch["masked_labels"])
            weights = batch["masked_weights"]
            return (token_losses * weights).sum() / weights.sum()

        loss, grads = jax.value_and_grad(loss_fn)(state["params"])
        return optimizer.apply_gradients(tx, grads, state), {"loss": loss}

    state = loop.fit(
        step,
        state,
        lambda i: (
            encoder,
            loader.batch_at_step(train_batches, i, mesh),
            jax.random.fold_in(key, i),
        ),
        steps,
        label=label,
    )

    @jax.jit
    def right_and_count(head, encoder, batch, key):
        batch = mask_tokens(key, batch, dims.vocab, objective.masking)
        hit = logits_fn(head, encoder, batch).argmax(axis=-1) == batch["masked_labels"]
        weight = batch["masked_weights"] * batch["valid_rows"][:, None]
        return jnp.stack([(hit * weight).sum(), weight.sum()])

    counts = sum(
        sharding.to_host(
            right_and_count(
                state["params"], encoder, loader.to_devices(batch, mesh), key
            )
        )
        for batch in loader.eval_batches(held_out, settings["batch_size"])
    )
    return jax.tree.map(sharding.to_host, state["params"]), float(counts[0] / counts[1])
