"""How does a teacher's knowledge get into one student, block by block? In brief or full.

Progressive knowledge transfer (MobileBERT, arXiv 2004.02984, section 3.4) and, with a
`fraction` of its steps, Flash Distillation (AutoDistill, arXiv 2201.08539).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from autodistill_jax import sharding
from autodistill_jax.data import loader
from autodistill_jax.models import build
from autodistill_jax.models.build import Module
from autodistill_jax.models.heads import PROJECTION, encoder_params
from autodistill_jax.train import (
    checkpoint,
    distillation,
    loop,
    losses,
    optimizer,
    sandwich,
)
from autodistill_jax.train.objective import Objective

# The linear maps from each block's output to its teacher's, [N, D, teacher's D].
BLOCK_PROJECTIONS = PROJECTION + "blocks"
# What an earlier block learns at, where the present one learns at 1.
_EARLIER_BLOCKS_SCALE = 0.1


class BlockwiseTransfer(NamedTuple):
    """What is transferred, and from whom.

    module, params: the student and its weights at the start. teacher, teacher_params:
    with its masked-word head where it has one. mapped: the teacher's layer that each of
    the student's follows. objective: of the last stage (logits, masked words, ...).
    copied: are the word embeddings the teacher's own? Then they stay. parts: of a
    batch, see `optimizer.accumulate_gradients`.
    """

    module: Module
    params: Mapping[str, jax.Array]
    teacher: Module
    teacher_params: Mapping[str, jax.Array]
    objective: Objective
    embeddings_copied: bool = False
    parts: int = 1

    @property
    def layer_map(self) -> jax.Array:
        return jnp.asarray(self.objective.layer_map, jnp.int32)


def stage_steps(settings: Mapping[str, Any], layers: int, fraction: float) -> list[int]:
    """The steps of each stage: one a block, and the last.

    Args:
      settings: `block_steps` a block and `last_stage_steps` of the last stage, of the full recipe.
      fraction: of all of them; at least one step a stage.
    """
    of_block, last = settings["block_steps"], settings["last_stage_steps"]
    stages = [max(1, round(fraction * of_block))] * layers
    return [*stages, max(1, round(fraction * last))]


def block_loss(
    transfer: BlockwiseTransfer,
    params: Mapping[str, jax.Array],
    teacher_params: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    k: Any,
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """How far block k (int32) is from its teacher's, [B] each.

    attention: KL of the attention maps, in the teacher's heads (where the student has
    others, its queries and keys are split anew, as relations are). output: squared
    error of the block's output through its linear matcher. total: half of either.
    Only the blocks up to k are run, of the teacher those up to its own.
    """
    attention_mask = batch["attention_mask"]
    theirs = transfer.teacher.apply(
        {"params": encoder_params(teacher_params)},
        batch["input_ids"],
        attention_mask,
        token_type_ids=batch.get("token_type_ids"),
        qkv=True,
        depth=transfer.layer_map[k] + 1,
    )
    ours = transfer.module.apply(
        {"params": encoder_params(params)},
        batch["input_ids"],
        attention_mask,
        token_type_ids=batch.get("token_type_ids"),
        key=key,
        qkv=True,
        depth=k + 1,
    )
    heads = transfer.teacher.arch.heads
    scores = [
        losses.relation_scores(out.qkv[:, :, 0], out.qkv[:, :, 1], heads)
        for out in (ours, jax.lax.stop_gradient(theirs))
    ]
    attention = losses.relation_loss(*scores, attention_mask, "minilmv2")
    output = losses.hidden_loss(
        ours.hidden @ params[BLOCK_PROJECTIONS][k],
        jax.lax.stop_gradient(theirs.hidden),
        attention_mask,
    )
    return {
        "attention": attention,
        "output": output,
        "total": 0.5 * attention + 0.5 * output,
    }


def lr_scales(
    names: Sequence[str], layers: int, k: Any, copied: bool
) -> dict[str, Any]:
    """What each parameter's change is multiplied by while block k learns, {name: ...}.

    The block itself 1, earlier ones a tenth, later ones and what comes after them 0.
    The embeddings are before the first block, unless they are the teacher's own.
    """
    i = jnp.arange(layers)
    by_layer = jnp.where(i == k, 1.0, jnp.where(i < k, _EARLIER_BLOCKS_SCALE, 0.0))
    before = 0.0 if copied else jnp.where(k == 0, 1.0, _EARLIER_BLOCKS_SCALE)
    made = {}
    for name in names:
        if name.startswith("layers_"):
            made[name] = by_layer
        elif name == BLOCK_PROJECTIONS:
            made[name] = (i == k).astype(jnp.float32)
        else:
            made[name] = before if name.startswith("embeddings_") else 0.0
    return made


def train_blockwise(
    transfer: BlockwiseTransfer,
    feed: Sequence[Mapping[str, np.ndarray]],
    settings: Mapping[str, Any],
    fraction: float,
    mesh: jax.sharding.Mesh,
    seed: int,
    what: str,
    *,
    judge: Callable[[Mapping[str, jax.Array]], None] = lambda params: None,
    tell: Callable[[int, dict], None] = lambda step, values: None,
    kept: ocp.CheckpointManager | None = None,
    save_every: int = 0,
) -> dict[str, jax.Array]:
    """All stages; the student's parameters, matchers and heads included.

    Args:
      feed: training batches by step.
      settings: block_steps, last_stage_steps, learning_rate, warmup_ratio (of each stage), weight_decay,
        grad_clip_norm.
      fraction: of the recipe's steps: 1.0 is the full transfer.
      judge: called with the parameters when all blocks are done, before the last stage
        (there is none where the objective has no term); may raise to stop there.
      kept: checkpoints to go on from, and to save every `save_every` steps.
    """
    module = transfer.module
    layers, axes = module.arch.layers, build.param_axes(module)
    made = transfer_steps(transfer, settings, fraction)
    ends = np.cumsum(made.stages).tolist()
    state = optimizer.init_state(made.block_tx, made.params, axes, mesh)
    theirs = sharding.place_params(
        transfer.teacher_params, build.param_axes(transfer.teacher), mesh
    )
    there = kept.latest_step() or 0 if kept else 0
    if there:
        state = checkpoint.restore_checkpoint(kept, state)
    key = jax.random.key(seed)
    one = sandwich.stack_archs([module.arch])
    judged = there > sum(made.stages[:layers])

    def save(done, state):
        if kept is not None:
            checkpoint.save_checkpoint(kept, done, state)

    start = 0
    for k, end in enumerate(ends):
        final = k == layers
        if there < end:
            if there <= start:  # Each stage has its own warm-up and moments.
                moves = made.last_tx if final else made.block_tx
                fresh = jax.jit(moves.init)(state["params"])
                state = {**state, "optimizer": fresh}
            if final and there <= start:
                judge(state["params"])
                judged = True

            def inputs(i, k=k, final=final):
                batch = loader.batch_at_step(feed, i, mesh)
                now = jax.random.fold_in(key, i)
                if final:
                    return ({}, theirs, batch, one, now)
                return (theirs, batch, jnp.asarray(k, jnp.int32), now)

            told = "last stage" if final else f"block {k + 1}/{layers}"
            with checkpoint.wait_until_saved(kept):
                state = loop.fit(
                    made.last_step if final else made.block_step,
                    state,
                    inputs,
                    end,
                    what=f"{what}, {told}",
                    start=max(start, there),
                    save=save,
                    save_every=save_every,
                    tell=tell,
                )
        start = end
    if not judged:
        judge(state["params"])
    return state["params"]


class TransferSteps(NamedTuple):
    """stages: the steps of each. params: the student's, matchers of its blocks included.
    blocks, last: how they move. of_block(state, teacher_params, batch, k, key), one program
    for every block, and of_last, as `sandwich.make_sandwich_step` makes it."""

    stages: list[int]
    params: dict[str, jax.Array]
    block_tx: optax.GradientTransformation
    last_tx: optax.GradientTransformation
    block_step: Callable
    last_step: Callable


def transfer_steps(
    transfer: BlockwiseTransfer, settings: Mapping[str, Any], fraction: float
) -> TransferSteps:
    """What `train_blockwise` runs; there is no last stage where the objective has no term."""
    module = transfer.module
    layers, axes = module.arch.layers, build.param_axes(module)
    stages = stage_steps(settings, layers, fraction)
    if not transfer.objective.weights:
        stages.pop()
    blocks = optimizer.make_optimizer(settings, stages[0], axes)
    last = optimizer.make_optimizer(
        settings, stages[-1], axes
    )  # Of what is the last stage.
    params = dict(transfer.params)
    if BLOCK_PROJECTIONS not in params:
        wide = transfer.teacher.arch.hidden
        params[BLOCK_PROJECTIONS] = jnp.tile(
            jnp.eye(module.arch.hidden, wide), (layers, 1, 1)
        )
    of_block = jax.jit(_block_step(transfer, blocks), donate_argnums=0)
    of_last = sandwich.make_sandwich_step(
        module, transfer.teacher, transfer.objective, last, transfer.parts
    )
    return TransferSteps(stages, params, blocks, last, of_block, of_last)


def _block_step(
    transfer: BlockwiseTransfer, moves: optax.GradientTransformation
) -> Callable:
    """step(state, teacher_params, batch, k, key) -> (state, values): one program for
    every block, k is an argument."""
    module = transfer.module
    layers, dropout, vocab = module.arch.layers, module.dropout, module.dims.vocab
    axes, parts = build.param_axes(module), transfer.parts

    def step(state, teacher_params, batch, k, key):
        def slowed(change):
            by = lr_scales(list(change), layers, k, transfer.embeddings_copied)
            return {
                name: value * jnp.reshape(by[name], (-1,) + (1,) * (value.ndim - 1))
                for name, value in change.items()
            }

        words, drop = jax.random.split(key)
        batch = distillation.shown(batch, transfer.objective, vocab, words)

        def loss(params, rows, i):
            now = None
            if dropout:
                now = drop if parts == 1 else jax.random.fold_in(drop, i)
            made = block_loss(transfer, params, teacher_params, rows, k, now)
            made = {name: value.mean() for name, value in made.items()}
            return made["total"], made

        gradient, made = optimizer.accumulate_gradients(
            functools.partial(jax.grad(loss, has_aux=True), state["params"]),
            batch,
            parts,
            module.mesh,
        )
        state = optimizer.apply_gradients(
            moves, gradient, state, axes, module.mesh, slowed
        )
        return state, {"loss": made["total"], **made}

    return step
