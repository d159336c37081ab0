"""The MobileBERT encoder: teacher, SuperLM and student, as in `bert`.

Shapes in suffixes: as in `bert`; W bottleneck, S stacks, E embedding.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from autodistill_jax import sharding
from autodistill_jax.archs.arch import MobileArch
from autodistill_jax.archs.cost import MOBILEBERT_DIMS, ModelDims
from autodistill_jax.archs.space import Space
from autodistill_jax.models import elastic, encoder
from autodistill_jax.models.encoder import Outputs, normal_init, ones_init, zeros_init
from autodistill_jax.models.layers import (
    activation_fn,
    attention,
    dropout,
    einsum_f32acc,
    layer_norm,
    no_norm,
)

# What a block's first product makes of its input, and what its second makes of the
# bottleneck of the attention: see `cost.ModelDims.attention_input`.
ATTENTION_INPUTS = {
    "shared": (("input", "keys", "value"), ("query", "key")),
    "stream": (("input", "query", "key", "value"), ()),
    "bottleneck": (("input",), ("query", "key", "value")),
}
# transformers makes two of its LayerNorms (the embeddings', the last ffn's) with
# torch's default, whatever config.json says; to load its weights is to follow.
_TORCH_EPSILON = 1e-5


class MobileBert(nn.Module):
    """MobileBERT's encoder (arXiv 2004.02984), without a head; IB-BERT by its sizes.

    Attributes:
      arch: sizes of the parameters (ints).
      dims: what is not elastic and shared by teacher and students: vocabulary,
        positions, the norm, what attention reads and the rest of `ModelDims`.
      space, kept_layers, dtype, dropout, unroll, mesh, remat: as of `bert.Bert`.
    """

    arch: MobileArch
    dims: ModelDims = MOBILEBERT_DIMS
    space: Space | None = None
    kept_layers: tuple[tuple[int, ...], ...] = ()
    dtype: Any = jnp.float32
    dropout: float = 0.0
    unroll: bool = False
    mesh: Mesh | None = None
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array | np.ndarray, "B L"],
        attention_mask: Array | np.ndarray,
        arch: MobileArch | None = None,
        *,
        token_type_ids: Array | np.ndarray | None = None,
        position_ids: Array | np.ndarray | None = None,
        key: jax.Array | None = None,
        qkv: bool = False,
        states: bool = False,
        kernel_inputs: bool = False,
        depth: jax.Array | None = None,
    ) -> Outputs:
        """One forward pass; arguments and results as of `bert.Bert`."""
        params = self._parameters()
        embeddings = params.embeddings
        space = self.space if arch is not None else None
        arch = self.arch if space is None else arch
        batch, length = input_ids.shape
        attention_mask = attention_mask.astype(bool)
        keys = list(jax.random.split(key, 2)) if key is not None else [None, None]
        norm_fn = {"layer_norm": layer_norm, "no_norm": no_norm}[self.dims.norm]
        norm = functools.partial(norm_fn, epsilon=self.dims.norm_epsilon)

        word = encoder.embedding_lookup(embeddings["word"], input_ids, self.mesh)
        # Each token with its neighbours, the next one first; nothing beyond the ends.
        next_word = jnp.pad(word[:, 1:], ((0, 0), (0, 1), (0, 0)))
        previous_word = jnp.pad(word[:, :-1], ((0, 0), (1, 0), (0, 0)))
        trigram = jnp.concatenate([next_word, word, previous_word], axis=-1)
        x = einsum_f32acc(
            "te,ed->td",
            trigram.reshape(batch * length, -1),
            embeddings["trigram_kernel"],
            self.dtype,
        )
        token_types = (
            jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        )
        position = encoder.position_lookup(embeddings["position"], length, position_ids)
        position = position + embeddings["trigram_bias"]
        position = (
            position + embeddings["type"][jnp.minimum(token_types, self.dims.types - 1)]
        )
        x = x + position.reshape(batch * length, -1)
        scale, bias = embeddings["norm_scale"], embeddings["norm_bias"]
        x = norm(x, scale, bias, n=arch.hidden, epsilon=_TORCH_EPSILON)
        x = dropout(x, self.dropout, keys[0])

        choices = {}
        if space is not None:
            parts = sharding.num_tensor_shards(self.mesh)
            platform = sharding.platform(self.mesh)
            choose = functools.partial(
                elastic.choose_slices, space, arch, platform=platform
            )
            choices = {
                "stream": choose("hidden", "bottleneck"),
                "bottleneck": choose("bottleneck"),
                # Heads split what there is: their number must be exact.
                "heads": choose("bottleneck", "heads", exact=True),
                "ffn": choose(
                    "bottleneck", "ffn", parts=parts, units=self.arch.shardable_axes
                ),
            }
        layer = functools.partial(
            _mobilebert_layer,
            arch=arch,
            heads=self.arch.heads,  # where no sub-network says otherwise
            norm=norm,
            attention_mask=attention_mask,
            attention_input=self.dims.attention_input,
            activation=activation_fn(self.dims.activation),
            dtype=self.dtype,
            rate=self.dropout,
            mesh=self.mesh,
            kernel_inputs=kernel_inputs,
        )
        return encoder.run_layers(
            layer,
            params,
            choices,
            x,
            keys[1],
            self,
            arch,
            batch,
            qkv=qkv,
            states=states,
            kernel_inputs=kernel_inputs,
            depth=depth,
        )

    def _parameters(self):
        """Parameters with their logical axes; layers stacked along `layers`."""
        arch, dims = self.arch, self.dims
        first, second = ATTENTION_INPUTS[dims.attention_input]
        size = {
            "vocab": dims.vocab,
            "position": dims.positions,
            "type": dims.types,
            "embedding": dims.embedding,
            "trigram": 3 * dims.embedding,
            "layers": arch.layers,
            "hidden": arch.hidden,
            "bottleneck": arch.bottleneck,
            "ffn": arch.ffn,
            "stacks": arch.stacks,
            "first": len(first),
            "second": len(second),
            "norms": _num_input_norms(dims.attention_input),
        }
        embeddings = {
            "word": (normal_init, ("vocab", "embedding")),
            "trigram_kernel": (normal_init, ("trigram", "hidden")),
            "trigram_bias": (zeros_init, ("hidden",)),
            "position": (normal_init, ("position", "hidden")),
            "type": (normal_init, ("type", "hidden")),
            "norm_scale": (ones_init, ("hidden",)),
            "norm_bias": (zeros_init, ("hidden",)),
        }
        layer = {
            "first_kernel": (normal_init, ("hidden", "first", "bottleneck")),
            "first_bias": (zeros_init, ("first", "bottleneck")),
            "first_norm_scale": (ones_init, ("norms", "bottleneck")),
            "first_norm_bias": (zeros_init, ("norms", "bottleneck")),
            "attention_kernel": (normal_init, ("bottleneck", "bottleneck")),
            "attention_bias": (zeros_init, ("bottleneck",)),
            "attention_norm_scale": (ones_init, ("bottleneck",)),
            "attention_norm_bias": (zeros_init, ("bottleneck",)),
            "ffn_in_kernel": (normal_init, ("stacks", "bottleneck", "ffn")),
            "ffn_in_bias": (zeros_init, ("stacks", "ffn")),
            "ffn_out_kernel": (normal_init, ("stacks", "ffn", "bottleneck")),
            "ffn_out_bias": (zeros_init, ("stacks", "bottleneck")),
            "ffn_norm_scale": (ones_init, ("stacks", "bottleneck")),
            "ffn_norm_bias": (zeros_init, ("stacks", "bottleneck")),
            "out_kernel": (normal_init, ("bottleneck", "hidden")),
            "out_bias": (zeros_init, ("hidden",)),
            "out_norm_scale": (ones_init, ("hidden",)),
            "out_norm_bias": (zeros_init, ("hidden",)),
        }
        if second:
            layer |= {
                "second_kernel": (normal_init, ("bottleneck", "second", "bottleneck")),
                "second_bias": (zeros_init, ("second", "bottleneck")),
            }
        layer = {key: (init, ("layers", *axes)) for key, (init, axes) in layer.items()}
        pooler = {
            "kernel": (normal_init, ("hidden", "hidden")),
            "bias": (zeros_init, ("hidden",)),
        }
        pooler = pooler if dims.pooler else {}
        return encoder.encoder_parameters(self, size, embeddings, layer, pooler)


def _num_input_norms(attention_input: str) -> int:
    """How many bottlenecks a block's input has: each has a norm of its own."""
    return sum(
        name in ("input", "keys") for name in ATTENTION_INPUTS[attention_input][0]
    )


