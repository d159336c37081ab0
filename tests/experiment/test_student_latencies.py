"""Is a latency bound that no Arch is near refused before anything is trained?"""

from types import SimpleNamespace

import pytest
from tiny_networks import BIG, DIMS, SPACE

from autodistill_jax.archs.budget import parse_budgets
from autodistill_jax.archs.cost import cost
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import student_latencies
from autodistill_jax.experiment.base_config import base_config


@pytest.mark.parametrize(
    ("milliseconds", "bounds", "refused"),
    [
        (1.0, {"latency_ms": 0.8}, False),  # Perhaps the machine was busy.
        (1.0, {"latency_ms": 0.5}, True),
        (1.0, {"latency_ms": (2.0, 0.5)}, True),
        (1.0, {"latency_fraction": 0.05}, True),  # The teacher takes 10 ms.
        (1.0, {"flops_fraction": 0.01}, False),
    ],
)
def test_a_bound_far_below_the_smallest_is_refused(
    monkeypatch, milliseconds, bounds, refused
):
    config = base_config()
    experiment = SimpleNamespace(
        config=config,
        budgets=parse_budgets(config.budget.to_dict() | {"flops_fraction": 0} | bounds),
        teacher=SimpleNamespace(arch=BIG, dims=DIMS, params={}),
        spaces={"main": SPACE},
        dims=DIMS,
        cost=lambda arch: cost(arch, DIMS),
    )

    def take_latencies(table, networks, *_):
        assert networks["smallest"][0] == SPACE.smallest()
        seconds = {"teacher": 10e-3, "smallest": milliseconds / 1e3}
        return {name: {"seconds": seconds[name], "source": "x"} for name in networks}

    monkeypatch.setattr(
        student_latencies.latency_table, "take_latencies", take_latencies
    )
    if not refused:
        student_latencies.check_latency_bound(experiment)
        return
    with pytest.raises(UserError, match="excludes all measured Archs: the nearest"):
        student_latencies.check_latency_bound(experiment)
