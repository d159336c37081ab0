"""Which module computes an Arch, and what are its parameters?"""

import jax
import numpy as np
from flax import linen as nn

from autodistill_jax.archs.arch import AnyArch, Arch, MobileArch
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.models.bert import Bert
from autodistill_jax.models.mobilebert import MobileBert

Module = Bert | MobileBert


def build_module(arch: AnyArch, dims: ModelDims, **settings) -> Module:
    """The module of an Arch's family; settings: its further attributes."""
    return {Arch: Bert, MobileArch: MobileBert}[type(arch)](arch, dims, **settings)


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
    """Random parameters (normal, 0.02), without the boxes of their axis names."""
    example = np.zeros((1, 2), np.int32)
    first = jax.jit(module.clone(mesh=None).init)
    return nn.unbox(first(key, example, example))["params"]


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
    """What `unstack_layers` took apart, together again."""
    layers: dict[str, dict[int, jax.Array]] = {}
    made = {}
    for name, value in params.items():
        if name.startswith("layers_"):
            stem, _, i = name.rpartition("_")
            layers.setdefault(stem, {})[int(i)] = value
        else:
            made[name] = value
    for stem, values in layers.items():
        made[stem] = np.stack([np.asarray(values[i]) for i in sorted(values)])
    return made
