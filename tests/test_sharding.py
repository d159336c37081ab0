"""Is training the same on any mesh, and does no device hold more than its part?"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sharded_distillation as sharded
from jax.sharding import PartitionSpec as P
from processes import start_processes
from tiny_networks import mesh_of

from autodistill_jax import sharding
from autodistill_jax.errors import UserError
from autodistill_jax.models import build, elastic_vjp
from autodistill_jax.models.bert import Bert
from autodistill_jax.train import optimizer

PROGRAM = Path(sharded.__file__)


@pytest.fixture(scope="module")
def alone():
    """On one device."""
    return np.asarray(sharded.losses(mesh_of(1)))


@pytest.mark.parametrize(
    ("axes", "more"),
    [
        ({}, {}),
        ({"fsdp": 4, "tensor": 2}, {}),
        ({"fsdp": 2, "tensor": 2}, {"remat": True, "parts": 2}),
    ],
    ids=["data", "fsdp x tensor", "all three, accumulated, rematerialised"],
)
def test_every_mesh_gives_the_same_losses(alone, axes, more):
    losses = np.asarray(sharded.losses(mesh_of(8, **axes), **more))
    assert len(losses) == sharded.STEPS and alone[-1] < alone[0]
    assert np.abs(losses / alone - 1).max() < 1e-5


@pytest.mark.multihost
def test_two_processes_of_four_devices_give_the_same_losses(alone):
    axes = json.dumps({"data": -1, "tensor": 2})
    first, second = start_processes(4, axes, program=PROGRAM, processes=2)
    assert first == second
    assert np.abs(np.asarray(first) / alone - 1).max() < 1e-5


@pytest.mark.multihost
def test_no_device_holds_more_as_devices_are_added():
    """At the same rows a device: whatever was whole would grow with the batch."""
    few, many = start_processes(64, program=PROGRAM)
    assert many < 1.15 * few


def test_parameters_and_moments_lie_by_their_axes():
    mesh = mesh_of(8, fsdp=2, tensor=2)
    # The program of the equal losses, so that it is compiled once.
    state, step, inputs = sharded.program(mesh, remat=True, parts=2)
    state, _ = step(state, *inputs(0))
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    count = 0
    for name, spec in {
        "layers_qkv_kernel": P(None, "fsdp", None, "tensor"),
        "layers_ffn_out_kernel": P(None, "tensor", "fsdp"),
        "embeddings_word": P(None, "fsdp"),
        "layers_ffn_in_bias": P(),
        "linear_projection_hidden": P(None, "fsdp"),
    }.items():
        for path, leaf in leaves:
            if getattr(path[-1], "key", "") == name:
                expected = jax.NamedSharding(mesh, spec)
                assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), path
                count += 1
    # Each with its moments: one of the two kernels, which are Muon's, two of the others.
    assert count == 2 * 2 + 3 * 3
    # What the first axes cannot give, another one does: 61 x 30 over 8 is whole.
    fsdp_mesh = mesh_of(8, data=1, fsdp=8)
    assert sharding.param_spec(("vocab", "hidden"), (64, 30), fsdp_mesh) == P(
        "fsdp", None
    )
    assert sharding.param_spec(("vocab", "hidden"), (61, 30), fsdp_mesh) == P(
        None, None
    )


def test_every_device_has_the_same_share_of_every_sub_network():
    """Dealt out, the channels in use are as many in each part, and the right ones."""
    size, unit, parts = 48, 4, 3
    channels = jnp.arange(size)
    dealt = sharding.interleave(channels, 0, parts, unit)
    assert (sharding.deinterleave(dealt, 0, parts, unit) == channels).all()
    for n in (12, 24, 36, 48):
        in_use = np.asarray(dealt < n).reshape(parts, -1)
        assert (in_use.sum(axis=1) == n // parts).all()
        # `elastic` takes the first of each part.
        (chosen,) = elastic_vjp.slice_args(
            [dealt], [("heads",)], {"heads": n}, {"heads": parts}
        )
        assert sorted(chosen.tolist()) == list(range(n))


def test_the_smallest_sub_network_computes_a_part_on_every_device():
    """Its products are compiled at a device's share: rows / 4, channels / 2."""
    mesh = mesh_of(8, data=4, fsdp=1, tensor=2)
    superlm = Bert(
        sharded.SPACE.largest(), sharded.DIMS, space=sharded.SPACE, mesh=mesh
    )
    params = build.init_params(superlm, jax.random.key(0))
    params = sharding.place_params(params, build.param_axes(superlm), mesh)
    ids = jax.ShapeDtypeStruct(
        (8, 6), jnp.int32, sharding=sharding.batch_sharding(mesh)
    )
    arch = jax.tree.map(jnp.int32, sharded.SPACE.smallest())
    run = jax.jit(lambda p, ids, arch: superlm.apply({"params": p}, ids, ids, arch))
    text = run.lower(params, ids, arch).compile().as_text()
    # 2 rows x 6 tokens; 16 channels in; 24 ffn channels, of which a device has 12.
    assert "f32[12,12]" in text and "f32[16,12]" in text


def test_a_mean_over_parts_is_the_mean_over_the_batch():
    rows = {"x": jnp.arange(24.0).reshape(12, 2)}
    grads = optimizer.accumulate_gradients(
        lambda rows, part: rows["x"].mean(axis=0), rows, 3
    )
    assert np.allclose(grads, rows["x"].mean(axis=0))


def test_sizes_that_tensor_does_not_divide_are_refused():
    mesh = mesh_of(8, tensor=2)
    sharding.check_tensor_split(mesh, "heads", [4, 8])
    with pytest.raises(
        UserError, match=r"mesh\.tensor is 2, .* heads=3 .* divisor of 1"
    ):
        sharding.check_tensor_split(mesh, "heads", [2, 3, 4])
