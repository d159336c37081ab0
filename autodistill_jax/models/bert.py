"""The BERT encoder: teacher, SuperLM and student are one module at other sizes.

Shapes in suffixes: B batch, L length, T = B*L tokens, D hidden, H heads, K per head,
W = H*K q/k/v width, F ffn, V vocabulary, N layers.
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
from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.cost import BERT_DIMS, ModelDims
from autodistill_jax.archs.space import Space
from autodistill_jax.models import elastic, encoder
from autodistill_jax.models.encoder import Outputs, normal_init, ones_init, zeros_init
from autodistill_jax.models.layers import (
    activation_fn,
    attention,
    dropout,
    einsum_f32acc,
    layer_norm,
)


class Bert(nn.Module):
    """BERT's encoder (arXiv 1810.04805), without a head.

    Attributes:
      arch: sizes of the parameters (ints).
      dims: what is not elastic and shared by teacher and students: vocabulary,
        positions, activation and the rest of `ModelDims`.
      space: of a SuperLM, the Space whose sub-networks it can run; else None.
      kept_layers: of a SuperLM, which of its layers a sub-network runs, a tuple for each
        depth; () spreads them over all there are, see `arch.spread_layers`.
      word_width: of a word table that a trained map narrows to `arch.hidden`, see
        `word_map`; 0: the words are as wide as the network.
      dtype: of the products' operands; parameters, sums, softmax and LayerNorm are f32.
      dropout: rate, in force where a call gives a random key.
      unroll: a parameter for each layer (see `build.unstack_layers`) and no loop, as a
        program that serves has them: longer to compile; slicing a stack costs time.
      mesh: the devices it runs on, where there is more than one; see `sharding`.
      remat: a layer's inner results are computed again in the backward pass, not
        stored: it runs forward twice, and needs memory for a layer's input only.
    """

    arch: Arch
    dims: ModelDims = BERT_DIMS
    space: Space | None = None
    kept_layers: tuple[tuple[int, ...], ...] = ()
    word_width: int = 0
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
        arch: Arch | None = None,
        *,
        token_type_ids: Array | np.ndarray | None = None,
        position_ids: Array | np.ndarray | None = None,
        key: jax.Array | None = None,
        qkv: bool = False,
        states: bool = False,
        kernel_inputs: bool = False,
        depth: jax.Array | None = None,
    ) -> Outputs:
        """One forward pass.

        Args:
          input_ids: token ids, [B, L].
          attention_mask: 1 where there is a token, 0 where there is padding, [B, L].
          arch: the sub-network to run, fields int32 arrays; a module without a
            `space` is one network and runs itself.
          token_type_ids: segment ids, [B, L]; zeros if None.
          position_ids: where each token stands, [B, L]; 0 to L - 1 if None.
          key: random key for dropout; None turns dropout off.
          qkv: also return the last layer's queries, keys and values.
          states: also return all hidden states (not in a SuperLM).
          kernel_inputs: also return what every layer's products read (not in a
            SuperLM).
          depth: run the first so many layers only (not in a SuperLM, not unrolled).

        Returns:
          `encoder.Outputs`: hidden states [B, L, D], the pooler's output [B, D], and
          what `qkv`, `states` and `kernel_inputs` ask for.
        """
        params = self._parameters()
        embeddings = params.embeddings
        space = self.space if arch is not None else None
        arch = self.arch if space is None else arch
        batch, length = input_ids.shape
        attention_mask = attention_mask.astype(bool)
        keys = list(jax.random.split(key, 2)) if key is not None else [None, None]

        norm = functools.partial(
            layer_norm, n=arch.hidden, epsilon=self.dims.norm_epsilon
        )
        x = encoder.embedding_lookup(embeddings["word"], input_ids, self.mesh)
        if self.word_width:
            x = einsum_f32acc("ble,ed->bld", x, embeddings["word_map"], self.dtype)
        x = x + encoder.position_lookup(embeddings["position"], length, position_ids)
        # RoBERTa has one type, whatever a tokenizer says of the second text.
        token_types = (
            jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        )
        x = x + embeddings["type"][jnp.minimum(token_types, self.dims.types - 1)]
        x = x.reshape(batch * length, -1)
        embedding_width = self.dims.embedding or arch.hidden
        x = norm(
            x, embeddings["norm_scale"], embeddings["norm_bias"], n=embedding_width
        )
        x = dropout(x, self.dropout, keys[0])
        if self.dims.embedding:
            x = einsum_f32acc("te,ed->td", x, embeddings["project_kernel"], self.dtype)
            x = x + embeddings["project_bias"]
            if space is not None:
                x = x * elastic.channel_mask(arch.hidden, x.shape[-1])

        choices = {}
        if space is not None:
            choose = functools.partial(
                elastic.choose_slices,
                space,
                arch,
                "hidden",
                parts=sharding.num_tensor_shards(self.mesh),
                units=self.arch.shardable_axes,
                platform=sharding.platform(self.mesh),
            )
            choices = {"attention": choose("heads"), "ffn": choose("ffn")}
        layer = functools.partial(
            _bert_layer,
            norm=norm,
            attention_mask=attention_mask,
            head_size=self.arch.head_size,
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
        size = {
            "vocab": dims.vocab,
            "position": dims.positions,
            "type": dims.types,
            "embedding": self.word_width or dims.embedding,
            "layers": arch.layers,
            "hidden": arch.hidden,
            "heads": arch.width,
            "ffn": arch.ffn,
            "qkv": 3,
        }
        embedding_axis = "embedding" if dims.embedding else "hidden"
        spec = {
            "word": (normal_init, ("vocab", embedding_axis)),
            "position": (normal_init, ("position", embedding_axis)),
            "type": (normal_init, ("type", embedding_axis)),
            "norm_scale": (ones_init, (embedding_axis,)),
            "norm_bias": (zeros_init, (embedding_axis,)),
        }
        if self.word_width:
            spec["word"] = (normal_init, ("vocab", "embedding"))
            spec["word_map"] = (normal_init, ("embedding", "hidden"))
        if dims.embedding:
            spec["project_kernel"] = (normal_init, ("embedding", "hidden"))
            spec["project_bias"] = (zeros_init, ("hidden",))
        layer = {
            "qkv_kernel": (normal_init, ("layers", "hidden", "qkv", "heads")),
            "qkv_bias": (zeros_init, ("layers", "qkv", "heads")),
            "attention_kernel": (normal_init, ("layers", "heads", "hidden")),
            "attention_bias": (zeros_init, ("layers", "hidden")),
            "attention_norm_scale": (ones_init, ("layers", "hidden")),
            "attention_norm_bias": (zeros_init, ("layers", "hidden")),
            "ffn_in_kernel": (normal_init, ("layers", "hidden", "ffn")),
            "ffn_in_bias": (zeros_init, ("layers", "ffn")),
            "ffn_out_kernel": (normal_init, ("layers", "ffn", "hidden")),
            "ffn_out_bias": (zeros_init, ("layers", "hidden")),
            "ffn_norm_scale": (ones_init, ("layers", "hidden")),
            "ffn_norm_bias": (zeros_init, ("layers", "hidden")),
        }
        pooler = {
            "kernel": (normal_init, ("hidden", "hidden")),
            "bias": (zeros_init, ("hidden",)),
        }
        return encoder.encoder_parameters(self, size, spec, layer, pooler)


def _bert_layer(
    p: Mapping[str, Array | np.ndarray],
    carry: dict[str, Any],
    choices: Mapping[str, elastic.SliceChoice],
    *,
    norm: Callable[..., jax.Array],
    attention_mask: Array | np.ndarray,
    head_size: int,
    activation: Callable[[jax.Array], jax.Array],
    dtype: Any,
    rate: float,
    mesh: Mesh | None,
    kernel_inputs: bool,
) -> dict[str, Any]:
    """One encoder layer, [T, D] -> [T, D], in four pieces that `elastic` may slice."""
    split = functools.partial(sharding.split_channels, mesh=mesh)
    x, key = carry["x"], carry["key"]
    keys = [None] * 4
    if key is not None:
        *keys, key = jax.random.split(key, 4)

    def project(x, kernel, bias):
        # Split over devices, one matrix would have to be gathered.
        if sharding.num_tensor_shards(mesh) > 1:
            return einsum_f32acc("td,dcw->tcw", x, kernel, dtype) + bias
        # As one matrix: XLA's CPU backend has no bf16 product of three dimensions.
        flat = einsum_f32acc("td,dw->tw", x, kernel.reshape(kernel.shape[0], -1), dtype)
        return flat.reshape(-1, *bias.shape) + bias

    qkv = elastic.sliced_call(
        project,
        choices.get("attention"),
        (x, p["qkv_kernel"], p["qkv_bias"]),
        ((None, "hidden"), ("hidden", None, "heads"), (None, "heads")),
        (None, None, "heads"),
    )
    qkv = split(qkv)

    def attend(qkv, kernel, bias, attention_mask, *key):
        context = attention(qkv, attention_mask, head_size, dtype, rate, *key)
        return einsum_f32acc("tw,wd->td", context, kernel, dtype) + bias

    random = () if key is None else (keys[0],)
    y = elastic.sliced_call(
        attend,
        choices.get("attention"),
        (qkv, p["attention_kernel"], p["attention_bias"]),
        ((None, None, "heads"), ("heads", "hidden"), ("hidden",)),
        (None, "hidden"),
        constants=(attention_mask, *random),
    )
    layer_input = x
    x = x + dropout(split(y, gather=True), rate, keys[1])
    x = norm(x, p["attention_norm_scale"], p["attention_norm_bias"])

    def widen(x, kernel, bias):
        return einsum_f32acc("td,df->tf", x, kernel, dtype) + bias

    ffn_hidden = elastic.sliced_call(
        widen,
        choices.get("ffn"),
        (x, p["ffn_in_kernel"], p["ffn_in_bias"]),
        ((None, "hidden"), ("hidden", "ffn"), ("ffn",)),
        (None, "ffn"),
    )

    def narrow(inner, kernel, bias):
        return einsum_f32acc("tf,fd->td", activation(inner), kernel, dtype) + bias

    y = elastic.sliced_call(
        narrow,
        choices.get("ffn"),
        (split(ffn_hidden), p["ffn_out_kernel"], p["ffn_out_bias"]),
        ((None, "ffn"), ("ffn", "hidden"), ("hidden",)),
        (None, "hidden"),
    )
    attention_output = x
    x = x + dropout(split(y, gather=True), rate, keys[2])
    x = norm(x, p["ffn_norm_scale"], p["ffn_norm_bias"])
    new = encoder.record_outputs(carry, x, qkv, key)
    if kernel_inputs:
        new["kernel_inputs"] = {
            "qkv_kernel": layer_input,
            "attention_kernel": attention(qkv, attention_mask, head_size, dtype),
            "ffn_in_kernel": attention_output,
            "ffn_out_kernel": activation(ffn_hidden),
        }
    return new
