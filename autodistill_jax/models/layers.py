"""The pieces of a layer: attention, LayerNorm, dropout and the product.

Shapes in suffixes: B batch, L length, T = B*L tokens, H heads, K per head, W = H*K.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from autodistill_jax.models import elastic

_ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}
ACTIVATIONS = tuple(_ACTIVATIONS)


def activation_fn(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation function of a config.json's `hidden_act`, one of `ACTIVATIONS`."""
    return _ACTIVATIONS[name]


def attention(
    qkv: Float[Array, "T 3 W"],
    attention_mask: Array | np.ndarray,
    head_size: int,
    dtype: Any = jnp.float32,
    rate: float = 0.0,
    key: jax.Array | None = None,
) -> Float[Array, "T W"]:
    """Scaled dot-product attention, of T = B*L tokens; padding is never attended to.

    Args:
      qkv: queries, keys and values of all heads, W = heads * head_size.
      attention_mask: true where there is a token, [B, L] booleans.
      head_size: channels of a head.
      dtype: of the products' operands.
      rate: dropout of the attention weights.
      key: random key of the dropout; None: no dropout.

    Returns:
      The context of each token, heads side by side, f32.
    """
    batch, length = attention_mask.shape
    qkv_CBHLK = jnp.transpose(
        qkv.reshape(batch, length, 3, -1, head_size), (2, 0, 3, 1, 4)
    )
    query, key_, value = qkv_CBHLK
    scores = einsum_f32acc("bhlk,bhmk->bhlm", query * head_size**-0.5, key_, dtype)
    scores = jnp.where(attention_mask[:, None, None, :], scores, -1e30)
    weights = dropout(jax.nn.softmax(scores, axis=-1), rate, key)
    if key is not None and rate:
        # Apart from the product: libtpu 0.0.42 crashes where it fuses the random
        # numbers into it, at 8 rows of 128 tokens a device.
        weights = jax.lax.optimization_barrier(weights)
    context = einsum_f32acc("bhlm,bhmk->bhlk", weights, value, dtype)
    return jnp.transpose(context, (0, 2, 1, 3)).reshape(batch * length, -1)


def layer_norm(
    x: Array | np.ndarray,
    scale: Array | np.ndarray,
    bias: Array | np.ndarray,
    *,
    n: ArrayLike,
    epsilon: ArrayLike,
) -> Array | np.ndarray:
    """LayerNorm (arXiv 1607.06450) over the first n channels; the others become 0.

    Args:
      x: [..., D].
      scale: [D].
      bias: [D].
      n: D itself (an int), or the channels in use (int32); those behind come out
        exactly 0.
      epsilon: added to the variance.

    Returns:
      [..., D].
    """
    if isinstance(n, int):
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + epsilon) * scale + bias
    # Dead channels must stay exactly 0: the residual would carry them on.
    in_use = elastic.channel_mask(n, x.shape[-1])
    x = x * in_use
    centred = (x - x.sum(axis=-1, keepdims=True) / n) * in_use
    variance = jnp.square(centred).sum(axis=-1, keepdims=True) / n
    return centred * jax.lax.rsqrt(variance + epsilon) * scale + bias * in_use


def no_norm(
    x: Array | np.ndarray,
    scale: Array | np.ndarray,
    bias: Array | np.ndarray,
    *,
    n: ArrayLike,
    epsilon: ArrayLike = 0.0,
) -> Array | np.ndarray:
    """What MobileBERT has in place of LayerNorm (arXiv 2004.02984, section 4.2).

    Args:
      x: [..., D].
      scale: [D].
      bias: [D].
      n: D itself (an int), or the channels in use (int32); those behind come out
        exactly 0.
      epsilon: not used; it is there to be called like `layer_norm`.

    Returns:
      x * scale + bias, [..., D].
    """
    if not isinstance(n, int):
        in_use = elastic.channel_mask(n, x.shape[-1])
        x, bias = x * in_use, bias * in_use
    return x * scale + bias


def dropout(
    x: Array | np.ndarray, rate: float, key: jax.Array | None
) -> Array | np.ndarray:
    """x with each entry dropped at `rate` and the rest scaled up; x if key is None."""
    if key is None or rate == 0:
        return x
    keep_mask = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep_mask, x / (1 - rate), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def einsum_f32acc(spec: str, x: ArrayLike, y: ArrayLike, dtype: Any) -> jax.Array:
    """einsum(spec, x, y) of operands cast to dtype, summed up in f32.

    Forward and backward alike: JAX's own transpose would multiply an f32 gradient.

    Args:
      spec: "x's axes,y's axes->result's axes", a letter each.
      x: left operand.
      y: right operand.
      dtype: what both are cast to.

    Returns:
      The product, f32.
    """
    return jnp.einsum(
        spec, x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32
    )


def _einsum_forward(
    spec: str, x: ArrayLike, y: ArrayLike, dtype: Any
) -> tuple[jax.Array, tuple[ArrayLike, ArrayLike]]:
    return einsum_f32acc(spec, x, y, dtype), (x, y)


def _einsum_backward(
    spec: str,
    dtype: Any,
    residuals: tuple[ArrayLike, ArrayLike],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, y = residuals
    (of_x, of_y), out = spec.split("->")[0].split(","), spec.split("->")[1]
    return (
        einsum_f32acc(f"{out},{of_y}->{of_x}", gradient, y, dtype).astype(x.dtype),
        einsum_f32acc(f"{of_x},{out}->{of_y}", x, gradient, dtype).astype(y.dtype),
    )


einsum_f32acc.defvjp(_einsum_forward, _einsum_backward)
