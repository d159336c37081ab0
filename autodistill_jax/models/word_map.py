"""A linear map behind the word embeddings that is trained in their stead."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

WORDS, WORD_MAP = "embeddings_word", "embeddings_word_map"
_MAX_RESIDUAL = 1e-3  # Of a table's norm, for it to count as mapped.


def fit_word_map(
    teacher_words: Float[np.ndarray, "V E"], words: Float[np.ndarray, "V D"]
) -> Float[np.ndarray, "E D"] | None:
    """The linear map from a teacher's word table to a student's.

    A student's table is the teacher's times such a map where it was cut out of it, and
    where only the map was trained since. Training the map moves all words together, those
    that no text holds too; trained one by one only those move that the text holds.

    Args:
      teacher_words: the teacher's table.
      words: the student's, of the same vocabulary.

    Returns:
      float32; None if there is no such map.
    """
    if len(teacher_words) != len(words):
        return None
    width = words.shape[1]
    if np.array_equal(teacher_words[:, :width], words):
        return np.eye(teacher_words.shape[1], width, dtype=np.float32)
    table = np.asarray(teacher_words, np.float64)
    fitted, *_ = np.linalg.lstsq(table.T @ table, table.T @ words, rcond=None)
    residual = np.linalg.norm(table @ fitted - words)
    if residual > _MAX_RESIDUAL * np.linalg.norm(words):
        return None
    return fitted.astype(np.float32)


def merge_word_map(params: Mapping[str, Any]) -> dict[str, Any]:
    """A network's parameters without a map: the word table is mapped once for all.

    Args:
      params: {name: array}, with a map or without.

    Returns:
      {name: array}, of the module whose `word_width` is 0.
    """
    merged = dict(params)
    if WORD_MAP in merged:
        mapping = merged.pop(WORD_MAP)
        merged[WORDS] = jnp.matmul(merged[WORDS], mapping, precision="highest")
    return merged
