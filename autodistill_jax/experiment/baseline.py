"""The methods that a student stands beside, by the names that a config gives them."""

import re
from typing import NamedTuple

from autodistill_jax.errors import UserError
from autodistill_jax.train.objective import LOSS_RECIPES

LAYER_REDUCTION, STATIC = "layer_reduction", "static"
BEFORE_FINISH = "before_finish"
# Those that train nothing themselves; all others are `twin` or in
# `objective.LOSS_RECIPES`.
UNTRAINED_METHODS = (BEFORE_FINISH, "truncated", STATIC, "scratch")
METHODS = (*UNTRAINED_METHODS, "twin", *LOSS_RECIPES)

# What a method trains for: the steps of the SuperLM and of the finish; the seconds that
# one of its students took, finish included; all the SuperLM's seconds and that finish.
STEPS, SECONDS, ALL_SECONDS = "steps", "seconds", "all_seconds"

# The models that are compared, in the order of the tables, in words.
MODEL_LABELS = {
    "teacher": "teacher",
    "student": "student",
    BEFORE_FINISH: "student before its finish, as it lies in the SuperLM",
    "twin": "twin (the same objective, this Arch alone)",
    LAYER_REDUCTION: "layer reduction (full width, squared error of embeddings)",
    "truncated": "truncated (the cut that distillation starts from)",
    STATIC: "static table (a vector a token, no network)",
    "scratch": "from scratch (random weights)",
    "autodistil": "AutoDistil's loss, this Arch alone",
    "distilbert": "DistilBERT (soft labels at masked tokens)",
    "tinybert": "TinyBERT (general stage)",
    "minilm": "MiniLM",
    "minilmv2": "MiniLMv2",
    "minilmv2_pooled": "MiniLMv2 and the pooled loss",
    "pooled_alone": "the pooled loss alone, this Arch alone",
}
_BUDGET_LABELS = {
    STEPS: "",
    SECONDS: "; in the seconds of the student",
    ALL_SECONDS: "; in all seconds of the SuperLM",
}
_PATTERN = re.compile(
    r"([a-z0-9_]+)(?:-([1-9]\d?))?(-even)?(?:-(steps|seconds|all_seconds))?"
)


class Baseline(NamedTuple):
    """A method, and what it may spend.

    Attributes:
      method: in `METHODS`.
      num_layers: that a layer reduction keeps of the teacher; 0 for all others.
      even_layers: whether these are spread evenly, and not chosen by evidence.
      budget: `STEPS`, `SECONDS` or `ALL_SECONDS`.
    """

    method: str
    num_layers: int = 0
    even_layers: bool = False
    budget: str = STEPS


def parse_baseline(name: str) -> Baseline:
    """The Baseline of a name like twin, twin-seconds or layer_reduction-2-even-seconds.

    Args:
      name: in a config's `baselines`.

    Returns:
      The Baseline.

    Raises:
      UserError: there is none of that name.
    """
    match = _PATTERN.fullmatch(name)
    method, layers, even, budget = match.groups() if match else ("", None, None, None)
    reduces = method == LAYER_REDUCTION
    if method not in METHODS or bool(layers) != reduces or (even and not reduces):
        raise UserError(
            f"baselines has {name!r}; it must be some of {', '.join(METHODS)}; "
            f"{LAYER_REDUCTION} says how many layers it keeps and whether these are "
            f"spread evenly: {LAYER_REDUCTION}-2, {LAYER_REDUCTION}-2-even; at the end "
            "may stand -seconds or -all_seconds: twin-seconds"
        )
    if budget and not is_trained(method):
        raise UserError(f"baselines has {name!r}; {method} does not train itself")
    return Baseline(method, int(layers or 0), bool(even), budget or STEPS)


def is_trained(method: str) -> bool:
    """Whether a method has a training of its own."""
    return method not in UNTRAINED_METHODS


def even_layers(count: int, num_layers: int) -> tuple[int, ...]:
    """Layers in the middles of equal parts of a network: 1, 4, 7 and 10 of 12.

    Args:
      count: how many.
      num_layers: of the network.

    Returns:
      Their indices, rising.
    """
    return tuple((2 * i + 1) * num_layers // (2 * count) for i in range(count))


def model_label(model: str) -> str:
    """A model's name in words.

    Args:
      model: "teacher", "student" or a baseline's name.

    Returns:
      A table's cell.
    """
    if model in MODEL_LABELS:
        return MODEL_LABELS[model]
    baseline = parse_baseline(model)
    label = MODEL_LABELS[baseline.method]
    if baseline.num_layers:
        choice = "evenly spread" if baseline.even_layers else "chosen as the student's"
        label += f", {baseline.num_layers} layers {choice}"
    return label + _BUDGET_LABELS[baseline.budget]


def in_table_order(models: set[str]) -> list[str]:
    """Models in the order of the tables: by method, then by name."""
    methods = list(MODEL_LABELS)

    def place(model: str) -> tuple[int, str]:
        method = model if model in methods else parse_baseline(model).method
        return methods.index(method), model

    return sorted(models, key=place)
