"""How does an encoder learn a labelled task? A head on it, all of it trained."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from autodistill_jax import losses, metrics, sharding
from autodistill_jax.arch import Arch
from autodistill_jax.data import batches
from autodistill_jax.model import extract
from autodistill_jax.model.bert import Bert
from autodistill_jax.model.pieces import dropout
from autodistill_jax.train import fit, optimizer

Side = Mapping[str, np.ndarray]


class Rows(NamedTuple):
    """A task's token rows: {"ids", "tokens", "types", "label"} for train and dev.

    more: further labelled sides by name; tests: sides without labels by name.
    """

    train: Side
    dev: Side
    classes: int
    metric: str
    more: Mapping[str, Side] = {}
    tests: Mapping[str, Side] = {}


class Tuned(NamedTuple):
    """What one seed gave.

    scores: dev score of every epoch. params: of the best epoch. parts: the single
    figures behind its score. more: scores of the further sides. tests: predictions.
    """

    scores: list[float]
    params: dict[str, np.ndarray]
    parts: dict[str, float]
    more: dict[str, float]
    tests: dict[str, np.ndarray]


def head(key: jax.Array, hidden: int, classes: int) -> dict[str, jax.Array]:
    """The parameters of a task's head: one linear layer."""
    return {
        "head_kernel": 0.02 * jax.random.normal(key, (hidden, classes)),
        "head_bias": jnp.zeros((classes,)),
    }


def logits(
    module: Bert,
    params: dict,
    batch: Mapping[str, jax.Array],
    pooling: str,
    arch: Arch | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """[B, classes] of a network, or of a sub-network (`arch`) of a SuperLM.

    Channels out of use are 0, so one head serves every width.
    """
    encoder = {k: v for k, v in params.items() if not k.startswith("head_")}
    keys = (None, None) if key is None else jax.random.split(key)
    out = module.apply(
        {"params": encoder},
        batch["ids"],
        batch["tokens"],
        arch,
        types=batch["types"],
        key=keys[0],
    )
    pooled = losses.pool(out.hidden, out.pooler, batch["tokens"], pooling)
    pooled = dropout(pooled, module.dropout, keys[1])
    return pooled @ params["head_kernel"] + params["head_bias"]


def make_step(
    module: Bert, classes: int, moves: optax.GradientTransformation, pooling: str
) -> Callable:
    """step(state, batch, key, arch=None) -> (state, {"loss": ...}), not yet compiled."""

    def step(state, batch, key, arch=None):
        def loss(params):
            made = logits(module, params, batch, pooling, arch, key)
            if classes == 1:
                return jnp.square(made[:, 0] - batch["label"]).mean()
            return losses.cross_entropy(made, batch["label"]).mean()

        value, gradient = jax.value_and_grad(loss)(state["params"])
        change, moments = moves.update(gradient, state["optimizer"], state["params"])
        new = optax.apply_updates(state["params"], change)
        return {"params": new, "optimizer": moments}, {"loss": value}

    return step


def fine_tune(
    module: Bert,
    params: Callable[[int], dict],
    rows: Rows,
    settings: Mapping[str, Any],
    pooling: str,
    mesh: Mesh,
    seeds: Sequence[int],
    what: str,
) -> list[Tuned]:
    """Trains encoder and head, once a seed; keeps the best dev epoch of each.

    Args:
      module: a standalone network; its dropout is in force.
      params: a seed's parameters to start from.
      settings: epochs, batch_size, learning_rate, warmup, weight_decay, clip.
      pooling: what the head reads, see `losses.pool`.
      seeds: of the head's first weights, the order of the rows, and dropout.
      what: for the progress line.
    """
    batch_size = settings["batch_size"]
    an_epoch = len(rows.train["ids"]) // batch_size
    steps = an_epoch * settings["epochs"]
    moves = optimizer.make(settings, steps, extract.axes(module))
    step = jax.jit(make_step(module, rows.classes, moves, pooling), donate_argnums=0)
    predict = jax.jit(lambda params, batch: logits(module, params, batch, pooling))

    def predicted(params, side):
        made = [
            np.asarray(predict(params, batches.put(batch, mesh)))
            for batch in batches.evaluation(side, batch_size)
        ]
        return decide(np.concatenate(made)[: len(side["ids"])])

    results = []
    for seed in seeds:
        key = jax.random.key(seed)
        mine = {**params(seed), **head(key, module.arch.hidden, rows.classes)}
        # Copied: a step gives its arguments' memory away.
        mine = jax.tree.map(lambda x: jnp.array(x), mine)
        state = {"params": mine, "optimizer": moves.init(mine)}
        state = jax.device_put(state, sharding.replicated(mesh))
        feed = batches.training(rows.train, batch_size, seed)
        scores: list[float] = []
        best: dict = {}

        def after(done, state, scores=scores, best=best):
            if done % an_epoch == 0:
                made = predicted(state["params"], rows.dev)
                scores.append(metrics.METRICS[rows.metric](rows.dev["label"], made))
                if scores[-1] == max(scores):
                    best.update(jax.tree.map(np.asarray, state["params"]))

        fit.fit(
            step,
            state,
            lambda i, feed=feed, key=key: (
                batches.put(feed[i], mesh),
                jax.random.fold_in(key, i),
            ),
            steps,
            what=f"{what}, seed {seed}" if len(seeds) > 1 else what,
            after=after,
        )
        dev = predicted(best, rows.dev)
        results.append(
            Tuned(
                scores,
                best,
                metrics.parts(rows.metric, rows.dev["label"], dev),
                {
                    name: metrics.METRICS[rows.metric](
                        side["label"], predicted(best, side)
                    )
                    for name, side in rows.more.items()
                },
                {name: predicted(best, side) for name, side in rows.tests.items()},
            )
        )
    return results


def decide(logits: np.ndarray) -> np.ndarray:
    """Classes, or numbers where there is one logit, of logits [rows, classes]."""
    return logits[:, 0] if logits.shape[1] == 1 else logits.argmax(axis=1)


def embed(
    module: Bert,
    params: dict,
    side: Side,
    pooling: str,
    batch_size: int,
    mesh: Mesh,
) -> np.ndarray:
    """The texts' embeddings, [rows, hidden]."""

    @jax.jit
    def one(params, batch):
        out = module.apply(
            {"params": params}, batch["ids"], batch["tokens"], types=batch.get("types")
        )
        return losses.pool(out.hidden, out.pooler, batch["tokens"], pooling)

    params = jax.device_put(params, sharding.replicated(mesh))
    made = [
        np.asarray(one(params, batches.put(batch, mesh)))
        for batch in batches.evaluation(side, batch_size)
    ]
    return np.concatenate(made)[: len(side["ids"])]


def frozen(
    module: Bert, params: dict, rows: Rows, pooling: str, batch_size: int, mesh: Mesh
) -> float:
    """The dev score of a linear head on an encoder that is not trained."""
    return probe(
        embed(module, params, rows.train, pooling, batch_size, mesh),
        embed(module, params, rows.dev, pooling, batch_size, mesh),
        rows,
    )


def probe(train: np.ndarray, dev: np.ndarray, rows: Rows) -> float:
    """The dev score of a linear head on embeddings of a task's two sides.

    Logistic regression (ridge regression for numbers) on standardised embeddings.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    line = Ridge() if rows.classes == 1 else LogisticRegression(C=0.1, max_iter=300)
    model = make_pipeline(StandardScaler(), line)
    model.fit(train, rows.train["label"])
    return metrics.METRICS[rows.metric](rows.dev["label"], model.predict(dev))
