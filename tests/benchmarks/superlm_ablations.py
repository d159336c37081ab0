"""What each part of a SuperLM's recipe is worth: one part changed at a time.

    python tests/benchmarks/superlm_ablations.py [--steps 100] [--seeds 3]
      [--data ../shared/data] [--workdir W] [--variants recipe,bands]

The SuperLM of students.py, by batches of 64, at equal tokens. `distance` is 1 - cosine to
the teacher's embeddings on held-out text (see `ablations.distance`), the mean over the
sub-networks of the three budgets as they lie in the SuperLM, by which parts are kept or
dropped. Goes on from its workdir when stopped. One JSON line on stdout.

    normed_gradients: each sub-network's gradient has the same norm.
    from_largest: the smaller ones learn from the largest as much as from the teacher.
    bands: the random ones come from bands of multiply-adds, one of each.
    own_norms: each width has LayerNorms of its own.
    folded: out of the recipe's, what is cut off a student is folded into it, as the
      finish starts; all others are slices.
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import ablations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import students
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax.archs.arch import parse_arch
from autodistill_jax.archs.cost import ModelDims, cost
from autodistill_jax.archs.space import Space
from autodistill_jax.experiment import superlm, text_rows
from autodistill_jax.models import build, encoder, heads
from autodistill_jax.search import ranking
from autodistill_jax.train import distillation, sandwich

VARIANTS = (
    "recipe",
    "normed_gradients",
    "from_largest",
    "bands",
    "own_norms",
    "folded",
)
_BATCH = 64
# As a head's names begin: what is no encoder's parameter is left out of one.
_OWN = "head_norms_of_"


def main() -> None:
    args = ablations.parse_args(VARIANTS, steps=100, workdir="superlm_ablations")
    ablations.run_variants(args, superlm_config, ablate)


def superlm_config(args: argparse.Namespace, variant: str, seed: int) -> ConfigDict:
    """The config of all variants."""
    config = students.student_config(args.data, "eighth", args.steps, seed)
    config.distill.update(
        steps=args.steps, finish_steps=0, batch_size=_BATCH, learning_rate=2e-3
    )
    config.search.proxy_rows = ablations.CHOICE_ROWS
    return config


def ablate(workdir: Path, name: str, config: ConfigDict) -> dict[str, float]:
    """A variant's distance to the teacher, {"distance", and of each budget}."""
    variant, steps = name.rpartition("-")[0], config.distill.steps
    experiment, remote = students.load_started(config, workdir), epath.Path(workdir)
    (space,) = experiment.spaces.values()
    recipe = f"recipe-{students.config_hash(config, 'recipe')}"
    name = f"ablations/{recipe if variant == 'folded' else name}"
    start = experiment.start_params(
        experiment.superlm_arch(space), experiment.superlm_layers(space)
    )
    if variant == "own_norms":
        start |= own_norms(start, space)
    with changed_sandwich(variant, space, experiment.dims):
        superlm.train_superlm(
            experiment, remote, remote / name, space, name, variant, start
        )
    params = superlm.trained_params(experiment, remote / name, steps, name)
    held_out, _ = text_rows.heldout_splits(experiment, remote)
    distances = {}
    for budget, text in students.ARCHS.items():
        arch = parse_arch(text, space.head_size)
        normed = params
        if variant == "own_norms":
            normed = with_own_norms(params, arch.hidden)
        encoder_weights = heads.encoder_params(normed)
        student = experiment.extract_student(
            space, encoder_weights, arch, is_folded=variant == "folded"
        )
        network = experiment.teacher._replace(arch=arch, params=student, mlm_head=None)
        distances[budget] = ablations.distance(experiment, network, held_out)
    return {"distance": float(np.mean(list(distances.values()))), **distances}


@contextlib.contextmanager
def changed_sandwich(variant: str, space: Space, dims: ModelDims) -> Iterator[None]:
    """Trains a SuperLM otherwise inside, see the top of this file.

    Args:
      variant: its name; "recipe" changes nothing.
      space: of the SuperLM.
      dims: of its networks.
    """
    changes: dict[str, tuple[Any, str, Callable]] = {
        "normed_gradients": (jax, "grad", normed_grad),
        "from_largest": (distillation, "distillation_losses", losses_from_largest),
        "bands": (sandwich, "sandwich_archs", banded_archs_fn(space, dims)),
        "own_norms": (distillation, "distillation_losses", losses_by_own_norms),
    }
    with contextlib.ExitStack() as patches:
        if variant in changes:
            patches.enter_context(mock.patch.object(*changes[variant]))
        if variant == "own_norms":
            patch = mock.patch.object(build, "param_axes", axes_of_own_norms)
            patches.enter_context(patch)
        yield


