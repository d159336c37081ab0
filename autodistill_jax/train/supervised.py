"""How does an encoder learn a labelled task? A head on it, all of it trained."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from autodistill_jax import losses, sharding
from autodistill_jax.data import batches
from autodistill_jax.metrics import METRICS
from autodistill_jax.model import extract
from autodistill_jax.model.bert import Bert
from autodistill_jax.model.pieces import dropout
from autodistill_jax.train import fit, optimizer


class Rows(NamedTuple):
    """A task's token rows: {"ids", "tokens", "types", "label"} for train and dev."""

    train: Mapping[str, np.ndarray]
    dev: Mapping[str, np.ndarray]
    classes: int
    metric: str


def fine_tune(
    module: Bert,
    params: dict,
    rows: Rows,
    settings: Mapping[str, Any],
    pooling: str,
    mesh: Mesh,
    seed: int,
    what: str,
) -> tuple[dict, list[float]]:
    """Trains encoder and head; keeps the best dev epoch.

    Args:
      module: a standalone network; its dropout is in force.
      settings: epochs, batch_size, learning_rate, warmup, weight_decay, clip.
      pooling: what the head reads, see `losses.pool`.
      what: for the progress line.

    Returns:
      (the parameters of the best epoch, the dev score of every epoch).
    """
    seed_key = jax.random.key(seed)
    params = {
        **params,
        "head_kernel": 0.02
        * jax.random.normal(seed_key, (module.arch.hidden, rows.classes)),
        "head_bias": jnp.zeros((rows.classes,)),
    }
    batch_size = settings["batch_size"]
    an_epoch = len(rows.train["ids"]) // batch_size
    steps = an_epoch * settings["epochs"]
    moves = optimizer.make(settings, steps, extract.axes(module))

    def logits(params, batch, key=None):
        encoder = {k: v for k, v in params.items() if not k.startswith("head_")}
        keys = (None, None) if key is None else jax.random.split(key)
        out = module.apply(
            {"params": encoder},
            batch["ids"],
            batch["tokens"],
            types=batch["types"],
            key=keys[0],
        )
        pooled = losses.pool(out.hidden, out.pooler, batch["tokens"], pooling)
        pooled = dropout(pooled, module.dropout, keys[1])
        return pooled @ params["head_kernel"] + params["head_bias"]

    def step(state, batch, key):
        def loss(params):
            made = logits(params, batch, key)
            if rows.classes == 1:
                return jnp.square(made[:, 0] - batch["label"]).mean()
            return losses.cross_entropy(made, batch["label"]).mean()

        value, gradient = jax.value_and_grad(loss)(state["params"])
        change, moments = moves.update(gradient, state["optimizer"], state["params"])
        new = jax.tree.map(jnp.add, state["params"], change)
        return {"params": new, "optimizer": moments}, {"loss": value}

    predict = jax.jit(logits)
    state = jax.device_put(
        {"params": params, "optimizer": moves.init(params)}, sharding.replicated(mesh)
    )
    feed = batches.training(rows.train, batch_size, seed)
    scores: list[float] = []
    best: dict = {}

    def after(done, state):
        if done % an_epoch:
            return
        made = [
            np.asarray(predict(state["params"], batches.put(batch, mesh)))
            for batch in batches.evaluation(rows.dev, batch_size)
        ]
        scores.append(score(np.concatenate(made), rows))
        if scores[-1] == max(scores):
            best.update(jax.tree.map(np.asarray, state["params"]))

    fit.fit(
        jax.jit(step, donate_argnums=0),
        state,
        lambda i: (batches.put(feed[i], mesh), jax.random.fold_in(seed_key, i)),
        steps,
        what=what,
        after=after,
    )
    return best, scores


def score(logits: np.ndarray, rows: Rows) -> float:
    """The task's metric of dev logits, [at least the dev rows, classes]."""
    made = logits[: len(rows.dev["label"])]
    predictions = made[:, 0] if rows.classes == 1 else made.argmax(axis=1)
    return METRICS[rows.metric](rows.dev["label"], predictions)


def frozen(
    module: Bert, params: dict, rows: Rows, pooling: str, batch_size: int, mesh: Mesh
) -> float:
    """The dev score of a linear head on an encoder that is not trained.

    Logistic regression (ridge regression for numbers) on standardised embeddings.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    @jax.jit
    def embed(params, batch):
        out = module.apply(
            {"params": params}, batch["ids"], batch["tokens"], types=batch["types"]
        )
        return losses.pool(out.hidden, out.pooler, batch["tokens"], pooling)

    params = jax.device_put(params, sharding.replicated(mesh))

    def embedded(side):
        made = [
            np.asarray(embed(params, batches.put(batch, mesh)))
            for batch in batches.evaluation(side, batch_size)
        ]
        return np.concatenate(made)[: len(side["label"])]

    head = Ridge() if rows.classes == 1 else LogisticRegression(C=0.1, max_iter=300)
    model = make_pipeline(StandardScaler(), head)
    model.fit(embedded(rows.train), rows.train["label"])
    return METRICS[rows.metric](rows.dev["label"], model.predict(embedded(rows.dev)))
