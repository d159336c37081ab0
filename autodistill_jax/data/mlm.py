"""BERT-style MLM masking (80/10/10) and its labels."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from autodistill_jax.data.tokenization import SpecialTokens


class MlmMasking(NamedTuple):
    """Which tokens are masked, and by what.

    Attributes:
      mlm_probability: the fraction of a row's tokens that is chosen; at least one token
        where there is any. 0: none.
      max_predictions_per_seq: the most tokens of a row that are chosen.
      special_tokens: of `tokenization.special_tokens`; needed where tokens are chosen.
    """

    mlm_probability: float = 0.0
    max_predictions_per_seq: int = 20
    special_tokens: SpecialTokens | None = None


def mask_tokens(
    key: jax.Array,
    batch: Mapping[str, jax.Array | np.ndarray],
    vocab: int,
    masking: MlmMasking,
) -> dict[str, jax.Array | np.ndarray]:
    """The batch with some of its tokens masked, anew for every key.

    Of the tokens chosen 80 % become the mask token, 10 % a random one, and 10 % stay
    (BERT, arXiv 1810.04805, section 3.1). [CLS], [SEP] and padding are never chosen.

    Args:
      key: of the choice.
      batch: `input_ids` and `attention_mask`, [B, L]; whatever else is in it stays.
      vocab: how many tokens there are.
      masking: which are chosen; static under `jax.jit`.

    Returns:
      The batch as it is where none are chosen; else with `input_ids` so changed, and
      [B, K] each: `masked_positions` of the chosen tokens, `masked_labels`, the ids that
      stood there, and `masked_weights` (1, or 0 where a row has fewer than K).
    """
    if not masking.mlm_probability:
        return dict(batch)
    mlm_probability, max_predictions_per_seq, special_tokens = masking
    assert special_tokens is not None  # `parse_objective` sees to it.
    input_ids = jnp.asarray(batch["input_ids"])
    attention_mask = jnp.asarray(batch["attention_mask"], bool)
    length = input_ids.shape[1]
    maskable = (
        attention_mask
        & (input_ids != special_tokens.cls_token_id)
        & (input_ids != special_tokens.sep_token_id)
    )
    num_maskable = maskable.sum(axis=1)
    max_masked = min(
        max_predictions_per_seq, max(1, math.ceil(mlm_probability * length))
    )
    num_masked = jnp.clip(jnp.round(mlm_probability * num_maskable), 1, max_masked)
    num_masked = jnp.minimum(num_masked, num_maskable)
    position_key, action_key, random_id_key = jax.random.split(key, 3)
    noise = jnp.where(maskable, jax.random.uniform(position_key, input_ids.shape), -1.0)
    _, positions = jax.lax.top_k(noise, max_masked)
    is_masked = jnp.arange(max_masked) < num_masked[:, None]
    labels = jnp.take_along_axis(input_ids, positions, axis=1)
    action = jax.random.uniform(action_key, positions.shape)
    random_ids = jax.random.randint(
        random_id_key, positions.shape, 0, vocab, input_ids.dtype
    )
    masked_ids = jnp.where(
        action < 0.8,
        special_tokens.mask_token_id,
        jnp.where(action < 0.9, random_ids, labels),
    )
    masked_ids = jnp.where(is_masked, masked_ids, labels).astype(input_ids.dtype)
    rows = jnp.arange(input_ids.shape[0])[:, None]
    return {
        **batch,
        "input_ids": input_ids.at[rows, positions].set(masked_ids),
        "masked_positions": positions,
        "masked_labels": labels,
        "masked_weights": is_masked.astype(jnp.float32),
    }
