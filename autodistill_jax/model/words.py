"""Which word was hidden? The masked-word head, tied to the word embeddings."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from autodistill_jax.cost import Sizes
from autodistill_jax.model.pieces import activation, layer_norm, product


def init(hidden: int, width: int, vocab: int) -> dict[str, jax.Array]:
    """A head from [.., hidden] to the vocabulary over embeddings of this width.

    It starts at the identity, which on a frozen body learns faster than a random start.
    """
    return {
        "words_kernel": jnp.eye(hidden, width),
        "words_bias": jnp.zeros((width,)),
        "words_norm_scale": jnp.ones((width,)),
        "words_norm_bias": jnp.zeros((width,)),
        "words_out_bias": jnp.zeros((vocab,)),
    }


def cut(head: Mapping[str, Any], hidden: int, tied: bool) -> dict[str, Any]:
    """The head of a student: of its first channels, as the student is of its teacher's.

    `tied`: are the word embeddings as wide as the student (and not of a width of their
    own, which stays)?
    """
    width = hidden if tied else head["words_bias"].shape[0]
    return {
        "words_kernel": head["words_kernel"][:hidden, :width],
        "words_bias": head["words_bias"][:width],
        "words_norm_scale": head["words_norm_scale"][:width],
        "words_norm_bias": head["words_norm_bias"][:width],
        "words_out_bias": head["words_out_bias"],
    }


def logits(
    head: Mapping[str, Any],
    embeddings: Float[Array, "V E"],
    hidden: Float[Array, "B L D"],
    places: Array,
    n: Any,
    sizes: Sizes,
    dtype: Any = jnp.float32,
) -> Float[Array, "B K V"]:
    """The logits at `places` [B, K]: only these, a whole text's would fill the memory.

    `n` are the channels of the embeddings in use: an int, or int32 inside a SuperLM.
    """
    x = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
    batch, count = places.shape
    x = x.reshape(batch * count, -1)
    x = product("td,de->te", x, head["words_kernel"], dtype) + head["words_bias"]
    x = layer_norm(
        activation(sizes.activation)(x),
        head["words_norm_scale"],
        head["words_norm_bias"],
        n=n,
        epsilon=sizes.norm_epsilon,
    )
    made = product("te,ve->tv", x, embeddings, dtype) + head["words_out_bias"]
    return made.reshape(batch, count, -1)
