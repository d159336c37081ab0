"""The objective of a distillation: which losses, how weighted, by name or by recipe."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.space import Space
from autodistill_jax.data.mlm import MlmMasking
from autodistill_jax.data.tokenization import SpecialTokens
from autodistill_jax.errors import UserError
from autodistill_jax.train import losses

# loss -> needs it all layers, or the masked-LM head?
LOSSES = {
    "relation": "",  # relations of the last layer's queries, keys and values
    "hidden": "",  # mean squared error of the last hidden states
    "cosine": "",  # 1 - cosine of the last hidden states
    "pooled": "",  # 1 - cosine of the texts' embeddings
    "embedding": "",  # squared error of their directions, of equal width, no projection
    "attention": "layers",  # mean squared error of mapped layers' attention scores
    "layers": "layers",  # mean squared error of mapped layers' hidden states
    "logits": "mlm",  # soft labels at masked tokens
    "mlm": "mlm",  # cross-entropy of masked tokens
    "nsp": "",  # cross-entropy of whether the second text follows the first
}

# "auto" of a teacher that embeds sentences. Held-out 1 - cosine of the embeddings beside
# "pooled" alone, after 200 steps of MiniLM-L6's students of a half, a quarter and an
# eighth: .0948 beside .1089, .1643 beside .1732, .2251 beside .2252.
_AUTO_LOSSES = "pooled+3*cosine"

_RENAMED_LOSSES = {"words": "mlm", "next": "nsp"}  # Since version 0.2.

# What other methods train on, as changes to a config's distill section. They keep the
# config's text and optimizer, and start where it starts.
LOSS_RECIPES: dict[str, dict[str, Any]] = {
    # AutoDistil (arXiv 2201.12507), equations 3-6.
    "autodistil": {
        "losses": "relation",
        "relation_form": "paper",
        "relation_pairs": "qq+kk+vv",
        "relation_heads": 0,
        "mlm_probability": 0.15,
    },
    # DistilBERT (arXiv 1910.01108): soft labels, masked LM, cosine of hidden states.
    # Its soft labels are taken at the masked tokens only: all tokens' logits would fill
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
    # Sentence-BERT's own (sbert.net, "model distillation"): the teacher without some
    # of its layers, by the squared error of what embeds a text.
    "layer_reduction": {"losses": "embedding", "mlm_probability": 0.0},
    # MiniLMv2 (arXiv 2012.15828): last layer's relations in 48 heads.
    "minilmv2": {
        "losses": "relation",
        "relation_form": "minilmv2",
        "relation_pairs": "qq+kk+vv",
        "relation_heads": 48,
        "mlm_probability": 0.0,
    },
    # What a sentence-embedding teacher's students are asked for, alone and beside it.
    "pooled_alone": {"losses": "pooled", "mlm_probability": 0.0},
    "minilmv2_pooled": {
        "losses": "relation+10*pooled",
        "relation_form": "minilmv2",
        "relation_pairs": "qq+kk+vv",
        "relation_heads": 48,
        "mlm_probability": 0.0,
    },
}


class Objective(NamedTuple):
    """Which losses, how weighted.

    Attributes:
      weights: {loss: weight}, the losses with a weight above 0.
      relation_form, relation_heads, relation_pairs: see `losses.relation_losses`.
      pooling: "mean", "cls" or "pooler" (see `encoder.pool_tokens`), for "pooled".
      layer_map: for each layer of the student the teacher's layer that it follows.
      temperature: of the soft labels.
      masking: the tokens that are masked for teacher and student.
    """

    weights: Mapping[str, float]
    relation_form: str = "minilmv2"
    relation_heads: int = 12
    relation_pairs: str = "qq+kk+vv"
    pooling: str = "mean"
    layer_map: tuple[int, ...] = ()
    temperature: float = 2.0
    masking: MlmMasking = MlmMasking()

    def needs(self, requirement: str) -> bool:
        """Whether a loss needs all "layers", or the "mlm" head."""
        return any(LOSSES[name] == requirement for name in self.weights)

    def needs_embedding(self) -> bool:
        """Whether a loss looks at the teacher's embeddings of texts."""
        return bool(self.weights.keys() & {"pooled", "embedding"})

    def needs_hidden(self) -> bool:
        """Whether a loss looks at the teacher's last hidden states."""
        return bool(self.weights.keys() & {"hidden", "cosine"})

    def needs_relations(self) -> bool:
        """Whether a loss looks at relations of the teacher's last layer."""
        return "relation" in self.weights

    def has_text_targets(self) -> bool:
        """Whether all that is asked of a teacher, its embeddings, last hidden states and
        relations, is the same each time that a row is seen."""
        text_losses = {"pooled", "embedding", "hidden", "cosine", "relation"}
        return (
            not self.masking.mlm_probability
            and bool(self.weights.keys() & text_losses)
            and self.weights.keys() <= text_losses | {"nsp"}
        )


