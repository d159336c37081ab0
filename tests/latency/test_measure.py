"""Is a latency what the profiler saw, with all that it depends on beside it?"""

import dataclasses
import json
from types import SimpleNamespace as Record

import jax
import numpy as np
import pytest
from etils import epath
from tiny_networks import DIMS

from autodistill_jax.archs.arch import Arch
from autodistill_jax.errors import UserError
from autodistill_jax.latency import calibration, measure, table
from autodistill_jax.models import build
from autodistill_jax.models.bert import Bert


def test_measured_on_this_device():
    arch = Arch(2, 24, 3, 48, 8)
    params = build.init_params(Bert(arch, DIMS), jax.random.key(0))
    # A student out of a SuperLM lies on all devices; one pass is of one.
    mesh = jax.make_mesh((8,), ("data",))
    spread = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    networks = {"one": (arch, DIMS, params), "other": (arch, DIMS, spread)}
    records = measure.measure_latency(
        networks, batch=1, length=8, dtype="float32", runs=12
    )
    assert records.keys() == networks.keys()
    record = records["other"]
    assert record["source"] == "measured" and record["runs"] == 12
    assert 0 < record["minimum"] <= record["seconds"] < 1
    assert record["device"].startswith("CPU") and record["arch"] == str(arch)
    assert (record["batch"], record["length"], record["dtype"]) == (1, 8, "float32")


def test_what_the_machine_has_become_slower_since_is_divided_out(monkeypatch):
    arch = Arch(2, 24, 3, 48, 8)
    smaller = dataclasses.replace(arch, layers=1)
    seconds = {"teacher": 10e-3, "student": 4e-3}

    def measure_latency(networks, **settings):
        return {
            name: {"seconds": s, "minimum": s / 2, "spread": s / 4}
            | conditions.record()
            for name, s in seconds.items()
            if name in networks
        }

    monkeypatch.setattr(measure, "measure_latency", measure_latency)
    conditions = table.LatencyConditions("", 1, 8, "float32", 12)
    latencies = table.empty_table()

    def take(once_more=(), **networks):
        return table.take_latencies(
            latencies,
            {name: (a, DIMS, {}) for name, a in networks.items()},
            conditions,
            True,
            lambda _: None,
            reference="teacher",
            once_more=once_more,
        )

    first = take(teacher=arch)["teacher"]
    assert first["seconds"] == 10e-3 and "drift" not in first
    seconds["teacher"] = 20e-3  # Twice as slow: the student, too.
    records = take(teacher=arch, student=smaller)
    assert records["teacher"] == first  # As it was first measured.
    assert records["student"]["drift"] == 2
    assert records["student"]["seconds"] == pytest.approx(2e-3)
    assert records["student"]["minimum"] == pytest.approx(1e-3)
    assert records["student"]["spread"] == pytest.approx(0.5e-3)
    # Measured twice more, the student's latency is the mean of three rounds.
    for seconds["student"] in (5e-3, 6e-3):
        records = take(teacher=arch, student=smaller, once_more=["student"])
    assert records["student"]["seconds"] == pytest.approx((2e-3 + 2.5e-3 + 3e-3) / 3)
    assert records["student"]["minimum"] == pytest.approx(1e-3)
    assert records["student"]["rounds"] == 3 and records["teacher"] == first
    assert take(student=smaller)["student"] == records["student"]


def test_longer_work_takes_longer():
    def short_work(x):
        return x @ x

    def long_work(x):
        for _ in range(8):
            x = x @ x
        return x

    x = jax.numpy.eye(256)
    calls = [(short_work, (x,)), (long_work, (x,))]
    short, long = map(np.median, measure.device_times(calls, 10))
    assert long > 2 * short


def event(name, start, duration, **stats):
    return Record(name=name, start_ns=start, duration_ns=duration, stats=stats.items())


def planes(name, line, *events):
    lines = [Record(name=line, events=events), Record(name="Steps", events=[])]
    return Record(planes=[Record(name=name, lines=lines)])


