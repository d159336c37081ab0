"""Is a teacher in another order the same teacher, and do its first channels carry most?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_outputs import outputs
from tiny_networks import BIG, DIMS

from autodistill_jax.archs.arch import MobileArch
from autodistill_jax.archs.cost import MOBILEBERT_DIMS
from autodistill_jax.experiment.evidence import reordered_teacher
from autodistill_jax.interop.huggingface import Teacher
from autodistill_jax.models import build, heads
from autodistill_jax.pruning import order, streams
from autodistill_jax.pruning.moments import input_moments

MOBILE = MobileArch(2, 16, 12, 3, 20, 2)
MOBILE_DIMS = MOBILEBERT_DIMS._replace(vocab=60, positions=16, embedding=10)
NETWORKS = {
    "bert": (BIG, DIMS),
    "electra": (BIG, DIMS._replace(family="electra", embedding=10, pooler=False)),
    "mobilebert": (MOBILE, MOBILE_DIMS),
    "ib-bert": (MOBILE, MOBILE_DIMS._replace(attention_input="stream")),
    "bottleneck": (MOBILE, MOBILE_DIMS._replace(attention_input="bottleneck")),
}


def network(name):
    """A random network, whose channels carry unequally much."""
    module = build.build_module(*NETWORKS[name])
    rng = np.random.default_rng(1)
    return module, {
        key: np.asarray(value)
        + rng.normal(0, 0.2, value.shape) * rng.uniform(0.2, 2, value.shape[-1:])
        for key, value in build.init_params(module, jax.random.key(0)).items()
    }


@pytest.fixture(scope="module", params=NETWORKS)
def ordered(request, texts):
    module, params = network(request.param)
    moments = input_moments(module, params, texts)
    return module, params, moments, order.channel_orders(module, params, moments)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(3):
        real = np.arange(6) < rng.integers(3, 7, (8, 1))
        ids = rng.integers(1, 60, (8, 6)).astype(np.int32)
        rows.append({"input_ids": ids * real, "attention_mask": real.astype(np.int32)})
    return rows


def test_a_permuted_teacher_is_the_teacher(ordered, texts):
    module, params, _, orders = ordered
    teacher = Teacher(
        module.arch,
        module.dims,
        params,
        "mean",
        True,
        None,
        mlm_head=_random_head(module),
        nsp_head=heads.init_nsp_head(module.arch.hidden, jax.random.key(2)),
    )
    permuted = reordered_teacher(teacher, orders)
    assert any(not np.array_equal(permuted.params[k], params[k]) for k in params)
    outputs_before = outputs(module, teacher.params, texts[0])
    outputs_after = outputs(module, permuted.params, texts[0])
    real = texts[0]["attention_mask"].astype(bool)
    difference = np.abs(
        outputs_after.hidden - outputs_before.hidden[..., orders["hidden"]]
    )
    assert difference[real].max() < 1e-5
    mlm, nsp = (
        [
            give(t, out)
            for t, out in ((teacher, outputs_before), (permuted, outputs_after))
        ]
        for give in (
            lambda t, out: _mlm_logits(module, t, out),
            lambda t, out: heads.nsp_logits(t.nsp_head, out.pooler),
        )
    )
    assert np.abs(mlm[0] - mlm[1]).max() < 1e-4
    assert np.abs(nsp[0] - nsp[1]).max() < 1e-5


def _random_head(module):
    rng = np.random.default_rng(3)
    head = heads.init_mlm_head(module.arch.hidden, module.dims)
    return {k: np.asarray(v) + rng.normal(0, 0.1, v.shape) for k, v in head.items()}


def _mlm_logits(module, teacher, out):
    return heads.mlm_logits(
        teacher.mlm_head,
        jnp.asarray(teacher.params["embeddings_word"]),
        out.hidden,
        jnp.asarray([[1, 2]] * 8),
        module.arch.hidden,
        module.dims,
    )


def test_the_first_channels_carry_most(ordered, texts):
    """The moments of the permuted network fall from channel to channel."""
    module, params, _, orders = ordered
    permuted = streams.reorder(params, streams.param_streams(module), orders)
    moments = input_moments(module, permuted, texts)
    orders_again = order.channel_orders(module, permuted, moments)
    for stream, indices in orders_again.items():
        assert (indices == np.arange(indices.shape[-1])).all(), stream