def parse_objective(
    settings: Mapping[str, Any],
    spaces: Sequence[Space],
    teacher: Any,
    special_tokens: SpecialTokens | None = None,
) -> Objective:
    """The Objective of a config's distill section.

    `losses` is "auto", a name in `LOSS_RECIPES`, or some of `LOSSES` joined by "+",
    each with a weight if it is not 1: "relation+10*pooled". "auto" follows the
    teacher's kind: a sentence-embedding teacher (its folder says how it pools) is
    matched by the pooled loss and, token by token, by its last hidden states, beside
    which relations bring nothing (alone they give no gradient to the last layer's
    output); any other teacher is matched by its relations alone.

    Args:
      settings: the distill section.
      spaces: of the SuperLMs it is for.
      teacher: a `huggingface.Teacher`: its arch, pooling, and whether it embeds.
      special_tokens: see `MlmMasking`.

    Returns:
      The Objective.

    Raises:
      UserError: an unknown loss or form, fewer q/k/v channels than relation heads, a
        loss that needs a Space of one Arch, masked tokens without a mask token.
    """
    settings = {**settings, **LOSS_RECIPES.get(settings["losses"], {})}
    spec = settings["losses"]
    if spec == "auto":
        spec = _AUTO_LOSSES if teacher.embeds_sentences else "relation"
    weights = _parse_weights(spec)
    form, pairs = settings["relation_form"], settings["relation_pairs"]
    for value, field, allowed in (
        (form, "relation_form", losses.RELATION_FORMS),
        (pairs, "relation_pairs", tuple(losses.RELATION_PAIRS)),
    ):
        if value not in allowed:
            raise UserError(
                f"distill.{field} is {value!r}; it must be one of {', '.join(allowed)}"
            )
    objective = Objective(
        weights,
        form,
        settings["relation_heads"] or teacher.arch.heads,
        pairs,
        teacher.pooling,
        _layer_map(spaces[0].smallest().layers, teacher.arch.layers),
        settings["temperature"],
        MlmMasking(
            settings["mlm_probability"],
            settings["max_predictions_per_seq"],
            special_tokens,
        ),
    )
    _check_objective(objective, spec, spaces, teacher.arch)
    return objective


