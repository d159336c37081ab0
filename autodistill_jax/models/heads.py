"""The masked-LM head (tied to the word embeddings) and the next-sentence head."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from autodistill_jax import sharding
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.models.encoder import normal_init
from autodistill_jax.models.layers import activation_fn, einsum_f32acc, layer_norm

# A network's parameters may hold, beside the encoder's, those of these two heads, those
# of a fine-tuned head, and what only training needs: linear projections from a
# student's width to its teacher's. Each kind has its prefix.
_HEADS = ("mlm_", "nsp_")
_TASK_HEAD = "head_"
# Sums over all parameters, as of the gradient's norm, go in the order of the names.
PROJECTION = "linear_projection_"


def encoder_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """A network's own parameters: without projections and heads of any kind."""
    head_prefixes = (PROJECTION, *_HEADS, _TASK_HEAD)
    return {name: x for name, x in params.items() if not name.startswith(head_prefixes)}


def head_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the masked-LM and the next-sentence head among a network's."""
    return {name: x for name, x in params.items() if name.startswith(_HEADS)}


def slice_heads(
    head: Mapping[str, Any], hidden: int, dims: ModelDims
) -> dict[str, Any]:
    """A student's heads: the first channels of a larger network's, of each it has.

    Args:
      head: of the larger network, see `head_params`.
      hidden: the student's hidden channels.
      dims: of both networks.

    Returns:
      {name: array}.
    """
    student_head = {}
    if "mlm_kernel" in head:
        student_head |= slice_mlm_head(head, hidden, dims)
    if "nsp_kernel" in head:
        student_head |= {
            "nsp_kernel": head["nsp_kernel"][:hidden],
            "nsp_bias": head["nsp_bias"],
        }
    return student_head


# The masked-LM head.


def mlm_head_width(dims: ModelDims, hidden: Any) -> Any:
    """Channels of the masked-LM head.

    The word embeddings' (ELECTRA's are of their own width), but MobileBERT's head is as
    wide as the network.

    Args:
      dims: of the network.
      hidden: the network's hidden channels: an int, or int32 inside a SuperLM.

    Returns:
      Channels, of the type of `hidden` where they are the network's, else an int.
    """
    if dims.family == "mobilebert":
        return hidden
    return dims.embedding or hidden


def _num_extra_channels(dims: ModelDims, hidden: int) -> int:
    """Channels of MobileBERT's head that its word embeddings have not."""
    return max(hidden - dims.embedding, 0) if dims.family == "mobilebert" else 0


def init_mlm_head(hidden: int, dims: ModelDims) -> dict[str, jax.Array]:
    """A new masked-LM head, from [.., hidden] to the vocabulary.

    It starts at the identity, which on a frozen encoder learns faster than a random
    start.

    Args:
      hidden: the network's hidden channels.
      dims: of the network.

    Returns:
      {name: array}, names beginning with "mlm_".
    """
    width = mlm_head_width(dims, hidden)
    head = {
        "mlm_kernel": jnp.eye(hidden, width),
        "mlm_bias": jnp.zeros((width,)),
        "mlm_norm_scale": jnp.ones((width,)),
        "mlm_norm_bias": jnp.zeros((width,)),
        "mlm_out_bias": jnp.zeros((dims.vocab,)),
    }
    if extra := _num_extra_channels(dims, hidden):
        head["mlm_more"] = jnp.zeros((extra, dims.vocab))
    return head


def slice_mlm_head(
    head: Mapping[str, Any], hidden: int, dims: ModelDims
) -> dict[str, Any]:
    """A student's masked-LM head: the first channels of a larger network's.

    Args:
      head: of the larger network, see `init_mlm_head`.
      hidden: the student's hidden channels.
      dims: of both networks.

    Returns:
      {name: array}, as of `init_mlm_head`.
    """
    width = mlm_head_width(dims, hidden)
    student_head = {
        "mlm_kernel": head["mlm_kernel"][:hidden, :width],
        "mlm_bias": head["mlm_bias"][:width],
        "mlm_norm_scale": head["mlm_norm_scale"][:width],
        "mlm_norm_bias": head["mlm_norm_bias"][:width],
        "mlm_out_bias": head["mlm_out_bias"],
    }
    if extra := _num_extra_channels(dims, hidden):
        student_head["mlm_more"] = head["mlm_more"][:extra]
    return student_head


def mlm_logits(
    head: Mapping[str, Any],
    embeddings: Float[Array | np.ndarray, "V E"],
    hidden: Float[Array | np.ndarray, "B L D"],
    masked_positions: Array | np.ndarray,
    n: Any,
    dims: ModelDims,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
) -> Float[Array, "B K V"]:
    """The masked-LM logits at some positions: a whole text's would fill the memory.

    On a mesh each device has those of its rows, and of its part of the vocabulary.

    Args:
      head: see `init_mlm_head`.
      embeddings: the network's word embeddings.
      hidden: its last hidden states.
      masked_positions: where in each text, [B, K] integers.
      n: the network's hidden channels in use: an int, or int32 inside a SuperLM.
      dims: of the network.
      dtype: of the products' operands.
      mesh: the devices, where there is more than one.

    Returns:
      Logits, f32.
    """
    x = jnp.take_along_axis(hidden, masked_positions[:, :, None], axis=1)
    batch, count = masked_positions.shape
    x = x.reshape(batch * count, -1)
    x = einsum_f32acc("td,de->te", x, head["mlm_kernel"], dtype) + head["mlm_bias"]
    x = layer_norm(
        activation_fn(dims.activation)(x),
        head["mlm_norm_scale"],
        head["mlm_norm_bias"],
        n=mlm_head_width(dims, n),
        epsilon=dims.norm_epsilon,
    )
    logits = head["mlm_out_bias"]
    if "mlm_more" in head:  # What is wider than the embeddings.
        x, extra = jnp.split(x, [dims.embedding], axis=1)
        logits = logits + einsum_f32acc("td,dv->tv", extra, head["mlm_more"], dtype)
    # Whole first: from one split straight to another the compiler does the same, worse.
    table = sharding.constrain(embeddings[:, : x.shape[1]], mesh)
    table = sharding.constrain(table, mesh, "tensor")
    logits = logits + einsum_f32acc("te,ve->tv", x, table, dtype)
    return sharding.split_channels(logits, mesh).reshape(batch, count, -1)


# The next-sentence head.


def init_nsp_head(hidden: int, key: jax.Array) -> dict[str, jax.Array]:
    """A new next-sentence head, from the pooler's output [.., hidden] to two classes.

    Args:
      hidden: the network's hidden channels.
      key: random key.

    Returns:
      {name: array}, names beginning with "nsp_".
    """
    return {
        "nsp_kernel": normal_init(key, (hidden, 2)),
        "nsp_bias": jnp.zeros((2,)),
    }


def nsp_logits(
    head: Mapping[str, Any], pooler: Float[Array | np.ndarray, "B D"]
) -> Float[Array | np.ndarray, "B 2"]:
    """The next-sentence logits of `Outputs.pooler`.

    Args:
      head: see `init_nsp_head`.
      pooler: the pooler's output.

    Returns:
      Logits; as transformers counts: class 0, the second text follows; 1, it does not.
    """
    return pooler @ head["nsp_kernel"] + head["nsp_bias"]
