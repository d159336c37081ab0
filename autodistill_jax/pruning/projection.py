"""Where the linear maps from a student's width to its teacher's start: a regression."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
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

    def outputs(params, teacher_params, batch):
        def of(module, params):
            out = build.apply_module(module, params, batch)
            states = _real_tokens(out.hidden, batch)
            return (states, out.pooler) if pooling == "pooler" else (states,)

        return list(zip(of(student, params), of(teacher, teacher_params)))

    sums = _square_sums(jax.jit(outputs), params, teacher_params, batches)
    of_states = _least_squares(*sums[0], _STATES_RIDGE)
    if pooling != "pooler":
        return of_states, of_states
    return _least_squares(*sums[1], _EMBEDDINGS_RIDGE), of_states


def fit_state_projections(
    student: build.Module,
    params: build.Params,
    teacher: build.Module,
    teacher_params: build.Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    pairs: Sequence[tuple[int, int]],
) -> np.ndarray:
    """Hidden states of the teacher as linear maps of a student's own.

    Args:
      student, params, teacher, teacher_params, batches: as of `fit_projections`.
      pairs: which state of the student's goes with which of the teacher's; 0 is what
        the embeddings give, i + 1 what stands behind layer i.

    Returns:
      [pairs, student's hidden, teacher's hidden]: the least squares up to a ridge.
    """

    def outputs(params, teacher_params, batch):
        of_student = build.apply_module(student, params, batch, states=True)
        of_teacher = build.apply_module(teacher, teacher_params, batch, states=True)
        return [
            (
                _real_tokens(of_student.states[i], batch),
                _real_tokens(of_teacher.states[j], batch),
            )
            for i, j in pairs
        ]

    sums = _square_sums(jax.jit(outputs), params, teacher_params, batches)
    return np.stack([_least_squares(*of_pair, _STATES_RIDGE) for of_pair in sums])


def _real_tokens(states: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """[B * L, D] of [B, L, D], with nothing where there is no token."""
    return jnp.reshape(
        states * batch["attention_mask"][:, :, None], (-1, states.shape[-1])
    )


def _square_sums(
    outputs_fn: Callable,
    params: build.Params,
    teacher_params: build.Params,
    batches: Iterable[Mapping[str, np.ndarray]],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each pair (x, y) of outputs [rows, ...] x^T x and x^T y over all batches.

    The sums are f64, on the host: a text's embedding has more channels than there may be
    texts, and what the texts leave open must be the ridge's, not rounding's.
    """
    total: list[tuple[np.ndarray, np.ndarray]] | None = None
    for batch in batches:
        pairs = jax.device_get(outputs_fn(params, teacher_params, batch))
        of_batch = [
            (x.T @ x, x.T @ y)
            for x, y in ((np.float64(x), np.float64(y)) for x, y in pairs)
        ]
        total = of_batch if total is None else jax.tree.map(np.add, total, of_batch)
    assert total is not None, "no batch"
    return total


def _least_squares(square: np.ndarray, cross: np.ndarray, share: float) -> np.ndarray:
    """The map of the sums x^T x and x^T y, with a ridge of a share of x's mean square."""
    width = len(square)
    ridge = share * np.trace(square) / width * np.eye(width)
    return np.linalg.solve(square + ridge, cross).astype(np.float32)
