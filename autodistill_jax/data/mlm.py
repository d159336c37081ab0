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
      batch: `ids` and `tokens`, [B, L]; whatever else is in it stays.
      special: of `tokenization.special_tokens`.
      vocab: how many words there are.
      fraction: of a text's words; at least one where there is a word.
      at_most: words a text.

    Returns:
      The batch with `ids` so changed, and [B, K] each: `places` of the chosen words,
      `targets` that stood there, and `chosen` (1, or 0 where a text has fewer than K).
    """
    ids, tokens = jnp.asarray(batch["ids"]), jnp.asarray(batch["tokens"], bool)
    length = ids.shape[1]
    words = tokens & (ids != special.cls) & (ids != special.sep)
    there = words.sum(axis=1)
    most = min(at_most, max(1, math.ceil(fraction * length)))
    count = jnp.clip(jnp.round(fraction * there), 1, most)
    count = jnp.minimum(count, there)
    which, how, other = jax.random.split(key, 3)
    noise = jnp.where(words, jax.random.uniform(which, ids.shape), -1.0)
    _, places = jax.lax.top_k(noise, most)
    chosen = jnp.arange(most) < count[:, None]
    targets = jnp.take_along_axis(ids, places, axis=1)
    roll = jax.random.uniform(how, places.shape)
    random = jax.random.randint(other, places.shape, 0, vocab, ids.dtype)
    shown = jnp.where(roll < 0.8, special.hide, jnp.where(roll < 0.9, random, targets))
    shown = jnp.where(chosen, shown, targets).astype(ids.dtype)
    rows = jnp.arange(ids.shape[0])[:, None]
    return {
        **batch,
        "ids": ids.at[rows, places].set(shown),
        "places": places,
        "targets": targets,
        "chosen": chosen.astype(jnp.float32),
    }
