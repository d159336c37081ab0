"""Where the linear maps from a student's width to its teacher's start: a regression."""

from collections.abc import Iterable, Mapping

import jax
import numpy as np

from autodistill_jax.models import build

# Of the mean square of a student's channel; of tokens there are many, of texts few.
_STATES_RIDGE, _EMBEDDINGS_RIDGE = 1e-3, 0.1


def fit_projections(
    student: build.Module,
    params: build.Params,
    teacher: build.Module,
    teacher_params: build.Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    pooling: str,
) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's embeddings, and its hidden states, as linear maps of a student's.

    Embeddings that are states themselves, or means of them, have the states' map: as many
    channels as a network has ask for more texts than are looked at, but not for more
    tokens. What a pooler makes of them is fitted text by text.

    Args:
      student: a network of one Arch.
      params: its parameters.
      teacher: the teacher's module.
      teacher_params: its parameters.
      batches: text to fit on, see `moments.input_moments`.
      pooling: what stands for a text, see `encoder.pool_tokens`.

    Returns:
      (of embeddings, of the last hidden states at real tokens), each [student's hidden,
      teacher's hidden]: the least squares up to a ridge.
    """

    @jax.jit
    def outputs(params, teacher_params, batch):
        mask = batch["attention_mask"]

        def of(module, params):
            out = build.apply_module(module, params, batch)
            states = (out.hidden * mask[:, :, None]).reshape(mask.size, -1)
            return (states, out.pooler) if pooling == "pooler" else (states,)

        return of(student, params), of(teacher, teacher_params)

    # The sums are f64, on the host: a text's embedding has more channels than there may
    # be texts, and what the texts leave open must be the ridge's, not rounding's.
    total: list[tuple[np.ndarray, np.ndarray]] | None = None
    for batch in batches:
        pairs = zip(*jax.device_get(outputs(params, teacher_params, batch)))
        of_batch = [
            (x.T @ x, x.T @ y)
            for x, y in ((np.float64(x), np.float64(y)) for x, y in pairs)
        ]
        total = of_batch if total is None else jax.tree.map(np.add, total, of_batch)
    assert total is not None, "no batch"
    maps = []
    for (square, cross), share in zip(total, (_STATES_RIDGE, _EMBEDDINGS_RIDGE)):
        width = len(square)
        ridge = share * np.trace(square) / width * np.eye(width)
        maps.append(np.linalg.solve(square + ridge, cross).astype(np.float32))
    return maps[-1], maps[0]
