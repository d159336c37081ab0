"""Which channels of a network are cut together: who writes them and who reads them.

A stream is a vector that some products write and others read: the residual stream
("hidden"), the heads' outputs ("context"), the ffn's inner channels ("ffn"); in a
MobileBERT also the residual stream of a block's bottleneck, and what its queries and keys
are made of ("keys").
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from autodistill_jax.archs.arch import AnyArch, Arch
from autodistill_jax.models import build
from autodistill_jax.models.mobilebert import ATTENTION_INPUTS

# Of an axis of a parameter: its stream; one for each part along the axis before; or None.
AxisStream = str | tuple[str, ...] | None


class Reader(NamedTuple):
    """A product that reads a stream.

    Attributes:
      stream: its name.
      kernel: the name of its matrix.
      axis: of the matrix, that the stream runs along.
      bias: the name of the product's bias.
    """

    stream: str
    kernel: str
    axis: int
    bias: str


def stream_axis(arch: AnyArch, stream: str) -> str:
    """The Arch's axis that a stream's channels belong to."""
    if isinstance(arch, Arch):
        return {"context": "heads"}.get(stream, stream)
    return stream if stream in ("hidden", "ffn") else "bottleneck"


def param_streams(module: build.Module) -> dict[str, tuple[AxisStream, ...]]:
    """The stream that each axis of each parameter belongs to.

    Args:
      module: of either family.

    Returns:
      {name: (an `AxisStream` for each axis)}.
    """
    axes = build.param_axes(module)
    if isinstance(module.arch, Arch):
        names = {"hidden": "hidden", "heads": "context", "ffn": "ffn"}
        return {key: tuple(map(names.get, value)) for key, value in axes.items()}
    first, _ = ATTENTION_INPUTS[module.dims.attention_input]
    parts = {"input": "bottleneck", "keys": "keys"}
    first_streams = tuple(parts.get(name, "context") for name in first)
    input_norms = tuple(parts[name] for name in first if name in parts)
    bottleneck: dict[str, tuple[AxisStream, ...]] = {
        "layers_first_kernel": (first_streams,),
        "layers_first_bias": (first_streams,),
        "layers_first_norm_scale": (input_norms,),
        "layers_first_norm_bias": (input_norms,),
        "layers_second_kernel": (
            "keys" if "keys" in first else "bottleneck",
            "context",
        ),
        "layers_second_bias": ("context",),
        "layers_attention_kernel": ("context", "bottleneck"),
    }
    streams = {}
    for key, names in axes.items():
        of_bottleneck = iter(bottleneck.get(key, ("bottleneck",)))
        streams[key] = tuple(
            next(of_bottleneck)
            if axis == "bottleneck"
            else axis
            if axis in ("hidden", "ffn")
            else None
            for axis in names
        )
    return streams


def stream_readers(module: build.Module) -> list[Reader]:
    """The products that read a stream.

    Args:
      module: of either family.

    Returns:
      A `Reader` each; the pooler's among them where there is one.
    """
    readers = []
    for name, streams in param_streams(module).items():
        if name.endswith("_kernel") and not name.startswith("embeddings"):
            axis = next(i for i, stream in enumerate(streams) if stream)
            stream = streams[axis]
            assert isinstance(stream, str)
            readers.append(Reader(stream, name, axis, f"{name[:-6]}bias"))
    return readers


def reorder(
    params: Mapping[str, np.ndarray],
    streams: Mapping[str, tuple[AxisStream, ...]],
    orders: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The parameters of the same network with its channels in another order.

    Exact: LayerNorms, biases and residual streams do not know an order.

    Args:
      params: {name: array}.
      streams: of `param_streams`; parameters that it lacks stay as they are.
      orders: {stream: the old index of each new channel, [n], or with leading axes as
        the parameters have them, [N, n] or [N, stacks, n]}.

    Returns:
      {name: array}.
    """
    reordered = {}
    for key, x in params.items():
        x = np.asarray(x)
        for axis, stream in enumerate(streams.get(key, ())):
            if isinstance(stream, tuple):
                parts = [
                    _take(x.take([i], axis - 1), orders[name], axis)
                    for i, name in enumerate(stream)
                ]
                x = np.concatenate(parts, axis - 1)
            elif stream:
                x = _take(x, orders[stream], axis)
        reordered[key] = x
    return reordered


def _take(x: np.ndarray, order: np.ndarray, axis: int) -> np.ndarray:
    leading = order.shape[:-1]
    shape = (*leading, *(1,) * (axis - len(leading)), order.shape[-1])
    shape += (1,) * (x.ndim - axis - 1)
    return np.take_along_axis(x, order.reshape(shape), axis)
