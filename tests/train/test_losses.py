"""Are the losses what the papers write, and does padding never count?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autodistill_jax.models import encoder
from autodistill_jax.train import losses

RNG = np.random.default_rng(0)
TOKENS = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
STUDENT = RNG.normal(size=(2, 5, 3, 12)).astype(np.float32)
TEACHER = RNG.normal(size=(2, 5, 3, 20)).astype(np.float32)  # Another width.
HEADS = 4


def plain(form):
    """The loss of one text at a time, without any padding, in numpy."""
    values = []
    for text in range(2):
        n = TOKENS[text].sum()
        total = 0.0
        for part in range(3):
            relations = []
            for x in (STUDENT, TEACHER):
                d = x.shape[-1] // HEADS
                x = x[text, :n, part].reshape(n, HEADS, d).transpose(1, 0, 2)
                relations.append(x @ x.transpose(0, 2, 1) / np.sqrt(d))
            student, teacher = relations
            if form != "code":
                student, teacher = (
                    np.exp(s) / np.exp(s).sum(-1, keepdims=True) for s in relations
                )
            if form == "minilmv2":
                kl = (teacher * np.log(teacher / student)).sum(-1)
                total += kl.mean() / 3
            else:
                total += np.square(student - teacher).mean()
        values.append(total)
    return np.array(values)


@pytest.mark.parametrize("form", losses.RELATION_FORMS)
def test_relations_by_hand(form):
    teacher = losses.teacher_relations(jnp.asarray(TEACHER), HEADS)
    actual = losses.relation_losses(
        jnp.asarray(STUDENT), teacher, jnp.asarray(TOKENS), form
    )
    assert np.allclose(actual, plain(form), rtol=1e-5)
    same = losses.relation_losses(
        jnp.asarray(TEACHER), teacher, jnp.asarray(TOKENS), form
    )
    assert np.allclose(same, 0, atol=1e-6)


@pytest.mark.parametrize("form", losses.RELATION_FORMS)
def test_padding_gets_no_value_and_no_gradient(form):
    teacher = losses.teacher_relations(jnp.asarray(TEACHER), HEADS)

    def total(student):
        return losses.relation_losses(student, teacher, jnp.asarray(TOKENS), form).sum()

    gradient = jax.grad(total)(jnp.asarray(STUDENT))
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[1, 3:]) and np.any(gradient[1, :3])
    changed = jnp.asarray(STUDENT).at[1, 3:].set(100.0)
    assert np.allclose(total(changed), total(jnp.asarray(STUDENT)))


def test_attention_of_other_head_counts_is_compared_in_groups():
    rng = np.random.default_rng(0)
    student, teacher = (
        jnp.asarray(rng.standard_normal((2, heads, 5, 5)), jnp.float32)
        for heads in (2, 4)
    )
    mask = jnp.asarray([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    # As many heads on both sides: what relations have, head by head.
    same = losses.attention_loss(teacher[::-1], teacher, mask, 4)
    expected = losses.relation_loss(teacher[::-1], teacher, mask, "minilmv2")
    assert np.allclose(same, expected, atol=1e-6)
    # By hand, of the second text: its three tokens, two groups of two heads.
    maps = [
        np.exp(np.asarray(x)[1, :, :3, :3]).reshape(2, -1, 3, 3)
        for x in (student, teacher)
    ]
    maps = [(x / x.sum(axis=3, keepdims=True)).mean(axis=1) for x in maps]
    kl = (maps[1] * np.log(maps[1] / maps[0])).sum() / 6
    grouped = losses.attention_loss(student, teacher, mask, 2)
    assert grouped[1] == pytest.approx(kl, rel=1e-5)
    doubled = jnp.repeat(student, 2, axis=1)
    assert np.allclose(losses.attention_loss(student, doubled, mask, 2), 0, atol=1e-6)
    gradient = jax.grad(lambda x: losses.attention_loss(x, teacher, mask, 2).sum())
    assert np.isfinite(gradient(student)).all()
    assert not gradient(student)[1, :, 3:].any()  # Padding.


def test_what_does_not_divide_is_left_out():
    x = jnp.asarray(RNG.normal(size=(1, 3, 11)), jnp.float32)
    assert np.array_equal(
        losses.relation_scores(x, x, 4),
        losses.relation_scores(x[..., :8], x[..., :8], 4),
    )


def test_pooled_and_hidden_terms():
    hidden = jnp.asarray(RNG.normal(size=(2, 5, 8)), jnp.float32)
    teacher_hidden = jnp.asarray(RNG.normal(size=(2, 5, 8)), jnp.float32)
    attention_mask = jnp.asarray(TOKENS)
    pooled = encoder.mean_pool(hidden, attention_mask)
    assert np.allclose(pooled[1], hidden[1, :3].mean(axis=0), atol=1e-6)
    error = losses.hidden_loss(hidden, teacher_hidden, attention_mask)
    expected = np.square(hidden[1, :3] - teacher_hidden[1, :3]).mean()
    assert np.allclose(error[1], expected, rtol=1e-5)
    assert np.allclose(losses.cosine_distance(pooled, 3 * pooled), 0, atol=1e-6)
    assert np.allclose(losses.cosine_distance(pooled, -pooled), 2, atol=1e-6)


def test_cross_entropy():
    logits = jnp.log(jnp.asarray([[0.2, 0.8], [0.5, 0.5]]))
    values = losses.cross_entropy(logits, jnp.asarray([1, 0]))
    assert np.allclose(values, -np.log([0.8, 0.5]), atol=1e-6)
