"""How does a teacher without a masked-word head get one? On its frozen body."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from autodistill_jax import sharding
from autodistill_jax.data import loader
from autodistill_jax.models import words
from autodistill_jax.models.build import Module
from autodistill_jax.train import distillation, loop, losses, optimizer
from autodistill_jax.train.objective import Objective


def train(
    module: Module,
    params: dict,
    feed: Sequence[Mapping[str, np.ndarray]],
    held_out: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    objective: Objective,
    mesh: Mesh,
    seed: int,
    what: str,
) -> tuple[dict[str, np.ndarray], float]:
    """Trains a head tied to the teacher's word embeddings; the body stays as it is.

    Args:
      module, params: the teacher.
      feed: training batches by step.
      held_out: rows to judge it on.
      settings: the distill section; `head_steps` steps of it.

    Returns:
      (the head's parameters, see `words.init`; the fraction of hidden words of the
      held-out rows that it names right).
    """
    sizes = module.sizes
    steps = settings["head_steps"]
    key = jax.random.key(seed)
    head = words.init(module.arch.hidden, sizes)
    moves = optimizer.make(settings, steps, {})
    everywhere = sharding.replicated(mesh)
    state = {"params": head, "optimizer": moves.init(head)}
    state = jax.device_put(state, everywhere)
    body = jax.device_put(params, everywhere)

    def logits(head, body, batch):
        out = module.apply(
            {"params": body},
            batch["ids"],
            batch["tokens"],
            types=batch.get("types"),
        )
        return words.logits(
            head,
            body["embeddings_word"],
            jax.lax.stop_gradient(out.hidden),
            batch["places"],
            module.arch.hidden,
            sizes,
            module.dtype,
            module.mesh,
        )

    @jax.jit
    def step(state, body, batch, key):
        batch = distillation.shown(batch, objective, sizes.vocab, key)

        def loss(head):
            made = logits(head, body, batch)
            each = losses.cross_entropy(made, batch["targets"])
            return (each * batch["chosen"]).sum() / batch["chosen"].sum()

        value, gradient = jax.value_and_grad(loss)(state["params"])
        return optimizer.moved(moves, gradient, state), {"loss": value}

    state = loop.fit(
        step,
        state,
        lambda i: (body, loader.of_step(feed, i, mesh), jax.random.fold_in(key, i)),
        steps,
        what=what,
    )

    @jax.jit
    def right(head, body, batch, key):
        batch = distillation.shown(batch, objective, sizes.vocab, key)
        hit = logits(head, body, batch).argmax(axis=-1) == batch["targets"]
        weight = batch["chosen"] * batch["rows"][:, None]
        return jnp.stack([(hit * weight).sum(), weight.sum()])

    counts = sum(
        sharding.fetch(right(state["params"], body, loader.put(batch, mesh), key))
        for batch in loader.evaluation(held_out, settings["batch_size"])
    )
    return jax.tree.map(sharding.fetch, state["params"]), float(counts[0] / counts[1])
