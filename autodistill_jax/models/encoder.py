"""What the encoders of all families share: parameters, the layer loop, outputs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from autodistill_jax import sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.models import elastic
from autodistill_jax.models.layers import einsum_f32acc

normal_init = nn.initializers.normal(0.02)
zeros_init, ones_init = nn.initializers.zeros, nn.initializers.ones


class Outputs(NamedTuple):
    """The outputs of a forward pass.

    Attributes:
      hidden: last hidden states, [B, L, D]; channels out of use are exactly 0.
      pooler: tanh of the pooler's projection of the first token, [B, D]; the first
        token's hidden state where the network has no pooler.
      qkv: queries, keys and values of the last layer, [B, L, 3, W]; None unless asked
        for.
      states: every hidden state, embeddings first, [N + 1, B, L, D]; None unless asked
        for.
      qkvs: like qkv, of every layer, [N, B, L, 3, W]; None unless both are asked for.
      kernel_inputs: what the layers' products read, {the kernel's name without
        "layers_": [N, ..., T, n]}, T = B*L; None unless asked for.
    """

    hidden: jax.Array
    pooler: jax.Array
    qkv: jax.Array | None = None
    states: jax.Array | None = None
    qkvs: jax.Array | None = None
    kernel_inputs: dict[str, jax.Array] | None = None


# {name: (initializer, its logical axes)}.
ParamSpec = Mapping[str, tuple[Callable, tuple[str, ...]]]


class EncoderParameters(NamedTuple):
    """The parameters of an encoder, by where they are used.

    The layers' `stack` is as it is stored, and so is the word table (see
    `embedding_lookup`); the others are gathered, see `sharding.gather_params`.

    Attributes:
      embeddings: {name: array}.
      stack: of the layers, {name: [N, ...]}; or, unrolled, a list of {name: array}.
      pooler: kernel [D, D] and bias [D]; empty where there is no pooler.
      axes: {name: logical axes} of a layer's parameters, "layers" not among them.
    """

    embeddings: dict[str, jax.Array]
    stack: Any
    pooler: dict[str, jax.Array]
    axes: dict[str, tuple[str, ...]]


def encoder_parameters(
    module: nn.Module,
    size: Mapping[str, int],
    embeddings: ParamSpec,
    layer: ParamSpec,
    pooler: ParamSpec,
) -> EncoderParameters:
    """The parameters of an encoder, initialized or fetched.

    Args:
      module: it has `arch`, `mesh`, `unroll`: a parameter for each layer, not a stack.
      size: {logical axis: channels}.
      embeddings: spec of the embeddings' parameters.
      layer: spec of the layers' stacked parameters; their axes begin with "layers".
      pooler: spec of the pooler's parameters; empty: it has none.

    Returns:
      The `EncoderParameters` of the module.
    """

    def group(name, spec, end=""):
        return {
            key: module.param(
                f"{name}_{key}{end}",
                nn.with_logical_partitioning(init, axes),
                tuple(size[axis] for axis in axes),
            )
            for key, (init, axes) in spec.items()
        }

    def axes(spec):
        return {key: axes for key, (_, axes) in spec.items()}

    def gather(params, spec):
        return sharding.gather_params(params, axes(spec), module.mesh)

    embedding_params = group("embeddings", embeddings)
    non_word_params = {
        key: value for key, value in embedding_params.items() if key != "word"
    }
    embedding_params |= gather(non_word_params, embeddings)
    layer_spec = {key: (init, axes[1:]) for key, (init, axes) in layer.items()}
    if module.unroll:
        stack = [
            group("layers", layer_spec, f"_{i}") for i in range(module.arch.layers)
        ]
    else:
        stack = group("layers", layer)
    return EncoderParameters(
        embedding_params,
        stack,
        gather(group("pooler", pooler), pooler),
        axes(layer_spec),
    )


def position_lookup(
    table: Array | np.ndarray, length: Any, position_ids: Array | np.ndarray | None
) -> Array | np.ndarray:
    """The embeddings of positions, [L, D] or [B, L, D].

    Args:
      table: [positions, D].
      length: of the texts, L; a symbol where a program leaves it open.
      position_ids: [B, L]; None: 0 to L - 1.
    """
    return table[:length] if position_ids is None else table[position_ids]


def embedding_lookup(
    table: Array | np.ndarray, input_ids: Array | np.ndarray, mesh: Mesh | None
) -> Array | np.ndarray:
    """table[input_ids].

    No device gathers the table: each looks its channels up for all rows of its `fsdp`
    group, which are then handed round.

    Args:
      table: word embeddings, [V, E], as they are stored.
      input_ids: token ids, [B, L].
      mesh: the devices, where there is more than one.

    Returns:
      [B, L, E].
    """
    if mesh is None or mesh.shape["fsdp"] == 1:
        return table[input_ids]
    if table.shape[1] % mesh.shape["fsdp"]:  # Then it is gathered after all.
        rows = sharding.constrain(table, mesh)[input_ids]
    else:
        table = sharding.constrain(table, mesh, None, "fsdp")
        rows = table[sharding.constrain(input_ids, mesh, "data")]
        rows = sharding.constrain(rows, mesh, "data", None, "fsdp")
    return sharding.constrain(rows, mesh, sharding.BATCH_AXES)


def run_layers(
    layer: Callable,
    params: EncoderParameters,
    choices: Mapping[str, elastic.SliceChoice],
    x: Array | np.ndarray,
    key: jax.Array | None,
    module: nn.Module,
    arch: AnyArch,
    batch: Any,  # an int, or a symbol in an export
    qkv: bool,
    states: bool,
    kernel_inputs: bool,
    depth: jax.Array | None,
) -> Outputs:
    """All layers over x, and what is asked for of them on the way.

    Args:
      layer: (a layer's parameters as they are used, carry, choices) -> carry, see
        `record_outputs`.
      params: of the encoder; without a pooler the first token's hidden state stands
        for the pooler's output.
      choices: {piece of a layer: its slices}; empty where the Arch is the module's own.
      x: embeddings, [T, D].
      key: random key of the layers' dropout; None: no dropout.
      module: its `arch`, `space`, `kept_layers`, `mesh`, `dtype` and `remat` are read.
      arch: the Arch to run: the module's own, or a sub-network of its space.
      batch: B; T = B*L.
      qkv: also record queries, keys and values, see `Outputs`.
      states: also record every hidden state, see `Outputs`.
      kernel_inputs: also record what the layers' products read, see `Outputs`; each
        layer leaves its own in the carry, under that name.
      depth: None, or int32: only the first so many layers run, and are the last then.

    Returns:
      The `Outputs` of the forward pass.
    """
    space = None if arch is module.arch else module.space
    stack, pooler = params.stack, params.pooler
    mesh, parts = module.mesh, sharding.num_tensor_shards(module.mesh)
    # Where one trace has many widths, channels are interleaved over the devices.
    interleaved_units = (
        module.arch.shardable_axes if space is not None and parts > 1 else None
    )

    def body(p, carry, on=None):
        carry = dict(carry, x=sharding.constrain(carry["x"], mesh, sharding.BATCH_AXES))
        p = sharding.gather_params(p, params.axes, mesh, interleaved_units)
        return layer(
            p, carry, {k: choice._replace(on=on) for k, choice in choices.items()}
        )

    if module.remat:
        body = jax.checkpoint(body, prevent_cse=isinstance(stack, list))
    elif mesh is not None and mesh.size > mesh.shape["data"]:
        body = jax.checkpoint(
            body, prevent_cse=isinstance(stack, list), policy=_is_saved_for_backward
        )
    carry = {"x": x, "key": key}
    if qkv:
        carry["qkv"] = jnp.zeros((x.shape[0], 3, module.arch.width), x.dtype)
    if states:
        assert space is None, "hidden states of all layers need a fixed depth"
        num_states = module.arch.layers + 1
        carry["states"] = jnp.zeros((num_states, *x.shape), x.dtype).at[0].set(x)
        carry["i"] = 0
        if qkv:
            carry["qkvs"] = jnp.zeros((num_states - 1, *carry["qkv"].shape), x.dtype)
    inputs_by_layer = None
    if kernel_inputs:
        assert space is None and depth is None, "of one whole network alone"

        def recorded_body(carry, p):
            carry = body(p, carry)
            return carry, carry.pop("kernel_inputs")

        carry, inputs_by_layer = jax.lax.scan(recorded_body, carry, stack)
    else:
        carry = elastic.scan_layers(
            body, stack, carry, arch, space, module.kept_layers, depth
        )
    if qkv and interleaved_units and module.arch.qkv_axis in interleaved_units:
        unit = interleaved_units[module.arch.qkv_axis]
        carry["qkv"] = sharding.deinterleave(carry["qkv"], 2, parts, unit)

    def unflatten(name, *leading):
        if name not in carry:
            return None
        value = carry[name]
        length = x.shape[0] // batch
        return value.reshape(*leading, batch, length, *value.shape[len(leading) + 1 :])

    hidden = unflatten("x")
    pooled = hidden[:, 0]
    if pooler:
        pooled = einsum_f32acc("bd,de->be", pooled, pooler["kernel"], module.dtype)
        pooled = jnp.tanh(pooled + pooler["bias"])
        if space is not None:
            pooled = pooled * elastic.channel_mask(arch.hidden, pooled.shape[-1])
    return Outputs(
        hidden,
        pooled,
        unflatten("qkv"),
        unflatten("states", -1),
        unflatten("qkvs", -1),
        inputs_by_layer,
    )


def _is_saved_for_backward(primitive: Any, *_, **params) -> bool:
    """For the backward pass: all but gathered parameters, and what they are cast to."""
    if primitive.name == "name":
        return params["name"] != sharding.GATHERED_NAME
    return primitive.name not in ("reshape", "convert_element_type", "transpose")


def record_outputs(
    carry: dict, x: jax.Array, qkv: jax.Array, key: jax.Array | None
) -> dict:
    """What a layer hands on: its output, and of its inner results what is asked for.

    Args:
      carry: what the layer was called with; it has an entry for each result to record.
      x: the layer's output, [T, D].
      qkv: its queries, keys and values, [T, 3, W].
      key: random key for the layers to come, or None.

    Returns:
      The carry of the next layer.
    """
    new = dict(carry, x=x, key=key)
    if "qkv" in carry:
        new["qkv"] = qkv
    if "qkvs" in carry:
        new["qkvs"] = carry["qkvs"].at[carry["i"]].set(qkv)
    if "states" in carry:
        new["i"] = carry["i"] + 1
        new["states"] = carry["states"].at[new["i"]].set(x)
    return new


def mean_pool(
    hidden: Float[Array, "B L D"], attention_mask: Array | np.ndarray
) -> Float[Array, "B D"]:
    """The mean over the real tokens: what a sentence-embedding model gives out.

    Args:
      hidden: the last hidden states.
      attention_mask: 1 where there is a token, [B, L].

    Returns:
      A vector a text, f32.
    """
    real = attention_mask.astype(jnp.float32)[:, :, None]
    return (hidden * real).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1)


def pool_tokens(
    hidden: Array, pooler: Array, attention_mask: Array | np.ndarray, pooling: str
) -> Array:
    """One vector a text.

    Args:
      hidden: the last hidden states, [B, L, D].
      pooler: the pooler's output, [B, D].
      attention_mask: 1 where there is a token, [B, L].
      pooling: "mean" of the tokens, "cls" (the first token) or "pooler".

    Returns:
      [B, D].
    """
    if pooling == "mean":
        return mean_pool(hidden, attention_mask)
    return hidden[:, 0] if pooling == "cls" else pooler
