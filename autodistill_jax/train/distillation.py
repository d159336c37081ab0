"""How far is a (sub-)network from its teacher on a batch? The terms of an Objective."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from autodistill_jax import sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import BERT_DIMS, ModelDims
from autodistill_jax.data.mlm import mask_tokens
from autodistill_jax.models import elastic
from autodistill_jax.models.build import Module
from autodistill_jax.models.heads import (
    PROJECTION,
    encoder_params,
    head_params,
    init_mlm_head,
    init_nsp_head,
    mlm_logits,
    nsp_logits,
    slice_mlm_head,
)
from autodistill_jax.train import losses
from autodistill_jax.train.objective import Objective


def init_projections(
    objective: Objective,
    student: int,
    teacher: int,
    head: Mapping[str, jax.Array] | None = None,
    dims: ModelDims = BERT_DIMS,
) -> dict[str, jax.Array]:
    """Linear maps from the student's width to the teacher's, the identity at first, and
    the student's masked-word head, cut out of the teacher's (`head`), or, where that is
    of another family (None), a new one. sizes: the student's.

    A truncated student starts as the teacher's first channels, so the identity is what
    its outputs mean already.
    """
    needed = {term for term in ("hidden", "cosine", "pooled", "layers")} & set(
        objective.weights
    )
    needed |= {"embeddings"} if "layers" in needed else set()
    made = {PROJECTION + term: jnp.eye(student, teacher) for term in sorted(needed)}
    if objective.needs("mlm"):
        cut = (
            slice_mlm_head(head, student, dims)
            if head
            else init_mlm_head(student, dims)
        )
        made |= {name: jnp.asarray(value) for name, value in cut.items()}
    if "nsp" in objective.weights:
        fresh = init_nsp_head(student, jax.random.key(0))
        made |= fresh
    return made


def shown(
    batch: Mapping[str, jax.Array], objective: Objective, vocab: int, key: jax.Array
) -> Mapping[str, jax.Array]:
    """The batch as teacher and student see it: with words hidden, where they are."""
    if not objective.mlm_probability:
        return batch
    return mask_tokens(
        key,
        batch,
        objective.special_tokens,
        vocab,
        objective.mlm_probability,
        objective.max_predictions_per_seq,
    )


def teacher_targets(
    module: Module, params: dict, batch: Mapping[str, jax.Array], objective: Objective
) -> dict[str, jax.Array]:
    """What the teacher says of a batch: made once, for however many sub-networks.

    params: the teacher's, and its masked-word head (`mlm_*`) where a term needs it.
    """
    weights = objective.weights
    attention_mask = batch["attention_mask"]
    out = module.apply(
        {"params": encoder_params(params)},
        batch["input_ids"],
        attention_mask,
        token_type_ids=batch.get("token_type_ids"),
        qkv="relation" in weights or "attention" in weights,
        states=objective.needs("layers"),
    )
    made = {}
    if "relation" in weights:
        made["relation"] = losses.teacher_relations(
            out.qkv, objective.relation_heads, objective.relation_pairs
        )
        made["relation"] = sharding.constrain(
            made["relation"], module.mesh, sharding.BATCH_AXES, None, "tensor"
        )
    if weights.keys() & {"hidden", "cosine"}:
        made["hidden"] = out.hidden
    if "pooled" in weights:
        made["pooled"] = losses.pool_tokens(
            out.hidden, out.pooler, attention_mask, objective.pooling
        )
    if "attention" in weights:
        made["attention"] = _attention_scores(
            out.qkvs[jnp.asarray(objective.layer_map)], module.arch.heads
        )
    if "layers" in weights:
        # State 0 is the embeddings', so layer i's is i + 1.
        places = jnp.asarray([0, *(i + 1 for i in objective.layer_map)])
        made["layers"] = out.states[places]
    if "logits" in weights:
        made["logits"] = mlm_logits(
            params,
            params["embeddings_word"],
            out.hidden,
            batch["masked_positions"],
            module.arch.hidden,
            module.dims,
            module.dtype,
            module.mesh,
        )
    return jax.lax.stop_gradient(made)


def distillation_losses(
    module: Module,
    params: dict,
    batch: Mapping[str, jax.Array],
    target: Mapping[str, jax.Array],
    objective: Objective,
    arch: AnyArch | None = None,
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The unweighted distillation terms of a (sub-)network, [B] each, and their sum.

    `total` is the weighted sum. params hold the network's and the `init_projections`'s.
    """
    weights = objective.weights
    attention_mask = batch["attention_mask"]
    inside = arch is not None and module.space is not None
    out = module.apply(
        {"params": encoder_params(params)},
        batch["input_ids"],
        attention_mask,
        arch,
        key=key,
        token_type_ids=batch.get("token_type_ids"),
        qkv="relation" in weights or "attention" in weights,
        states=objective.needs("layers"),
    )
    made = {}
    if "relation" in weights:

        def distance(qkv, teacher, attention_mask):
            return losses.relation_losses(
                qkv,
                teacher,
                attention_mask,
                objective.relation_form,
                objective.relation_pairs,
            )

        made["relation"] = elastic.sliced_call(
            distance,
            elastic.choose_slices(module.space, arch, module.arch.qkv_axis, exact=True)
            if inside
            else None,
            (out.qkv,),
            ((None, None, None, module.arch.qkv_axis),),
            (None,),
            constants=(target["relation"], attention_mask),
        )
    # Channels out of use are exactly 0, so the whole matcher serves every width.
    if "hidden" in weights:
        matched = out.hidden @ params["projection_hidden"]
        made["hidden"] = losses.hidden_loss(matched, target["hidden"], attention_mask)
    if "cosine" in weights:
        matched = out.hidden @ params["projection_cosine"]
        made["cosine"] = losses.token_cosine_distance(
            matched, target["hidden"], attention_mask
        )
    if "pooled" in weights:
        pooled = losses.pool_tokens(
            out.hidden, out.pooler, attention_mask, objective.pooling
        )
        pooled = pooled @ params["projection_pooled"]
        made["pooled"] = losses.cosine_distance(pooled, target["pooled"])
    if "attention" in weights:
        ours = _attention_scores(out.qkvs, target["attention"].shape[2])
        made["attention"] = sum(
            losses.relation_loss(one, other, attention_mask, "code")
            for one, other in zip(ours, target["attention"])
        )
    if "layers" in weights:
        matchers = [params["projection_embeddings"]]
        matchers += [params["projection_layers"]] * len(objective.layer_map)
        made["layers"] = sum(
            losses.hidden_loss(state @ matcher, other, attention_mask)
            for state, matcher, other in zip(out.states, matchers, target["layers"])
        )
    if "nsp" in weights:
        made["nsp"] = losses.cross_entropy(
            nsp_logits(head_params(params), out.pooler), batch["next_sentence_label"]
        )
    if objective.needs("mlm"):
        made |= _mlm_losses(module, params, batch, target, objective, out, arch, inside)
    total = sum(weight * made[term] for term, weight in weights.items())
    return made | {"total": total}


def _attention_scores(qkvs: jax.Array, heads: int) -> jax.Array:
    """The attention scores of layers [N, B, L, 3, W] in so many heads.

    In as many as the network has they are its own; in others its queries and keys are
    split anew, as relations are, so that networks of other head counts compare.
    """
    return jax.vmap(
        lambda qkv: losses.relation_scores(qkv[:, :, 0], qkv[:, :, 1], heads)
    )(qkvs)


def _mlm_losses(module, params, batch, target, objective, out, arch, inside) -> dict:
    logits = mlm_logits(
        head_params(params),
        params["embeddings_word"],
        out.hidden,
        batch["masked_positions"],
        arch.hidden if inside else module.arch.hidden,
        module.dims,
        module.dtype,
        module.mesh,
    )
    chosen = batch["masked_weights"]

    def mean(values):
        return (values * chosen).sum(axis=1) / jnp.maximum(chosen.sum(axis=1), 1)

    made = {}
    if "logits" in objective.weights:
        made["logits"] = mean(
            losses.soft_label_loss(logits, target["logits"], objective.temperature)
        )
    if "mlm" in objective.weights:
        made["mlm"] = mean(losses.cross_entropy(logits, batch["masked_labels"]))
    return made
