"""Is a latency what the profiler saw, with all that it depends on beside it?"""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace as Record

import jax
import numpy as np
import pytest
from conftest import SIZES
from etils import epath

from autodistill_jax.arch import Arch
from autodistill_jax.cost import cost
from autodistill_jax.errors import UserError
from autodistill_jax.latency import calibrate, compile, profile, table
from autodistill_jax.main import main
from autodistill_jax.model import modules
from autodistill_jax.model.bert import Bert

SMOKE = f"--config={Path(__file__).parents[1] / 'configs' / 'quickstart.py'}:smoke"


def test_measured_on_this_device():
    arch = Arch(2, 24, 3, 48, 8)
    params = modules.init(Bert(arch, SIZES), jax.random.key(0))
    both = dict.fromkeys(("one", "other"), (arch, SIZES, params))
    made = profile.measure(both, batch=1, length=8, dtype="float32", runs=12)
    assert made.keys() == both.keys()
    made = made["other"]
    assert made["source"] == "measured" and made["runs"] == 12
    assert 0 < made["minimum"] <= made["seconds"] < 1
    assert made["device"].startswith("CPU") and made["arch"] == str(arch)
    assert (made["batch"], made["length"], made["dtype"]) == (1, 8, "float32")


def test_longer_work_takes_longer():
    def short_work(x):
        return x @ x

    def long_work(x):
        for _ in range(8):
            x = x @ x
        return x

    x = jax.numpy.eye(256)
    calls = [(short_work, (x,)), (long_work, (x,))]
    short, long = map(np.median, profile.device_times(calls, 10))
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
    assert np.allclose(profile.executions(tpu, "jit_f", 2), [2e-6, 4e-6])
    gpu = planes(
        "/device:GPU:0",
        "Stream #7(compute)",
        event("gemm", 0, 500, hlo_module="jit_f", run_id=1),
        event("softmax", 700, 300, hlo_module="jit_f", run_id=1),
        event("gemm", 5000, 600, hlo_module="jit_f", run_id=2),
    )
    assert np.allclose(profile.executions(gpu, "jit_f", 2), [1e-6, 0.6e-6])
    kernels = [event("k", s, 100, hlo_module="jit_f") for s in (0, 300, 5000, 5900)]
    gpu = planes("/device:GPU:0", "Stream #7(compute)", *kernels)
    assert np.allclose(profile.executions(gpu, "jit_f", 2), [0.4e-6, 1e-6])
    with pytest.raises(UserError, match="gave 0 executions of jit_f, needed 3"):
        profile.executions(gpu, "jit_f", 3)


def test_refusals():
    other = planes("/device:CUSTOM:0", "ops", event("jit_f", 0, 1))
    with pytest.raises(UserError, match="it saw the planes /device:CUSTOM:0"):
        profile.executions(other, "jit_f", 1)
    with pytest.raises(UserError, match=r"latency\.runs is 3"):
        profile.device_times([(lambda x: x, (1,))], 3)


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
    assert np.allclose(profile.executions(recorded, "jit_f", 2), [2e-6, 4e-6])
    with pytest.raises(UserError, match="planes /device:TPU:0, /device:TPU:1"):
        profile.executions(recorded, "jit_g", 2)


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
    assert np.allclose(profile.executions(recorded, "jit_f", 1), [1e-6])


HERE = table.How("", 1, 8, "float32", 10)
ARCH = Arch(2, 24, 3, 48, 8)


def entry(how, seconds, **more):
    network = {
        "arch": dataclasses.asdict(ARCH),
        "sizes": SIZES._replace(heads=0)._asdict(),
    }
    return {"network": network, "seconds": seconds, **how.conditions(), **more}


