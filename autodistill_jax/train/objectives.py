"""What does a student learn from? The teacher's targets and the distillation terms."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from autodistill_jax import losses
from autodistill_jax.arch import Arch, Space
from autodistill_jax.errors import UserError
from autodistill_jax.model import elastic
from autodistill_jax.model.bert import Bert

TERMS = ("relation", "hidden", "pooled")


class Objective(NamedTuple):
    """Which terms, how weighted.

    weights: {term: weight}, the terms with a weight above 0.
    relation_form, relation_heads: see `losses.relation`; heads are the relation heads.
    pooling: "mean", "cls" or "pooler" (see `losses.pool`), for the pooled term.
    """

    weights: Mapping[str, float]
    relation_form: str = "minilmv2"
    relation_heads: int = 12
    pooling: str = "mean"


def objective(
    settings: Mapping[str, Any], space: Space, pooling: str, embeds: bool
) -> Objective:
    """The Objective of a config's distill section, for a teacher that pools so.

    `terms` "auto" follows the teacher's kind: a sentence-embedding teacher (its folder
    says how it pools) needs the pooled term, since relations give no gradient to the
    last layer's output; any other teacher is matched by its relations alone.

    Raises:
      UserError: an unknown term or form, or fewer q/k/v channels than relation heads.
    """
    named = settings["terms"]
    if named == "auto":
        named = "relation+pooled" if embeds else "relation"
    weights = {}
    for term in named.split("+"):
        if term not in TERMS:
            raise UserError(
                f"distill.terms is {settings['terms']!r}; it must be 'auto' or some of "
                f"{', '.join(TERMS)}, joined by '+'"
            )
        if settings[f"{term}_weight"] > 0:
            weights[term] = float(settings[f"{term}_weight"])
    if not weights:
        raise UserError(
            f"distill.terms {named!r} all have weight 0; nothing is trained"
        )
    form, heads = settings["relation_form"], settings["relation_heads"]
    if form not in losses.RELATION_FORMS:
        raise UserError(
            f"distill.relation_form is {form!r}; "
            f"it must be one of {', '.join(losses.RELATION_FORMS)}"
        )
    narrowest = min(arch.heads for arch in space.grid()) * space.head_size
    if "relation" in weights and not 1 <= heads <= narrowest:
        raise UserError(
            f"distill.relation_heads is {heads}, but the narrowest sub-network has "
            f"{narrowest} query channels; use between 1 and {narrowest}"
        )
    return Objective(weights, form, heads, pooling)


def matcher(objective: Objective, student: int, teacher: int) -> dict[str, jax.Array]:
    """Linear maps from the student's width to the teacher's, the identity at first.

    A truncated student starts as the teacher's first channels, so the identity is what
    its outputs mean already. They serve training and are thrown away after it.
    """
    return {
        f"matcher_{term}": jnp.eye(student, teacher)
        for term in ("hidden", "pooled")
        if term in objective.weights
    }


def targets(
    module: Bert, params: dict, batch: Mapping[str, jax.Array], objective: Objective
) -> dict[str, jax.Array]:
    """What the teacher says of a batch: made once, for however many sub-networks."""
    needs_relations = "relation" in objective.weights
    out = module.apply(
        {"params": params}, batch["ids"], batch["tokens"], qkv=needs_relations
    )
    made = {}
    if needs_relations:
        made["relation"] = losses.teacher_relations(out.qkv, objective.relation_heads)
    if "hidden" in objective.weights:
        made["hidden"] = out.hidden
    if "pooled" in objective.weights:
        made["pooled"] = losses.pool(
            out.hidden, out.pooler, batch["tokens"], objective.pooling
        )
    return jax.lax.stop_gradient(made)


def terms(
    module: Bert,
    params: dict,
    batch: Mapping[str, jax.Array],
    target: Mapping[str, jax.Array],
    objective: Objective,
    arch: Arch | None = None,
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The unweighted distillation terms of a (sub-)network, [B] each, and their sum.

    `total` is the weighted sum. params hold the network's and the `matcher`'s.
    """
    tokens = batch["tokens"]
    out = module.apply(
        {"params": {k: v for k, v in params.items() if not k.startswith("matcher_")}},
        batch["ids"],
        tokens,
        arch,
        key=key,
        qkv="relation" in objective.weights,
    )
    made = {}
    if "relation" in objective.weights:
        space = module.space

        def distance(qkv, teacher, tokens):
            return losses.relations(qkv, teacher, tokens, objective.relation_form)

        made["relation"] = elastic.call(
            distance,
            None if arch is None else elastic.cut(space, arch, "heads", exact=True),
            (out.qkv,),
            ((None, None, None, "heads"),),
            (None,),
            constants=(target["relation"], tokens),
        )
    # Channels out of use are exactly 0, so the whole matcher serves every width.
    if "hidden" in objective.weights:
        matched = out.hidden @ params["matcher_hidden"]
        made["hidden"] = losses.hidden_states(matched, target["hidden"], tokens)
    if "pooled" in objective.weights:
        pooled = losses.pool(out.hidden, out.pooler, tokens, objective.pooling)
        pooled = pooled @ params["matcher_pooled"]
        made["pooled"] = losses.cosine_distance(pooled, target["pooled"])
    total = sum(weight * made[term] for term, weight in objective.weights.items())
    return made | {"total": total}
