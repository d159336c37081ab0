"""What are the pieces of a layer? Attention, LayerNorm, dropout and the product.

Shapes in suffixes: B batch, L length, T = B*L tokens, H heads, K per head, W = H*K.
"""

import functools
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


def activation_fn(name: str):
    """The function of a config.json's `hidden_act`."""
    return _ACTIVATIONS[name]


def attention(
    qkv: Float[Array, "T 3 W"],
    attention_mask: Array | np.ndarray,
    head_size: int,
    dtype: Any = jnp.float32,
    rate: float = 0.0,
    key: jax.Array | None = None,
) -> Float[Array, "T W"]:
    """Scaled dot-product attention; padding (attention_mask 0, [B, L]) is never attended to."""
    batch, length = attention_mask.shape
    qkv_CBHLK = jnp.transpose(
        qkv.reshape(batch, length, 3, -1, head_size), (2, 0, 3, 1, 4)
    )
    query, key_, value = qkv_CBHLK
    scores = einsum_f32acc("bhlk,bhmk->bhlm", query * head_size**-0.5, key_, dtype)
    scores = jnp.where(attention_mask[:, None, None, :], scores, -1e30)
    weights = dropout(jax.nn.softmax(scores, axis=-1), rate, key)
    if key is not None and rate:
        # Apart from the product: libtpu 0.0.42 crashes where it fuses the random numbers
        # into it, at 8 rows of 128 tokens a device.
        weights = jax.lax.optimization_barrier(weights)
    context = einsum_f32acc("bhlm,bhmk->bhlk", weights, value, dtype)
    return jnp.transpose(context, (0, 2, 1, 3)).reshape(batch * length, -1)


def layer_norm(x, scale, bias, *, n, epsilon):
    """LayerNorm over the first n channels; the others come out exactly 0.

    x [T, D]. `n` is D itself (an int) or the channels in use (int32).
    """
    if isinstance(n, int):
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + epsilon) * scale + bias
    # Dead channels must stay exactly 0: the residual would carry them on.
    kept = elastic.channel_mask(n, x.shape[-1])
    x = x * kept
    centred = (x - x.sum(axis=-1, keepdims=True) / n) * kept
    variance = jnp.square(centred).sum(axis=-1, keepdims=True) / n
    return centred * jax.lax.rsqrt(variance + epsilon) * scale + bias * kept


def no_norm(x, scale, bias, *, n, epsilon=0.0):
    """What MobileBERT has in place of LayerNorm (arXiv 2004.02984, section 4.2):
    scale and bias of the first n channels; the others come out exactly 0."""
    if not isinstance(n, int):
        kept = elastic.channel_mask(n, x.shape[-1])
        x, bias = x * kept, bias * kept
    return x * scale + bias


def dropout(x, rate, key):
    """x with each entry dropped at `rate` and the rest scaled up; x if key is None."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def einsum_f32acc(spec: str, x: ArrayLike, y: ArrayLike, dtype: Any) -> jax.Array:
    """einsum(spec, x, y) of operands cast to dtype, summed up in f32.

    Forward and backward alike: JAX's own transpose would multiply an f32 gradient.
    """
    return jnp.einsum(
        spec, x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32
    )


def _einsum_forward(spec, x, y, dtype):
    return einsum_f32acc(spec, x, y, dtype), (x, y)


def _einsum_backward(spec, dtype, saved, gradient):
    x, y = saved
    (of_x, of_y), out = spec.split("->")[0].split(","), spec.split("->")[1]
    return (
        einsum_f32acc(f"{out},{of_y}->{of_x}", gradient, y, dtype).astype(x.dtype),
        einsum_f32acc(f"{of_x},{out}->{of_y}", x, gradient, dtype).astype(y.dtype),
    )


einsum_f32acc.defvjp(_einsum_forward, _einsum_backward)
