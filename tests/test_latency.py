"""Is a latency what the profiler saw, with all that it depends on beside it?"""

from types import SimpleNamespace as Record

import jax
import numpy as np
import pytest
from conftest import SIZES

from autodistill_jax.arch import Arch
from autodistill_jax.errors import UserError
from autodistill_jax.latency import profile
from autodistill_jax.model import modules
from autodistill_jax.model.bert import Bert


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
