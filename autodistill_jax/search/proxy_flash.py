"""The proxy "flash": how good an Arch is after a short block-wise transfer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from autodistill_jax import sharding
from autodistill_jax.data import loader
from autodistill_jax.data.mlm import mask_tokens
from autodistill_jax.models import heads
from autodistill_jax.search.study_loop import TrialPruned
from autodistill_jax.train import flash_distillation, pretraining


def flash_proxy(
    transfer: flash_distillation.BlockwiseTransfer,
    train_batches: loader.TrainBatches,
    rows: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    seed: int,
    label: str,
    finished_losses: Sequence[float] = (),
) -> dict[str, float]:
    """Trains a candidate by a fraction of the steps of a transfer, and evaluates it.

    Under a teacher with an MLM head the proxy is 1 - the candidate's accuracy on the
    held-out `rows`: on masked tokens, and, where the rows are pairs, on next sentences
    (the mean of the two). Under any other it is the loss of the transfer when all
    blocks are done, and there is no last stage.

    Args:
      transfer: the candidate, and its teacher.
      train_batches: training batches by step.
      rows: held-out token rows, {name: [rows, ...]}.
      settings: of `flash_distillation.train_blockwise`, and step_fraction; batch_size,
        of the evaluation; prune_factor: above so many times the median of
        `finished_losses` a candidate stops when its blocks are done; 0: never.
      mesh: the devices.
      seed: of dropout and of the masked tokens.
      label: what the progress is said to be of.
      finished_losses: the transfer losses of the candidates before this one.

    Returns:
      {"proxy": lower is better, "transfer": the transfer's loss, "accuracy_...": each
      accuracy}.

    Raises:
      TrialPruned: it was stopped by the rule of prune_factor.
    """
    size = settings["batch_size"]
    loss_fn = heldout_block_loss(transfer, rows, size, mesh, seed)
    fields = {}

    def prune_if_poor(params):
        fields["transfer"] = loss_fn(params)
        limit = (
            settings["prune_factor"] * float(np.median(finished_losses))
            if finished_losses
            else 0.0
        )
        if limit and fields["transfer"] > limit:
            raise TrialPruned(
                f"transfer loss {fields['transfer']:.4f}, over "
                f"flash_distillation.prune_factor {settings['prune_factor']:g} times "
                "the median"
            )

    has_mlm_head = "logits" in transfer.objective.weights
    if not has_mlm_head:
        transfer = transfer._replace(objective=transfer.objective._replace(weights={}))
    params = flash_distillation.train_blockwise(
        transfer,
        train_batches,
        settings,
        settings["step_fraction"],
        mesh,
        seed,
        label,
        on_blocks_end=prune_if_poor,
    )
    if not has_mlm_head:
        return {"proxy": fields["transfer"], **fields}
    accuracies = pretraining.pretraining_accuracies(
        transfer.module.clone(dropout=0.0),
        heads.encoder_params(params),
        heads.head_params(params),
        rows,
        transfer.objective.masking,
        mesh,
        batch_size=size,
        seed=seed,
    )
    accuracy_fields = {f"accuracy_{name}": value for name, value in accuracies.items()}
    return {
        "proxy": 1 - float(np.mean(list(accuracies.values()))),
        **accuracy_fields,
        **fields,
    }


def heldout_block_loss(
    transfer: flash_distillation.BlockwiseTransfer,
    rows: Mapping[str, np.ndarray],
    batch_size: int,
    mesh: jax.sharding.Mesh,
    seed: int,
) -> Callable[[Mapping[str, jax.Array]], float]:
    """What the blocks of a transfer learn to lower, as a mean over held-out rows.

    Args:
      transfer: the student, and its teacher.
      rows: held-out token rows, {name: [rows, ...]}.
      batch_size: rows a batch.
      mesh: the devices.
      seed: of the masked tokens.

    Returns:
      loss(params): the mean over blocks and rows.
    """
    vocab = transfer.module.dims.vocab
    rows = jax.tree.map(
        np.asarray,
        mask_tokens(jax.random.key(seed), rows, vocab, transfer.objective.masking),
    )
    teacher_params = jax.device_put(
        dict(transfer.teacher_params), sharding.replicated(mesh)
    )
    block_loss_fn = block_loss_program(transfer)

    def loss(params):
        block_losses = [
            loader.map_batches(
                lambda batch, k=k: block_loss_fn(
                    params, teacher_params, batch, jnp.int32(k)
                ),
                rows,
                batch_size,
                mesh,
            ).mean()
            for k in range(transfer.module.arch.layers)
        ]
        return float(np.mean(block_losses))

    return loss


def block_loss_program(
    transfer: flash_distillation.BlockwiseTransfer,
) -> jax.stages.Wrapped:
    """The jitted loss(params, teacher_params, batch, k) of block k, [B]: one program
    for all blocks of a transfer."""
    return jax.jit(
        lambda p, t, b, k: flash_distillation.block_loss(transfer, p, t, b, k)["total"]
    )
