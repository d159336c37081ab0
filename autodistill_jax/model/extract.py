"""How does a network of one Arch come out of a larger one? Slice, axis by axis."""

import jax
import numpy as np
from flax import linen as nn

from autodistill_jax.arch import Arch, kept_layers
from autodistill_jax.cost import Sizes
from autodistill_jax.errors import UserError
from autodistill_jax.model import elastic
from autodistill_jax.model.bert import Bert


def axes(module: Bert) -> dict[str, tuple[str, ...]]:
    """The logical axis names of every parameter: {name: (axis, ...)}."""
    shapes = jax.eval_shape(
        module.init,
        jax.random.key(0),
        np.zeros((1, 2), np.int32),
        np.ones((1, 2), np.int32),
    )
    return {k: tuple(v) for k, v in nn.get_partition_spec(shapes)["params"].items()}


def init(module: Bert, key: jax.Array) -> dict[str, jax.Array]:
    """Random parameters (normal, 0.02), without the boxes of their axis names."""
    example = np.zeros((1, 2), np.int32)
    return nn.unbox(jax.jit(module.init)(key, example, example))["params"]


def extract(params: dict, there: Arch, arch: Arch) -> dict:
    """The parameters of `arch`, cut out of those of the larger Arch `there`.

    The first n channels, heads (head_size channels each) and ffn channels of each axis;
    of the layers those that `kept_layers` names. Both a student out of a SuperLM and a
    SuperLM's start out of the teacher ("truncation"; AutoDistil, section 3.2).

    Raises:
      UserError: `arch` is larger than `there` along an axis, or has another head size.
    """
    check_fits(there, arch)
    projection = params.get("embeddings_project_kernel")
    embedding = 0 if projection is None else projection.shape[0]
    names = axes(Bert(there, Sizes(vocab=2, positions=2, embedding=embedding)))
    return {name: _slice(x, names[name], there, arch) for name, x in params.items()}


def superlm_arch(teacher: Arch, envelope: Arch) -> Arch:
    """The parameters of a SuperLM: the space's widths, the teacher's depth, so that
    sub-networks of every depth find the layers that they keep."""
    return Arch(
        teacher.layers,
        envelope.hidden,
        envelope.heads,
        envelope.ffn,
        envelope.head_size,
    )


def unstack(params: dict) -> dict:
    """Stacked layers as a parameter each: `layers_x` [N, ...] -> `layers_x_0` ..."""
    flat = {}
    for name, value in params.items():
        if name.startswith("layers_"):
            flat |= {f"{name}_{i}": value[i] for i in range(value.shape[0])}
        else:
            flat[name] = value
    return flat


def stack(params: dict) -> dict:
    """What `unstack` took apart, together again."""
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


def check_fits(there: Arch, arch: Arch) -> None:
    for axis in ("layers", "hidden", "heads", "ffn"):
        if getattr(arch, axis) > getattr(there, axis):
            raise UserError(
                f"{axis} {getattr(arch, axis)} is more than the {getattr(there, axis)} "
                "of the network it is cut from; give the space smaller sizes"
            )
    if arch.head_size != there.head_size:
        raise UserError(
            f"head_size {arch.head_size} differs from the {there.head_size} of the "
            "network it is cut from; a sub-network keeps the teacher's head size"
        )


def _slice(x, names, there, arch):
    for dimension, axis in enumerate(names):
        if axis == "layers":
            x = x[np.asarray(kept_layers(arch.layers, there.layers))]
        elif axis in ("hidden", "heads", "ffn"):
            x = x[(slice(None),) * dimension + (slice(elastic.channels(arch, axis)),)]
    return x
