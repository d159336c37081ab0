"""Is a bound that no Arch is near refused, and are doubtful latencies taken again?"""

from types import SimpleNamespace

import pytest
from etils import epath
from tiny_networks import BIG, DIMS, SPACE

from autodistill_jax.archs.budget import parse_budgets
from autodistill_jax.archs.cost import cost
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import student_latencies
from autodistill_jax.experiment.base_config import base_config
from autodistill_jax.experiment.experiment import latency_conditions
from autodistill_jax.latency import measure


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


def test_a_measured_latency_near_the_bound_is_taken_again(monkeypatch, tmp_path):
    config = base_config()
    config.latency.update(target="", max_measurements=10)
    archs = list(SPACE)
    rounds = dict.fromkeys([BIG, *archs], 0)

    def measure_latency(networks, **_):
        records = {}
        for name, (arch, *_) in networks.items():
            rounds[arch] += 1
            # The first round of each but the teacher is 2 % too slow.
            is_slow = arch != BIG and rounds[arch] == 1
            seconds = cost(arch, DIMS)["flops"] * (1.02 if is_slow else 1.0)
            conditions = latency_conditions(config).record()
            records[name] = dict.fromkeys(("seconds", "minimum", "spread"), seconds)
            records[name] |= conditions
        return records

    monkeypatch.setattr(measure, "measure_latency", measure_latency)
    best = archs[len(archs) // 2]
    bound = 1.01 * cost(best, DIMS)["flops"]
    experiment = SimpleNamespace(
        config=config,
        budgets=parse_budgets(
            config.budget.to_dict() | {"flops_fraction": 0, "latency_ms": 1e3 * bound}
        ),
        teacher=SimpleNamespace(arch=BIG, dims=DIMS, params={}),
        spaces={"main": SPACE},
        affordable=dict.fromkeys(archs, "main"),
        dims=DIMS,
        cost=lambda arch: cost(arch, DIMS),
        archs_within=lambda archs, budget: list(archs),
        extract_student=lambda *_: {},
    )
    latencies = student_latencies.latencies_at_bound(
        experiment,
        epath.Path(tmp_path),
        {"main": {"encoder": {}}},
        {arch: -cost(arch, DIMS)["flops"] for arch in archs},
        "search",
    )
    assert sum(rounds[arch] for arch in archs if arch != BIG) <= 10
    assert rounds[best] > 1 and latencies[str(best)]["rounds"] == rounds[best]
    assert latencies[str(best)]["seconds"] <= bound
