"""How good is an Arch after a short transfer? The proxy "flash"."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from autodistill_jax import sharding
from autodistill_jax.data import loader
from autodistill_jax.models import heads
from autodistill_jax.search.study_loop import TrialPruned
from autodistill_jax.train import distillation, flash_distillation, pretraining


def flash_proxy(
    transfer: flash_distillation.BlockwiseTransfer,
    feed: Sequence[Mapping[str, np.ndarray]],
    rows: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    seed: int,
    what: str,
    others: Sequence[float] = (),
) -> dict[str, float]:
    """Trains a candidate by `settings["step_fraction"]` of the steps: {"proxy": ..., and what
    else is known}, lower is better.

    Under a teacher with a masked-word head the proxy is 1 - its accuracy on the held-out
    `rows`: on hidden words, and, where the rows are pairs, on next sentences (the mean
    of the two). Under any other it is the loss of the transfer
    when all blocks are done, and there is no last stage.

    Args:
      settings: see `flash_distillation.train_blockwise`; batch_size for the rows, too; prune_factor: above so many times
        the median of the transfer losses of `others` a candidate stops there; 0: never.

    Raises:
      Unpromising: it was stopped by that rule.
    """
    size = settings["batch_size"]
    loss = heldout_block_loss(transfer, rows, size, mesh, seed)
    found = {}

    def judge(params):
        found["transfer"] = loss(params)
        limit = settings["prune_factor"] * float(np.median(others)) if others else 0.0
        if limit and found["transfer"] > limit:
            raise TrialPruned(
                f"transfer loss {found['transfer']:.4f}, over flash_distillation.prune_factor "
                f"{settings['prune_factor']:g} times the median"
            )

    headed = "logits" in transfer.objective.weights
    if not headed:
        transfer = transfer._replace(objective=transfer.objective._replace(weights={}))
    params = flash_distillation.train_blockwise(
        transfer,
        feed,
        settings,
        settings["step_fraction"],
        mesh,
        seed,
        what,
        judge=judge,
    )
    if not headed:
        return {"proxy": found["transfer"], **found}
    objective = transfer.objective
    right = pretraining.pretraining_accuracies(
        transfer.module.clone(dropout=0.0),
        heads.encoder_params(params),
        heads.head_params(params),
        rows,
        objective.special_tokens,
        mesh,
        fraction=objective.mlm_probability,
        at_most=objective.max_predictions_per_seq,
        batch_size=size,
        seed=seed,
    )
    told = {f"accuracy_{name}": value for name, value in right.items()}
    return {"proxy": 1 - float(np.mean(list(right.values()))), **told, **found}


def heldout_block_loss(
    transfer: flash_distillation.BlockwiseTransfer,
    rows: Mapping[str, np.ndarray],
    batch_size: int,
    mesh: jax.sharding.Mesh,
    seed: int,
) -> Callable[[Mapping[str, jax.Array]], float]:
    """loss(params): the mean over blocks and held-out rows of what the blocks learn."""
    vocab = transfer.module.dims.vocab
    rows = jax.tree.map(
        np.asarray,
        dict(distillation.shown(rows, transfer.objective, vocab, jax.random.key(seed))),
    )
    theirs = jax.device_put(dict(transfer.teacher_params), sharding.replicated(mesh))
    one = block_loss_program(transfer)

    def loss(params):
        blocks = [
            loader.map_batches(
                lambda batch, k=k: one(params, theirs, batch, jnp.int32(k)),
                rows,
                batch_size,
                mesh,
            ).mean()
            for k in range(transfer.module.arch.layers)
        ]
        return float(np.mean(blocks))

    return loss


def block_loss_program(transfer: flash_distillation.BlockwiseTransfer) -> Callable:
    """loss(params, teacher_params, batch, k) of block k, [B]: one program for all."""
    return jax.jit(
        lambda p, t, b, k: flash_distillation.block_loss(transfer, p, t, b, k)["total"]
    )
