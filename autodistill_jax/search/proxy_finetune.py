"""What does an Arch score after fine-tuning inside its SuperLM? Many share one program."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autodistill_jax import sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.data import loader
from autodistill_jax.metrics import METRICS
from autodistill_jax.models import build, heads
from autodistill_jax.models.build import Module
from autodistill_jax.train import classification, optimizer
from autodistill_jax.train.sandwich import stack_archs


def parallel_finetune(
    module: Module,
    params: dict,
    rows: classification.ClassificationData,
    settings: Mapping[str, Any],
    pooling: str,
    mesh: Mesh,
) -> Callable[[Sequence[tuple[AnyArch, int]]], list[float]]:
    """run([(arch, seed), ...]) -> the dev score of each after `settings["steps"]` steps.

    Each candidate starts from the SuperLM's weights and trains only the channels and
    layers of its own sub-network (the others get no gradient). Every device of the mesh
    has a candidate of its own, with a copy of the parameters and whole batches: the
    branches that it takes are its own, too.

    Args:
      module, params: the SuperLM; its dropout is in force.
      settings: steps, batch_size, learning_rate, warmup, weight_decay, clip.
    """
    steps, batch_size = settings["steps"], settings["batch_size"]
    moves = optimizer.make_optimizer(settings, steps, build.param_axes(module))
    module = module.clone(mesh=None)  # Inside, each device is alone.
    step = classification.classification_step(module, rows, moves, pooling)
    own = PartitionSpec(sharding.MESH_AXES)
    there = NamedSharding(mesh, own)
    encoder = jax.tree.map(np.asarray, heads.encoder_params(params))

    def each(fn):
        """fn of one candidate -> the same of one a device, stacked."""

        def inside(*args):
            one = jax.tree.map(lambda x: x[0], args)
            return jax.tree.map(lambda x: x[None], fn(*one))

        mapped = jax.shard_map(
            inside, mesh=mesh, in_specs=own, out_specs=own, check_vma=False
        )
        return mapped

    def moved(state, batch, seed, i, arch):
        key = jax.random.fold_in(jax.random.key(seed), i)
        return step(state, batch, key, arch)[0]

    train = jax.jit(each(moved), donate_argnums=0)
    predict = jax.jit(
        each(
            lambda p, b, a: classification.task_logits(
                module, p, b, pooling, rows.classes, a
            )
        )
    )
    begin = jax.jit(
        each(lambda p: {"params": p, "optimizer": moves.init(p)}), donate_argnums=0
    )

    def together(candidates):
        """As many candidates as there are devices."""
        archs = jax.device_put(stack_archs([arch for arch, _ in candidates]), there)
        feeds = [loader.train_batches(rows.train, batch_size, s) for _, s in candidates]
        seeds = np.asarray([seed for _, seed in candidates], np.int32)
        keys = [jax.random.key(seed) for seed in seeds]
        heads = [
            classification.init_task_head(k, module.arch.hidden, rows) for k in keys
        ]
        seeds = jax.device_put(seeds, there)
        started = [{**encoder, **jax.tree.map(np.asarray, head)} for head in heads]
        state = begin(jax.device_put(_stack_trees(started), there))
        for i in range(steps):
            batch = jax.device_put(_stack_trees([feed[i] for feed in feeds]), there)
            now = jax.device_put(np.full(len(candidates), i, np.int32), there)
            state = train(state, batch, seeds, now, archs)
        made = []
        for batch in loader.eval_batches(rows.dev, batch_size):
            batch.pop("valid_rows")
            same = jax.device_put(_stack_trees([batch] * len(candidates)), there)
            made.append(sharding.to_host(predict(state["params"], same, archs)))
        made = np.concatenate(made, axis=1)[:, : len(rows.dev["label"])]
        return [
            METRICS[rows.metric](
                rows.dev["label"], classification.predictions_from_logits(one, rows)
            )
            for one in made
        ]

    def run(candidates):
        scores = []
        for start in range(0, len(candidates), mesh.size):
            group = list(candidates[start : start + mesh.size])
            # A device left over trains the last one again.
            full = group + [group[-1]] * (mesh.size - len(group))
            scores += together(full)[: len(group)]
        return scores

    return run


def _stack_trees(trees: Sequence[Mapping]) -> dict[str, np.ndarray]:
    return {name: np.stack([tree[name] for tree in trees]) for name in trees[0]}
