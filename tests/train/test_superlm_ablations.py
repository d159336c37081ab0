"""Do the variants of a SuperLM's training change what they say, and nothing else?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import superlm_ablations as ablations
from tiny_networks import BIG, DIMS, SPACE

from autodistill_jax.archs.cost import cost
from autodistill_jax.experiment.base_config import base_config
from autodistill_jax.interop.huggingface import Teacher
from autodistill_jax.models import build, encoder, heads
from autodistill_jax.models.bert import Bert
from autodistill_jax.train import distillation, sandwich
from autodistill_jax.train.objective import parse_objective

OBJECTIVE = parse_objective(
    base_config().distill.to_dict() | {"losses": "pooled+3*cosine"},
    [SPACE],
    Teacher(BIG, DIMS, {}, "mean", True, None),
)


@pytest.fixture(scope="module")
def superlm():
    """(module, its parameters and projections, a batch, targets)."""
    module = Bert(BIG, DIMS, space=SPACE)
    params = build.init_params(module, jax.random.key(0))
    params = {k: v * 10 if k.endswith("kernel") else v for k, v in params.items()}
    params |= distillation.init_projections(OBJECTIVE, BIG.hidden, BIG.hidden)
    rng = np.random.default_rng(0)
    batch = {
        "input_ids": rng.integers(1, 60, (4, 6)).astype(np.int32),
        "attention_mask": np.ones((4, 6), np.int8),
        # Every other row stands further on.
        "position_ids": np.arange(6) + np.asarray([[0], [2]] * 2),
    }
    targets = {
        "hidden": rng.normal(size=(4, 6, BIG.hidden)).astype(np.float32),
        "embedding": rng.normal(size=(4, BIG.hidden)).astype(np.float32),
    }
    return module, params, batch, targets


def sizes(arch):
    return jax.tree.map(lambda x: x[0], sandwich.stack_archs([arch]))


def losses(superlm, arch, variant="recipe", params=None):
    module, start, batch, targets = superlm
    with ablations.changed_sandwich(variant, SPACE, DIMS):
        values = jax.jit(
            lambda *args: distillation.distillation_losses(
                module, *args[:3], OBJECTIVE, args[3]
            )
        )(params or start, batch, targets, sizes(arch))
    return np.asarray(values["total"])


def test_each_gradient_has_norm_1():
    with ablations.changed_sandwich("normed_gradients", SPACE, DIMS):
        grads, value = jax.grad(lambda x: (3 * x.sum(), 5), has_aux=True)(jnp.ones(4))
    np.testing.assert_allclose(grads, 0.5)
    assert value == 5


def test_random_ones_come_from_all_bands():
    flops = {arch: cost(arch, DIMS)["flops"] for arch in SPACE}
    median = np.median(list(flops.values()))
    random_pairs = set()
    with ablations.changed_sandwich("bands", SPACE, DIMS):
        for step in range(4):
            largest, smallest, *random_archs = sandwich.sandwich_archs(
                SPACE, 2, 0, step
            )
            assert (largest, smallest) == (SPACE.largest(), SPACE.smallest())
            low, high = (flops[arch] for arch in random_archs)
            assert low <= median <= high
            random_pairs.add(tuple(random_archs))
    assert len(random_pairs) > 1


def test_smaller_ones_learn_from_the_largest(superlm):
    module, params, batch, _ = superlm
    largest, smallest = SPACE.largest(), SPACE.smallest()
    np.testing.assert_allclose(
        losses(superlm, largest, "from_largest"), losses(superlm, largest), rtol=1e-5
    )
    out = module.apply(
        {"params": heads.encoder_params(params)},
        batch["input_ids"],
        batch["attention_mask"],
        sizes(largest),
        position_ids=batch["position_ids"],
    )
    embedding = encoder.pool_tokens(
        out.hidden, out.pooler, batch["attention_mask"], "mean"
    )
    said = {"hidden": out.hidden, "embedding": embedding}  # Projections are identities.
    of_largest = losses((module, params, batch, said), smallest)
    of_teacher = losses(superlm, smallest)
    np.testing.assert_allclose(
        losses(superlm, smallest, "from_largest"),
        (of_largest + of_teacher) / 2,
        rtol=1e-5,
    )


def test_each_width_has_its_own_norms(superlm):
    start = superlm[1]
    params = start | ablations.own_norms(start, SPACE)
    # At first they are copies; then each is its width's alone.
    narrow, wide = SPACE[len(SPACE) // 6], SPACE.largest()
    args = ("own_norms", params)
    np.testing.assert_allclose(losses(superlm, narrow, *args), losses(superlm, narrow))
    changed = params | {
        name: x * 2 for name, x in params.items() if f"of_{narrow.hidden}_" in name
    }
    assert len(set(changed) - set(start)) == 2 * 6  # Two widths, six norms' parts.
    args = ("own_norms", changed)
    np.testing.assert_allclose(losses(superlm, wide, *args), losses(superlm, wide))
    assert np.abs(losses(superlm, narrow, *args) - losses(superlm, narrow)).max() > 1e-3


def test_their_axes_are_those_of_the_norms():
    module = Bert(BIG, DIMS, space=SPACE)
    plain = build.param_axes(module)
    with ablations.changed_sandwich("own_norms", SPACE, DIMS):
        axes = build.param_axes(module)
    new_axes = {name: axes[name] for name in set(axes) - set(plain)}
    assert len(new_axes) == 12
    for name, value in new_axes.items():
        assert value == plain[name.split("_", 4)[-1]]
