"""Are the layers that are layers those that the evidence speaks for?"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_outputs import arrays, outputs
from tiny_networks import DIMS

from autodistill_jax.archs.arch import Arch, MobileArch
from autodistill_jax.archs.cost import MOBILEBERT_DIMS
from autodistill_jax.archs.space import Space
from autodistill_jax.errors import UserError
from autodistill_jax.models import build, extract
from autodistill_jax.models.bert import Bert
from autodistill_jax.pruning.depth import make_layer_loss, named_layers, nested_layers
from autodistill_jax.train import losses
from autodistill_jax.train.objective import Objective

TEACHER = Arch(12, 16, 2, 24, 8)


@pytest.fixture(scope="module")
def teacher():
    """Twelve random layers, of which five do far more than the others."""
    module, rng = Bert(TEACHER, DIMS), np.random.default_rng(1)
    strong = np.isin(np.arange(12), (1, 4, 6, 7, 11))
    params = {}
    for name, value in build.init_params(module, jax.random.key(0)).items():
        noise = 0.0 if "norm" in name else 0.3  # Else each layer would rescale.
        x = np.asarray(value) + rng.normal(0, noise, value.shape).astype(np.float32)
        writes = name.startswith(("layers_attention_kernel", "layers_ffn_out"))
        if writes or name == "layers_attention_bias":
            x = x * np.where(strong, 1.0, 0.02).reshape(-1, *(1,) * (x.ndim - 1))
        params[name] = x
    return module, params


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 60, (32, 6)).astype(np.int32)
    return {"input_ids": jnp.asarray(ids), "attention_mask": jnp.ones_like(ids)}


def test_the_layers_that_do_something_are_kept(teacher, rows):
    """A second teacher, of twelve random layers: greedily, and nested."""
    module, params = teacher
    objective = Objective({"pooled": 1.0, "layers": 1.0}, layer_map=(0,))

    loss_fn = make_layer_loss(module, params, objective, rows)
    table = nested_layers(12, (5,), loss_fn)
    assert set(table[5]) == {1, 4, 6, 7, 11}
    assert all(set(table[depth]) < set(table[depth + 1]) for depth in range(1, 12))
    # The score is the loss of the network that keeps these layers alone.
    layers = (1, 4, 11)
    student = extract.extract(params, TEACHER, Arch(3, 16, 2, 24, 8), layers)
    pooled = [
        outputs(m, p, rows).hidden.mean(axis=1)
        for m, p in ((Bert(Arch(3, 16, 2, 24, 8), DIMS), student), (module, params))
    ]
    expected = losses.cosine_distance(*map(jnp.asarray, pooled)).mean()
    assert loss_fn([layers])[0] == pytest.approx(float(expected), abs=1e-5)


def test_a_mobilebert_is_scored_by_what_it_keeps(rows):
    arch = MobileArch(3, 16, 12, 3, 20, 2)
    dims = MOBILEBERT_DIMS._replace(vocab=60, positions=16, embedding=10)
    module = build.build_module(arch, dims)
    params = build.init_params(module, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = {k: x + rng.normal(0, 0.3, x.shape) for k, x in params.items()}
    loss_fn = make_layer_loss(module, params, Objective({"pooled": 1.0}), rows)
    shallow = dataclasses.replace(arch, layers=2)
    student = extract.extract(params, arch, shallow, (0, 2))
    networks = ((build.build_module(shallow, dims), student), (module, params))
    pooled = [outputs(m, p, rows).hidden.mean(axis=1) for m, p in networks]
    expected = losses.cosine_distance(*map(jnp.asarray, pooled)).mean()
    assert expected > 1e-3
    assert loss_fn([(0, 2)])[0] == pytest.approx(float(expected), rel=1e-3)


def test_of_few_layers_every_set_is_scored():
    """The chain with the least sum of losses, each relative to its depth's best."""
    rng, scored = np.random.default_rng(0), {}

    def loss_fn(layer_sets):
        values = rng.uniform(1, 2, len(layer_sets)).tolist()
        scored.update(zip(layer_sets, values))
        return values

    table = nested_layers(4, (1, 2, 3), loss_fn)
    assert len(scored) == 2**4 - 2 and table[4] == (0, 1, 2, 3)
    best = {
        depth: min(v for s, v in scored.items() if len(s) == depth)
        for depth in (1, 2, 3)
    }

    def total(chain):
        return sum(scored[layers] / best[len(layers)] for layers in chain)

    chains = [
        [tuple(sorted(order[:depth])) for depth in (1, 2, 3)]
        for order in itertools.permutations(range(4))
    ]
    chosen = [table[depth] for depth in (1, 2, 3)]
    assert chosen in chains
    assert total(chosen) == pytest.approx(min(map(total, chains)))


def test_depths_that_are_not_needed_go_with_those_that_are():
    """Layer i adds 2^i, but not in pairs of 0 and 5, which are best of all."""
    scored = []

    def loss_fn(layer_sets):
        scored.extend(layer_sets)
        return [
            1.0 if layers == (0, 5) else 100.0 - sum(2**i for i in layers)
            for layers in layer_sets
        ]

    table = nested_layers(6, (2, 4), loss_fn)
    assert table == {
        1: (5,),
        2: (0, 5),
        3: (0, 4, 5),
        4: (0, 3, 4, 5),
        5: (0, 2, 3, 4, 5),
        6: (0, 1, 2, 3, 4, 5),
    }
    # All sets of the depths needed, and of the others what lies between these.
    assert len(scored) == 15 + 15 + 2 + 2 + 2


def test_a_super_lm_runs_the_layers_of_its_table(teacher, rows):
    """Each depth is the extracted student of the same layers."""
    _, params = teacher
    stack = Arch(4, 16, 2, 24, 8)
    params = extract.extract(params, TEACHER, stack, (1, 4, 6, 11))
    space = Space(
        layers=(1, 2, 4), hidden=(8, 16), heads=(1, 2), ffn=(24,), head_size=8
    )
    table = ((3,), (0, 3), (0, 1, 2, 3))
    superlm = Bert(stack, DIMS, space=space, kept_layers=table)
    run = jax.jit(
        lambda p, arch: (
            superlm.apply(
                {"params": p}, rows["input_ids"], rows["attention_mask"], arch
            ).hidden
        )
    )
    for layers in table:
        arch = Arch(len(layers), 8, 1, 24, 8)
        student = extract.extract(params, stack, arch, layers)
        alone = outputs(Bert(arch, DIMS), student, rows).hidden
        assert np.abs(run(params, arrays(arch))[..., :8] - alone).max() < 1e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("last", "must be evidence, paper, or sets of layers"),
        ("0,0", "'0,0' are not rising layers out of 0 to 5"),
        ("0,6", "'0,6' are not rising layers out of 0 to 5"),
        ("0,5", "has no set of 3 layers, a depth of the space"),
    ],
)
def test_bad_names(text, message):
    with pytest.raises(UserError, match=message):
        named_layers(text, 6, (2, 3))


def test_named_layers():
    assert named_layers("0,5; 0, 3,5", 6, (2, 3)) == {2: (0, 5), 3: (0, 3, 5)}
    assert named_layers("evidence", 6, (2, 3)) == named_layers("paper", 6, (2,)) == {}