def _mobilebert_layer(
    p: Mapping[str, Array | np.ndarray],
    carry: dict[str, Any],
    choices: Mapping[str, elastic.SliceChoice],
    *,
    arch: MobileArch,
    heads: int,
    norm: functools.partial,
    attention_mask: Array | np.ndarray,
    attention_input: str,
    activation: Callable[[jax.Array], jax.Array],
    dtype: Any,
    rate: float,
    mesh: Mesh | None,
    kernel_inputs: bool,
) -> dict[str, Any]:
    """One block, [T, D] -> [T, D], in pieces that `elastic` may slice."""
    split = functools.partial(sharding.split_channels, mesh=mesh)
    x, key = carry["x"], carry["key"]
    keys = [None] * 2
    if key is not None:
        *keys, key = jax.random.split(key, 3)

    def project_parts(x, kernel, bias):
        """x [T, i], kernel [i, parts, o] -> [T, parts, o], as one product."""
        flat = einsum_f32acc("ti,io->to", x, kernel.reshape(kernel.shape[0], -1), dtype)
        return flat.reshape(-1, *bias.shape) + bias

    def project(x, kernel, bias):
        return einsum_f32acc("ti,io->to", x, kernel, dtype) + bias

    projections = elastic.sliced_call(
        project_parts,
        choices.get("stream"),
        (x, p["first_kernel"], p["first_bias"]),
        ((None, "hidden"), ("hidden", None, "bottleneck"), (None, "bottleneck")),
        (None, None, "bottleneck"),
    )
    first, second = ATTENTION_INPUTS[attention_input]
    parts = {name: projections[:, i] for i, name in enumerate(first)}
    # The norms' order is the parts': input, then keys.
    for i in range(_num_input_norms(attention_input)):
        scale, bias = p["first_norm_scale"][i], p["first_norm_bias"][i]
        parts[first[i]] = norm(parts[first[i]], scale, bias, n=arch.bottleneck)
    second_input = parts["keys" if "keys" in parts else "input"]
    if second:
        projections = elastic.sliced_call(
            project_parts,
            choices.get("bottleneck"),
            (second_input, p["second_kernel"], p["second_bias"]),
            (
                (None, "bottleneck"),
                ("bottleneck", None, "bottleneck"),
                (None, "bottleneck"),
            ),
            (None, None, "bottleneck"),
        )
        parts |= {name: projections[:, i] for i, name in enumerate(second)}
    qkv = jnp.stack([parts["query"], parts["key"], parts["value"]], axis=1)

    def attend(qkv, kernel, bias, attention_mask, *key, heads=heads):
        size = qkv.shape[-1] // heads
        context = attention(qkv, attention_mask, size, dtype, rate, *key)
        return einsum_f32acc("ti,io->to", context, kernel, dtype) + bias

    random = () if key is None else (keys[0],)
    y = elastic.sliced_call(
        attend,
        choices.get("heads"),
        (qkv, p["attention_kernel"], p["attention_bias"]),
        ((None, None, "bottleneck"), ("bottleneck", "bottleneck"), ("bottleneck",)),
        (None, "bottleneck"),
        constants=(attention_mask, *random),
        size_kwargs=("heads",),
    )
    scale, bias = p["attention_norm_scale"], p["attention_norm_bias"]
    y = norm(y + parts["input"], scale, bias, n=arch.bottleneck)
    ffn_inputs, ffn_inners = [], []

    def ffn(i, p, y, on=None):
        choice = choices.get("ffn")
        if on is not None:  # The layer is, and in it the stack.
            choice = choice._replace(on=on & choice.on)
        inner = elastic.sliced_call(
            project,
            choice,
            (y, p["ffn_in_kernel"], p["ffn_in_bias"]),
            ((None, "bottleneck"), ("bottleneck", "ffn"), ("ffn",)),
            (None, "ffn"),
        )
        z = elastic.sliced_call(
            lambda inner, kernel, bias: project(activation(inner), kernel, bias),
            choice,
            (split(inner), p["ffn_out_kernel"], p["ffn_out_bias"]),
            ((None, "ffn"), ("ffn", "bottleneck"), ("bottleneck",)),
            (None, "bottleneck"),
        )
        epsilon = norm.keywords["epsilon"]
        epsilon = jnp.where(i == arch.stacks - 1, _TORCH_EPSILON, epsilon)
        scale, bias = p["ffn_norm_scale"], p["ffn_norm_bias"]
        z = split(z, gather=True)
        z = norm(z + y, scale, bias, n=arch.bottleneck, epsilon=epsilon)
        if kernel_inputs:  # A fixed number of stacks is no loop.
            ffn_inputs.append(y)
            ffn_inners.append(activation(inner))
        return z

    ffns = {name: value for name, value in p.items() if name.startswith("ffn_")}
    scan_fn = elastic.masked_scan if choices else elastic.scan_first_n
    y = scan_fn(ffn, ffns, y, arch.stacks)
    z = elastic.sliced_call(
        project,
        choices.get("stream"),
        (y, p["out_kernel"], p["out_bias"]),
        ((None, "bottleneck"), ("bottleneck", "hidden"), ("hidden",)),
        (None, "hidden"),
    )
    layer_input, x = x, dropout(z, rate, keys[1]) + x
    x = norm(x, p["out_norm_scale"], p["out_norm_bias"], n=arch.hidden)
    new = encoder.record_outputs(carry, x, qkv, key)
    if kernel_inputs:
        new["kernel_inputs"] = {
            "first_kernel": layer_input,
            "attention_kernel": attention(
                qkv, attention_mask, qkv.shape[-1] // heads, dtype
            ),
            "ffn_in_kernel": jnp.stack(ffn_inputs),
            "ffn_out_kernel": jnp.stack(ffn_inners),
            "out_kernel": y,
        }
        if second:
            new["kernel_inputs"]["second_kernel"] = second_input
    return new
