"""How does a training run go, step after step? One loop for all jobs."""

import math
from collections.abc import Callable
from typing import Any

import jax

from autodistill_jax import log, multihost
from autodistill_jax.errors import UserError


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
        ends = multihost.preempted()
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
