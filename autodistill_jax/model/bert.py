"""What does a BERT compute? Teacher, SuperLM and student, one module at other sizes.

Shapes in suffixes: B batch, L length, T = B*L tokens, D hidden, H heads, K per head,
W = H*K q/k/v width, F ffn, V vocabulary, N layers.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from autodistill_jax.arch import Arch, Sizes, Space
from autodistill_jax.model import elastic

_ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}
ACTIVATIONS = tuple(_ACTIVATIONS)


class Outputs(NamedTuple):
    """What a forward pass gives.

    hidden: last hidden states, [B, L, D]; channels out of use are exactly 0.
    pooler: tanh of the pooler's projection of the first token, [B, D].
    qkv: queries, keys and values of the last layer, [B, L, 3, W]; None unless asked for.
    states: every hidden state, embeddings first, [N + 1, B, L, D]; None unless asked for.
    """

    hidden: jax.Array
    pooler: jax.Array
    qkv: jax.Array | None = None
    states: jax.Array | None = None


class Bert(nn.Module):
    """BERT's encoder (arXiv 1810.04805), without a head.

    Attributes:
      arch: sizes of the parameters (ints).
      sizes: vocabulary, positions and whatever else is not elastic.
      space: of a SuperLM, the Space whose sub-networks it can run; else None.
      dtype: of the products' operands; parameters, sums, softmax and LayerNorm are f32.
      dropout: rate, in force where a call gives a random key.
      unroll: a parameter for each layer (see `extract.unstack`) and no loop, as a
        program that serves has them: longer to compile; slicing a stack costs time.
    """

    arch: Arch
    sizes: Sizes = Sizes()
    space: Space | None = None
    dtype: Any = jnp.float32
    dropout: float = 0.0
    unroll: bool = False

    @nn.compact
    def __call__(
        self,
        ids: Int[Array | np.ndarray, "B L"],
        tokens: Array | np.ndarray,
        arch: Arch | None = None,
        *,
        types: Array | np.ndarray | None = None,
        key: jax.Array | None = None,
        qkv: bool = False,
        states: bool = False,
    ) -> Outputs:
        """One forward pass.

        Args:
          ids: token ids, [B, L].
          tokens: 1 where there is a token, 0 where there is padding, [B, L].
          arch: the sub-network to run, fields int32 arrays; needs `space`.
          types: segment ids, [B, L]; zeros if None.
          key: random key for dropout; None turns dropout off.
          qkv: also return the last layer's queries, keys and values.
          states: also return all hidden states (not in a SuperLM).
        """
        embeddings, stack, pooler = self._parameters()
        space = self.space if arch is not None else None
        arch = self.arch if arch is None else arch
        batch, length = ids.shape
        tokens = tokens.astype(bool)
        keys = list(jax.random.split(key, 2)) if key is not None else [None, None]

        norm = functools.partial(
            layer_norm, n=arch.hidden, epsilon=self.sizes.norm_epsilon
        )
        x = embeddings["word"][ids] + embeddings["position"][:length]
        kinds = jnp.zeros_like(ids) if types is None else types
        x = x + embeddings["type"][kinds]
        x = x.reshape(batch * length, -1)
        x = norm(x, embeddings["norm_scale"], embeddings["norm_bias"])
        x = dropout(x, self.dropout, keys[0])

        cuts = {}
        if space is not None:
            cuts = {
                "attention": elastic.cut(space, arch, "hidden", "heads"),
                "ffn": elastic.cut(space, arch, "hidden", "ffn"),
            }
        layer = functools.partial(
            _layer,
            cuts=cuts,
            norm=norm,
            tokens=tokens,
            head_size=self.arch.head_size,
            activation=_ACTIVATIONS[self.sizes.activation],
            dtype=self.dtype,
            rate=self.dropout,
        )
        carry = {"x": x, "key": keys[1]}
        if qkv:
            width = self.arch.heads * self.arch.head_size
            carry["qkv"] = jnp.zeros((batch * length, 3, width), x.dtype)
        if states:
            assert space is None, "hidden states of all layers need a fixed depth"
            there = self.arch.layers + 1
            carry["states"] = jnp.zeros((there, *x.shape), x.dtype).at[0].set(x)
            carry["i"] = 0
        carry = elastic.repeat(layer, stack, carry, arch, space)
        x = carry["x"].reshape(batch, length, -1)
        pooled = product("bd,de->be", x[:, 0], pooler["kernel"], self.dtype)
        pooled = jnp.tanh(pooled + pooler["bias"])
        if space is not None:
            pooled = pooled * elastic.keep(arch.hidden, pooled.shape[-1])
        return Outputs(
            hidden=x,
            pooler=pooled,
            qkv=carry["qkv"].reshape(batch, length, 3, -1) if qkv else None,
            states=(
                carry["states"].reshape(-1, batch, length, x.shape[-1])
                if states
                else None
            ),
        )

    def _parameters(self):
        """Parameters with their logical axes; layers stacked along `layers`."""
        arch, sizes = self.arch, self.sizes
        size = {
            "vocab": sizes.vocab,
            "position": sizes.positions,
            "type": sizes.types,
            "layers": arch.layers,
            "hidden": arch.hidden,
            "heads": arch.heads * arch.head_size,
            "ffn": arch.ffn,
            "qkv": 3,
        }
        normal = nn.initializers.normal(0.02)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones

        def group(name, spec, end=""):
            return {
                key: self.param(
                    f"{name}_{key}{end}",
                    nn.with_logical_partitioning(init, axes),
                    tuple(size[axis] for axis in axes),
                )
                for key, (init, axes) in spec.items()
            }

        embeddings = group(
            "embeddings",
            {
                "word": (normal, ("vocab", "hidden")),
                "position": (normal, ("position", "hidden")),
                "type": (normal, ("type", "hidden")),
                "norm_scale": (ones, ("hidden",)),
                "norm_bias": (zeros, ("hidden",)),
            },
        )
        layer = {
            "qkv_kernel": (normal, ("layers", "hidden", "qkv", "heads")),
            "qkv_bias": (zeros, ("layers", "qkv", "heads")),
            "attention_kernel": (normal, ("layers", "heads", "hidden")),
            "attention_bias": (zeros, ("layers", "hidden")),
            "attention_norm_scale": (ones, ("layers", "hidden")),
            "attention_norm_bias": (zeros, ("layers", "hidden")),
            "ffn_in_kernel": (normal, ("layers", "hidden", "ffn")),
            "ffn_in_bias": (zeros, ("layers", "ffn")),
            "ffn_out_kernel": (normal, ("layers", "ffn", "hidden")),
            "ffn_out_bias": (zeros, ("layers", "hidden")),
            "ffn_norm_scale": (ones, ("layers", "hidden")),
            "ffn_norm_bias": (zeros, ("layers", "hidden")),
        }
        if self.unroll:
            one = {key: (init, axes[1:]) for key, (init, axes) in layer.items()}
            stack = [group("layers", one, f"_{i}") for i in range(arch.layers)]
        else:
            stack = group("layers", layer)
        pooler = group(
            "pooler",
            {
                "kernel": (normal, ("hidden", "hidden")),
                "bias": (zeros, ("hidden",)),
            },
        )
        return embeddings, stack, pooler


def _layer(p, carry, *, cuts, norm, tokens, head_size, activation, dtype, rate):
    """One encoder layer, [T, D] -> [T, D], in four pieces that `elastic` may cut."""
    x, key = carry["x"], carry["key"]
    keys = [None] * 4
    if key is not None:
        *keys, key = jax.random.split(key, 4)

    def project(x, kernel, bias):
        return product("td,dcw->tcw", x, kernel, dtype) + bias

    qkv = elastic.call(
        project,
        cuts.get("attention"),
        (x, p["qkv_kernel"], p["qkv_bias"]),
        ((None, "hidden"), ("hidden", None, "heads"), (None, "heads")),
        (None, None, "heads"),
    )

    def attend(qkv, kernel, bias, tokens, *key):
        context = attention(qkv, tokens, head_size, dtype, rate, *key)
        return product("tw,wd->td", context, kernel, dtype) + bias

    random = () if key is None else (keys[0],)
    y = elastic.call(
        attend,
        cuts.get("attention"),
        (qkv, p["attention_kernel"], p["attention_bias"]),
        ((None, None, "heads"), ("heads", "hidden"), ("hidden",)),
        (None, "hidden"),
        constants=(tokens, *random),
    )
    x = x + dropout(y, rate, keys[1])
    x = norm(x, p["attention_norm_scale"], p["attention_norm_bias"])

    def widen(x, kernel, bias):
        return product("td,df->tf", x, kernel, dtype) + bias

    inner = elastic.call(
        widen,
        cuts.get("ffn"),
        (x, p["ffn_in_kernel"], p["ffn_in_bias"]),
        ((None, "hidden"), ("hidden", "ffn"), ("ffn",)),
        (None, "ffn"),
    )

    def narrow(inner, kernel, bias):
        return product("tf,fd->td", activation(inner), kernel, dtype) + bias

    y = elastic.call(
        narrow,
        cuts.get("ffn"),
        (inner, p["ffn_out_kernel"], p["ffn_out_bias"]),
        ((None, "ffn"), ("ffn", "hidden"), ("hidden",)),
        (None, "hidden"),
    )
    x = x + dropout(y, rate, keys[2])
    x = norm(x, p["ffn_norm_scale"], p["ffn_norm_bias"])
    new = dict(carry, x=x, key=key)
    if "qkv" in carry:
        new["qkv"] = qkv
    if "states" in carry:
        new["i"] = carry["i"] + 1
        new["states"] = carry["states"].at[new["i"]].set(x)
    return new


def attention(
    qkv: Float[Array, "T 3 W"],
    tokens: Array | np.ndarray,
    head_size: int,
    dtype: Any = jnp.float32,
    rate: float = 0.0,
    key: jax.Array | None = None,
) -> Float[Array, "T W"]:
    """Scaled dot-product attention; padding (tokens 0, [B, L]) is never attended to."""
    batch, length = tokens.shape
    qkv_CBHLK = jnp.transpose(
        qkv.reshape(batch, length, 3, -1, head_size), (2, 0, 3, 1, 4)
    )
    query, key_, value = qkv_CBHLK
    scores = product("bhlk,bhmk->bhlm", query * head_size**-0.5, key_, dtype)
    scores = jnp.where(tokens[:, None, None, :], scores, -1e30)
    weights = dropout(jax.nn.softmax(scores, axis=-1), rate, key)
    context = product("bhlm,bhmk->bhlk", weights, value, dtype)
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
    kept = elastic.keep(n, x.shape[-1])
    x = x * kept
    centred = (x - x.sum(axis=-1, keepdims=True) / n) * kept
    variance = jnp.square(centred).sum(axis=-1, keepdims=True) / n
    return centred * jax.lax.rsqrt(variance + epsilon) * scale + bias * kept


def dropout(x, rate, key):
    """x with each entry dropped at `rate` and the rest scaled up; x if key is None."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(spec: str, x: ArrayLike, y: ArrayLike, dtype: Any) -> jax.Array:
    """einsum(spec, x, y) of operands cast to dtype, summed up in f32.

    Forward and backward alike: JAX's own transpose would multiply an f32 gradient.
    """
    return jnp.einsum(
        spec, x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32
    )


def _product_forward(spec, x, y, dtype):
    return product(spec, x, y, dtype), (x, y)


def _product_backward(spec, dtype, saved, gradient):
    x, y = saved
    (of_x, of_y), out = spec.split("->")[0].split(","), spec.split("->")[1]
    return (
        product(f"{out},{of_y}->{of_x}", gradient, y, dtype).astype(x.dtype),
        product(f"{of_x},{out}->{of_y}", x, gradient, dtype).astype(y.dtype),
    )


product.defvjp(_product_forward, _product_backward)
