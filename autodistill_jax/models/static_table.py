"""A static table: a vector a token and no network."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from autodistill_jax.models.encoder import Outputs


@dataclasses.dataclass(frozen=True)
class StaticTable:
    """What looks tokens up, with the interface of a network's module.

    The special tokens' vectors are 0: the mean over a text's tokens then points where
    that of its words does.
    """

    def apply(
        self,
        variables: Mapping[str, Mapping[str, Any]],
        input_ids: jax.Array,
        attention_mask: jax.Array,
        *_: Any,
        **__: Any,
    ) -> Outputs:
        """The vectors of a batch of token rows.

        Args:
          variables: {"params": {"table": [V, D]}}.
          input_ids: [B, L].
          attention_mask: [B, L].

        Returns:
          `Outputs`; there is nothing but `hidden` in it that says anything.
        """
        hidden = jax.numpy.asarray(variables["params"]["table"])[input_ids]
        return Outputs(hidden=hidden, pooler=hidden[:, 0])


def distill_static_table(
    embed_fn: Callable[[Int[np.ndarray, "V 3"]], Float[np.ndarray, "V H"]],
    token_counts: Int[np.ndarray, " V"],
    special_ids: tuple[int, int],
    width: int = 256,
    smoothing: float = 1e-3,
) -> Float[np.ndarray, "V width"]:
    """The static table of a teacher.

    The teacher's embedding of each token alone, its principal components, and a weight
    a token by its frequency p in a text, smoothing / (smoothing + p) (smooth inverse
    frequency, Arora et al. 2017).

    Args:
      embed_fn: token rows without padding -> the teacher's embeddings.
      token_counts: of each token in some text.
      special_ids: what stands before and after a text; their vectors are 0.
      width: components that are kept, at most the teacher's width.
      smoothing: the frequency whose weight is 1/2.

    Returns:
      float32; rows stand in the order of the vocabulary.
    """
    first, last = special_ids
    ids = np.arange(len(token_counts))
    rows = np.stack([np.full_like(ids, first), ids, np.full_like(ids, last)], axis=1)
    vectors = np.asarray(embed_fn(rows), np.float64)
    vectors -= vectors.mean(axis=0)
    _, axes = np.linalg.eigh(vectors.T @ vectors)
    table = vectors @ axes[:, ::-1][:, :width]
    frequencies = token_counts / max(token_counts.sum(), 1)
    table *= (smoothing / (smoothing + frequencies))[:, None]
    table[[first, last]] = 0.0
    return table.astype(np.float32)
