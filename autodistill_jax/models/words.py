"""Which word was hidden? The masked-word head, tied to the word embeddings."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from autodistill_jax import sharding
from autodistill_jax.archs.cost import Sizes
from autodistill_jax.models.layers import activation, layer_norm, product


def width(sizes: Sizes, hidden: Any) -> Any:
    """Channels of the head: the word embeddings' (ELECTRA's are of their own width), but
    MobileBERT's head is as wide as the network."""
    if sizes.family == "mobilebert":
        return hidden
    return sizes.embedding or hidden


def init(hidden: int, sizes: Sizes) -> dict[str, jax.Array]:
    """A head from [.., hidden] to the vocabulary.

    It starts at the identity, which on a frozen body learns faster than a random start.
    """
    wide = width(sizes, hidden)
    made = {
        "words_kernel": jnp.eye(hidden, wide),
        "words_bias": jnp.zeros((wide,)),
        "words_norm_scale": jnp.ones((wide,)),
        "words_norm_bias": jnp.zeros((wide,)),
        "words_out_bias": jnp.zeros((sizes.vocab,)),
    }
    if more := _more(sizes, hidden):
        made["words_more"] = jnp.zeros((more, sizes.vocab))
    return made


def _more(sizes: Sizes, hidden: int) -> int:
    """Channels of MobileBERT's head that its word embeddings have not."""
    return max(hidden - sizes.embedding, 0) if sizes.family == "mobilebert" else 0


def cut(head: Mapping[str, Any], hidden: int, sizes: Sizes) -> dict[str, Any]:
    """The head of a student: of its first channels, as the student is of its teacher's."""
    wide = width(sizes, hidden)
    made = {
        "words_kernel": head["words_kernel"][:hidden, :wide],
        "words_bias": head["words_bias"][:wide],
        "words_norm_scale": head["words_norm_scale"][:wide],
        "words_norm_bias": head["words_norm_bias"][:wide],
        "words_out_bias": head["words_out_bias"],
    }
    if more := _more(sizes, hidden):
        made["words_more"] = head["words_more"][:more]
    return made


def logits(
    head: Mapping[str, Any],
    embeddings: Float[Array, "V E"],
    hidden: Float[Array, "B L D"],
    places: Array,
    n: Any,
    sizes: Sizes,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
) -> Float[Array, "B K V"]:
    """The logits at `places` [B, K]: only these, a whole text's would fill the memory.

    On a mesh each device has those of its rows, and of its part of the vocabulary.
    `n` are the network's hidden channels in use: an int, or int32 inside a SuperLM.
    """
    x = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
    batch, count = places.shape
    x = x.reshape(batch * count, -1)
    x = product("td,de->te", x, head["words_kernel"], dtype) + head["words_bias"]
    x = layer_norm(
        activation(sizes.activation)(x),
        head["words_norm_scale"],
        head["words_norm_bias"],
        n=width(sizes, n),
        epsilon=sizes.norm_epsilon,
    )
    made = head["words_out_bias"]
    if "words_more" in head:  # What is wider than the embeddings.
        x, more = jnp.split(x, [sizes.embedding], axis=1)
        made = made + product("td,dv->tv", more, head["words_more"], dtype)
    # Whole first: from one split straight to another the compiler does the same, worse.
    table = sharding.constrain(embeddings[:, : x.shape[1]], mesh)
    table = sharding.constrain(table, mesh, "tensor")
    made = made + product("te,ve->tv", x, table, dtype)
    return sharding.split(made, mesh).reshape(batch, count, -1)
