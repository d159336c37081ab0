"""How does a training run go, step after step? One loop for all jobs."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from autodistill_jax import log, multihost, sharding
from autodistill_jax.data import loader
from autodistill_jax.errors import UserError
from autodistill_jax.train import loop


def fit(
    step: Callable,
    state: Any,
    inputs: Callable[[int], tuple],
    steps: int,
    *,
    what: str,
    start: int = 0,
    save: Callable[[int, Any], None] = lambda step, state: None,
    save_every: int = 0,
    tell: Callable[[int, dict], None] = lambda step, values: None,
    tell_every: int = 10,
    after: Callable[[int, Any], None] = lambda step, state: None,
) -> Any:
    """Runs `state, values = step(state, *inputs(i))` for i = start .. steps - 1.

    Args:
      step: compiled; `values` are scalars or arrays to average, {name: value}.
      state: what is trained; restored by the caller where it resumes.
      inputs: the arguments of step i, a function of i alone, so that a resumed run is
        the same as an uninterrupted one.
      steps: how many in all.
      what: for the progress line.
      start: the first step to run.
      save: called every `save_every` steps and at the end with the steps done.
      tell: called every `tell_every` steps, and before a save, with the means since
        the last call.
      after: called after every step with the number of steps done.

    Returns:
      The state after the last step.

    Raises:
      KeyboardInterrupt: after a save, where one of several processes was told to end.
    """
    progress = log.Progress(what, steps, start)
    means = log.Averages()
    for i in range(start, steps):
        state, values = step(state, *inputs(i))
        done = i + 1
        if i == start:
            jax.block_until_ready(values)
            progress.restart(done)  # What compiling took says nothing of the rate.
        means.add(values)
        ends = multihost.is_preempted()
        saves = done == steps or ends or (save_every and done % save_every == 0)
        if done % tell_every == 0 or saves:
            now = means.take()
            # Before it is saved: a resumed run would start from it.
            if not all(math.isfinite(value) for value in now.values()):
                raise UserError(
                    f"{what}: the loss is not finite by step {done}; use a lower "
                    "learning_rate (in another --workdir)"
                )
            tell(done, now)
            shown = now.get("loss")
            progress(done, f"loss {shown:.4f}" if shown is not None else "")
        if saves:
            save(done, state)
        after(done, state)
        if ends:
            raise KeyboardInterrupt
    return jax.block_until_ready(state)


def total_steps(rows: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> int:
    """Of a whole run: the last batch of an epoch is left out where it is not full."""
    return len(rows["input_ids"]) // settings["batch_size"] * settings["epochs"]


def train_epochs(
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
    total = total_steps(rows, settings)
    an_epoch = total // settings["epochs"]
    key = jax.random.key(seed)
    # Copied: a step gives its arguments' memory away.
    mine = jax.tree.map(lambda x: jnp.array(x), first(seed, key))
    state = {"params": mine, "optimizer": moves.init(mine)}
    state = jax.device_put(state, sharding.replicated(mesh))
    feed = loader.train_batches(rows, settings["batch_size"], seed)
    scores: list[float] = []
    kept: dict = {}

    def after(done, state):
        if done % an_epoch == 0:
            scores.append(judge(state["params"]))
            if scores[-1] == max(scores):
                kept.update(jax.tree.map(sharding.to_host, state["params"]))

    loop.fit(
        step,
        state,
        lambda i: (loader.batch_at_step(feed, i, mesh), jax.random.fold_in(key, i)),
        total,
        what=what,
        after=after,
    )
    return scores, kept
