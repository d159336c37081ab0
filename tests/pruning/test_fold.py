"""Does what a cut drops leave its best share behind?"""

import dataclasses

import jax
import numpy as np
import pytest
from network_outputs import outputs
from tiny_networks import BIG, DIMS

from autodistill_jax.archs.arch import MobileArch
from autodistill_jax.archs.cost import MOBILEBERT_DIMS
from autodistill_jax.models import build, extract
from autodistill_jax.pruning import fold as fold_module
from autodistill_jax.pruning.fold import fold, regress_dropped
from autodistill_jax.pruning.moments import OUTPUT, input_moments
from autodistill_jax.pruning.projection import fit_projections
from autodistill_jax.pruning.prune import prune
from autodistill_jax.pruning.streams import stream_axis, stream_readers

MOBILE = MobileArch(2, 16, 12, 3, 20, 2)
MOBILE_DIMS = MOBILEBERT_DIMS._replace(vocab=60, positions=16, embedding=10)


def redundant(arch, dims):
    """A random network whose residual stream lies in few directions."""
    module, rng = build.build_module(arch, dims), np.random.default_rng(1)
    params = {}
    mix = rng.normal(size=(arch.hidden // 3, arch.hidden))
    of_stream = "embeddings_trigram_kernel" if dims.embedding else "embeddings_word"
    for name, value in build.init_params(module, jax.random.key(0)).items():
        x = np.asarray(value) + rng.normal(0, 0.1, value.shape)
        if name == of_stream:
            x = rng.normal(size=(len(x), len(mix))) @ mix
        params[name] = x.astype(np.float32)
    return module, params


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 60, (6, 32, 6)).astype(np.int32)
    return [{"input_ids": x, "attention_mask": np.ones_like(x)} for x in ids]


@pytest.mark.parametrize("ridge", [1e-9, None])
def test_no_other_linear_map_does_better(ridge, monkeypatch):
    """On the tokens that it was fitted on: least squares itself where there is all but no
    ridge; under the ridge that is used, the least error and ridge together."""
    if ridge is not None:
        monkeypatch.setattr(fold_module, "_RIDGE", ridge)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12)) + rng.normal(size=12)
    augmented = np.concatenate([x, np.ones((500, 1))], axis=1)
    shares, constants = regress_dropped(augmented.T @ augmented / 500, 8)
    weight = fold_module._RIDGE * x[:, :8].var(axis=0).mean()

    def error(shares, constants):
        return np.square(x[:, :8] @ shares.T + constants - x[:, 8:]).sum(axis=1).mean()

    def penalized(shares, constants):
        return error(shares, constants) + weight * np.square(shares).sum()

    solution = np.linalg.lstsq(augmented[:, [*range(8), 12]], x[:, 8:])[0]
    exact = solution[:8].T, solution[8]
    least = penalized(shares, constants)
    assert least <= penalized(*exact) * (1 + 1e-9)
    if ridge is not None:
        assert error(shares, constants) < error(*exact) * (1 + 1e-6)
    for _ in range(20):
        change = rng.normal(0, 0.01, shares.shape)
        assert penalized(shares + change, constants) > least
        assert penalized(shares, constants + rng.normal(0, 0.01, 4)) > least


both_families = pytest.mark.parametrize(
    ("arch", "dims", "smaller"),
    [
        (BIG, DIMS, {"hidden": 16, "heads": 2, "ffn": 24}),
        (MOBILE, MOBILE_DIMS, {"hidden": 12, "bottleneck": 9, "ffn": 12}),
    ],
    ids=["bert", "mobilebert"],
)


@both_families
def test_every_product_is_the_best_of_what_stays(
    arch, dims, smaller, texts, monkeypatch
):
    """Of all products that read the kept channels, with a bias, each is the nearest to
    the whole one on the text: the squared error has no slope left."""
    monkeypatch.setattr(fold_module, "_RIDGE", 1e-9)
    module, params = redundant(arch, dims)
    small = dataclasses.replace(arch, **smaller)
    moments = input_moments(module, params, texts)
    folded = fold(module, params, small, moments)
    for reader in stream_readers(module):
        full, cut = (_product(of, reader) for of in (params, folded))
        size = full.shape[-2] - 1
        num_kept = small.num_channels(stream_axis(small, reader.stream))
        assert num_kept < size
        stays, dropped = [*range(num_kept), size], slice(num_kept, size)
        assert np.array_equal(cut[..., dropped, :], full[..., dropped, :])
        moment = moments[reader.kernel]
        lead = moment.shape[:-2] + (1,) * (full.ndim - moment.ndim)
        moment = moment.reshape(*lead, size + 1, size + 1)
        slopes = []
        for product in (cut, full):  # The full one's rows: what a slice leaves.
            error = product - full
            error[..., dropped, :] = -full[..., dropped, :]
            slopes.append(np.abs((moment @ error)[..., stays, :]).max())
        assert slopes[0] < 1e-3 * slopes[1], reader


