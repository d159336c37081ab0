"""Distillation losses: pure functions that give a value for each example."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

RELATION_FORMS = ("paper", "code", "minilmv2")
# Which of queries, keys and values are related: AutoDistil and MiniLMv2 relate each to
# itself, MiniLM (arXiv 2002.10957) takes the attention itself and the values.
RELATION_PAIRS = {"qq+kk+vv": ((0, 0), (1, 1), (2, 2)), "qk+vv": ((0, 1), (2, 2))}


def relation_scores(
    x: Float[Array, "B L W"], y: Float[Array, "B L W"], heads: int
) -> Float[Array, "B heads L L"]:
    """X Y^T / sqrt(d) of each relation head, for X, Y = queries, keys or values.

    The attention heads are concatenated and split anew into `heads` relation heads of
    d = W // heads channels, so teacher and student may differ in heads and width; what
    does not divide is left out (AutoDistil, equation 3; MiniLMv2, arXiv 2012.15828).
    Queries with keys in as many heads as there are: the attention scores themselves.

    Args:
      x, y: two of queries, keys and values, all heads side by side.
      heads: the number of relation heads.

    Returns:
      The scores, not yet softmaxed.
    """
    batch, length, width = x.shape
    d = width // heads

    def split(x):
        return x[..., : heads * d].reshape(batch, length, heads, d)

    return jnp.einsum("blhd,bmhd->bhlm", split(x), split(y)) / jnp.sqrt(d)


def relation_loss(
    student: Float[Array, "B heads L L"],
    teacher: Float[Array, "B heads L L"],
    attention_mask: Array,
    form: str,
) -> Float[Array, " B"]:
    """The distance of one pair of relations (Q-Q, say); padding never counts.

    Forms:
      "paper": mean squared error of the softmaxes (AutoDistil, equation 5).
      "code": mean squared error of the scores themselves (AutoDistil's released code).
      "minilmv2": KL(teacher || student) of the softmaxes, averaged over relation heads
        and real tokens (MiniLMv2, equation 2).

    Args:
      student, teacher: `relation_scores`.
      attention_mask: 1 where there is a token, [B, L].
      form: see above.

    Returns:
      The mean over relation heads and real tokens.

    Raises:
      ValueError: no such form.
    """
    real = attention_mask.astype(jnp.float32)
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
            raise ValueError(f"{form!r} is not one of the forms {RELATION_FORMS}")
    return (error[:, None, :] * queries).sum(axis=(1, 2)) / (n * heads)


def attention_loss(
    student: Float[Array, "B heads L L"],
    teacher: Float[Array, "B teacher_heads L L"],
    attention_mask: Array,
    groups: int,
) -> Float[Array, " B"]:
    """KL(teacher || student) of attention maps, of networks of any head counts.

    The heads are taken in groups, as they lie side by side, and it is the mean map of a
    group that is compared: in as many groups as both have heads, head with head; in one,
    the mean over all heads.

    Args:
      student, teacher: attention scores, not yet softmaxed.
      attention_mask: 1 where there is a token, [B, L].
      groups: that divide both head counts.

    Returns:
      The mean over groups and real tokens.
    """
    real = attention_mask.astype(jnp.float32)
    keys = real[:, None, None, :]

    def group_maps(scores):
        maps = jax.nn.softmax(jnp.where(keys > 0, scores, -1e30))
        return maps.reshape(len(maps), groups, -1, *maps.shape[2:]).mean(axis=2)

    student_maps, teacher_maps = group_maps(student), group_maps(teacher)
    tiny = jnp.finfo(jnp.float32).tiny  # Padded keys have p = 0, and 0 log 0 = 0.
    error = teacher_maps * (jnp.log(teacher_maps + tiny) - jnp.log(student_maps + tiny))
    n = jnp.maximum(real.sum(axis=1), 1)
    return (error.sum(axis=(1, 3)) * real).sum(axis=1) / (n * groups)


def relation_losses(
    student: Float[Array, "B L 3 W"],
    teacher: Float[Array, "B P heads L L"],
    attention_mask: Array,
    form: str,
    pairs: str = "qq+kk+vv",
) -> Float[Array, " B"]:
    """Q-Q + K-K + V-V of the last layers (AutoDistil, equation 6), or other `pairs`.

    The weights are 1; "minilmv2" takes the mean, as MiniLMv2 does.

    Args:
      student: queries, keys and values of its last layer.
      teacher: `teacher_relations` of the same pairs, made once however many students
        there are.
      attention_mask: 1 where there is a token, [B, L].
      form: see `relation_loss`.
      pairs: a name in `RELATION_PAIRS`.

    Returns:
      The sum of the pairs' `relation_loss`.
    """
    heads = teacher.shape[2]
    total = sum(
        relation_loss(
            relation_scores(student[:, :, x], student[:, :, y], heads),
            teacher[:, i],
            attention_mask,
            form,
        )
        for i, (x, y) in enumerate(RELATION_PAIRS[pairs])
    )
    return total / len(RELATION_PAIRS[pairs]) if form == "minilmv2" else total


def teacher_relations(
    qkv: Float[Array, "B L 3 W"], heads: int, pairs: str = "qq+kk+vv"
) -> Float[Array, "B P heads L L"]:
    """The teacher's side of `relation_losses`.

    Args:
      qkv: queries, keys and values of its last layer.
      heads: the number of relation heads.
      pairs: a name in `RELATION_PAIRS`.

    Returns:
      The `relation_scores` of each of the P pairs.
    """
    return jnp.stack(
        [
            relation_scores(qkv[:, :, x], qkv[:, :, y], heads)
            for x, y in RELATION_PAIRS[pairs]
        ],
        axis=1,
    )


def hidden_loss(
    student: Float[Array, "B L D"],
    teacher: Float[Array, "B L D"],
    attention_mask: Array,
) -> Float[Array, " B"]:
    """Mean squared error over channels and real tokens; widths projected already."""
    real = attention_mask.astype(jnp.float32)
    error = jnp.square(student - teacher).mean(axis=-1)
    return (error * real).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1)


def token_cosine_distance(
    student: Float[Array, "B L D"],
    teacher: Float[Array, "B L D"],
    attention_mask: Array,
) -> Float[Array, " B"]:
    """1 - cosine of the hidden states, averaged over real tokens.

    DistilBERT (arXiv 1910.01108, section 3); widths projected already.
    """
    real = attention_mask.astype(jnp.float32)
    return ((1 - cosine(student, teacher)) * real).sum(axis=1) / jnp.maximum(
        real.sum(axis=1), 1
    )


def soft_label_loss(
    student: Float[Array, "... V"], teacher: Float[Array, "... V"], temperature: float
) -> Float[Array, "..."]:
    """T^2 KL(teacher || student) of logits at temperature T (arXiv 1503.02531)."""
    student = jax.nn.log_softmax(student / temperature)
    teacher = jax.nn.log_softmax(teacher / temperature)
    divergence = (jnp.exp(teacher) * (teacher - student)).sum(axis=-1)
    return temperature**2 * divergence


def pair_features(
    first: Float[Array, "B D"], second: Float[Array, "B D"]
) -> Float[Array, "B F"]:
    """What a classifier reads of two texts that were embedded apart.

    These are u, v, |u - v| and u * v (Sentence-BERT, arXiv 1908.10084, and InferSent),
    of unit length u and v, side by side: F = 4 D. Times 16, which makes a channel of
    some hundreds about 1.
    """
    u, v = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (first, second))
    return 16 * jnp.concatenate([u, v, jnp.abs(u - v), u * v], axis=-1)


def cosine_distance(
    student: Float[Array, "B D"], teacher: Float[Array, "B D"]
) -> Float[Array, " B"]:
    """1 - cosine, for pooled embeddings; widths projected already."""
    return 1 - cosine(student, teacher)


def cosine(x: Float[Array, "... D"], y: Float[Array, "... D"]) -> Array:
    """The cosine along the last axis; 0 where a vector is 0."""
    product = (x * y).sum(axis=-1)
    norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    return product / jnp.maximum(norms, 1e-9)


def cross_entropy(logits: Float[Array, "... C"], labels: Array) -> Float[Array, "..."]:
    """-log p(label), for whole-number labels."""
    log_p = jax.nn.log_softmax(logits)
    index = labels[..., None].astype(jnp.int32)
    return -jnp.take_along_axis(log_p, index, axis=-1)[..., 0]
