"""Is a sub-network the extracted student, at the cost of one trace?"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_outputs import arrays, outputs
from reference_masked_bert import forward
from tiny_networks import BIG, DIMS, SPACE, corners

from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.space import Space
from autodistill_jax.errors import UserError
from autodistill_jax.models import build, elastic, extract
from autodistill_jax.models.bert import Bert


@pytest.fixture(scope="module")
def params():
    """Random, biases too, and larger than at a usual start: nothing may hide in 0."""
    rng = np.random.default_rng(1)
    initial = build.init_params(Bert(BIG, DIMS), jax.random.key(0))
    return {
        name: np.asarray(value) + rng.normal(0, 0.2, value.shape).astype(np.float32)
        for name, value in initial.items()
    }


@pytest.fixture(scope="module")
def electra():
    """Sizes and parameters with embeddings of a width of their own."""
    dims = DIMS._replace(embedding=10)
    rng = np.random.default_rng(1)
    initial = build.init_params(Bert(BIG, dims), jax.random.key(0))
    return dims, {
        name: np.asarray(value) + rng.normal(0, 0.2, value.shape).astype(np.float32)
        for name, value in initial.items()
    }


def runner(space, traces=None, dims=DIMS):
    module = Bert(BIG, dims, space=space)

    @jax.jit
    def run(params, batch, arch):
        if traces is not None:
            traces.append(arch)
        return module.apply(
            {"params": params},
            batch["input_ids"],
            batch["attention_mask"],
            arch,
            qkv=True,
        )

    return run


def test_sub_network_is_the_extracted_student_everywhere(params, batch):
    traces = []
    run = runner(SPACE, traces)
    archs = corners(SPACE) + SPACE.sample(np.random.default_rng(0), 4)
    for arch in archs:
        inside = jax.tree.map(np.asarray, run(params, batch, arrays(arch)))
        student = extract.extract(params, BIG, arch)
        alone = outputs(Bert(arch, DIMS), student, batch, qkv=True)
        n, width = arch.hidden, arch.heads * arch.head_size
        real = np.asarray(batch["attention_mask"], bool)
        assert np.abs(inside.hidden[..., :n] - alone.hidden)[real].max() < 1e-5
        assert np.abs(inside.pooler[:, :n] - alone.pooler).max() < 1e-5
        assert np.abs(inside.qkv[..., :width] - alone.qkv)[real].max() < 1e-5
        # Dead channels are exactly 0.
        assert not np.any(inside.hidden[..., n:]) and not np.any(inside.pooler[:, n:])
        assert not np.any(inside.qkv[..., width:])
    assert len(traces) == 1  # For all these Archs.


@pytest.mark.parametrize("tiled", [False, True])
def test_projected_embeddings_are_elastic_too(electra, batch, tiled, monkeypatch):
    """As ELECTRA has them: of one width for all sub-networks, projected to theirs."""
    if tiled:  # Products then reach beyond the channels in use.
        monkeypatch.setitem(elastic.BRANCH_LIMITS, "cpu", (3, 32))
    dims, params = electra
    assert params["embeddings_word"].shape == (60, 10)
    run, real = runner(SPACE, dims=dims), np.asarray(batch["attention_mask"], bool)
    archs = corners(SPACE)
    for arch in [archs[0], archs[-1], *SPACE.sample(np.random.default_rng(0), 6)]:
        inside = jax.tree.map(np.asarray, run(params, batch, arrays(arch)))
        student = extract.extract(params, BIG, arch)
        assert student["embeddings_word"].shape == (60, 10)
        assert student["embeddings_project_kernel"].shape == (10, arch.hidden)
        alone = outputs(Bert(arch, dims), student, batch, qkv=True)
        n, width = arch.hidden, arch.heads * arch.head_size
        assert np.abs(inside.hidden[..., :n] - alone.hidden)[real].max() < 1e-5
        assert np.abs(inside.qkv[..., :width] - alone.qkv)[real].max() < 1e-5
        assert not np.any(inside.hidden[..., n:]) and not np.any(inside.pooler[:, n:])


def test_projected_embeddings_have_the_students_gradients(electra, batch):
    dims, params = electra
    arch = SPACE.smallest()
    mix = jnp.asarray(np.random.default_rng(2).normal(size=(2, 6, BIG.hidden)))
    mix = (mix * batch["attention_mask"][:, :, None])[..., : arch.hidden]

    def gradient(module, params, *arch):
        def loss(params):
            inputs = (batch["input_ids"], batch["attention_mask"], *arch)
            hidden = module.apply({"params": params}, *inputs).hidden
            return (hidden[..., : mix.shape[-1]] * mix).sum()

        return jax.jit(jax.grad(loss))(params)

    inside = gradient(Bert(BIG, dims, space=SPACE), params, arrays(arch))
    alone = gradient(Bert(arch, dims), extract.extract(params, BIG, arch))
    for name, value in alone.items():
        if not name.startswith("embeddings"):
            continue
        scale = np.abs(value).max() + 1e-6
        wide = inside[name]
        in_use = wide[..., : value.shape[-1]]
        assert np.abs(in_use - value).max() / scale < 1e-4, name
        assert not np.any(wide[..., value.shape[-1] :]), name


@pytest.mark.parametrize("tiled", [False, True])
def test_values_and_gradients_are_the_masked_forms(params, batch, tiled, monkeypatch):
    if tiled:  # Too many sizes for a branch each: rounded up to a tile.
        monkeypatch.setitem(elastic.BRANCH_LIMITS, "cpu", (3, 32))
    module = Bert(BIG, DIMS, space=SPACE)
    rng = np.random.default_rng(2)
    mix = jnp.asarray(rng.normal(size=(2, 6, BIG.hidden)), jnp.float32)
    mix = mix * batch["attention_mask"][:, :, None]

    @jax.jit
    def elastic_gradient(params, arch):
        def loss(params):
            out = module.apply(
                {"params": params}, batch["input_ids"], batch["attention_mask"], arch
            )
            return (out.hidden * mix).sum(), out.hidden

        return jax.value_and_grad(loss, has_aux=True)(params)

    for arch in (SPACE.smallest(), SPACE.largest(), Arch(2, 16, 2, 24, 8)):

        def loss(params, arch=arch):
            hidden, _ = forward(
                params, batch["input_ids"], batch["attention_mask"], arch, BIG
            )
            return (hidden * mix).sum(), hidden

        (_, hidden), gradient = elastic_gradient(params, arrays(arch))
        expected_gradient_fn = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, expected), expected_gradient = expected_gradient_fn(params)
        assert (
            np.abs((hidden - expected) * batch["attention_mask"][:, :, None]).max()
            < 1e-5
        )
        for name in expected_gradient:
            if not name.startswith("pooler"):
                scale = np.abs(expected_gradient[name]).max() + 1e-6
                assert (
                    np.abs(gradient[name] - expected_gradient[name]).max() / scale
                    < 1e-4
                ), name


def test_tiles_have_few_branches_and_cover_all():
    space = Space((1,), tuple(range(64, 769, 64)), (1, 12), (), (1.0, 2.0, 3.0, 4.0))
    arch = arrays(space.largest())
    slices = elastic.choose_slices(space, arch, "hidden", "ffn")
    assert len(slices.options) <= elastic.BRANCH_LIMITS["cpu"][0] and slices.counts
    for sub_arch in space:
        cut = elastic.choose_slices(space, arrays(sub_arch), "hidden", "ffn")
        option = cut.options[int(cut.index)]
        assert option["hidden"] >= sub_arch.hidden and option["ffn"] >= sub_arch.ffn


def test_kept_layers_come_from_the_whole_depth(params):
    student = extract.extract(params, BIG, dataclasses.replace(BIG, layers=2))
    kernel = params["layers_ffn_in_kernel"]
    assert np.array_equal(student["layers_ffn_in_kernel"], kernel[np.array([0, 2])])


def test_extract_refuses_what_is_larger(params):
    with pytest.raises(UserError, match="hidden 32 is more than the 24"):
        extract.extract(params, BIG, dataclasses.replace(BIG, hidden=32))
    with pytest.raises(UserError, match="head_size 4 differs"):
        extract.extract(params, BIG, dataclasses.replace(BIG, head_size=4))


def test_unrolled_and_half_precision_agree(params, batch):
    looped = outputs(Bert(BIG, DIMS), params, batch).hidden
    unrolled = build.unstack_layers(params)
    flat = outputs(Bert(BIG, DIMS, unroll=True), unrolled, batch)
    assert np.abs(looped - flat.hidden).max() < 1e-5
    half = outputs(Bert(BIG, DIMS, dtype=jnp.bfloat16), params, batch)
    assert 0 < np.abs(looped - half.hidden).max() < 0.3
    assert half.hidden.dtype == jnp.float32


def test_half_precision_has_gradients_on_every_device(params, batch):
    """Of a sub-network: XLA's CPU backend lacks some bf16 products."""
    module = Bert(BIG, DIMS, space=SPACE, dtype=jnp.bfloat16)

    @jax.jit
    def gradient(params, arch):
        def loss(params):
            out = module.apply(
                {"params": params}, batch["input_ids"], batch["attention_mask"], arch
            )
            return jnp.square(out.hidden).mean()

        return jax.grad(loss)(params)

    grads = gradient(params, arrays(SPACE.smallest()))
    assert all(x.dtype == jnp.float32 and np.isfinite(x).all() for x in grads.values())