def _product(params, reader):
    """A product's matrix, its bias as the last row, [..., in + 1, out]."""
    kernel, bias = (
        np.asarray(params[name], np.float64) for name in (reader.kernel, reader.bias)
    )
    lead = kernel.shape[: reader.axis]
    kernel = kernel.reshape(*lead, kernel.shape[reader.axis], -1)
    return np.concatenate([kernel, bias.reshape(*lead, 1, -1)], axis=-2)


@both_families
def test_a_folded_cut_is_nearer_to_the_whole(arch, dims, smaller, texts):
    module, params = redundant(arch, dims)
    small = dataclasses.replace(arch, **smaller)
    full_hidden = outputs(module, params, texts[0]).hidden[..., : small.hidden]
    pruned = prune(module, params, small, range(arch.layers), texts)
    sliced = extract.extract(params, arch, small)
    errors = [
        np.square(
            outputs(build.build_module(small, dims), p, texts[0]).hidden - full_hidden
        )
        for p in (pruned, sliced)
    ]
    assert errors[0].mean() < 0.9 * errors[1].mean()
    # The LayerNorms and what only writes are the slice's.
    for name, value in pruned.items():
        if "norm" in name or name.startswith("embeddings"):
            assert np.array_equal(value, sliced[name]), name


def test_what_drops_nothing_changes_nothing(texts):
    module, params = redundant(BIG, DIMS)
    moments = input_moments(module, params, texts)
    for name, value in fold(module, params, BIG, moments).items():
        assert np.array_equal(value, params[name]), name
    pruned = prune(module, params, dataclasses.replace(BIG, layers=2), (1, 3), texts)
    assert np.array_equal(
        pruned["layers_ffn_in_bias"], params["layers_ffn_in_bias"][[1, 3]]
    )


def test_moments_are_of_real_tokens_alone(texts):
    """Against the definition, layer by layer; padding weighs nothing."""
    module, params = redundant(BIG, DIMS)
    batch = {name: x.copy() for name, x in texts[0].items()}
    batch["attention_mask"][:, 4:] = 0
    moments = input_moments(module, params, [batch])
    states = outputs(module, params, batch, states=True).states
    for i in range(BIG.layers):
        x = states[i][:, :4].reshape(-1, BIG.hidden).astype(np.float64)
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        moment = moments["layers_qkv_kernel"][i]
        assert np.abs(moment - x.T @ x / len(x)).max() < 1e-4
    last = states[-1][:, :4].reshape(-1, BIG.hidden)
    assert np.abs(moments[OUTPUT][-1, :-1] - last.mean(axis=0)).max() < 1e-5


def test_projections_start_where_they_fit_best(texts):
    """Of a slice of the teacher itself: no change of the map does better."""
    module, params = redundant(BIG, DIMS)
    small = dataclasses.replace(BIG, hidden=16)
    student = build.build_module(small, DIMS)
    sliced = extract.extract(params, BIG, small)
    pooled, tokens = fit_projections(student, sliced, module, params, texts, "mean")
    assert tokens.shape == (16, 24)
    np.testing.assert_array_equal(pooled, tokens)  # A mean of states is mapped as they.

    def of_both(output):
        return (
            np.concatenate([output(outputs(m, p, batch)) for batch in texts])
            for m, p in ((student, sliced), (module, params))
        )

    def error(x, y, mapping):
        return np.square(x @ mapping - y).sum()

    x, y = of_both(lambda out: out.hidden.reshape(-1, out.hidden.shape[-1]))
    rng = np.random.default_rng(0)
    for _ in range(10):
        worse = tokens + rng.normal(0, 0.1, tokens.shape)
        assert error(x, y, tokens) < error(x, y, worse)
    assert error(x, y, tokens) < error(x, y, np.eye(16, 24))
    # A pooler's output is no mean of states.
    of_pooler, tokens_too = fit_projections(
        student, sliced, module, params, texts, "pooler"
    )
    np.testing.assert_array_equal(tokens, tokens_too)
    x, y = of_both(lambda out: out.pooler)
    assert error(x, y, of_pooler) < min(
        error(x, y, np.eye(16, 24)), error(x, y, tokens)
    )