def test_planes_of_other_devices():
    """The documented layouts; times in nanoseconds."""
    tpu = planes(
        "/device:TPU:0",
        "XLA Modules",
        event("jit_f(123)", 0, 2000),
        event("jit_other(5)", 2000, 9000),
        event("jit_f(123)", 20000, 4000),
    )
    assert np.allclose(measure.execution_seconds(tpu, "jit_f", 2), [2e-6, 4e-6])
    gpu = planes(
        "/device:GPU:0",
        "Stream #7(compute)",
        event("gemm", 0, 500, hlo_module="jit_f", run_id=1),
        event("softmax", 700, 300, hlo_module="jit_f", run_id=1),
        event("gemm", 5000, 600, hlo_module="jit_f", run_id=2),
    )
    assert np.allclose(measure.execution_seconds(gpu, "jit_f", 2), [1e-6, 0.6e-6])
    kernels = [event("k", s, 100, hlo_module="jit_f") for s in (0, 300, 5000, 5900)]
    gpu = planes("/device:GPU:0", "Stream #7(compute)", *kernels)
    assert np.allclose(measure.execution_seconds(gpu, "jit_f", 2), [0.4e-6, 1e-6])
    with pytest.raises(UserError, match="gave 0 executions of jit_f, needed 3"):
        measure.execution_seconds(gpu, "jit_f", 3)


def test_refusals():
    trace = planes("/device:CUSTOM:0", "ops", event("jit_f", 0, 1))
    with pytest.raises(UserError, match="it saw the planes /device:CUSTOM:0"):
        measure.execution_seconds(trace, "jit_f", 1)
    with pytest.raises(UserError, match=r"latency\.runs is 3"):
        measure.device_times([(lambda x: x, (1,))], 3)


def test_planes_of_a_tpu_as_recorded():
    """The documented layout, through the profiler's own reader; in picoseconds."""
    text = """
    planes { name: "/device:TPU:0"
      lines { id: 1 name: "XLA Modules" timestamp_ns: 1000
        events { metadata_id: 7 offset_ps: 0 duration_ps: 2000000 }
        events { metadata_id: 8 offset_ps: 2000000 duration_ps: 9000000 }
        events { metadata_id: 7 offset_ps: 20000000 duration_ps: 4000000 } }
      lines { id: 2 name: "XLA Ops" timestamp_ns: 1000
        events { metadata_id: 9 offset_ps: 0 duration_ps: 500000 } }
      event_metadata { key: 7 value { id: 7 name: "jit_f(123)" } }
      event_metadata { key: 8 value { id: 8 name: "jit_other(5)" } }
      event_metadata { key: 9 value { id: 9 name: "fusion.1" } } }
    planes { name: "/device:TPU:1"
      lines { id: 1 name: "XLA Modules" timestamp_ns: 1000
        events { metadata_id: 7 offset_ps: 0 duration_ps: 7000000 } }
      event_metadata { key: 7 value { id: 7 name: "jit_f(123)" } } }
    """
    recorded = jax.profiler.ProfileData.from_text_proto(text)
    assert np.allclose(measure.execution_seconds(recorded, "jit_f", 2), [2e-6, 4e-6])
    with pytest.raises(UserError, match="planes /device:TPU:0, /device:TPU:1"):
        measure.execution_seconds(recorded, "jit_g", 2)


def test_planes_of_a_gpu_as_recorded():
    text = """
    planes { name: "/device:GPU:0"
      lines { id: 1 name: "Stream #13(Compute)" timestamp_ns: 1000
        events { metadata_id: 1 offset_ps: 0 duration_ps: 500000
          stats { metadata_id: 1 str_value: "jit_f" } stats { metadata_id: 2 int64_value: 4 } }
        events { metadata_id: 1 offset_ps: 700000 duration_ps: 300000
          stats { metadata_id: 1 str_value: "jit_f" } stats { metadata_id: 2 int64_value: 4 } }
        events { metadata_id: 1 offset_ps: 900000 duration_ps: 300000
          stats { metadata_id: 1 str_value: "jit_g" } stats { metadata_id: 2 int64_value: 5 } } }
      event_metadata { key: 1 value { id: 1 name: "gemm" } }
      stat_metadata { key: 1 value { id: 1 name: "hlo_module" } }
      stat_metadata { key: 2 value { id: 2 name: "run_id" } } }
    """
    recorded = jax.profiler.ProfileData.from_text_proto(text)
    assert np.allclose(measure.execution_seconds(recorded, "jit_f", 1), [1e-6])


HERE = table.LatencyConditions("", 1, 8, "float32", 10)
ARCH = Arch(2, 24, 3, 48, 8)


def entry(conditions, seconds, **more):
    network = {
        "arch": dataclasses.asdict(ARCH),
        "sizes": DIMS._replace(reference_heads=0)._asdict(),
    }
    return {"network": network, "seconds": seconds, **conditions.record(), **more}


