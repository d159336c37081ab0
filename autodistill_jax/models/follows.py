"""Does the second text follow the first? The next-sentence head, on the first token."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from autodistill_jax.models.encoder import normal


def init(hidden: int, key: jax.Array) -> dict[str, jax.Array]:
    """A head from what the pooler gives, [.., hidden], to two classes."""
    return {
        "next_kernel": normal(key, (hidden, 2)),
        "next_bias": jnp.zeros((2,)),
    }


def logits(head: Mapping[str, Any], pooler: Float[Array, "B D"]) -> Float[Array, "B 2"]:
    """Of `Outputs.pooler`; as transformers counts: 0, it follows; 1, it does not."""
    return pooler @ head["next_kernel"] + head["next_bias"]
