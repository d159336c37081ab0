"""Which layers a shallower network keeps: a nested table by a label-free score."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from autodistill_jax.archs.space import Space
from autodistill_jax.errors import UserError
from autodistill_jax.models import build
from autodistill_jax.train.distillation import (
    distillation_losses,
    init_projections,
    teacher_targets,
)
from autodistill_jax.train.objective import LOSSES, Objective

Layers = tuple[int, ...]

# So many layers at most have all their subsets of the depths at hand scored (62 of six);
# of more layers one is dropped at a time.
_MAX_EXHAUSTIVE = 6


def nested_layers(
    num_layers: int,
    depths: Iterable[int],
    loss_fn: Callable[[list[Layers]], list[float]],
) -> dict[int, Layers]:
    """The layers to keep for each depth: a smaller set lies within a larger one.

    Of up to six layers the chain of sets whose losses, each as a multiple of the least
    one of its size, add up to the least over the depths that are needed; the other
    depths have the best sets that go with them. Of more layers greedily: from all of
    them the one is dropped whose loss is felt least.

    Args:
      num_layers: of the whole network.
      depths: that are needed.
      loss_fn: for some sets of layers the losses of the networks that keep these alone;
        less is better, above 0.

    Returns:
      {depth: the indices of its layers, rising}, for 1 .. num_layers.
    """
    table = {num_layers: tuple(range(num_layers))}
    if num_layers <= _MAX_EXHAUSTIVE:
        table |= _best_chain(num_layers, sorted(set(depths) - {num_layers}), loss_fn)
    for depth in range(num_layers - 1, 0, -1):
        if depth not in table:
            smaller = max((table[d] for d in table if d < depth), key=len, default=())
            options = list(itertools.combinations(table[depth + 1], depth))
            options = [layers for layers in options if set(smaller) <= set(layers)]
            losses = loss_fn(options)
            table[depth] = options[losses.index(min(losses))]
    return table


def _best_chain(
    num_layers: int,
    depths: Sequence[int],
    loss_fn: Callable[[list[Layers]], list[float]],
) -> dict[int, Layers]:
    """The sets of some depths, rising, each within the next, of the least sum of losses,
    each as a multiple of the least one of its depth: {depth: layers}."""
    # The best chain that ends in a set of the depth at hand: (its sum, its sets).
    chains: dict[Layers, tuple[float, tuple[Layers, ...]]] = {(): (0.0, ())}
    for depth in depths:
        options = list(itertools.combinations(range(num_layers), depth))
        losses = loss_fn(options)
        longer = {}
        for layers, loss in zip(options, losses):
            total, chain = min(
                chains[smaller] for smaller in chains if set(smaller) <= set(layers)
            )
            longer[layers] = (total + loss / min(losses), (*chain, layers))
        chains = longer
    return dict(zip(depths, min(chains.values())[1]))


def named_layers(
    text: str, num_layers: int, depths: Iterable[int]
) -> dict[int, Layers]:
    """The table of a config's `distill.kept_layers`, where it names layers.

    Args:
      text: "evidence" or "paper", which name none; or sets, a depth each: "0,5; 0,3,5".
      num_layers: of the network that they are taken from.
      depths: that the space has.

    Returns:
      {depth: the indices of its layers, rising}.

    Raises:
      UserError: no such layers, or a depth without its set.
    """
    if text in ("evidence", "paper"):
        return {}
    field, table = f"distill.kept_layers is {text!r}", {}
    for part in text.split(";"):
        numbers = part.replace(" ", "").split(",")
        if not all(re.fullmatch("[0-9]{1,4}", number) for number in numbers):
            raise UserError(
                f"{field}; it must be evidence, paper, or sets of layers, one for each "
                "depth, like '0,5; 0,3,5'"
            )
        layers = tuple(map(int, numbers))
        if list(layers) != sorted(set(layers)) or layers[-1] >= num_layers:
            raise UserError(
                f"{field}, and {part.strip()!r} are not rising layers out of 0 to "
                f"{num_layers - 1}"
            )
        table[len(layers)] = layers
    missing = sorted(set(depths) - table.keys())
    if missing:
        raise UserError(
            f"{field}, which has no set of {missing[0]} layers, a depth of the space; "
            "add it"
        )
    return table


def make_layer_loss(
    module: build.Module,
    params: build.Params,
    objective: Objective,
    batch: Mapping[str, jax.Array | np.ndarray],
) -> Callable[[Sequence[Layers]], list[float]]:
    """The distillation losses of a teacher that keeps some of its layers, at full width.

    Under the objective at hand, untrained, each output compared with the whole
    teacher's. Losses that follow the teacher layer by layer do not fit and are left
    out; where none is left the last hidden states are compared.

    Args:
      module: the teacher.
      params: its parameters, and its masked-LM head where a loss needs it.
      objective: the losses.
      batch: of `mlm.mask_tokens`.

    Returns:
      (sets of layers to keep, the indices of each rising) -> the mean loss of each; one
      program for all, which is compiled at the first call.
    """
    weights = {
        name: weight
        for name, weight in objective.weights.items()
        if LOSSES[name] != "layers" and name != "nsp"
    }
    objective = objective._replace(weights=weights or {"hidden": 1.0})
    arch = module.arch
    depths = tuple(range(1, arch.layers + 1))
    sizes = {axis: (getattr(arch, axis),) for axis in arch.axes}
    space = Space(**{**sizes, "layers": depths}, head_size=arch.head_size)
    # A set's layers are gathered to the front, of which the first so many run.
    superlm = module.clone(
        space=space, kept_layers=tuple(tuple(range(depth)) for depth in depths)
    )
    params = dict(params)
    params |= init_projections(objective, arch.hidden, arch.hidden, params, module.dims)

    targets = jax.jit(lambda p, b: teacher_targets(module, p, b, objective))(
        params, batch
    )

    @jax.jit
    def loss_fn(params, batch, targets, index, depth):
        gathered = {
            name: x[index] if name.startswith("layers_") else x
            for name, x in params.items()
        }
        sub_network = dataclasses.replace(jax.tree.map(jnp.int32, arch), layers=depth)
        values = distillation_losses(
            superlm, gathered, batch, targets, objective, sub_network
        )
        return values["total"].mean()

    def losses_of(layer_sets):
        losses = []
        for layers in layer_sets:
            index = np.zeros(arch.layers, np.int32)
            index[: len(layers)] = layers
            loss = loss_fn(params, batch, targets, index, np.int32(len(layers)))
            losses.append(float(loss))
        return losses

    return losses_of
