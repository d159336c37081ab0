"""Short fine-tuning of sub-networks inside their SuperLM, one on each device."""

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
    task_data: classification.ClassificationData,
    settings: Mapping[str, Any],
    pooling: str,
    mesh: Mesh,
) -> Callable[[Sequence[tuple[AnyArch, int]]], list[float]]:
    """Fine-tunes many sub-networks by one program.

    Each candidate starts from the SuperLM's weights and trains only the channels and
    layers of its own sub-network (the others get no gradient). Every device of the mesh
    has a candidate of its own, with a copy of the parameters and whole batches: the
    branches that it takes are its own, too.

    Args:
      module: the SuperLM; its dropout is in force.
      params: its parameters.
      task_data: the task's rows; the score is of its dev rows.
      settings: steps, batch_size, learning_rate, warmup_ratio, weight_decay,
        grad_clip_norm.
      pooling: of the task's head, as `encoder.pool_tokens` takes it.
      mesh: the devices.

    Returns:
      run([(arch, seed), ...]) -> the dev score of each after `settings["steps"]` steps,
      more is better.
    """
    steps, batch_size = settings["steps"], settings["batch_size"]
    tx = optimizer.make_optimizer(settings, steps, build.param_axes(module))
    module = module.clone(mesh=None)  # Inside, each device is alone.
    step = classification.classification_step(
        module, task_data.classes, task_data.label_scale, tx, pooling
    )
    device_spec = PartitionSpec(sharding.MESH_AXES)
    device_sharding = NamedSharding(mesh, device_spec)
    encoder = jax.tree.map(np.asarray, heads.encoder_params(params))

    def per_device(fn):
        """fn of one candidate -> the same of one a device, stacked."""

        def inside(*args):
            candidate_args = jax.tree.map(lambda x: x[0], args)
            return jax.tree.map(lambda x: x[None], fn(*candidate_args))

        mapped = jax.shard_map(
            inside,
            mesh=mesh,
            in_specs=device_spec,
            out_specs=device_spec,
            check_vma=False,
        )
        return mapped

    def update(
        state: dict, batch: dict, seed: jax.Array, i: jax.Array, arch: AnyArch
    ) -> dict:
        key = jax.random.fold_in(jax.random.key(seed), i)
        return step(state, batch, key, arch)[0]

    train = jax.jit(per_device(update), donate_argnums=0)
    predict = jax.jit(
        per_device(
            lambda p, b, a: classification.task_logits(
                module, p, b, pooling, task_data.classes, a
            )
        )
    )
    init_state = jax.jit(
        per_device(lambda p: {"params": p, "optimizer": tx.init(p)}), donate_argnums=0
    )

    def finetune_group(candidates):
        """The dev scores of as many candidates as there are devices."""
        archs = jax.device_put(
            stack_archs([arch for arch, _ in candidates]), device_sharding
        )
        batches = [
            loader.train_batches(task_data.train, batch_size, s) for _, s in candidates
        ]
        seeds = np.asarray([seed for _, seed in candidates], np.int32)
        keys = [jax.random.key(seed) for seed in seeds]
        task_heads = [
            classification.init_task_head(k, module.arch.hidden, task_data)
            for k in keys
        ]
        seeds = jax.device_put(seeds, device_sharding)
        initial_params = [
            {**encoder, **jax.tree.map(np.asarray, head)} for head in task_heads
        ]
        state = init_state(
            jax.device_put(_stack_trees(initial_params), device_sharding)
        )
        for i in range(steps):
            batch = jax.device_put(
                _stack_trees([b[i] for b in batches]), device_sharding
            )
            step_index = jax.device_put(
                np.full(len(candidates), i, np.int32), device_sharding
            )
            state = train(state, batch, seeds, step_index, archs)
        logits = []
        for batch in loader.eval_batches(task_data.dev, batch_size):
            batch.pop("valid_rows")
            same = jax.device_put(
                _stack_trees([batch] * len(candidates)), device_sharding
            )
            logits.append(sharding.to_host(predict(state["params"], same, archs)))
        logits = np.concatenate(logits, axis=1)[:, : len(task_data.dev["label"])]
        return [
            METRICS[task_data.metric](
                task_data.dev["label"],
                classification.predictions_from_logits(candidate_logits, task_data),
            )
            for candidate_logits in logits
        ]

    def run(candidates):
        scores = []
        for start in range(0, len(candidates), mesh.size):
            group = list(candidates[start : start + mesh.size])
            # A device left over trains the last one again.
            full = group + [group[-1]] * (mesh.size - len(group))
            scores += finetune_group(full)[: len(group)]
        return scores

    return run


def _stack_trees(trees: Sequence[Mapping]) -> dict[str, np.ndarray]:
    return {name: np.stack([tree[name] for tree in trees]) for name in trees[0]}