def test_a_table_never_takes_one_source_for_the_other(monkeypatch, tmp_path):
    monkeypatch.setattr(
        table.compile,
        "conditions",
        lambda target, *_: {"source": "compiled", "device": target},
    )
    there = HERE._replace(target="v5e")
    known = table.empty()
    known["compiled"].append(entry(there, 1e-3))
    assert table.find(known, ARCH, SIZES, HERE) is None
    known["measured"] += [
        entry(HERE, 2e-3, weights="trained"),
        entry(HERE, 3e-3, weights="random"),
    ]
    path = epath.Path(tmp_path / "latency.json")
    path.write_text(json.dumps(known))
    known = table.read(path)
    assert table.find(known, ARCH, SIZES, there)["seconds"] == 1e-3
    # The newest, and where it is asked for, of trained weights.
    assert table.find(known, ARCH, SIZES, HERE)["seconds"] == 3e-3
    assert table.find(known, ARCH, SIZES, HERE, trained=True)["seconds"] == 2e-3
    for how in (
        HERE._replace(batch=2),
        HERE._replace(length=9),
        HERE._replace(dtype="bfloat16"),
        HERE._replace(target="v4i"),
    ):
        assert table.find(known, ARCH, SIZES, how) is None
    assert table.find(known, Arch(2, 24, 3, 48, 16), SIZES, HERE) is None
    assert table.find(known, ARCH, SIZES._replace(vocab=61), HERE) is None
    # The teacher's heads only matter to the paper's count.
    assert table.find(known, ARCH, SIZES._replace(heads=3), HERE)


def test_a_table_of_before_is_an_empty_one(tmp_path):
    path = epath.Path(tmp_path / "latency.json")
    path.write_text(json.dumps({"teacher": {"seconds": 1.0}}))
    assert table.read(path) == table.empty() == table.read(epath.Path("nowhere"))


def test_a_fit_is_judged_on_what_it_has_not_seen():
    rng = np.random.default_rng(0)
    work, other = rng.uniform(1e6, 1e9, (2, 10))
    seconds = 1e-4 + 2e-12 * work
    seen = np.arange(10) % 2 == 0
    made = calibrate.fit({"work": work, "other": other}, seconds, seen)
    assert np.isclose(made["coefficients"]["base"], 1e-4)
    assert np.isclose(made["coefficients"]["work"], 2e-12)
    assert made["mape"] < 1e-6
    assert np.allclose([made["kendall"], made["spearman"]], 1)
    one = {"work": work[1], "other": other[1]}
    assert np.isclose(calibrate.predict(made["coefficients"], one), seconds[1])
    # Off by a half where it did not look.
    seconds[~seen] *= 2
    made = calibrate.fit({"work": work}, seconds, seen)
    assert np.isclose(made["mape"], 0.5)
    # What falls with the work is no reason to take time from it.
    falling = calibrate.fit({"work": work}, 1e-3 - 5e-13 * work, seen)
    assert falling["coefficients"]["work"] == 0 and falling["kendall"] == 0


def job(capfd, *flags):
    assert (
        main(["autodistill_jax", "latency", SMOKE, "--config.latency.length=8", *flags])
        == 0
    )
    out, err = capfd.readouterr()
    assert len(out.strip().splitlines()) == 1
    return json.loads(out), err


def test_job_measures_and_keeps(tmp_path, capfd):
    flags = ["--arch=layers=1,hidden=64,ffn=128,heads=2", f"--workdir={tmp_path / 'w'}"]
    made, err = job(capfd, *flags)
    assert list(made)[:7] == [
        "arch",
        "seconds",
        "source",
        "device",
        "batch",
        "length",
        "dtype",
    ]
    assert made["arch"] == "layers=1,hidden=64,heads=2,ffn=128"
    assert made["source"] == "measured" and made["weights"] == "random"
    assert made["runs"] == 10 and made["minimum"] <= made["seconds"]
    assert "measuring on" in err and "outside the space" in err
    again, err = job(capfd, *flags)
    assert again == made and "measuring" not in err
    # Another batch is another latency; a workdir is not needed.
    other, err = job(capfd, flags[0], "--config.latency.batch=2")
    assert other["batch"] == 2 and "measuring on" in err


def test_job_of_a_mobilebert(capfd):
    arch = "layers=1,hidden=32,bottleneck=16,heads=2,ffn=32,stacks=2"
    made, _ = job(capfd, f"--arch={arch}")
    assert made["arch"] == arch and made["seconds"] > 0


