"""AdamW or Muon, with warm-up, linear decay and clipping; gradients in micro-batches."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.sharding import Mesh

from autodistill_jax import sharding

ParamAxes = Mapping[str, tuple[str, ...]]
# The root mean square of an orthogonalised update, as large as AdamW's mostly are, so
# that one learning rate serves both (arXiv 2502.16982, section 2.2).
_MUON_RMS = 0.2


def make_optimizer(
    settings: Mapping[str, Any], steps: int, axes: ParamAxes
) -> optax.GradientTransformation:
    """Clips by the global norm, then AdamW (arXiv 1711.05101) or Muon; decay by axis name.

    Muon (K. Jordan and others, 2024; arXiv 2502.16982) makes the momentum of each matrix
    of the layers orthogonal, by Newton-Schulz iterations; what else there is (tables,
    biases, LayerNorms, projections, heads, a pooler) is AdamW's, with Nesterov momentum.

    Args:
      settings: learning_rate (peak), warmup_ratio (fraction of the steps),
        weight_decay, grad_clip_norm (global norm, 0 for none), lr_decay (true unless
        given), optimizer ("muon", or "adamw" unless given).
      steps: of the whole run; with decay the rate falls linearly to 0 at its end.
      axes: logical axis names of each parameter; others (projections, heads) are
        matrices or biases by their number of dimensions.

    Returns:
      The optax transform.
    """
    warmup = round(settings["warmup_ratio"] * steps)
    peak = settings["learning_rate"]
    last = 0.0 if settings.get("lr_decay", True) else peak
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

    clip = optax.clip_by_global_norm(settings["grad_clip_norm"] or float("inf"))
    if settings.get("optimizer", "adamw") == "adamw":
        adamw = optax.adamw(
            schedule, eps=1e-8, weight_decay=settings["weight_decay"], mask=decays
        )
        return optax.chain(clip, adamw)

    def dimension_numbers(params):
        return {name: _muon_dimensions(axes.get(name, ())) for name in params}

    return optax.chain(
        clip,
        # The rate comes behind, of all parameters alike, and with it the sign.
        optax.contrib.muon(
            -1.0,
            consistent_rms=_MUON_RMS,
            muon_weight_dimension_numbers=dimension_numbers,
        ),
        optax.add_decayed_weights(settings["weight_decay"], decays),
        optax.scale_by_learning_rate(schedule),
    )


def optimizer_of_any_rate(
    settings: Mapping[str, Any], steps: int, axes: ParamAxes
) -> optax.GradientTransformation:
    """`make_optimizer` with the peak rate in its state and not in what is compiled."""

    def make(learning_rate):
        tx = make_optimizer({**settings, "learning_rate": 1.0}, steps, axes)
        return optax.chain(tx, optax.scale(learning_rate))

    return optax.inject_hyperparams(make)(learning_rate=settings["learning_rate"])


def init_state(
    tx: optax.GradientTransformation,
    params: Mapping[str, Any],
    axes: ParamAxes,
    mesh: Mesh,
) -> dict[str, Any]:
    """The state that training starts from, on its devices.

    Args:
      tx: the optimizer.
      params: {name: array}; copied.
      axes: see `make_optimizer`; they say how each array is split.
      mesh: the devices.

    Returns:
      {"params", "optimizer"}.
    """
    shardings = sharding.state_shardings(tx, params, axes, mesh)
    params = {name: jnp.array(value) for name, value in params.items()}
    params = jax.device_put(params, shardings["params"])
    init_moments = jax.jit(tx.init, out_shardings=shardings["optimizer"])
    return {"params": params, "optimizer": init_moments(params)}


def apply_gradients(
    tx: optax.GradientTransformation,
    grads: Mapping[str, jax.Array],
    state: Mapping[str, Any],
    axes: ParamAxes | None = None,
    mesh: Mesh | None = None,
    scale_updates: Callable[[dict], dict] = lambda updates: updates,
) -> dict[str, Any]:
    """The state after one update; every part of it stays where it lies.

    Args:
      tx: the optimizer.
      grads: {name: array}.
      state: {"params", "optimizer"}.
      axes, mesh: see `init_state`; None where nothing is split.
      scale_updates: what becomes of the updates, {name: array}, before they are added.

    Returns:
      {"params", "optimizer"}.
    """
    if mesh is not None:
        shardings = sharding.state_shardings(tx, state["params"], axes, mesh)
        constrain = jax.lax.with_sharding_constraint
        grads = constrain(dict(grads), shardings["params"])
    updates, moments = tx.update(grads, state["optimizer"], state["params"])
    params = optax.apply_updates(state["params"], scale_updates(updates))
    new_state = {"params": params, "optimizer": moments}
    return new_state if mesh is None else constrain(new_state, shardings)


def accumulate_gradients(
    fn: Callable[[Any, Any], Any],
    batch: Mapping[str, jax.Array],
    gradient_accumulation_steps: int,
    mesh: Mesh | None = None,
) -> Any:
    """The mean of fn(rows, part) over micro-batches, one after another.

    It takes the memory of one part.

    Args:
      fn: gives a tree of means over its rows; part is 0, 1, ... (int32).
      batch: {name: [B, ...]}.
      gradient_accumulation_steps: how many micro-batches; they divide B.
      mesh: the devices; None where nothing is split.

    Returns:
      A tree as fn gives it.
    """

    def run_part(rows, part):
        rows = {
            name: sharding.constrain(value, mesh, sharding.BATCH_AXES)
            for name, value in rows.items()
        }
        return fn(rows, part)

    if gradient_accumulation_steps == 1:
        return run_part(batch, 0)
    # Every part has rows of every device: nothing moves.
    rows = {
        name: jnp.swapaxes(
            value.reshape(-1, gradient_accumulation_steps, *value.shape[1:]), 0, 1
        )
        for name, value in batch.items()
    }
    like = jax.eval_shape(run_part, {name: value[0] for name, value in rows.items()}, 0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    def add(total, inputs):
        return jax.tree.map(jnp.add, total, run_part(*inputs)), None

    total, _ = jax.lax.scan(add, zeros, (rows, jnp.arange(gradient_accumulation_steps)))
    return jax.tree.map(lambda x: x / gradient_accumulation_steps, total)


def _is_matrix(axes: tuple) -> bool:
    """Whether weight decay applies: not to biases and LayerNorms.

    What is stacked has axes of its own, so the number of dimensions would not tell.
    """
    return len([axis for axis in axes if axis not in sharding.STACKED_AXES]) > 1


def _muon_dimensions(
    axes: tuple[str, ...],
) -> optax.contrib.MuonDimensionNumbers | None:
    """Where a layer's matrix has its input and output; what is stacked is one each."""
    places = [i for i, axis in enumerate(axes) if axis not in sharding.STACKED_AXES]
    if len(places) != 2 or "layers" not in axes:
        return None
    return optax.contrib.MuonDimensionNumbers(*places)