_grad, _losses = jax.grad, distillation.distillation_losses
_param_axes = build.param_axes


def normed_grad(fn: Callable, **options: Any) -> Callable:
    """`jax.grad` of a function with auxiliary output, of norm 1."""

    def normed(*args):
        grads, values = _grad(fn, **options)(*args)
        norm = jnp.maximum(optax.tree.norm(grads), 1e-12)
        return jax.tree.map(lambda x: x / norm, grads), values

    return normed


def losses_from_largest(
    module: build.Module,
    params: dict,
    batch: Mapping[str, jax.Array],
    targets: Mapping[str, jax.Array],
    objective: Any,
    arch: Any = None,
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """`distillation_losses`, of the smaller ones half against what the largest says."""
    args = (module, params, batch)
    values = _losses(*args, targets, objective, arch, key)
    largest = module.space.largest()
    sizes = sandwich.stack_archs([largest])
    sizes = dataclasses.replace(sizes, **{a: getattr(sizes, a)[0] for a in arch.axes})
    out = module.apply(
        {"params": heads.encoder_params(params)},
        batch["input_ids"],
        batch["attention_mask"],
        sizes,
        token_type_ids=batch.get("token_type_ids"),
        position_ids=batch.get("position_ids"),
    )
    pooled = encoder.pool_tokens(
        out.hidden, out.pooler, batch["attention_mask"], objective.pooling
    )
    said = {
        "hidden": out.hidden @ params["linear_projection_cosine"],
        "embedding": pooled @ params["linear_projection_pooled"],
    }
    of_largest = _losses(*args, jax.lax.stop_gradient(said), objective, arch, key)
    is_largest = jnp.all(
        jnp.asarray([getattr(arch, a) == getattr(largest, a) for a in arch.axes])
    )
    share = jnp.where(is_largest, 0.0, 0.5)
    return {k: (1 - share) * values[k] + share * of_largest[k] for k in values}


def banded_archs_fn(space: Space, dims: ModelDims) -> Callable:
    """(space, n_random, seed, step) -> the largest, the smallest, and one of each of
    n_random bands of multiply-adds."""
    flops = {arch: cost(arch, dims)["flops"] for arch in space}

    def banded_archs(space, n_random, seed, step):
        draw = int(np.random.default_rng((seed, step)).integers(2**31))
        band_of = ranking.draw_by_flops(flops, n_random, n_random, draw)
        return [space.largest(), space.smallest(), *band_of]

    return banded_archs


def own_norms(params: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Copies of all LayerNorms for each width but the largest."""
    return {
        _own_name(name, width): x
        for name, x in params.items()
        for width in sorted(set(space.hidden))[:-1]
        if _is_norm(name)
    }


def with_own_norms(params: Mapping[str, Any], width: Any) -> dict[str, Any]:
    """Parameters with the LayerNorms of a width, which may be traced."""
    chosen = dict(params)
    for name, of_width in params.items():
        if name.startswith(_OWN):
            own_width, norm = name.removeprefix(_OWN).split("_", 1)
            chosen[norm] = jnp.where(width == int(own_width), of_width, chosen[norm])
    return chosen


def losses_by_own_norms(module, params, batch, targets, objective, arch=None, key=None):
    """`distillation_losses` of a sub-network with the LayerNorms of its width."""
    params = with_own_norms(params, arch.hidden)
    return _losses(module, params, batch, targets, objective, arch, key)


def axes_of_own_norms(module: build.Module) -> dict[str, tuple[str, ...]]:
    """`build.param_axes`, with those of `own_norms` where there is a space."""
    axes = _param_axes(module)
    return axes | own_norms(axes, module.space) if module.space else axes


def _own_name(name: str, width: int) -> str:
    return f"{_OWN}{width}_{name}"


def _is_norm(name: str) -> bool:
    return name.endswith(("norm_scale", "norm_bias"))


if __name__ == "__main__":
    main()