def _check_objective(
    objective: Objective, spec: str, spaces: Sequence[Space], teacher: AnyArch
) -> None:
    """Raises UserError where the spaces or the tokenizer do not suit the losses."""
    narrowest = min(space.smallest().width for space in spaces)
    count = sum(map(len, spaces))
    if "relation" in objective.weights and objective.relation_heads > narrowest:
        raise UserError(
            f"distill.relation_heads is {objective.relation_heads}, but the narrowest "
            f"sub-network has {narrowest} query channels; use between 1 and {narrowest}"
        )
    hidden = {size for space in spaces for size in space.hidden}
    if "embedding" in objective.weights and hidden != {teacher.hidden}:
        raise UserError(
            f"distill.losses {spec!r} compares embeddings of equal width: give "
            f"space.hidden the teacher's {teacher.hidden} alone, or use 'pooled'"
        )
    if objective.needs("layers") and count > 1:
        raise UserError(
            f"distill.losses {spec!r} follows the teacher layer by layer, which needs "
            f"a space of one Arch, and this one has {count}; use other losses or give "
            "each axis one value"
        )
    if "attention" in objective.weights and teacher.heads > narrowest:
        raise UserError(
            f"the attention loss splits {narrowest} query channels into the teacher's "
            f"{teacher.heads} heads; use a wider Arch or other losses"
        )
    masking = objective.masking
    if objective.needs("mlm") and not masking.mlm_probability:
        raise UserError(
            f"distill.losses {spec!r} needs masked tokens; set "
            "distill.mlm_probability, e.g. 0.15"
        )
    tokens = masking.special_tokens
    if masking.mlm_probability and (tokens is None or tokens.mask_token_id is None):
        raise UserError(
            f"distill.mlm_probability is {masking.mlm_probability}, but the teacher's "
            "tokenizer has no mask token ([MASK] or <mask>); set "
            "distill.mlm_probability to 0.0"
        )


def transfer_objective(
    settings: Mapping[str, Any],
    student_layers: int,
    teacher: Any,
    special_tokens: SpecialTokens,
    sentence_pairs: bool,
) -> Objective:
    """The Objective of a block-wise transfer, see `flash_distillation`.

    Its last stage has soft labels and masked LM, half and half (MobileBERT, section
    3.4); masked LM alone under a teacher without a masked-LM head. Of a teacher that
    embeds sentences the embedding is kept by a loss of its own, which masked LM would
    pull away.

    Args:
      settings: the distill section, for what is masked.
      student_layers: how many layers the student has.
      teacher: a `huggingface.Teacher`.
      special_tokens: see `MlmMasking`.
      sentence_pairs: whether the rows are pairs of sentences; then the next sentence is
        learned, too.

    Returns:
      The Objective.
    """
    weights = {"mlm": 1.0}
    if teacher.mlm_head is not None:
        weights = {"logits": 0.5, "mlm": 0.5}
    if teacher.embeds_sentences:
        weights["pooled"] = 10.0
    if sentence_pairs:
        weights["nsp"] = 1.0
    return Objective(
        weights,
        relation_heads=teacher.arch.heads,
        pooling=teacher.pooling,
        layer_map=_layer_map(student_layers, teacher.arch.layers),
        temperature=1.0,
        masking=MlmMasking(
            settings["mlm_probability"] or 0.15,
            settings["max_predictions_per_seq"],
            special_tokens,
        ),
    )


def _parse_weights(spec: str) -> dict[str, float]:
    weights = {}
    for part in spec.replace(" ", "").split("+"):
        match = re.fullmatch(r"(?:(\d+\.?\d*|\.\d+)\*)?(\w+)", part)
        if match and match[2] in _RENAMED_LOSSES:
            raise UserError(
                f"distill.losses: {match[2]!r} is now {_RENAMED_LOSSES[match[2]]!r}"
            )
        if not match or match[2] not in LOSSES:
            raise UserError(
                f"distill.losses has {part!r}; it must be 'auto', a recipe "
                f"({', '.join(LOSS_RECIPES)}), or some of {', '.join(LOSSES)} "
                "joined by '+', with weights like '10*pooled'"
            )
        if (weight := float(match[1] or 1)) > 0:
            weights[match[2]] = weight
    if not weights:
        raise UserError(
            f"distill.losses {spec!r} all have weight 0; nothing is trained"
        )
    return weights


def _layer_map(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """The teacher's layer (from 0) that each layer of the student follows.

    Layer m of M follows layer m * N / M of N, counted from 1 (TinyBERT, section 4.1).
    """
    # A student that is deeper than its teacher follows each layer several times.
    return tuple(
        max(m * teacher_layers // student_layers, 1) - 1
        for m in range(1, student_layers + 1)
    )
