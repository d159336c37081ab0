"""What does a student learn from? Which terms, how weighted, by name or by recipe."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from autodistill_jax.archs.space import Space
from autodistill_jax.data.tokenization import SpecialTokens
from autodistill_jax.errors import UserError
from autodistill_jax.train import losses

# term -> needs it all layers, or the masked-word head?
LOSSES = {
    "relation": "",  # relations of the last layer's queries, keys and values
    "hidden": "",  # mean squared error of the last hidden states
    "cosine": "",  # 1 - cosine of the last hidden states
    "pooled": "",  # 1 - cosine of the texts' embeddings
    "attention": "layers",  # mean squared error of mapped layers' attention scores
    "layers": "layers",  # mean squared error of mapped layers' hidden states
    "logits": "mlm",  # soft labels at hidden words
    "mlm": "mlm",  # cross-entropy of hidden words
    "nsp": "",  # cross-entropy of whether the second text follows the first
}

_RENAMED_LOSSES = {"words": "mlm", "next": "nsp"}  # Since version 0.2.

# What other methods train on, as changes to a config's distill section. They keep the
# config's text, steps and optimizer, and start where it starts.
LOSS_RECIPES: dict[str, dict[str, Any]] = {
    # AutoDistil (arXiv 2201.12507), equations 3-6.
    "autodistil": {
        "losses": "relation",
        "relation_form": "paper",
        "relation_pairs": "qq+kk+vv",
        "relation_heads": 0,
        "mlm_probability": 0.15,
    },
    # DistilBERT (arXiv 1910.01108): soft labels, masked words, cosine of hidden states.
    # Its soft labels are taken at the hidden words only: all words' logits would fill
    # the memory.
    "distilbert": {
        "losses": "5*logits+2*mlm+cosine",
        "mlm_probability": 0.15,
        "temperature": 2.0,
    },
    # TinyBERT (arXiv 1909.10351), general stage: embeddings, layers, attention scores.
    "tinybert": {"losses": "attention+layers", "mlm_probability": 0.0},
    # MiniLM (arXiv 2002.10957): last layer's attention and value relations.
    "minilm": {
        "losses": "relation",
        "relation_form": "minilmv2",
        "relation_pairs": "qk+vv",
        "relation_heads": 0,
        "mlm_probability": 0.0,
    },
    # MiniLMv2 (arXiv 2012.15828): last layer's relations in 48 heads.
    "minilmv2": {
        "losses": "relation",
        "relation_form": "minilmv2",
        "relation_pairs": "qq+kk+vv",
        "relation_heads": 48,
        "mlm_probability": 0.0,
    },
}


class Objective(NamedTuple):
    """Which terms, how weighted.

    weights: {term: weight}, the terms with a weight above 0.
    relation_form, relation_heads, relation_pairs: see `losses.relation_losses`.
    pooling: "mean", "cls" or "pooler" (see `losses.pool_tokens`), for the pooled term.
    layer_map: for each layer of the student the teacher's layer that it follows.
    mlm_probability, max_predictions_per_seq: the fraction of words hidden from teacher and student (0: none).
    temperature: of the soft labels.
    special_tokens: of `tokenization.special_tokens`; needed where words are hidden.
    """

    weights: Mapping[str, float]
    relation_form: str = "minilmv2"
    relation_heads: int = 12
    relation_pairs: str = "qq+kk+vv"
    pooling: str = "mean"
    layer_map: tuple[int, ...] = ()
    mlm_probability: float = 0.0
    max_predictions_per_seq: int = 20
    temperature: float = 2.0
    special_tokens: SpecialTokens | None = None

    def needs(self, what: str) -> bool:
        """Does a term need all "layers", or the "mlm" head?"""
        return any(LOSSES[term] == what for term in self.weights)


def parse_objective(
    settings: Mapping[str, Any],
    spaces: Sequence[Space],
    teacher: Any,
    special: SpecialTokens | None = None,
) -> Objective:
    """The Objective of a config's distill section.

    `losses` is "auto", a name in RECIPES, or some of TERMS joined by "+", each with a
    weight if it is not 1: "relation+10*pooled". "auto" follows the teacher's kind: a
    sentence-embedding teacher (its folder says how it pools) needs the pooled term,
    since relations give no gradient to the last layer's output; any other teacher is
    matched by its relations alone.

    Args:
      settings: the distill section.
      spaces: of the SuperLMs it is for.
      teacher: a `huggingface.Teacher`: its arch, pooling, and whether it embeds.
      special: see `Objective`.

    Raises:
      UserError: an unknown term or form, fewer q/k/v channels than relation heads, a
        term that needs a Space of one Arch, hidden words without a token for them.
    """
    settings = {**settings, **LOSS_RECIPES.get(settings["losses"], {})}
    named = settings["losses"]
    if named == "auto":
        named = "relation+10*pooled" if teacher.embeds_sentences else "relation"
    weights = _parse_weights(named)
    form, pairs = settings["relation_form"], settings["relation_pairs"]
    for value, field, known in (
        (form, "relation_form", losses.RELATION_FORMS),
        (pairs, "relation_pairs", tuple(losses.RELATION_PAIRS)),
    ):
        if value not in known:
            raise UserError(
                f"distill.{field} is {value!r}; it must be one of {', '.join(known)}"
            )
    heads = settings["relation_heads"] or teacher.arch.heads
    narrowest = min(space.smallest().width for space in spaces)
    count = sum(map(len, spaces))
    if "relation" in weights and heads > narrowest:
        raise UserError(
            f"distill.relation_heads is {heads}, but the narrowest sub-network has "
            f"{narrowest} query channels; use between 1 and {narrowest}"
        )
    made = Objective(
        weights,
        form,
        heads,
        pairs,
        teacher.pooling,
        _layer_map(spaces[0].smallest().layers, teacher.arch.layers),
        settings["mlm_probability"],
        settings["max_predictions_per_seq"],
        settings["temperature"],
        special,
    )
    if made.needs("layers") and count > 1:
        raise UserError(
            f"distill.losses {named!r} follows the teacher layer by layer, which needs a "
            f"space of one Arch, and this one has {count}; use other terms or give "
            "each axis one value"
        )
    if "attention" in weights and teacher.arch.heads > narrowest:
        raise UserError(
            f"the attention term splits {narrowest} query channels into the teacher's "
            f"{teacher.arch.heads} heads; use a wider Arch or other terms"
        )
    if made.needs("mlm") and not made.mlm_probability:
        raise UserError(
            f"distill.losses {named!r} needs hidden words; set distill.mlm_probability, e.g. 0.15"
        )
    if made.mlm_probability and (special is None or special.mask_token_id is None):
        raise UserError(
            f"distill.mlm_probability is {made.mlm_probability}, but the teacher's tokenizer has no token for "
            "a hidden word ([MASK] or <mask>); set distill.mlm_probability to 0.0"
        )
    return made


def transfer_objective(
    settings: Mapping[str, Any],
    student: int,
    teacher: Any,
    special: SpecialTokens,
    pairs: bool,
) -> Objective:
    """The Objective of a block-wise transfer (see `flash`) to a student of so many layers.

    Its last stage has soft labels and hidden words, half and half (MobileBERT, section
    3.4); hidden words alone under a teacher without a masked-word head. Of a teacher that
    embeds sentences the embedding is kept by its own term, which words would pull away.

    settings: the distill section, for what is hidden. teacher: a `huggingface.Teacher`.
    pairs: are the rows pairs of sentences? Then the next sentence is learned, too.
    """
    weights = {"mlm": 1.0}
    if teacher.mlm_head is not None:
        weights = {"logits": 0.5, "mlm": 0.5}
    if teacher.embeds_sentences:
        weights["pooled"] = 10.0
    if pairs:
        weights["nsp"] = 1.0
    return Objective(
        weights,
        relation_heads=teacher.arch.heads,
        pooling=teacher.pooling,
        layer_map=_layer_map(student, teacher.arch.layers),
        mlm_probability=settings["mlm_probability"] or 0.15,
        max_predictions_per_seq=settings["max_predictions_per_seq"],
        temperature=1.0,
        special_tokens=special,
    )


def _parse_weights(named: str) -> dict[str, float]:
    weights = {}
    for part in named.replace(" ", "").split("+"):
        found = re.fullmatch(r"(?:(\d+\.?\d*|\.\d+)\*)?(\w+)", part)
        if found and found[2] in _RENAMED_LOSSES:
            raise UserError(
                f"distill.losses: {found[2]!r} is now {_RENAMED_LOSSES[found[2]]!r}"
            )
        if not found or found[2] not in LOSSES:
            raise UserError(
                f"distill.losses has {part!r}; it must be 'auto', a recipe "
                f"({', '.join(LOSS_RECIPES)}), or some of {', '.join(LOSSES)} joined by '+', "
                "with weights like '10*pooled'"
            )
        if (weight := float(found[1] or 1)) > 0:
            weights[found[2]] = weight
    if not weights:
        raise UserError(
            f"distill.losses {named!r} all have weight 0; nothing is trained"
        )
    return weights


def _layer_map(student: int, teacher: int) -> tuple[int, ...]:
    """The teacher's layer (from 0) that each of the student's follows.

    Layer m of M follows layer m * N / M of N, counted from 1 (TinyBERT, section 4.1).
    """
    # A student that is deeper than its teacher follows each layer several times.
    return tuple(max(m * teacher // student, 1) - 1 for m in range(1, student + 1))