def stand_in(monkeypatch):
    """A v5e that is this CPU, and a compiler that says 1 s a teramultiply-add."""

    def conditions(target, batch, length, dtype):
        made = {"source": "compiled", "device": target, "libtpu": "0", "batch": batch}
        return made | {"length": length, "dtype": dtype}

    def estimate(arch, sizes, **given):
        seconds = cost(arch, sizes, given["length"])["flops"] / 1e12
        names = ("", "cycles_", "roofline_", "optimal_")
        three = {f"{name}seconds": seconds for name in names}
        return {**three, "apart": 1.0, **conditions(**given)}

    chip = compile.CHIPS["v5e"]._replace(kind=jax.devices()[0].device_kind)
    monkeypatch.setitem(compile.CHIPS, "v5e", chip)
    monkeypatch.setattr(compile, "check", lambda target: None)
    monkeypatch.setattr(compile, "conditions", conditions)
    monkeypatch.setattr(compile, "estimate", estimate)


def test_job_calibrates(tmp_path, capfd, monkeypatch):
    flags = [
        f"--workdir={tmp_path / 'w'}",
        "--calibrate",
        "--config.space.hidden=(32,64)",
    ]
    made, err = job(capfd, *flags)
    assert made["archs"] == 6 and made["unseen"] == 3 and len(made["points"]) == 6
    assert [point["seen"] for point in made["points"]] == [True, False] * 3
    assert made["mape"] >= 0 and -1 <= made["kendall"] <= 1
    assert "Kendall" in err and "has not seen" in err
    kept = json.loads((tmp_path / "w" / "search" / "latency.json").read_text())
    assert kept["corrections"] == [made] and len(kept["measured"]) == 6
    # On a TPU, what is compiled for it is corrected instead.
    stand_in(monkeypatch)
    flags = [flags[0], "--config.latency.target=v5e", flags[2]]
    made, err = job(capfd, *flags, "--calibrate")
    assert "measuring" not in err and "compiling for v5e: 6" in err
    assert made["source"] == "compiled" and list(made["coefficients"])[1:] == [
        "seconds"
    ]
    raw = made["uncorrected"]["seconds"]
    assert raw["kendall"] == 1 or made["kendall"] == raw["kendall"]
    found, _ = job(capfd, *flags, "--arch=layers=2,hidden=64,heads=2,ffn=128")
    expected = calibrate.predict(made["coefficients"], found)
    assert found["corrected_seconds"] == expected


BAD = {
    "no arch": ([], "--arch is missing; give --arch=layers=3"),
    "unknown name": (["--arch=enormous"], "known by name: agnostic"),
    "no runs": (["--arch=minilm", "--config.latency.runs=1"], "runs is 1; it must be"),
    "too long": (
        ["--arch=minilm", "--config.latency.length=513"],
        "latency.length is 513, more than the teacher's 512 positions",
    ),
    "calibrate nowhere": (["--calibrate"], "--calibrate needs --workdir"),
    "few to fit": (
        ["--arch=minilm", "--config.latency.calibrate=4"],
        "latency.calibrate is 4; it must be at least 6",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_of_the_job(name, capfd):
    more, expected = BAD[name]
    assert main(["autodistill_jax", "latency", SMOKE, *more]) == 2
    out, err = capfd.readouterr()
    told = err.strip().splitlines()
    assert not out and len(told) == 1, err
    assert told[0].startswith("autodistill_jax: ") and expected in told[0]


def test_calibrate_is_not_for_other_jobs(tmp_path, capfd):
    flags = [SMOKE, "--calibrate", "--arch=minilm"]
    assert main(["autodistill_jax", "cost", *flags]) == 2
    assert "--calibrate is of the job latency, not of cost" in capfd.readouterr().err
    flags += [f"--workdir={tmp_path / 'w'}"]
    assert main(["autodistill_jax", "latency", *flags]) == 2
    assert "take --arch out" in capfd.readouterr().err
    assert not (tmp_path / "w").exists()
