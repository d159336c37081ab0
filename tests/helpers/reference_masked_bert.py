"""What is a sub-network, said in the plainest way? Full-size products and masks.

The reference for `models.elastic`: the same numbers, at the cost of the largest network.
"""

import jax
import jax.numpy as jnp
import numpy as np

from autodistill_jax.archs.arch import spread_layers


def forward(params, ids, attention_mask, arch, superlm_arch, epsilon=1e-12):
    """Last hidden states and last q/k/v of the sub-network `arch`.

    Its layers are an int; the other sizes may be traced.
    """
    batch, length = ids.shape

    def keep(n, size):
        return (jnp.arange(size) < n).astype(jnp.float32)

    hidden = keep(arch.hidden, superlm_arch.hidden)
    width = keep(
        arch.heads * arch.head_size, superlm_arch.heads * superlm_arch.head_size
    )
    ffn = keep(arch.ffn, superlm_arch.ffn)

    def norm(x, scale, bias):
        mean = (x * hidden).sum(-1, keepdims=True) / arch.hidden
        centred = (x - mean) * hidden
        variance = (centred**2).sum(-1, keepdims=True) / arch.hidden
        return (centred / jnp.sqrt(variance + epsilon) * scale + bias) * hidden

    x = params["embeddings_word"][ids] + params["embeddings_position"][:length]
    x = x + params["embeddings_type"][0]
    x = norm(x, params["embeddings_norm_scale"], params["embeddings_norm_bias"])
    qkv = None
    for i in spread_layers(arch.layers, superlm_arch.layers):
        p = {k[7:]: v[i] for k, v in params.items() if k.startswith("layers_")}
        qkv = jnp.einsum("bld,dcw->blcw", x, p["qkv_kernel"]) + p["qkv_bias"]
        qkv = qkv * width
        q, k, v = (
            qkv[:, :, j].reshape(
                batch, length, superlm_arch.heads, superlm_arch.head_size
            )
            for j in range(3)
        )
        scores = jnp.einsum("blhk,bmhk->bhlm", q, k) / np.sqrt(superlm_arch.head_size)
        scores = jnp.where(attention_mask[:, None, None, :] > 0, scores, -1e30)
        context = jnp.einsum("bhlm,bmhk->blhk", jax.nn.softmax(scores), v)
        context = context.reshape(batch, length, -1) * width
        y = context @ p["attention_kernel"] + p["attention_bias"]
        x = norm(x + y, p["attention_norm_scale"], p["attention_norm_bias"])
        inner = (x @ p["ffn_in_kernel"] + p["ffn_in_bias"]) * ffn
        inner = jax.nn.gelu(inner, approximate=False)
        y = inner @ p["ffn_out_kernel"] + p["ffn_out_bias"]
        x = norm(x + y, p["ffn_norm_scale"], p["ffn_norm_bias"])
    return x, qkv
