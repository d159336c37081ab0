"""How is a network trained on text alone? Hidden words, and next sentences.

BERT (arXiv 1810.04805, section 3.1); MobileBERT (arXiv 2004.02984) has the same task.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from autodistill_jax import sharding
from autodistill_jax.data import loader
from autodistill_jax.data.mlm import hide
from autodistill_jax.data.tokenization import Special
from autodistill_jax.models import build, follows, words
from autodistill_jax.models.build import Module
from autodistill_jax.train import losses, optimizer

_HEADS = ("words_", "next_")


def head(params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The heads' parameters out of a network's with its heads."""
    return {k: v for k, v in params.items() if k.startswith(_HEADS)}


def body(params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A network's parameters without its heads'."""
    return {k: v for k, v in params.items() if not k.startswith(_HEADS)}


def logits(
    module: Module,
    params: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """{"words": [B, K, V] at the batch's `places`, "next": [B, 2]}.

    "next" is there where `params` have its head. params: the network's and its heads',
    see `words.init` and `follows.init`. key: for dropout; None turns it off.
    """
    out = module.apply(
        {"params": body(params)},
        batch["ids"],
        batch["tokens"],
        types=batch.get("types"),
        key=key,
    )
    made = {
        "words": words.logits(
            params,
            params["embeddings_word"],
            out.hidden,
            batch["places"],
            module.arch.hidden,
            module.sizes,
            module.dtype,
            module.mesh,
        )
    }
    if "next_kernel" in params:
        made["next"] = follows.logits(params, out.pooler)
    return made


def make_step(
    module: Module,
    moves: optax.GradientTransformation,
    special: Special,
    fraction: float,
    at_most: int,
    parts: int = 1,
) -> Callable:
    """step(state, batch, key) -> (state, {"loss", "words" and, of pairs, "next"}).

    The loss is the mean cross-entropy of the hidden words, hidden anew at every step,
    plus that of `next`. state: {"params": of `logits`, "optimizer"}; fraction, at_most:
    of `hide`; parts: see `optimizer.accumulated`.
    """
    axes = build.axes(module)

    def step(state, batch, key):
        of_words, of_dropout = jax.random.split(key)
        vocab = module.sizes.vocab
        batch = hide(of_words, batch, special, vocab, fraction, at_most)
        # Of a part's share of them: parts have not equally many.
        hidden = jnp.maximum(batch["chosen"].sum(), 1) / parts

        def loss(params, rows, i):
            key = None
            if module.dropout:
                key = of_dropout if parts == 1 else jax.random.fold_in(of_dropout, i)
            made = logits(module, params, rows, key)
            each = losses.cross_entropy(made["words"], rows["targets"])
            values = {"words": (each * rows["chosen"]).sum() / hidden}
            if "next" in made:
                values["next"] = losses.cross_entropy(made["next"], rows["next"]).mean()
            total = sum(values.values())
            return total, {"loss": total, **values}

        gradient, values = optimizer.accumulated(
            functools.partial(jax.grad(loss, has_aux=True), state["params"]),
            batch,
            parts,
            module.mesh,
        )
        return optimizer.moved(moves, gradient, state, axes, module.mesh), values

    return jax.jit(step, donate_argnums=0)


def accuracies(
    module: Module,
    params: Mapping[str, jax.Array],
    head: Mapping[str, jax.Array],
    rows: Mapping[str, np.ndarray],
    special: Special,
    mesh: Mesh,
    *,
    fraction: float = 0.15,
    at_most: int = 20,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """{"words": of hidden words named right, "next": of next sentences told right}.

    The same words are hidden every time, for whatever network and batch size. "next" is
    there where the rows are pairs and the head has it.

    Args:
      module, params: the network.
      head: `words.init`'s parameters, with or without `follows.init`'s.
      rows: held-out token rows; `types` and `next` beside them where they are pairs.
      special, fraction, at_most: of `hide`.
    """
    asks_next = "next" in rows and "next_kernel" in head
    hidden = _hide(
        jax.random.key(seed),
        {name: rows[name] for name in rows if asks_next or name != "next"},
        special,
        module.sizes.vocab,
        fraction,
        at_most,
    )
    both = jax.device_put({**params, **head}, sharding.replicated(mesh))
    counts = [
        jax.tree.map(sharding.fetch, _count(module, both, loader.put(batch, mesh)))
        for batch in loader.evaluation(jax.tree.map(np.asarray, hidden), batch_size)
    ]
    totals = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *counts)
    return {name: float(hit / max(of, 1)) for name, (hit, of) in totals.items()}


# Compiled once for a shape: many networks of one module are asked the same.
_hide = jax.jit(hide, static_argnums=(2, 3, 4, 5))


@functools.partial(jax.jit, static_argnums=0)
def _count(module, params, batch):
    """{name: (right, of how many)} of a batch with words hidden."""
    made, real = logits(module, params, batch), batch["rows"].astype(jnp.float32)

    def right(name, labels, weight):
        hit = made[name].argmax(axis=-1) == labels
        return jnp.stack([(hit * weight).sum(), weight.sum()])

    counts = {
        "words": right("words", batch["targets"], batch["chosen"] * real[:, None])
    }
    if "next" in batch:
        counts["next"] = right("next", batch["next"], real)
    return counts
