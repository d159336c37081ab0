"""Block-wise transfer of a teacher's knowledge to one student, in brief or in full.

Progressive knowledge transfer (MobileBERT, arXiv 2004.02984, section 3.4) and, with a
`fraction` of its steps, Flash Distillation (AutoDistill, arXiv 2201.08539).
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from autodistill_jax import sharding
from autodistill_jax.data import loader
from autodistill_jax.data.mlm import mask_tokens
from autodistill_jax.models import build
from autodistill_jax.models.build import Module, Params
from autodistill_jax.models.heads import PROJECTION, encoder_params
from autodistill_jax.train import checkpoint, loop, losses, optimizer, sandwich
from autodistill_jax.train.objective import Objective

# The linear maps from each block's output to its teacher's, [N, D, teacher's D].
BLOCK_PROJECTIONS = PROJECTION + "blocks"
# What an earlier block learns at, where the present one learns at 1.
_EARLIER_BLOCKS_SCALE = 0.1


class BlockwiseTransfer(NamedTuple):
    """What is transferred, and from whom.

    Attributes:
      module: the student.
      params: its weights at the start, {name: array}, and its `BLOCK_PROJECTIONS` where
        these do not start at the identity.
      teacher: the teacher.
      teacher_params: its weights, its masked-LM head's too where it has one.
      objective: of the last stage (logits, masked LM, ...), and the layer map.
      embeddings_copied: whether the word embeddings are the teacher's own; they stay.
      gradient_accumulation_steps: micro-batches, see `optimizer.accumulate_gradients`.
    """

    module: Module
    params: Params
    teacher: Module
    teacher_params: Params
    objective: Objective
    embeddings_copied: bool = False
    gradient_accumulation_steps: int = 1

    @property
    def layer_map(self) -> jax.Array:
        """The teacher's layer that each of the student's follows, [N] int32."""
        return jnp.asarray(self.objective.layer_map, jnp.int32)


def stage_steps(settings: Mapping[str, Any], layers: int, fraction: float) -> list[int]:
    """The steps of each stage: a stage for every block, and the last one.

    Args:
      settings: of the full recipe: `block_steps` of every block, and
        `last_stage_steps`.
      layers: of the student; each is a block.
      fraction: of all those steps; at least one step a stage.

    Returns:
      layers + 1 numbers.
    """
    block_steps, last_steps = settings["block_steps"], settings["last_stage_steps"]
    stages = [max(1, round(fraction * block_steps))] * layers
    return [*stages, max(1, round(fraction * last_steps))]


def block_loss(
    transfer: BlockwiseTransfer,
    params: Mapping[str, jax.Array],
    teacher_params: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    k: Any,
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """How far a block is from its teacher's.

    Only the blocks up to k are run, of the teacher those up to its own.

    Args:
      transfer: student and teacher.
      params: the student's, `BLOCK_PROJECTIONS` included.
      teacher_params: the teacher's.
      batch: token rows, [B, L] each.
      k: the block, int32, from 0.
      key: for dropout; None turns it off.

    Returns:
      [B] each: "attention", KL of the attention maps, head by head, or of groups of
      heads where there are not as many, see `losses.attention_loss`; "output", squared
      error of the block's output through its projection; "total", half of either.
    """
    attention_mask = batch["attention_mask"]
    teacher_out = transfer.teacher.apply(
        {"params": encoder_params(teacher_params)},
        batch["input_ids"],
        attention_mask,
        token_type_ids=batch.get("token_type_ids"),
        position_ids=batch.get("position_ids"),
        qkv=True,
        depth=transfer.layer_map[k] + 1,
    )
    student_out = transfer.module.apply(
        {"params": encoder_params(params)},
        batch["input_ids"],
        attention_mask,
        token_type_ids=batch.get("token_type_ids"),
        position_ids=batch.get("position_ids"),
        key=key,
        qkv=True,
        depth=k + 1,
    )
    head_counts = transfer.module.arch.heads, transfer.teacher.arch.heads
    scores = [
        losses.relation_scores(out.qkv[:, :, 0], out.qkv[:, :, 1], heads)
        for out, heads in zip(
            (student_out, jax.lax.stop_gradient(teacher_out)), head_counts
        )
    ]
    attention = losses.attention_loss(*scores, attention_mask, math.gcd(*head_counts))
    output = losses.hidden_loss(
        student_out.hidden @ params[BLOCK_PROJECTIONS][k],
        jax.lax.stop_gradient(teacher_out.hidden),
        attention_mask,
    )
    return {
        "attention": attention,
        "output": output,
        "total": 0.5 * attention + 0.5 * output,
    }


def lr_scales(
    names: Sequence[str], layers: int, k: Any, embeddings_copied: bool
) -> dict[str, Any]:
    """What each parameter's update is multiplied by while block k learns.

    The block itself 1, earlier ones a tenth, later ones and what comes after them 0.
    The embeddings count as before the first block, unless they are the teacher's own.

    Args:
      names: of the parameters.
      layers: of the student.
      k: the block, int32, from 0.
      embeddings_copied: whether the embeddings stay.

    Returns:
      {name: a number, or [layers] for what is stacked}.
    """
    i = jnp.arange(layers)
    layer_scales = jnp.where(i == k, 1.0, jnp.where(i < k, _EARLIER_BLOCKS_SCALE, 0.0))
    embeddings_scale = (
        0.0 if embeddings_copied else jnp.where(k == 0, 1.0, _EARLIER_BLOCKS_SCALE)
    )
    scales = {}
    for name in names:
        if name.startswith("layers_"):
            scales[name] = layer_scales
        elif name == BLOCK_PROJECTIONS:
            scales[name] = (i == k).astype(jnp.float32)
        else:
            scales[name] = embeddings_scale if name.startswith("embeddings_") else 0.0
    return scales


def train_blockwise(
    transfer: BlockwiseTransfer,
    train_batches: loader.TrainBatches,
    settings: Mapping[str, Any],
    fraction: float,
    mesh: jax.sharding.Mesh,
    seed: int,
    label: str,
    *,
    on_blocks_end: Callable[[Mapping[str, jax.Array]], None] = lambda params: None,
    log_fn: Callable[[int, dict], None] = lambda step, values: None,
    checkpoints: ocp.CheckpointManager | None = None,
    save_every: int = 0,
) -> dict[str, jax.Array]:
    """Runs all stages of a block-wise transfer.

    Args:
      transfer: student and teacher.
      train_batches: training batches by step.
      settings: block_steps, last_stage_steps, learning_rate, warmup_ratio (of each
        stage), weight_decay, grad_clip_norm.
      fraction: of the recipe's steps: 1.0 is the full transfer.
      mesh: the devices.
      seed: of masked tokens and dropout.
      label: of the progress lines; each names its stage.
      on_blocks_end: called with the parameters when all blocks are done, before the
        last stage (there is none where the objective has no loss); may raise to stop
        there.
      log_fn: see `loop.fit`.
      checkpoints: to go on from, and to save to; None: nothing is saved.
      save_every: in steps; 0: at the end of each stage alone.

    Returns:
      The student's parameters, projections and heads included.
    """
    module = transfer.module
    layers, axes = module.arch.layers, build.param_axes(module)
    programs = transfer_steps(transfer, settings, fraction)
    ends = np.cumsum(programs.stages).tolist()
    state = optimizer.init_state(programs.block_tx, programs.params, axes, mesh)
    teacher_params = sharding.place_params(
        transfer.teacher_params, build.param_axes(transfer.teacher), mesh
    )
    steps_done = checkpoints.latest_step() or 0 if checkpoints else 0
    if steps_done:
        state = checkpoint.restore_checkpoint(checkpoints, state)
    key = jax.random.key(seed)
    archs = sandwich.stack_archs([module.arch])
    blocks_ended = steps_done > sum(programs.stages[:layers])

    def save_fn(done, state):
        if checkpoints is not None:
            checkpoint.save_checkpoint(checkpoints, done, state)

    start = 0
    for k, end in enumerate(ends):
        final = k == layers
        if steps_done < end:
            if steps_done <= start:  # Each stage has its own warm-up and moments.
                tx = programs.last_tx if final else programs.block_tx
                state = optimizer.init_state(tx, state["params"], axes, mesh)
            if final and steps_done <= start:
                on_blocks_end(state["params"])
                blocks_ended = True

            def inputs(i, k=k, final=final):
                batch = loader.batch_at_step(train_batches, i, mesh)
                step_key = jax.random.fold_in(key, i)
                if final:
                    return ({}, teacher_params, batch, archs, step_key)
                return (teacher_params, batch, jnp.asarray(k, jnp.int32), step_key)

            stage = "last stage" if final else f"block {k + 1}/{layers}"
            with checkpoint.wait_until_saved(checkpoints):
                state = loop.fit(
                    programs.last_step if final else programs.block_step,
                    state,
                    inputs,
                    end,
                    label=f"{label}, {stage}",
                    start=max(start, steps_done),
                    save_fn=save_fn,
                    save_every=save_every,
                    log_fn=log_fn,
                )
        start = end
    if not blocks_ended:
        on_blocks_end(state["params"])
    return state["params"]


class TransferSteps(NamedTuple):
    """What a block-wise transfer runs.

    Attributes:
      stages: the steps of each stage.
      params: the student's, projections of its blocks included.
      block_tx: the optimizer of a block's stage.
      last_tx: the optimizer of the last stage.
      block_step: (state, teacher_params, batch, k, key) -> (state, values), one program
        for every block.
      last_step: see `sandwich.make_sandwich_step`.
    """

    stages: list[int]
    params: dict[str, jax.Array | np.ndarray]
    block_tx: optax.GradientTransformation
    last_tx: optax.GradientTransformation
    block_step: jax.stages.Wrapped
    last_step: jax.stages.Wrapped


def transfer_steps(
    transfer: BlockwiseTransfer, settings: Mapping[str, Any], fraction: float
) -> TransferSteps:
    """What `train_blockwise` runs.

    Args:
      transfer: student and teacher.
      settings, fraction: see `train_blockwise`.

    Returns:
      The steps; there is no last stage where the objective has no loss.
    """
    module = transfer.module
    layers, axes = module.arch.layers, build.param_axes(module)
    stages = stage_steps(settings, layers, fraction)
    if not transfer.objective.weights:
        stages.pop()
    block_tx = optimizer.make_optimizer(settings, stages[0], axes)
    # Where there is no last stage this is the last block's.
    last_tx = optimizer.make_optimizer(settings, stages[-1], axes)
    params = dict(transfer.params)
    if BLOCK_PROJECTIONS not in params:
        teacher_hidden = transfer.teacher.arch.hidden
        params[BLOCK_PROJECTIONS] = jnp.tile(
            jnp.eye(module.arch.hidden, teacher_hidden), (layers, 1, 1)
        )
    block_step = jax.jit(_block_step(transfer, block_tx), donate_argnums=0)
    last_step = sandwich.make_sandwich_step(
        module,
        transfer.teacher,
        transfer.objective,
        last_tx,
        transfer.gradient_accumulation_steps,
    )
    return TransferSteps(stages, params, block_tx, last_tx, block_step, last_step)


def _block_step(
    transfer: BlockwiseTransfer, tx: optax.GradientTransformation
) -> Callable:
    """step(state, teacher_params, batch, k, key) -> (state, values): one program for
    every block, k is an argument."""
    module = transfer.module
    layers, dropout_rate, vocab = module.arch.layers, module.dropout, module.dims.vocab
    axes = build.param_axes(module)
    gradient_accumulation_steps = transfer.gradient_accumulation_steps

    def step(state, teacher_params, batch, k, key):
        def scale_updates(updates):
            scales = lr_scales(list(updates), layers, k, transfer.embeddings_copied)
            return {
                name: value * jnp.reshape(scales[name], (-1,) + (1,) * (value.ndim - 1))
                for name, value in updates.items()
            }

        masking_key, dropout_key = jax.random.split(key)
        batch = mask_tokens(masking_key, batch, vocab, transfer.objective.masking)

        def loss_fn(params, rows, i):
            part_key = None
            if dropout_rate:
                part_key = (
                    dropout_key
                    if gradient_accumulation_steps == 1
                    else jax.random.fold_in(dropout_key, i)
                )
            values = block_loss(transfer, params, teacher_params, rows, k, part_key)
            values = {name: value.mean() for name, value in values.items()}
            return values["total"], values

        grads, values = optimizer.accumulate_gradients(
            functools.partial(jax.grad(loss_fn, has_aux=True), state["params"]),
            batch,
            gradient_accumulation_steps,
            module.mesh,
        )
        state = optimizer.apply_gradients(
            tx, grads, state, axes, module.mesh, scale_updates
        )
        return state, {"loss": values["total"], **values}

    return step