def test_padding_changes_nothing(params, batch):
    module = Bert(BIG, DIMS)
    out = outputs(module, params, batch).hidden
    changed = dict(batch, input_ids=batch["input_ids"].at[1, 4:].set(7))
    changed_out = outputs(module, params, changed).hidden
    assert np.array_equal(out[1, :4], changed_out[1, :4])
    assert not np.array_equal(out[1, 4:], changed_out[1, 4:])
    short = outputs(module, params, {k: v[1:, :4] for k, v in batch.items()})
    assert np.abs(out[1, :4] - short.hidden[0]).max() < 1e-5


def test_dropout_drops_only_with_a_key(params, batch):
    module = Bert(BIG, DIMS, dropout=0.5, space=SPACE)
    plain = outputs(module, params, batch).hidden
    dropped = outputs(module, params, batch, key=jax.random.key(0)).hidden
    assert np.array_equal(plain, outputs(Bert(BIG, DIMS), params, batch).hidden)
    assert np.abs(plain - dropped).max() > 0.1
    small = arrays(SPACE.smallest())
    inside = outputs(module, params, batch, arch=small, key=jax.random.key(0))
    assert not np.any(inside.hidden[..., SPACE.smallest().hidden :])


def test_logical_axes_are_the_archs_fields():
    names = build.param_axes(Bert(BIG, DIMS))
    assert names["layers_qkv_kernel"] == ("layers", "hidden", "qkv", "heads")
    assert names["layers_ffn_out_kernel"] == ("layers", "ffn", "hidden")
    assert names["embeddings_word"] == ("vocab", "hidden")
    names = build.param_axes(Bert(BIG, DIMS._replace(embedding=10)))
    assert names["embeddings_word"] == ("vocab", "embedding")
    assert names["embeddings_project_kernel"] == ("embedding", "hidden")
