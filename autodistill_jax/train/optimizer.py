"""How do parameters move? AdamW with warm-up, linear decay and clipping."""

from collections.abc import Mapping
from typing import Any

import optax


def make(
    settings: Mapping[str, Any], steps: int, axes: Mapping[str, tuple[str, ...]]
) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW (arXiv 1711.05101), decay by axis name.

    Args:
      settings: learning_rate (peak), warmup (fraction of the steps), weight_decay, clip
        (global norm, 0 for none), decay (true unless given).
      steps: of the whole run; with decay the rate falls linearly to 0 at its end.
      axes: logical axis names of each parameter; others (matchers, heads) are matrices
        or biases by their number of dimensions.
    """
    warmup = round(settings["warmup"] * steps)
    peak = settings["learning_rate"]
    last = 0.0 if settings.get("decay", True) else peak
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, max(warmup, 1)),
            optax.linear_schedule(peak, last, max(steps - warmup, 1)),
        ],
        [warmup],
    )

    def decays(params):
        return {
            name: _is_matrix(axes.get(name, (None,) * value.ndim))
            for name, value in params.items()
        }

    return optax.chain(
        optax.clip_by_global_norm(settings["clip"] or float("inf")),
        optax.adamw(
            schedule, eps=1e-8, weight_decay=settings["weight_decay"], mask=decays
        ),
    )


def _is_matrix(axes: tuple) -> bool:
    """Biases and LayerNorms are not decayed. What is stacked has axes of its own, so the
    number of dimensions would not tell."""
    stacked = ("layers", "qkv", "stacks", "first", "second", "norms")
    return len([axis for axis in axes if axis not in stacked]) > 1
