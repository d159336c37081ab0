"""Where the linear maps from a student's width to its teacher's start: a regression."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from autodistill_jax.models import build, encoder

# Of the mean square of a student's channel.
_RIDGE = 1e-3


def fit_projections(
    student: build.Module,
    params: build.Params,
    teacher: build.Module,
    teacher_params: build.Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    pooling: str,
) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's embeddings, and its hidden states, as linear maps of a student's.

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
    def sums(params, teacher_params, batch):
        mask = batch["attention_mask"]

        def outputs(module, params):
            out = build.apply_module(module, params, batch)
            pooled = encoder.pool_tokens(out.hidden, out.pooler, mask, pooling)
            return pooled, (out.hidden * mask[:, :, None]).reshape(mask.size, -1)

        pairs = zip(outputs(student, params), outputs(teacher, teacher_params))
        return [(x.T @ x, x.T @ y) for x, y in pairs]

    total = None
    for batch in batches:
        of_batch = sums(params, teacher_params, batch)
        total = of_batch if total is None else jax.tree.map(jnp.add, total, of_batch)
    assert total is not None, "no batch"
    maps = []
    for square, cross in jax.device_get(total):
        width = len(square)
        ridge = _RIDGE * np.trace(square) / width * np.eye(width)
        maps.append(np.linalg.solve(square + ridge, cross).astype(np.float32))
    return maps[0], maps[1]
