"""How does a network of one Arch come out of a larger one? Slice, axis by axis."""

import dataclasses

import numpy as np

from autodistill_jax.archs.arch import AnyArch, Arch, kept_layers
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.errors import UserError
from autodistill_jax.models import build


def extract(params: dict, there: AnyArch, arch: AnyArch) -> dict:
    """The parameters of `arch`, cut out of those of the larger Arch `there`.

    The first n channels, heads (head_size channels each), ffn channels and stacks of
    each axis; of the layers those that `kept_layers` names. Both a student out of a
    SuperLM and a SuperLM's start out of the teacher ("truncation"; AutoDistil, section
    3.2). A MobileArch's heads are no axis of any parameter: they are not cut.

    Raises:
      UserError: `arch` is larger than `there` along an axis, of another family, or has
        another head size.
    """
    check_fits(there, arch)
    projection = params.get("embeddings_project_kernel")
    embedding = 0 if projection is None else projection.shape[0]
    dims = ModelDims(vocab=2, positions=2, embedding=embedding)
    names = build.param_axes(build.build_module(there, dims))
    return {
        name: _slice_param(x, names[name], there, arch) for name, x in params.items()
    }


def superlm_arch(teacher: AnyArch, envelope: AnyArch) -> AnyArch:
    """The parameters of a SuperLM: the space's widths, the teacher's depth, so that
    sub-networks of every depth find the layers that they keep."""
    return dataclasses.replace(envelope, layers=teacher.layers)


def check_fits(there: AnyArch, arch: AnyArch) -> None:
    if type(arch) is not type(there):
        raise UserError(
            f"a {type(arch).__name__} ({arch}) cannot be cut from a "
            f"{type(there).__name__} ({there}), a network of another family"
        )
    for axis in arch.axes:
        # A bottleneck's heads split what there is, in whatever number.
        if axis == "heads" and arch.qkv_axis != "heads":
            continue
        if getattr(arch, axis) > getattr(there, axis):
            raise UserError(
                f"{axis} {getattr(arch, axis)} is more than the {getattr(there, axis)} "
                "of the network it is cut from; give the space smaller sizes"
            )
    if isinstance(arch, Arch) and arch.head_size != there.head_size:
        raise UserError(
            f"head_size {arch.head_size} differs from the {there.head_size} of the "
            "network it is cut from; a sub-network keeps the teacher's head size"
        )


def _slice_param(x, names, there, arch):
    for dimension, axis in enumerate(names):
        if axis == "layers":
            x = x[np.asarray(kept_layers(arch.layers, there.layers))]
        elif axis in arch.axes:
            x = x[(slice(None),) * dimension + (slice(arch.num_channels(axis)),)]
    return x
