"""How far is a student from its teacher? Pure functions, a value for each example."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

RELATION_FORMS = ("paper", "code", "minilmv2")


def relation_scores(
    x: Float[Array, "B L W"], heads: int
) -> Float[Array, "B heads L L"]:
    """X X^T / sqrt(d) of each relation head, for X = queries, keys or values.

    The attention heads are concatenated and split anew into `heads` relation heads of
    d = W // heads channels, so teacher and student may differ in heads and width; what
    does not divide is left out (AutoDistil, equation 3; MiniLMv2, arXiv 2012.15828).
    """
    batch, length, width = x.shape
    d = width // heads
    x = x[..., : heads * d].reshape(batch, length, heads, d)
    return jnp.einsum("blhd,bmhd->bhlm", x, x) / jnp.sqrt(d)


def relation(
    student: Float[Array, "B heads L L"],
    teacher: Float[Array, "B heads L L"],
    tokens: Array,
    form: str,
) -> Float[Array, " B"]:
    """The distance of one pair of relations (Q-Q, K-K or V-V); padding never counts.

    Forms:
      "paper": mean squared error of the softmaxes (AutoDistil, equation 5).
      "code": mean squared error of the scores themselves (AutoDistil's released code).
      "minilmv2": KL(teacher || student) of the softmaxes, averaged over relation heads
        and real tokens (MiniLMv2, equation 2).

    Args:
      student, teacher: `relation_scores`.
      tokens: 1 where there is a token, [B, L].
    """
    real = tokens.astype(jnp.float32)
    keys = real[:, None, None, :]
    queries = real[:, None, :]
    n = jnp.maximum(real.sum(axis=1), 1)
    heads = student.shape[1]
    if form == "code":
        error = jnp.square(student - teacher) * keys
        error = error.sum(axis=(1, 3)) / n[:, None]
    else:
        student = jax.nn.log_softmax(jnp.where(keys > 0, student, -1e30))
        teacher = jax.nn.log_softmax(jnp.where(keys > 0, teacher, -1e30))
        if form == "paper":
            error = jnp.square(jnp.exp(student) - jnp.exp(teacher))
            error = error.sum(axis=(1, 3)) / n[:, None]
        elif form == "minilmv2":
            # Padded keys have p = 0, and 0 * (-1e30 - -1e30) = 0.
            error = (jnp.exp(teacher) * (teacher - student)).sum(axis=(1, 3))
        else:
            raise ValueError(f"{form!r} is none of {RELATION_FORMS}")
    return (error[:, None, :] * queries).sum(axis=(1, 2)) / (n * heads)


def relations(
    student: Float[Array, "B L 3 W"],
    teacher: Float[Array, "B 3 heads L L"],
    tokens: Array,
    form: str,
) -> Float[Array, " B"]:
    """Q-Q + K-K + V-V of the last layers (AutoDistil, equation 6).

    Weights 1, 1, 1; for "minilmv2" 1/3 each, as there. `teacher` is
    `teacher_relations`, made once however many students there are.
    """
    heads = teacher.shape[2]
    total = sum(
        relation(relation_scores(student[:, :, i], heads), teacher[:, i], tokens, form)
        for i in range(3)
    )
    return total / 3 if form == "minilmv2" else total


def teacher_relations(
    qkv: Float[Array, "B L 3 W"], heads: int
) -> Float[Array, "B 3 heads L L"]:
    return jnp.stack([relation_scores(qkv[:, :, i], heads) for i in range(3)], axis=1)


def mean_pool(hidden: Float[Array, "B L D"], tokens: Array) -> Float[Array, "B D"]:
    """The mean over the real tokens: what a sentence-embedding model gives out."""
    real = tokens.astype(jnp.float32)[:, :, None]
    return (hidden * real).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1)


def pool(hidden: Array, pooler: Array, tokens: Array, pooling: str) -> Array:
    """One vector a text: the "mean" of the tokens, the first token ("cls"), or the
    "pooler"'s output."""
    if pooling == "mean":
        return mean_pool(hidden, tokens)
    return hidden[:, 0] if pooling == "cls" else pooler


def hidden_states(
    student: Float[Array, "B L D"], teacher: Float[Array, "B L D"], tokens: Array
) -> Float[Array, " B"]:
    """Mean squared error over channels and real tokens; widths matched already."""
    real = tokens.astype(jnp.float32)
    error = jnp.square(student - teacher).mean(axis=-1)
    return (error * real).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1)


def cosine_distance(
    student: Float[Array, "B D"], teacher: Float[Array, "B D"]
) -> Float[Array, " B"]:
    """1 - cosine, for pooled embeddings; widths matched already."""
    return 1 - cosine(student, teacher)


def cosine(one: Float[Array, "B D"], other: Float[Array, "B D"]) -> Float[Array, " B"]:
    product = (one * other).sum(axis=-1)
    norms = jnp.linalg.norm(one, axis=-1) * jnp.linalg.norm(other, axis=-1)
    return product / jnp.maximum(norms, 1e-9)


def cross_entropy(logits: Float[Array, "B C"], labels: Array) -> Float[Array, " B"]:
    """-log p(label), for whole-number labels."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, labels[:, None].astype(jnp.int32), axis=1)[:, 0]