def test_a_table_never_takes_one_source_for_the_other(monkeypatch, tmp_path):
    monkeypatch.setattr(
        table.estimate,
        "compiled_conditions",
        lambda target, *_: {"source": "compiled", "device": target},
    )
    compiled_conditions = HERE._replace(target="v5e")
    stored = table.empty_table()
    stored["compiled"].append(entry(compiled_conditions, 1e-3))
    assert table.find_latency(stored, ARCH, DIMS, HERE) is None
    stored["measured"] += [
        entry(HERE, 2e-3, weights="trained"),
        entry(HERE, 3e-3, weights="random"),
    ]
    path = epath.Path(tmp_path / "latency.json")
    path.write_text(json.dumps(stored))
    stored = table.read_table(path)
    assert (
        table.find_latency(stored, ARCH, DIMS, compiled_conditions)["seconds"] == 1e-3
    )
    # The newest, and where it is asked for, of trained weights.
    assert table.find_latency(stored, ARCH, DIMS, HERE)["seconds"] == 3e-3
    assert table.find_latency(stored, ARCH, DIMS, HERE, trained=True)["seconds"] == 2e-3
    for conditions in (
        HERE._replace(batch=2),
        HERE._replace(length=9),
        HERE._replace(dtype="bfloat16"),
        HERE._replace(target="v4i"),
    ):
        assert table.find_latency(stored, ARCH, DIMS, conditions) is None
    assert table.find_latency(stored, Arch(2, 24, 3, 48, 16), DIMS, HERE) is None
    assert table.find_latency(stored, ARCH, DIMS._replace(vocab=61), HERE) is None
    # The teacher's heads only matter to the paper's count.
    assert table.find_latency(stored, ARCH, DIMS._replace(reference_heads=3), HERE)


def test_a_table_of_before_is_an_empty_one(tmp_path):
    path = epath.Path(tmp_path / "latency.json")
    path.write_text(json.dumps({"teacher": {"seconds": 1.0}}))
    assert (
        table.read_table(path)
        == table.empty_table()
        == table.read_table(epath.Path("nowhere"))
    )


def test_a_fit_is_judged_on_what_it_has_not_seen():
    rng = np.random.default_rng(0)
    work, noise = rng.uniform(1e6, 1e9, (2, 10))
    seconds = 1e-4 + 2e-12 * work
    in_fit = np.arange(10) % 2 == 0
    fit = calibration.fit_latency({"work": work, "noise": noise}, seconds, in_fit)
    assert np.isclose(fit["coefficients"]["base"], 1e-4)
    assert np.isclose(fit["coefficients"]["work"], 2e-12)
    assert fit["mape"] < 1e-6
    assert np.allclose([fit["kendall"], fit["spearman"]], 1)
    features = {"work": work[1], "noise": noise[1]}
    assert np.isclose(
        calibration.predict_latency(fit["coefficients"], features), seconds[1]
    )
    # Off by a half where it did not look.
    seconds[~in_fit] *= 2
    fit = calibration.fit_latency({"work": work}, seconds, in_fit)
    assert np.isclose(fit["mape"], 0.5)
    # What falls with the work is no reason to take time from it.
    falling = calibration.fit_latency({"work": work}, 1e-3 - 5e-13 * work, in_fit)
    assert falling["coefficients"]["work"] == 0 and falling["kendall"] == 0


def test_a_latency_is_told_with_its_source():
    compiled = {"source": "compiled", "seconds": 1.95e-4, "optimal_seconds": 1e-3}
    measured = {"source": "measured", "seconds": 3.87e-3, "spread": 1.2e-4}
    assert table.format_latency(measured) == "3.87 ms measured (spread 0.12 ms)"
    assert table.format_latency({**compiled, "apart": 2.9}) == "0.195 ms compiled"
    assert "disagree, 5.1-fold" in table.format_latency({**compiled, "apart": 5.1})
    trial = table.trial_fields(compiled)
    assert trial["latency_source"] == "compiled" and "latency_spread_ms" not in trial
    assert np.isclose(table.trial_fields(measured)["latency_spread_ms"], 0.12)
    conditions = {"batch": 1, "length": 128, "dtype": "bfloat16", "device": "v5e"}
    about = table.describe_conditions(
        {**conditions, "source": "compiled", "libtpu": "0.0.42"}
    )
    assert about.startswith("compiled for v5e") and "measured by" not in about
    assert table.describe_conditions({**conditions, "source": "measured"}).startswith(
        "measured by XLA"
    )
