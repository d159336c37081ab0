"""Extraction: a network of one Arch sliced out of a larger one, axis by axis."""

from collections.abc import Sequence

import jax
import numpy as np

from autodistill_jax.archs.arch import AnyArch, Arch, spread_layers
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.errors import UserError
from autodistill_jax.models import build


def extract(
    params: dict,
    source: AnyArch,
    arch: AnyArch,
    kept_layers: Sequence[int] | None = None,
) -> dict:
    """The parameters of `arch`, cut out of those of the larger Arch `source`.

    The first n channels, heads (head_size channels each), ffn channels and stacks of
    each axis. Both a student out of a
    SuperLM and a SuperLM's start out of the teacher ("truncation"; AutoDistil, arXiv
    2201.12507, section 3.2). A MobileArch's heads are no axis of any parameter: they
    are not cut.

    Args:
      params: {name: array} of an encoder, layers stacked.
      source: the Arch of `params`.
      arch: the Arch to cut out.
      kept_layers: the indices of its layers in `source`; None: `arch.spread_layers`.

    Returns:
      {name: array} of a network of `arch`, in the order of `params`.

    Raises:
      UserError: `arch` is larger than `source` along an axis, of another family, or has
        another head size.
    """
    check_fits(source, arch)
    layers = kept_layers
    if layers is None:
        layers = spread_layers(arch.layers, source.layers)
    assert len(layers) == arch.layers, (layers, arch)
    projection = params.get("embeddings_project_kernel")
    embedding = 0 if projection is None else projection.shape[0]
    dims = ModelDims(vocab=2, positions=2, embedding=embedding)
    axes = build.param_axes(build.build_module(source, dims))
    return {
        name: _slice_param(x, axes[name], layers, arch) for name, x in params.items()
    }


def check_fits(source: AnyArch, arch: AnyArch) -> None:
    """Refuses an Arch that cannot be cut out of another.

    Args:
      source: the larger Arch.
      arch: the Arch to cut out of it.

    Raises:
      UserError: `arch` is larger than `source` along an axis, of another family, or
        has another head size.
    """
    if type(arch) is not type(source):
        raise UserError(
            f"a {type(arch).__name__} ({arch}) cannot be cut from a "
            f"{type(source).__name__} ({source}), a network of another family"
        )
    for axis in arch.axes:
        # A bottleneck's heads split what there is, in whatever number.
        if axis == "heads" and arch.qkv_axis != "heads":
            continue
        if getattr(arch, axis) > getattr(source, axis):
            raise UserError(
                f"{axis} {getattr(arch, axis)} is more than the "
                f"{getattr(source, axis)} of the network it is cut from; give the "
                "space smaller sizes"
            )
    if isinstance(arch, Arch) and arch.head_size != source.head_size:
        raise UserError(
            f"head_size {arch.head_size} differs from the {source.head_size} of the "
            "network it is cut from; a sub-network keeps the teacher's head size"
        )


def _slice_param(
    x: np.ndarray | jax.Array,
    axes: tuple[str, ...],
    layers: Sequence[int],
    arch: AnyArch,
) -> np.ndarray | jax.Array:
    """The part of one parameter that is `arch`'s; axes: its axis names."""
    for dimension, axis in enumerate(axes):
        if axis == "layers":
            x = x[np.asarray(layers)]
        elif axis in arch.axes:
            x = x[(slice(None),) * dimension + (slice(arch.num_channels(axis)),)]
    return x
