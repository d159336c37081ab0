"""Which words are hidden from a network, and what stood there?"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from autodistill_jax.data.tokenization import SpecialTokens


def mask_tokens(
    key: jax.Array,
    batch: Mapping[str, jax.Array],
    special: SpecialTokens,
    vocab: int,
    fraction: float,
    at_most: int,
) -> dict[str, jax.Array]:
    """The batch with some of its words hidden, anew for every key (BERT, section 3.1).

    Of the words chosen 80 % become the hidden-word token, 10 % a random word, and 10 %
    stay. [CLS], [SEP] and padding are never chosen.

    Args:
      batch: `input_ids` and `attention_mask`, [B, L]; whatever else is in it stays.
      special: of `tokenization.special_tokens`.
      vocab: how many words there are.
      fraction: of a text's words; at least one where there is a word.
      at_most: words a text.

    Returns:
      The batch with `input_ids` so changed, and [B, K] each: `masked_positions` of the chosen words,
      `masked_labels` that stood there, and `masked_weights` (1, or 0 where a text has fewer than K).
    """
    input_ids, attention_mask = (
        jnp.asarray(batch["input_ids"]),
        jnp.asarray(batch["attention_mask"], bool),
    )
    length = input_ids.shape[1]
    words = (
        attention_mask
        & (input_ids != special.cls_token_id)
        & (input_ids != special.sep_token_id)
    )
    there = words.sum(axis=1)
    most = min(at_most, max(1, math.ceil(fraction * length)))
    count = jnp.clip(jnp.round(fraction * there), 1, most)
    count = jnp.minimum(count, there)
    which, how, other = jax.random.split(key, 3)
    noise = jnp.where(words, jax.random.uniform(which, input_ids.shape), -1.0)
    _, positions = jax.lax.top_k(noise, most)
    chosen = jnp.arange(most) < count[:, None]
    labels = jnp.take_along_axis(input_ids, positions, axis=1)
    roll = jax.random.uniform(how, positions.shape)
    random = jax.random.randint(other, positions.shape, 0, vocab, input_ids.dtype)
    shown = jnp.where(
        roll < 0.8, special.mask_token_id, jnp.where(roll < 0.9, random, labels)
    )
    shown = jnp.where(chosen, shown, labels).astype(input_ids.dtype)
    rows = jnp.arange(input_ids.shape[0])[:, None]
    return {
        **batch,
        "input_ids": input_ids.at[rows, positions].set(shown),
        "masked_positions": positions,
        "masked_labels": labels,
        "masked_weights": chosen.astype(jnp.float32),
    }
