"""How far is a (sub-)network from its teacher on a batch? The terms of an Objective."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from autodistill_jax import sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import BERT_SIZES, Sizes
from autodistill_jax.data.mlm import hide
from autodistill_jax.models import elastic, follows, words
from autodistill_jax.models.build import Module
from autodistill_jax.train import losses
from autodistill_jax.train.objective import Objective

# Parameters that only training needs; they are thrown away after it.
AUXILIARY = "matcher_"


def network(params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A network's own parameters, without what only training needs."""
    return {k: v for k, v in params.items() if not k.startswith(AUXILIARY)}


def matcher(
    objective: Objective,
    student: int,
    teacher: int,
    head: Mapping[str, jax.Array] | None = None,
    sizes: Sizes = BERT_SIZES,
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
    made = {AUXILIARY + term: jnp.eye(student, teacher) for term in sorted(needed)}
    if objective.needs("words"):
        cut = words.cut(head, student, sizes) if head else words.init(student, sizes)
        made |= {AUXILIARY + name: jnp.asarray(value) for name, value in cut.items()}
    if "next" in objective.weights:
        fresh = follows.init(student, jax.random.key(0))
        made |= {AUXILIARY + name: value for name, value in fresh.items()}
    return made


def heads(params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The student's own heads among its `matcher`s, by their names: words_*, next_*."""
    own = {k.removeprefix(AUXILIARY): v for k, v in params.items()}
    return {k: v for k, v in own.items() if k.startswith(("words_", "next_"))}


def shown(
    batch: Mapping[str, jax.Array], objective: Objective, vocab: int, key: jax.Array
) -> Mapping[str, jax.Array]:
    """The batch as teacher and student see it: with words hidden, where they are."""
    if not objective.hide:
        return batch
    return hide(
        key, batch, objective.special, vocab, objective.hide, objective.hide_at_most
    )


def targets(
    module: Module, params: dict, batch: Mapping[str, jax.Array], objective: Objective
) -> dict[str, jax.Array]:
    """What the teacher says of a batch: made once, for however many sub-networks.

    params: the teacher's, and its masked-word head (`words_*`) where a term needs it.
    """
    weights = objective.weights
    tokens = batch["tokens"]
    out = module.apply(
        {"params": {k: v for k, v in params.items() if not k.startswith("words_")}},
        batch["ids"],
        tokens,
        types=batch.get("types"),
        qkv="relation" in weights or "attention" in weights,
        states=objective.needs("layers"),
    )
    made = {}
    if "relation" in weights:
        made["relation"] = losses.teacher_relations(
            out.qkv, objective.relation_heads, objective.relation_pairs
        )
        made["relation"] = sharding.constrain(
            made["relation"], module.mesh, sharding.BATCH, None, "tensor"
        )
    if weights.keys() & {"hidden", "cosine"}:
        made["hidden"] = out.hidden
    if "pooled" in weights:
        made["pooled"] = losses.pool(out.hidden, out.pooler, tokens, objective.pooling)
    if "attention" in weights:
        made["attention"] = _attention(
            out.qkvs[jnp.asarray(objective.mapped)], module.arch.heads
        )
    if "layers" in weights:
        # State 0 is the embeddings', so layer i's is i + 1.
        places = jnp.asarray([0, *(i + 1 for i in objective.mapped)])
        made["layers"] = out.states[places]
    if "logits" in weights:
        made["logits"] = words.logits(
            params,
            params["embeddings_word"],
            out.hidden,
            batch["places"],
            module.arch.hidden,
            module.sizes,
            module.dtype,
            module.mesh,
        )
    return jax.lax.stop_gradient(made)


def terms(
    module: Module,
    params: dict,
    batch: Mapping[str, jax.Array],
    target: Mapping[str, jax.Array],
    objective: Objective,
    arch: AnyArch | None = None,
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The unweighted distillation terms of a (sub-)network, [B] each, and their sum.

    `total` is the weighted sum. params hold the network's and the `matcher`'s.
    """
    weights = objective.weights
    tokens = batch["tokens"]
    inside = arch is not None and module.space is not None
    out = module.apply(
        {"params": network(params)},
        batch["ids"],
        tokens,
        arch,
        key=key,
        types=batch.get("types"),
        qkv="relation" in weights or "attention" in weights,
        states=objective.needs("layers"),
    )
    made = {}
    if "relation" in weights:

        def distance(qkv, teacher, tokens):
            return losses.relations(
                qkv, teacher, tokens, objective.relation_form, objective.relation_pairs
            )

        made["relation"] = elastic.call(
            distance,
            elastic.cut(module.space, arch, module.arch.qkv, exact=True)
            if inside
            else None,
            (out.qkv,),
            ((None, None, None, module.arch.qkv),),
            (None,),
            constants=(target["relation"], tokens),
        )
    # Channels out of use are exactly 0, so the whole matcher serves every width.
    if "hidden" in weights:
        matched = out.hidden @ params["matcher_hidden"]
        made["hidden"] = losses.hidden_states(matched, target["hidden"], tokens)
    if "cosine" in weights:
        matched = out.hidden @ params["matcher_cosine"]
        made["cosine"] = losses.token_cosine_distance(matched, target["hidden"], tokens)
    if "pooled" in weights:
        pooled = losses.pool(out.hidden, out.pooler, tokens, objective.pooling)
        pooled = pooled @ params["matcher_pooled"]
        made["pooled"] = losses.cosine_distance(pooled, target["pooled"])
    if "attention" in weights:
        ours = _attention(out.qkvs, target["attention"].shape[2])
        made["attention"] = sum(
            losses.relation(one, other, tokens, "code")
            for one, other in zip(ours, target["attention"])
        )
    if "layers" in weights:
        matchers = [params["matcher_embeddings"]]
        matchers += [params["matcher_layers"]] * len(objective.mapped)
        made["layers"] = sum(
            losses.hidden_states(state @ matcher, other, tokens)
            for state, matcher, other in zip(out.states, matchers, target["layers"])
        )
    if "next" in weights:
        made["next"] = losses.cross_entropy(
            follows.logits(heads(params), out.pooler), batch["next"]
        )
    if objective.needs("words"):
        made |= _words(module, params, batch, target, objective, out, arch, inside)
    total = sum(weight * made[term] for term, weight in weights.items())
    return made | {"total": total}


def _attention(qkvs: jax.Array, heads: int) -> jax.Array:
    """The attention scores of layers [N, B, L, 3, W] in so many heads.

    In as many as the network has they are its own; in others its queries and keys are
    split anew, as relations are, so that networks of other head counts compare.
    """
    return jax.vmap(
        lambda qkv: losses.relation_scores(qkv[:, :, 0], qkv[:, :, 1], heads)
    )(qkvs)


def _words(module, params, batch, target, objective, out, arch, inside) -> dict:
    logits = words.logits(
        heads(params),
        params["embeddings_word"],
        out.hidden,
        batch["places"],
        arch.hidden if inside else module.arch.hidden,
        module.sizes,
        module.dtype,
        module.mesh,
    )
    chosen = batch["chosen"]

    def mean(values):
        return (values * chosen).sum(axis=1) / jnp.maximum(chosen.sum(axis=1), 1)

    made = {}
    if "logits" in objective.weights:
        made["logits"] = mean(
            losses.soft_labels(logits, target["logits"], objective.temperature)
        )
    if "words" in objective.weights:
        made["words"] = mean(losses.cross_entropy(logits, batch["targets"]))
    return made
