"""How does training on labelled rows go? Epoch after epoch, the best one kept."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from autodistill_jax import sharding
from autodistill_jax.data import loader
from autodistill_jax.train import loop


def steps(rows: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> int:
    """Of a whole run: the last batch of an epoch is left out where it is not full."""
    return len(rows["ids"]) // settings["batch_size"] * settings["epochs"]


def best(
    step: Callable,
    moves: optax.GradientTransformation,
    first: Callable[[int, jax.Array], dict],
    rows: Mapping[str, np.ndarray],
    judge: Callable[[dict], float],
    settings: Mapping[str, Any],
    mesh: Mesh,
    seed: int,
    what: str,
) -> tuple[list[float], dict[str, np.ndarray]]:
    """(the score of every epoch, the parameters of the best) of one seed.

    Args:
      step: (state, batch, key) -> (state, values), compiled; state is {"params",
        "optimizer"}, and its memory is given away.
      first: a seed and its key -> the parameters to start from.
      rows: what is learned from.
      judge: parameters -> score; more is better.
      settings: epochs, batch_size.
      seed: of the first parameters, the order of the rows, and dropout.
    """
    total = steps(rows, settings)
    an_epoch = total // settings["epochs"]
    key = jax.random.key(seed)
    # Copied: a step gives its arguments' memory away.
    mine = jax.tree.map(lambda x: jnp.array(x), first(seed, key))
    state = {"params": mine, "optimizer": moves.init(mine)}
    state = jax.device_put(state, sharding.replicated(mesh))
    feed = loader.training(rows, settings["batch_size"], seed)
    scores: list[float] = []
    kept: dict = {}

    def after(done, state):
        if done % an_epoch == 0:
            scores.append(judge(state["params"]))
            if scores[-1] == max(scores):
                kept.update(jax.tree.map(sharding.fetch, state["params"]))

    loop.fit(
        step,
        state,
        lambda i: (loader.of_step(feed, i, mesh), jax.random.fold_in(key, i)),
        total,
        what=what,
        after=after,
    )
    return scores, kept
