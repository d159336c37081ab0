"""What do the encoders of all families share? Parameters, the loop, what comes out."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from autodistill_jax import sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.models import elastic
from autodistill_jax.models.layers import einsum_f32acc

normal_init = nn.initializers.normal(0.02)
zeros_init, ones_init = nn.initializers.zeros, nn.initializers.ones


class Outputs(NamedTuple):
    """What a forward pass gives.

    hidden: last hidden states, [B, L, D]; channels out of use are exactly 0.
    pooler: tanh of the pooler's projection of the first token, [B, D].
    qkv: queries, keys and values of the last layer, [B, L, 3, W]; None unless asked for.
    states: every hidden state, embeddings first, [N + 1, B, L, D]; None unless asked for.
    qkvs: like qkv, of every layer, [N, B, L, 3, W]; None unless both are asked for.
    """

    hidden: jax.Array
    pooler: jax.Array
    qkv: jax.Array | None = None
    states: jax.Array | None = None
    qkvs: jax.Array | None = None


ParamSpec = Mapping[str, tuple[Callable, tuple[str, ...]]]


class EncoderParameters(NamedTuple):
    """Of an encoder. The layers' `stack` is as it is stored, and so is the word table
    (see `embedding_lookup`); the others are as they are used.

    axes: of a layer's parameters, "layers" not among them.
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
    """The parameters of an encoder, made or fetched.

    Args:
      module: it has `arch`, `mesh`, `unroll`: a parameter for each layer, not a stack.
      size: {logical axis: channels}.
      embeddings, layer, pooler: {name: (initializer, its logical axes)}; the layer's
        axes begin with "layers".
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

    def used(made, spec):
        return sharding.gather_params(made, axes(spec), module.mesh)

    made = group("embeddings", embeddings)
    others = {key: value for key, value in made.items() if key != "word"}
    made |= used(others, embeddings)
    one = {key: (init, axes[1:]) for key, (init, axes) in layer.items()}
    if module.unroll:
        stack = [group("layers", one, f"_{i}") for i in range(module.arch.layers)]
    else:
        stack = group("layers", layer)
    return EncoderParameters(
        made, stack, used(group("pooler", pooler), pooler), axes(one)
    )


def embedding_lookup(
    table: jax.Array, input_ids: jax.Array, mesh: Mesh | None
) -> jax.Array:
    """table[ids], [B, L, E]. No device gathers the table: each looks its channels up for
    all rows of its `fsdp` group, which are then handed round."""
    if mesh is None or mesh.shape["fsdp"] == 1:
        return table[input_ids]
    if table.shape[1] % mesh.shape["fsdp"]:  # Then it is gathered after all.
        found = sharding.constrain(table, mesh)[input_ids]
    else:
        table = sharding.constrain(table, mesh, None, "fsdp")
        found = table[sharding.constrain(input_ids, mesh, "data")]
        found = sharding.constrain(found, mesh, "data", None, "fsdp")
    return sharding.constrain(found, mesh, sharding.BATCH_AXES)


def run_layers(
    layer: Callable,
    params: EncoderParameters,
    cuts: Mapping[str, elastic.SliceChoice],
    x: jax.Array,
    key: jax.Array | None,
    module: nn.Module,
    arch: AnyArch,
    batch: int,
    qkv: bool,
    states: bool,
    depth: jax.Array | None,
) -> Outputs:
    """All layers over x [T, D], and what is asked for of them on the way.

    Args:
      layer: (a layer's parameters as they are used, carry, cuts) -> carry, see `record_outputs`.
      params: of the pooler kernel and bias, or nothing: the first token itself is the
        pooler's then.
      cuts: of a layer's pieces, by name; none where the Arch is the module's own.
      arch: the Arch to run: the module's own, or a sub-network of its space.
      qkv, states: see `Outputs`.
      depth: None, or int32: only the first so many layers run, and are the last then.
    """
    space = None if arch is module.arch else module.space
    stack, pooler = params.stack, params.pooler
    mesh, parts = module.mesh, sharding.num_tensor_shards(module.mesh)
    # Where one trace has many widths, channels are dealt out over the devices.
    dealt = module.arch.shardable_axes if space is not None and parts > 1 else None

    def body(p, carry, on=None):
        carry = dict(carry, x=sharding.constrain(carry["x"], mesh, sharding.BATCH_AXES))
        p = sharding.gather_params(p, params.axes, mesh, dealt)
        return layer(p, carry, {k: cut._replace(on=on) for k, cut in cuts.items()})

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
        there = module.arch.layers + 1
        carry["states"] = jnp.zeros((there, *x.shape), x.dtype).at[0].set(x)
        carry["i"] = 0
        if qkv:
            carry["qkvs"] = jnp.zeros((there - 1, *carry["qkv"].shape), x.dtype)
    carry = elastic.scan_layers(body, stack, carry, arch, space, depth)
    if qkv and dealt and module.arch.qkv_axis in dealt:
        unit = dealt[module.arch.qkv_axis]
        carry["qkv"] = sharding.deinterleave(carry["qkv"], 2, parts, unit)

    def shaped(name, *before):
        if name not in carry:
            return None
        value = carry[name]
        length = x.shape[0] // batch
        return value.reshape(*before, batch, length, *value.shape[len(before) + 1 :])

    hidden = shaped("x")
    pooled = hidden[:, 0]
    if pooler:
        pooled = einsum_f32acc("bd,de->be", pooled, pooler["kernel"], module.dtype)
        pooled = jnp.tanh(pooled + pooler["bias"])
        if space is not None:
            pooled = pooled * elastic.channel_mask(arch.hidden, pooled.shape[-1])
    return Outputs(
        hidden, pooled, shaped("qkv"), shaped("states", -1), shaped("qkvs", -1)
    )


def _is_saved_for_backward(primitive: Any, *_, **params) -> bool:
    """For the backward pass: all but gathered parameters, and what they are cast to."""
    if primitive.name == "name":
        return params["name"] != sharding.GATHERED_NAME
    return primitive.name not in ("reshape", "convert_element_type", "transpose")


def record_outputs(
    carry: dict, x: jax.Array, qkv: jax.Array, key: jax.Array | None
) -> dict:
    """What a layer hands on: x [T, D], and what of its qkv [T, 3, W] is asked for."""
    new = dict(carry, x=x, key=key)
    if "qkv" in carry:
        new["qkv"] = qkv
    if "qkvs" in carry:
        new["qkvs"] = carry["qkvs"].at[carry["i"]].set(qkv)
    if "states" in carry:
        new["i"] = carry["i"] + 1
        new["states"] = carry["states"].at[new["i"]].set(x)
    return new
