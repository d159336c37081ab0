"""A smaller network out of a teacher, untrained: layers, channels, and the fold."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.models import build, extract
from autodistill_jax.pruning.fold import fold
from autodistill_jax.pruning.moments import input_moments


def prune(
    module: build.Module,
    params: build.Params,
    arch: AnyArch,
    kept_layers: Sequence[int],
    batches: Iterable[Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """The best untrained network of an Arch in a larger one whose channels are ordered.

    The layers are dropped first; what the narrower network then does without is folded
    into the products that stay, see `fold.fold`.

    Args:
      module: of `params`; no SuperLM.
      params: {name: array}, its channels in the order of `order.channel_orders`.
      arch: of the smaller network.
      kept_layers: the indices of its layers.
      batches: text to fit on, see `moments.input_moments`.

    Returns:
      {name: array} of a network of `arch`.
    """
    shallow = dataclasses.replace(module.arch, layers=arch.layers)
    params = extract.extract(params, module.arch, shallow, kept_layers)
    if shallow != arch:
        module = module.clone(arch=shallow)
        moments = input_moments(module, params, batches)
        params = fold(module, params, arch, moments)
        params = extract.extract(params, shallow, arch)
    return params
