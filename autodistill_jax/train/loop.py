"""The training loop of all jobs, and epochs of fine-tuning that keep the best."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from autodistill_jax import log, multihost, sharding
from autodistill_jax.data import loader
from autodistill_jax.errors import DivergedError


def fit(
    step: Callable,
    state: Any,
    inputs: Callable[[int], tuple],
    steps: int,
    *,
    label: str,
    start: int = 0,
    save_fn: Callable[[int, Any], None] = lambda step, state: None,
    save_every: int = 0,
    log_fn: Callable[[int, dict], None] = lambda step, values: None,
    log_every: int = 10,
    on_step_end: Callable[[int, Any], None] = lambda step, state: None,
) -> Any:
    """Runs `state, values = step(state, *inputs(i))` for i = start .. steps - 1.

    Args:
      step: compiled; `values` are scalars or arrays to average, {name: value}.
      state: what is trained; restored by the caller where it resumes.
      inputs: the arguments of step i, a function of i alone, so that a resumed run is
        the same as an uninterrupted one.
      steps: how many in all.
      label: of the progress line.
      start: the first step to run.
      save_fn: called with the number of steps done and the state, every `save_every`
        steps (0: never) and at the end.
      save_every: in steps.
      log_fn: called with the number of steps done and the means since the last call,
        after the first step, every `log_every` steps, and before a save.
      log_every: in steps.
      on_step_end: called with the number of steps done and the state after every step.

    Returns:
      The state after the last step.

    Raises:
      DivergedError: the loss is not finite.
      KeyboardInterrupt: after a save, where one of several processes was told to end.
    """
    progress = log.Progress(label, steps, start)
    averages = log.Averages()
    for i in range(start, steps):
        state, values = step(state, *inputs(i))
        done = i + 1
        if i == start:
            jax.block_until_ready(values)
            progress.restart(done)  # What compiling took says nothing of the rate.
        averages.add(values)
        preempted = multihost.is_preempted()
        must_save = (
            done == steps or preempted or (save_every and done % save_every == 0)
        )
        # From the first step on, which compiles, the others' seconds can be told.
        if i == start or done % log_every == 0 or must_save:
            mean_values = averages.take()
            # Before it is saved: a resumed run would start from it.
            if not all(math.isfinite(value) for value in mean_values.values()):
                raise DivergedError(
                    f"{label}: the loss is not finite by step {done}; use a lower "
                    "learning_rate (in another --workdir)"
                )
            log_fn(done, mean_values)
            loss = mean_values.get("loss")
            progress(done, f"loss {loss:.4f}" if loss is not None else "")
        if must_save:
            save_fn(done, state)
        on_step_end(done, state)
        if preempted:
            raise KeyboardInterrupt
    return jax.block_until_ready(state)


def total_steps(rows: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> int:
    """The steps of a whole run; an epoch's last batch is left out unless it is full.

    Args:
      rows: token rows to train on, [N, L] `input_ids` among them.
      settings: batch_size, epochs.

    Returns:
      The number of steps of all epochs.
    """
    return len(rows["input_ids"]) // settings["batch_size"] * settings["epochs"]


def train_epochs(
    step: Callable,
    tx: optax.GradientTransformation,
    init_fn: Callable[[int, jax.Array], dict],
    rows: Mapping[str, np.ndarray],
    score_fn: Callable[[dict], float],
    settings: Mapping[str, Any],
    mesh: Mesh,
    seed: int,
    label: str,
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Trains from one seed and keeps the parameters of the best epoch.

    Args:
      step: (state, batch, key) -> (state, values), compiled; state is {"params",
        "optimizer"}, and its memory is given away.
      tx: the optimizer that `step` updates by.
      init_fn: a seed and its key -> the parameters to start from.
      rows: what is learned from.
      score_fn: parameters -> score; more is better.
      settings: epochs, batch_size.
      mesh: the devices; parameters are on each of them.
      seed: of the first parameters, the order of the rows, and dropout.
      label: of the progress line.

    Returns:
      (the score of every epoch, the parameters of the best).
    """
    steps = total_steps(rows, settings)
    epoch_steps = steps // settings["epochs"]
    key = jax.random.key(seed)
    # Copied: a step gives its arguments' memory away.
    params = jax.tree.map(lambda x: jnp.array(x), init_fn(seed, key))
    state = {"params": params, "optimizer": tx.init(params)}
    state = jax.device_put(state, sharding.replicated(mesh))
    batches = loader.train_batches(rows, settings["batch_size"], seed)
    scores: list[float] = []
    best_params: dict = {}

    def on_step_end(done, state):
        if done % epoch_steps == 0:
            scores.append(score_fn(state["params"]))
            if scores[-1] == max(scores):
                best_params.update(jax.tree.map(sharding.to_host, state["params"]))

    fit(
        step,
        state,
        lambda i: (loader.batch_at_step(batches, i, mesh), jax.random.fold_in(key, i)),
        steps,
        label=label,
        on_step_end=on_step_end,
    )
    return scores, best_params


def train_seeds(
    step: Callable,
    tx: optax.GradientTransformation,
    init_fn: Callable[[int, jax.Array], dict],
    rows: Mapping[str, np.ndarray],
    score_fn: Callable[[dict], float],
    settings: Mapping[str, Any],
    mesh: Mesh,
    seeds: Sequence[int],
    label: str,
) -> Iterator[tuple[list[float], dict[str, np.ndarray]]]:
    """`train_epochs` of each seed in turn; the next starts when it is asked for.

    Args:
      step, tx, init_fn, rows, score_fn, settings, mesh: see `train_epochs`.
      seeds: one run each.
      label: of the progress lines; with several seeds each line names its seed.

    Yields:
      (the score of every epoch, the parameters of the best) of each seed.
    """
    for seed in seeds:
        seed_label = f"{label}, seed {seed}" if len(seeds) > 1 else label
        yield train_epochs(
            step, tx, init_fn, rows, score_fn, settings, mesh, seed, seed_label
        )
