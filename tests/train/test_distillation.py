"""Are tokens masked as BERT does it, and are the losses what the methods write?"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import DIMS

from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.space import Space
from autodistill_jax.data.mlm import MlmMasking, mask_tokens
from autodistill_jax.data.tokenization import SpecialTokens
from autodistill_jax.models import build, encoder, extract, heads
from autodistill_jax.models.bert import Bert
from autodistill_jax.models.heads import encoder_params
from autodistill_jax.train import distillation, sandwich
from autodistill_jax.train.objective import LOSSES, Objective

SPECIAL = SpecialTokens(pad_token_id=0, cls_token_id=1, sep_token_id=2, mask_token_id=3)
TEACHER = Arch(4, 32, 4, 64, 8)
STUDENT = Arch(2, 24, 2, 40, 8)


def texts(rows=64, length=12):
    """[CLS] words [SEP] and padding."""
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 60, (rows, length)).astype(np.int32)
    count = rng.integers(3, length + 1, (rows, 1))
    place = np.arange(length)
    ids[:, 0] = SPECIAL.cls_token_id
    ids = np.where(place == count - 1, SPECIAL.sep_token_id, ids)
    ids = np.where(place >= count, SPECIAL.pad_token_id, ids)
    return {
        "input_ids": jnp.asarray(ids),
        "attention_mask": jnp.asarray(ids != 0, jnp.int32),
    }


def test_words_are_hidden_as_bert_hides_them():
    batch = texts(2000, 12)
    masked = mask_tokens(jax.random.key(0), batch, 60, MlmMasking(0.3, 20, SPECIAL))
    ids, masked_ids = np.asarray(batch["input_ids"]), np.asarray(masked["input_ids"])
    rows = np.arange(2000)[:, None]
    chosen = np.asarray(masked["masked_weights"]) > 0
    places = np.asarray(masked["masked_positions"])
    # What stood there is told, and nothing else is touched.
    assert (ids[rows, places] == np.asarray(masked["masked_labels"])).all()
    untouched = np.ones_like(ids, bool)
    untouched[np.broadcast_to(rows, places.shape)[chosen], places[chosen]] = False
    assert (ids[untouched] == masked_ids[untouched]).all()
    # Only words; at least one a text, and a fraction of them.
    assert (ids[~untouched] > SPECIAL.sep_token_id).all()
    words = (
        (ids > SPECIAL.sep_token_id) & np.asarray(batch["attention_mask"], bool)
    ).sum(axis=1)
    count = (~untouched).sum(axis=1)
    assert (count == np.maximum(np.round(0.3 * words), 1)).all()
    replacements, stood = masked_ids[~untouched], ids[~untouched]
    hidden = replacements == SPECIAL.mask_token_id
    assert abs(hidden.mean() - 0.8) < 0.03
    assert abs((~hidden & (replacements != stood)).mean() - 0.1) < 0.03
    most = mask_tokens(jax.random.key(0), batch, 60, MlmMasking(0.9, 2, SPECIAL))
    assert most["masked_positions"].shape == (2000, 2)
    reseeded = mask_tokens(jax.random.key(1), batch, 60, MlmMasking(0.3, 20, SPECIAL))
    assert (np.asarray(reseeded["input_ids"]) != masked_ids).any()


def head(hidden, width):
    mlm_head = heads.init_mlm_head(hidden, DIMS._replace(embedding=width))
    noise = jax.random.normal(jax.random.key(6), (width + 1, hidden))
    return mlm_head | {"mlm_bias": noise[0, :width], "mlm_kernel": noise[1:].T}


def networks():
    module = Bert(TEACHER, DIMS)
    params = build.init_params(module, jax.random.key(3))
    params = {k: v * 10 if k.endswith("kernel") else v for k, v in params.items()}
    return module, params


ALL_TERMS = Objective(
    # Without the one that compares embeddings of equal width.
    {name: 1.0 for name in LOSSES if name != "embedding"},
    relation_heads=4,
    layer_map=(1, 3),
    masking=MlmMasking(0.3, special_tokens=SPECIAL),
)


@pytest.fixture(scope="module")
def student_terms():
    """Every loss of a student alone, with what it is made from."""
    module, params = networks()
    params |= head(32, 32)
    student = extract.extract(
        encoder_params(params),
        TEACHER,
        STUDENT,
    )
    batch = texts() | {"next_sentence_label": jnp.arange(64) % 2}
    batch = mask_tokens(jax.random.key(1), batch, DIMS.vocab, ALL_TERMS.masking)
    projections = distillation.init_projections(ALL_TERMS, 24, 32, head(32, 32))
    small = Bert(STUDENT, DIMS)

    @jax.jit
    def run(params, student, projections, batch):
        target = distillation.teacher_targets(module, params, batch, ALL_TERMS)
        values = distillation.distillation_losses(
            small, {**student, **projections}, batch, target, ALL_TERMS
        )
        inputs = batch["input_ids"], batch["attention_mask"]
        full = module.apply({"params": params}, *inputs, qkv=True, states=True)
        out = small.apply({"params": student}, *inputs, qkv=True, states=True)
        return values, full, out

    values, full, student_out = run(params, student, projections, batch)
    return values, batch, full, student_out, params, student, projections


def test_the_next_sentence_is_a_class_of_the_poolers(student_terms):
    values, batch, _, student_out, _, _, projections = student_terms
    logits = student_out.pooler @ projections["nsp_kernel"] + projections["nsp_bias"]
    chance = jax.nn.softmax(logits)[jnp.arange(64), batch["next_sentence_label"]]
    assert np.abs(values["nsp"] + jnp.log(chance)).max() < 1e-5


def test_embeddings_of_equal_width_need_no_projection(student_terms):
    _, batch, full, _, params, *_ = student_terms
    objective = Objective({"embedding": 1.0})
    module, _ = networks()
    encoder_weights = encoder_params(params)
    assert not distillation.init_projections(objective, 32, 32)
    rng = np.random.default_rng(0)
    target = jnp.asarray(rng.standard_normal((64, 32)), jnp.float32)
    values = distillation.distillation_losses(
        module, encoder_weights, batch, {"embedding": target}, objective
    )
    mask = batch["attention_mask"]
    vectors = encoder.pool_tokens(full.hidden, full.pooler, mask, "mean")
    unit = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, target)]
    squared = jnp.square(unit[0] - unit[1]).sum(axis=1)
    assert np.abs(values["embedding"] - squared).max() < 1e-5


def masked_mean(values, batch):
    real = np.asarray(batch["attention_mask"])
    return (np.asarray(values) * real).sum(axis=1) / real.sum(axis=1)


def test_a_text_may_stand_further_on():
    """Teacher and student read the positions that a batch gives."""
    module, params = networks()
    objective = Objective({"pooled": 1.0, "cosine": 1.0})
    batch = texts()
    length = batch["input_ids"].shape[1]
    positions = np.tile(np.r_[0, 4 + np.arange(1, length)], (64, 1))
    table = params["embeddings_position"]
    moved_table = table.at[1:length].set(table[positions[0, 1:]])

    @jax.jit
    def run(params, batch):
        targets = distillation.teacher_targets(module, params, batch, objective)
        projections = distillation.init_projections(objective, 32, 32)
        values = distillation.distillation_losses(
            module, params | projections, batch, targets, objective
        )
        return targets, values["total"]

    shifted, losses_of_itself = run(params, batch | {"position_ids": positions})
    expected, _ = run(params | {"embeddings_position": moved_table}, batch)
    assert np.abs(shifted["embedding"] - expected["embedding"]).max() < 1e-5
    assert np.abs(losses_of_itself).max() < 1e-5
    in_place, _ = run(params, batch)
    assert np.abs(in_place["embedding"] - expected["embedding"]).max() > 1e-2


def test_layers_and_attention_are_tinyberts(student_terms):
    values, batch, full, student_out, *_ = student_terms
    # Layers 1, 2 of the student follow layers 2, 4 of the teacher; embeddings follow
    # embeddings. The projection is the identity still.
    total = 0
    for i, j in ((0, 0), (1, 2), (2, 4)):
        padded = jnp.pad(student_out.states[i], ((0, 0), (0, 0), (0, 8)))
        total += masked_mean(jnp.square(padded - full.states[j]).mean(axis=-1), batch)
    assert np.allclose(values["layers"], total, rtol=1e-4)

    def scores(qkv, heads):
        query, key = (
            np.asarray(qkv[:, :, i]).reshape(64, 12, heads, -1) for i in (0, 1)
        )
        products = np.einsum("blhd,bmhd->bhlm", query, key)
        return products / np.sqrt(query.shape[-1])

    real = np.asarray(batch["attention_mask"])
    pair_mask = real[:, None, :, None] * real[:, None, None, :]
    total = 0
    for i, j in ((0, 1), (1, 3)):
        # The student's two heads of 8 are split anew into the teacher's four.
        error = (
            np.square(scores(student_out.qkvs[i], 4) - scores(full.qkvs[j], 4))
            * pair_mask
        )
        total += error.sum(axis=(1, 2, 3)) / (4 * real.sum(axis=1) ** 2)
    assert np.allclose(values["attention"], total, rtol=1e-4)


def test_words_logits_and_cosine_are_distilberts(student_terms):
    values, batch, full, student_out, params, student, projections = student_terms

    def logits(hidden, head, embeddings):
        x = np.asarray(hidden) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
        x = np.asarray(jax.nn.gelu(x, approximate=False))
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        x = x * np.asarray(head["norm_scale"]) + np.asarray(head["norm_bias"])
        return x @ np.asarray(embeddings).T + np.asarray(head["out_bias"])

    def under_prefix(tree, prefix):
        return {k.removeprefix(prefix): v for k, v in tree.items() if prefix in k}

    student_logits = logits(
        student_out.hidden,
        under_prefix(projections, "mlm_"),
        student["embeddings_word"],
    )
    teacher_logits = logits(
        full.hidden, under_prefix(params, "mlm_"), params["embeddings_word"]
    )

    def log_softmax(x):
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    rows = np.arange(64)[:, None]
    places, chosen = (
        np.asarray(batch["masked_positions"]),
        np.asarray(batch["masked_weights"]),
    )
    token_losses = -log_softmax(student_logits)[
        rows, places, np.asarray(batch["masked_labels"])
    ]
    expected = (token_losses * chosen).sum(axis=1) / chosen.sum(axis=1)
    assert np.allclose(values["mlm"], expected, rtol=1e-3, atol=1e-4)
    soft, hard = log_softmax(teacher_logits / 2), log_softmax(student_logits / 2)
    token_losses = 4 * (np.exp(soft) * (soft - hard)).sum(-1)[rows, places]
    expected = (token_losses * chosen).sum(axis=1) / chosen.sum(axis=1)
    assert np.allclose(values["logits"], expected, rtol=1e-3, atol=1e-4)
    padded = np.pad(np.asarray(student_out.hidden), ((0, 0), (0, 0), (0, 8)))
    teacher_hidden = np.asarray(full.hidden)
    cosine = (padded * teacher_hidden).sum(-1)
    cosine /= np.linalg.norm(padded, axis=-1) * np.linalg.norm(teacher_hidden, axis=-1)
    assert np.allclose(values["cosine"], masked_mean(1 - cosine, batch), rtol=1e-4)


def test_a_sub_networks_word_head_is_the_extracted_students():
    """Losses of masked tokens in a SuperLM: dead channels change nothing."""
    objective = Objective(
        {"mlm": 2.0, "logits": 5.0, "cosine": 1.0},
        masking=MlmMasking(0.3, special_tokens=SPECIAL),
    )
    module, params = networks()
    params = {**params, **head(32, 32)}
    body = encoder_params(params)
    space = Space((1, 2), (16, 24), (2,), (24,), head_size=8)
    big = dataclasses.replace(space.largest(), layers=TEACHER.layers)
    superlm = Bert(big, DIMS, space=space)
    inside = extract.extract(
        body, TEACHER, dataclasses.replace(big, layers=TEACHER.layers)
    )
    projections = distillation.init_projections(objective, big.hidden, 32, head(32, 32))
    batch = mask_tokens(jax.random.key(1), texts(8), DIMS.vocab, objective.masking)
    target = jax.jit(
        lambda params: distillation.teacher_targets(module, params, batch, objective)
    )(params)
    arch = Arch(2, 16, 2, 24, 8)
    arch_arrays = jax.tree.map(lambda x: x[0], sandwich.stack_archs([arch]))
    actual = jax.jit(
        lambda params: distillation.distillation_losses(
            superlm, params, batch, target, objective, arch_arrays
        )
    )({**inside, **projections})
    student = extract.extract(inside, big, arch)
    student |= distillation.init_projections(objective, 16, 32, head(32, 32))
    alone = jax.jit(
        lambda params: distillation.distillation_losses(
            Bert(arch, DIMS), params, batch, target, objective
        )
    )(student)
    for name, value in alone.items():
        # Soft labels are a small difference of large numbers.
        assert np.allclose(actual[name], value, rtol=1e-4, atol=3e-6), name


def test_a_space_of_one_arch_is_that_network_alone():
    """No elastic branches, and steps of one sub-network."""
    alone = Space((2,), (16,), (2,), (24,), head_size=8)
    assert sandwich.sandwich_archs(alone, 2, 0, 0) == list(alone)
    (arch,) = alone
    batch = texts(4)
    module = Bert(arch, DIMS)
    params = build.init_params(module, jax.random.key(0))
    arch_arrays = jax.tree.map(lambda x: x[0], sandwich.stack_archs([arch]))
    with_arch = module.apply(
        {"params": params}, batch["input_ids"], batch["attention_mask"], arch_arrays
    )
    without = module.apply(
        {"params": params}, batch["input_ids"], batch["attention_mask"]
    )
    assert np.array_equal(with_arch.hidden, without.hidden)
