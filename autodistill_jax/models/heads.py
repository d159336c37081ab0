"""The heads on an encoder: masked LM, tied to the word embeddings, and next sentence."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from autodistill_jax import sharding
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.models.encoder import normal_init
from autodistill_jax.models.layers import activation_fn, einsum_f32acc, layer_norm


def mlm_head_width(dims: ModelDims, hidden: Any) -> Any:
    """Channels of the head: the word embeddings' (ELECTRA's are of their own width), but
    MobileBERT's head is as wide as the network."""
    if dims.family == "mobilebert":
        return hidden
    return dims.embedding or hidden


def init_mlm_head(hidden: int, dims: ModelDims) -> dict[str, jax.Array]:
    """A head from [.., hidden] to the vocabulary.

    It starts at the identity, which on a frozen body learns faster than a random start.
    """
    wide = mlm_head_width(dims, hidden)
    made = {
        "mlm_kernel": jnp.eye(hidden, wide),
        "mlm_bias": jnp.zeros((wide,)),
        "mlm_norm_scale": jnp.ones((wide,)),
        "mlm_norm_bias": jnp.zeros((wide,)),
        "mlm_out_bias": jnp.zeros((dims.vocab,)),
    }
    if more := _extra_channels(dims, hidden):
        made["mlm_more"] = jnp.zeros((more, dims.vocab))
    return made


def _extra_channels(dims: ModelDims, hidden: int) -> int:
    """Channels of MobileBERT's head that its word embeddings have not."""
    return max(hidden - dims.embedding, 0) if dims.family == "mobilebert" else 0


def slice_mlm_head(
    head: Mapping[str, Any], hidden: int, dims: ModelDims
) -> dict[str, Any]:
    """The head of a student: of its first channels, as the student is of its teacher's."""
    wide = mlm_head_width(dims, hidden)
    made = {
        "mlm_kernel": head["mlm_kernel"][:hidden, :wide],
        "mlm_bias": head["mlm_bias"][:wide],
        "mlm_norm_scale": head["mlm_norm_scale"][:wide],
        "mlm_norm_bias": head["mlm_norm_bias"][:wide],
        "mlm_out_bias": head["mlm_out_bias"],
    }
    if more := _extra_channels(dims, hidden):
        made["mlm_more"] = head["mlm_more"][:more]
    return made


def mlm_logits(
    head: Mapping[str, Any],
    embeddings: Float[Array, "V E"],
    hidden: Float[Array, "B L D"],
    places: Array,
    n: Any,
    dims: ModelDims,
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
    x = einsum_f32acc("td,de->te", x, head["mlm_kernel"], dtype) + head["mlm_bias"]
    x = layer_norm(
        activation_fn(dims.activation)(x),
        head["mlm_norm_scale"],
        head["mlm_norm_bias"],
        n=mlm_head_width(dims, n),
        epsilon=dims.norm_epsilon,
    )
    made = head["mlm_out_bias"]
    if "mlm_more" in head:  # What is wider than the embeddings.
        x, more = jnp.split(x, [dims.embedding], axis=1)
        made = made + einsum_f32acc("td,dv->tv", more, head["mlm_more"], dtype)
    # Whole first: from one split straight to another the compiler does the same, worse.
    table = sharding.constrain(embeddings[:, : x.shape[1]], mesh)
    table = sharding.constrain(table, mesh, "tensor")
    made = made + einsum_f32acc("te,ve->tv", x, table, dtype)
    return sharding.split_channels(made, mesh).reshape(batch, count, -1)


def init_nsp_head(hidden: int, key: jax.Array) -> dict[str, jax.Array]:
    """A head from what the pooler gives, [.., hidden], to two classes."""
    return {
        "nsp_kernel": normal_init(key, (hidden, 2)),
        "nsp_bias": jnp.zeros((2,)),
    }


def nsp_logits(
    head: Mapping[str, Any], pooler: Float[Array, "B D"]
) -> Float[Array, "B 2"]:
    """Of `Outputs.pooler`; as transformers counts: 0, it follows; 1, it does not."""
    return pooler @ head["nsp_kernel"] + head["nsp_bias"]


# What only training needs: linear maps from a student's width to its teacher's.
PROJECTION = "projection_"
_HEADS = ("mlm_", "nsp_")


def encoder_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """A network's own parameters: without projections and heads of any kind."""
    others = (PROJECTION, *_HEADS, "head_")
    return {name: x for name, x in params.items() if not name.startswith(others)}


def head_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the masked-LM and the next-sentence head among a network's."""
    return {name: x for name, x in params.items() if name.startswith(_HEADS)}
