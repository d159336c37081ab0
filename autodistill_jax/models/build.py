"""The module that computes an Arch, and its parameters: axes, init, stacking."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from autodistill_jax.archs.arch import AnyArch, Arch, MobileArch
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.models.bert import Bert
from autodistill_jax.models.encoder import Outputs, pool_tokens
from autodistill_jax.models.mobilebert import MobileBert

Module = Bert | MobileBert
Params = Mapping[str, jax.Array | np.ndarray]


def build_module(arch: AnyArch, dims: ModelDims, **settings) -> Module:
    """The module of an Arch's family.

    Args:
      arch: sizes of the parameters.
      dims: what is not elastic.
      **settings: further attributes of the module, see `bert.Bert`.

    Returns:
      A `Bert` or a `MobileBert`, without parameters.
    """
    return {Arch: Bert, MobileArch: MobileBert}[type(arch)](arch, dims, **settings)


def apply_module(
    module: Module,
    params: Params,
    batch: Mapping[str, jax.Array | np.ndarray],
    *arch: AnyArch,
    **more_outputs: bool,
) -> Outputs:
    """A network's outputs for a batch of token rows.

    Args:
      module: the network's.
      params: its parameters.
      batch: `input_ids`, `attention_mask` and perhaps `token_type_ids`, [B, L] each.
      *arch: of a SuperLM, the sub-network's sizes.
      **more_outputs: what else to return, see `bert.Bert`.

    Returns:
      `encoder.Outputs`.
    """
    apply: Callable[..., Any] = module.apply
    return apply(
        {"params": params},
        batch["input_ids"],
        batch["attention_mask"],
        *arch,
        token_type_ids=batch.get("token_type_ids"),
        **more_outputs,
    )


def text_embeddings(
    module: Module,
    params: Params,
    batch: Mapping[str, jax.Array | np.ndarray],
    pooling: str,
) -> jax.Array:
    """A vector a text, [B, D]: `apply_module`, pooled as `encoder.pool_tokens` says."""
    out = apply_module(module, params, batch)
    return pool_tokens(out.hidden, out.pooler, batch["attention_mask"], pooling)


def param_axes(module: Module) -> dict[str, tuple[str, ...]]:
    """The logical axis names of every parameter: {name: (axis, ...)}."""
    shapes = jax.eval_shape(
        module.clone(mesh=None).init,
        jax.random.key(0),
        np.zeros((1, 2), np.int32),
        np.ones((1, 2), np.int32),
    )
    return {k: tuple(v) for k, v in nn.get_partition_spec(shapes)["params"].items()}


def init_params(module: Module, key: jax.Array) -> dict[str, jax.Array]:
    """Random parameters (normal, 0.02), without the boxes of their axis names.

    Args:
      module: whose parameters; its mesh is not looked at.
      key: random key.

    Returns:
      {name: f32 array}.
    """
    example = np.zeros((1, 2), np.int32)
    init = jax.jit(module.clone(mesh=None).init)
    return nn.unbox(init(key, example, example))["params"]


def unstack_layers(params: dict) -> dict:
    """Stacked layers as a parameter each: `layers_x` [N, ...] -> `layers_x_0` ..."""
    flat = {}
    for name, value in params.items():
        if name.startswith("layers_"):
            flat |= {f"{name}_{i}": value[i] for i in range(value.shape[0])}
        else:
            flat[name] = value
    return flat


def stack_layers(params: dict) -> dict:
    """The inverse of `unstack_layers`: `layers_x_0`, ... -> `layers_x` [N, ...]."""
    layers: dict[str, dict[int, jax.Array]] = {}
    stacked_params = {}
    for name, value in params.items():
        if name.startswith("layers_"):
            stem, _, i = name.rpartition("_")
            layers.setdefault(stem, {})[int(i)] = value
        else:
            stacked_params[name] = value
    for stem, values in layers.items():
        stacked_params[stem] = np.stack([np.asarray(values[i]) for i in sorted(values)])
    return stacked_params
