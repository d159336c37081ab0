"""The losses of an Objective between a (sub-)network and its teacher, on a batch."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from autodistill_jax import sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import BERT_DIMS, MOBILEBERT_DIMS, ModelDims
from autodistill_jax.models import elastic, encoder
from autodistill_jax.models.build import Module, Params
from autodistill_jax.models.heads import (
    PROJECTION,
    encoder_params,
    head_params,
    init_mlm_head,
    init_nsp_head,
    nsp_logits,
    slice_mlm_head,
)
from autodistill_jax.train import losses
from autodistill_jax.train.objective import Objective
from autodistill_jax.train.pretraining import module_mlm_logits

# In a batch: what the teacher says of it, where that was made before.
TEACHER_EMBEDDING, TEACHER_HIDDEN = "teacher_embedding", "teacher_hidden"
TEACHER_QKV = "teacher_qkv"


def has_kept_targets(teacher: Module, objective: Objective) -> bool:
    """Whether a teacher's targets depend on the text alone and fit 16 bits.

    MobileBERT's do not: without LayerNorm its hidden states grow beyond 65,504.
    """
    is_normed = teacher.dims.family != MOBILEBERT_DIMS.family
    return is_normed and objective.has_text_targets()


def init_projections(
    objective: Objective,
    student_hidden: int,
    teacher_hidden: int,
    head: Params | None = None,
    dims: ModelDims = BERT_DIMS,
) -> dict[str, jax.Array]:
    """What a student needs besides its network: projections and heads.

    Projections map the student's width to the teacher's: the identity, until there is
    text to fit them on, see `projection.fit_projections`.

    Args:
      objective: its losses say what is needed.
      student_hidden: the student's width.
      teacher_hidden: the teacher's width.
      head: the teacher's masked-LM head, out of which the student's is cut; None where
        that is of another family: a new one.
      dims: the student's.

    Returns:
      {name: array}: `projection_*` [student_hidden, teacher_hidden], `mlm_*`, `nsp_*`.
    """
    names = {name for name in ("hidden", "cosine", "pooled", "layers")} & set(
        objective.weights
    )
    names |= {"embeddings"} if "layers" in names else set()
    params = {
        PROJECTION + name: jnp.eye(student_hidden, teacher_hidden)
        for name in sorted(names)
    }
    if objective.needs("mlm"):
        mlm_head = (
            slice_mlm_head(head, student_hidden, dims)
            if head
            else init_mlm_head(student_hidden, dims)
        )
        params |= {name: jnp.asarray(value) for name, value in mlm_head.items()}
    if "nsp" in objective.weights:
        params |= init_nsp_head(student_hidden, jax.random.key(0))
    return params


def text_targets(
    module: Module, params: dict, batch: Mapping[str, jax.Array], objective: Objective
) -> dict[str, jax.Array]:
    """Those targets of the teacher's that depend on the text alone, as they are kept.

    Args:
      module, params, batch, objective: see `teacher_targets`.

    Returns:
      As far as the losses need them, rounded to 16 bits: `TEACHER_EMBEDDING` [B, D],
      `TEACHER_HIDDEN` [B, L, D], and `TEACHER_QKV` [B, L, 3 W], the last layer's
      queries, keys and values, out of which relations are made.
    """
    out = _run_teacher(module, params, batch, objective)
    return _text_targets(module, out, batch, objective)


def _run_teacher(
    module: Module, params: dict, batch: Mapping[str, jax.Array], objective: Objective
) -> encoder.Outputs:
    return module.apply(
        {"params": encoder_params(params)},
        batch["input_ids"],
        batch["attention_mask"],
        token_type_ids=batch.get("token_type_ids"),
        position_ids=batch.get("position_ids"),
        qkv=objective.needs_relations() or "attention" in objective.weights,
        states=objective.needs("layers"),
    )


def _text_targets(
    module: Module,
    out: encoder.Outputs,
    batch: Mapping[str, jax.Array],
    objective: Objective,
) -> dict[str, jax.Array]:
    targets = {}
    if objective.needs_relations():
        targets[TEACHER_QKV] = out.qkv.reshape(*out.qkv.shape[:2], -1)
    if objective.needs_hidden():
        targets[TEACHER_HIDDEN] = out.hidden
    if objective.needs_embedding():
        targets[TEACHER_EMBEDDING] = encoder.pool_tokens(
            out.hidden, out.pooler, batch["attention_mask"], objective.pooling
        )
    if not has_kept_targets(module, objective):
        return targets
    # As those are that were kept: training is the same with and without.
    # (A cast there and back a compiler may leave out.)
    return {
        name: jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
        for name, x in targets.items()
    }


def teacher_targets(
    module: Module, params: dict, batch: Mapping[str, jax.Array], objective: Objective
) -> dict[str, jax.Array]:
    """What the teacher says of a batch: made once, for however many sub-networks.

    Args:
      module: the teacher.
      params: its parameters, and its masked-LM head (`mlm_*`) where a loss needs it.
      batch: of `mlm.mask_tokens`; with what `text_targets` gives in it, it has all that
        the losses need, and the teacher is not run.
      objective: its losses say what is needed.

    Returns:
      {loss: array}, without a gradient.
    """
    weights = objective.weights
    names = (TEACHER_EMBEDDING, TEACHER_HIDDEN, TEACHER_QKV)
    out, text_outputs = None, {name: batch[name] for name in names if name in batch}
    if not text_outputs:
        out = _run_teacher(module, params, batch, objective)
        text_outputs = _text_targets(module, out, batch, objective)
    targets = {name.removeprefix("teacher_"): x for name, x in text_outputs.items()}
    if objective.needs_relations():
        qkv = targets.pop("qkv")
        targets["relation"] = losses.teacher_relations(
            qkv.reshape(*qkv.shape[:2], 3, -1),
            objective.relation_heads,
            objective.relation_pairs,
        )
        targets["relation"] = sharding.constrain(
            targets["relation"], module.mesh, sharding.BATCH_AXES, None, "tensor"
        )
    if out is None:
        return targets
    if "attention" in weights:
        targets["attention"] = _attention_scores(
            out.qkvs[jnp.asarray(objective.layer_map)], module.arch.heads
        )
    if "layers" in weights:
        # State 0 is the embeddings', so layer i's is i + 1.
        indices = jnp.asarray([0, *(i + 1 for i in objective.layer_map)])
        targets["layers"] = out.states[indices]
    if "logits" in weights:
        targets["logits"] = module_mlm_logits(
            module, params, out.hidden, batch["masked_positions"]
        )
    return jax.lax.stop_gradient(targets)


def distillation_losses(
    module: Module,
    params: dict,
    batch: Mapping[str, jax.Array],
    targets: Mapping[str, jax.Array],
    objective: Objective,
    arch: AnyArch | None = None,
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The unweighted distillation losses of a (sub-)network, and their weighted sum.

    Args:
      module: a network, or a SuperLM.
      params: its parameters and `init_projections`'s.
      batch: of `mlm.mask_tokens`.
      targets: of `teacher_targets`.
      objective: the losses.
      arch: the sub-network of a SuperLM.
      key: for dropout; None turns it off.

    Returns:
      {loss: [B]}, and "total", their weighted sum.
    """
    weights = objective.weights
    attention_mask = batch["attention_mask"]
    in_superlm = arch is not None and module.space is not None
    out = module.apply(
        {"params": encoder_params(params)},
        batch["input_ids"],
        attention_mask,
        arch,
        key=key,
        token_type_ids=batch.get("token_type_ids"),
        position_ids=batch.get("position_ids"),
        qkv="relation" in weights or "attention" in weights,
        states=objective.needs("layers"),
    )
    values = {}
    if "relation" in weights:

        def distance(qkv, teacher, attention_mask):
            return losses.relation_losses(
                qkv,
                teacher,
                attention_mask,
                objective.relation_form,
                objective.relation_pairs,
            )

        values["relation"] = elastic.sliced_call(
            distance,
            elastic.choose_slices(module.space, arch, module.arch.qkv_axis, exact=True)
            if in_superlm
            else None,
            (out.qkv,),
            ((None, None, None, module.arch.qkv_axis),),
            (None,),
            constants=(targets["relation"], attention_mask),
        )
    # Channels out of use are exactly 0, so the whole projection serves every width.
    if "hidden" in weights:
        projected = out.hidden @ params["linear_projection_hidden"]
        values["hidden"] = losses.hidden_loss(
            projected, targets["hidden"], attention_mask
        )
    if "cosine" in weights:
        projected = out.hidden @ params["linear_projection_cosine"]
        values["cosine"] = losses.token_cosine_distance(
            projected, targets["hidden"], attention_mask
        )
    if objective.needs_embedding():
        pooled = encoder.pool_tokens(
            out.hidden, out.pooler, attention_mask, objective.pooling
        )
    if "pooled" in weights:
        projected = pooled @ params["linear_projection_pooled"]
        values["pooled"] = losses.cosine_distance(projected, targets["embedding"])
    if "embedding" in weights:
        # |x - y|^2 of unit vectors.
        distance = losses.cosine_distance(pooled, targets["embedding"])
        values["embedding"] = 2 * distance
    if "attention" in weights:
        student_scores = _attention_scores(out.qkvs, targets["attention"].shape[2])
        values["attention"] = sum(
            losses.relation_loss(student, teacher, attention_mask, "code")
            for student, teacher in zip(student_scores, targets["attention"])
        )
    if "layers" in weights:
        projections = [params["linear_projection_embeddings"]]
        projections += [params["linear_projection_layers"]] * len(objective.layer_map)
        values["layers"] = sum(
            losses.hidden_loss(state @ projection, teacher, attention_mask)
            for state, projection, teacher in zip(
                out.states, projections, targets["layers"]
            )
        )
    if "nsp" in weights:
        values["nsp"] = losses.cross_entropy(
            nsp_logits(head_params(params), out.pooler), batch["next_sentence_label"]
        )
    if objective.needs("mlm"):
        logits = module_mlm_logits(
            module,
            params,
            out.hidden,
            batch["masked_positions"],
            arch.hidden if in_superlm else None,
        )
        values |= _mlm_losses(logits, batch, targets, objective)
    total = sum(weight * values[name] for name, weight in weights.items())
    return values | {"total": total}


def _attention_scores(qkvs: jax.Array, heads: int) -> jax.Array:
    """The attention scores of layers [N, B, L, 3, W] in so many heads.

    In as many as the network has they are its own; in others its queries and keys are
    split anew, as relations are, so that networks of other head counts compare.
    """
    return jax.vmap(
        lambda qkv: losses.relation_scores(qkv[:, :, 0], qkv[:, :, 1], heads)
    )(qkvs)


def _mlm_losses(
    logits: jax.Array,
    batch: Mapping[str, jax.Array],
    targets: Mapping[str, jax.Array],
    objective: Objective,
) -> dict[str, jax.Array]:
    """The losses at masked tokens, [B] each, of logits [B, K, V]."""
    weights = batch["masked_weights"]

    def mean(values):
        return (values * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)

    values = {}
    if "logits" in objective.weights:
        values["logits"] = mean(
            losses.soft_label_loss(logits, targets["logits"], objective.temperature)
        )
    if "mlm" in objective.weights:
        values["mlm"] = mean(losses.cross_entropy(logits, batch["masked_labels"]))
    return values
