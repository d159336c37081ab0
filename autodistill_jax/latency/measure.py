"""How long does one forward pass take on the device at hand? Read off XLA's profiler."""

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout

from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.errors import UserError
from autodistill_jax.models import build


def measure_latency(
    networks: Mapping[str, tuple[AnyArch, ModelDims, dict]],
    *,
    batch: int,
    length: int,
    dtype: str,
    runs: int,
) -> dict[str, dict[str, Any]]:
    """Device times of standalone networks' forward passes, layers unrolled.

    All are compiled first and then run in turns, so that what else the machine does
    falls on all alike.

    Args:
      networks: {name: (arch, its sizes, its own weights)}, of one vocabulary.
      batch, length: texts a pass, tokens a text (all real, none padding).
      dtype: of the products.
      runs: executions of each after warm-up; at least 10.

    Returns:
      {name: {arch, seconds (the median), minimum, spread (90th - 10th percentile),
      runs, source: "measured", device, batch, length, dtype, jax}}.
    """
    vocab = min(dims.vocab for _, dims, _ in networks.values())
    input_ids = np.random.default_rng(0).integers(0, vocab, (batch, length))
    input_ids = jnp.asarray(input_ids, jnp.int32)
    calls = []
    for arch, dims, params in networks.values():
        own = jax.device_put(serving_params(params, dtype))
        args = (own, input_ids, jnp.ones_like(input_ids))
        calls.append((forward_fn(arch, dims, dtype), args))
    made = {}
    for (name, (arch, *_)), times in zip(networks.items(), device_times(calls, runs)):
        low, high = np.percentile(times, (10, 90))
        made[name] = {
            "arch": str(arch),
            "seconds": float(np.median(times)),
            "minimum": float(times.min()),
            "spread": float(high - low),
            "runs": len(times),
            **measured_conditions(batch, length, dtype),
        }
    return made


def forward_fn(arch: AnyArch, dims: ModelDims, dtype: str) -> Callable:
    """The pass that a latency is of: (`serving_params` weights, ids, tokens) -> the last hidden
    states, layers unrolled."""
    module = build.build_module(arch, dims, dtype=jnp.dtype(dtype), unroll=True)

    def run(params: dict, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        return module.apply({"params": params}, input_ids, attention_mask).hidden

    return run


def serving_params(params: dict, dtype: str) -> dict:
    """Weights as they would be served: a parameter a layer, those of products in their
    dtype, or every pass would convert them."""
    return {
        name: jnp.asarray(value, dtype) if "kernel" in name else jnp.asarray(value)
        for name, value in build.unstack_layers(params).items()
    }


def lower_for_device(
    fn: Callable, args: Sequence, device: jax.Device
) -> jax.stages.Lowered:
    """A function lowered for one device, free to say how its arguments lie in memory.

    They are put there once. In an order given to it a TPU's program would re-order whole
    look-up tables in every pass, those whose width its 128 lanes do not divide.
    """
    there = jax.sharding.SingleDeviceSharding(device)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    free = jax.tree.map(lambda _: Format(Layout.AUTO, there), shapes)
    return jax.jit(fn, in_shardings=free).lower(*shapes)


def measured_conditions(batch: int, length: int, dtype: str) -> dict[str, Any]:
    """What a measured latency depends on besides the network: two are comparable only if
    equal."""
    return {
        "source": "measured",
        "device": device_name(),
        "batch": batch,
        "length": length,
        "dtype": dtype,
        "jax": metadata.version("jax"),
    }


@functools.lru_cache(maxsize=1)
def device_name() -> str:
    """ "TPU v5 lite", "NVIDIA H100", or the CPU's model and how many cores of it."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    import os
    import platform

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    return f"CPU, {model}, {cores or os.cpu_count()} cores"


def device_times(
    calls: Sequence[tuple[Callable, tuple]], runs: int
) -> list[np.ndarray]:
    """Seconds on the device of `runs` executions, in turns, of each (fn, args)."""
    if runs < 10:
        raise UserError(f"latency.runs is {runs}; at least 10 make a median")
    compiled = []
    for i, (fn, args) in enumerate(calls):

        def named(*args, fn=fn):
            return fn(*args)

        # The profile tells programs apart by their names.
        named.__name__ = f"timed_{i}"
        device = jax.local_devices()[0]  # Of this process.
        made = lower_for_device(named, args, device).compile()
        # From however many devices they are on to the one, and then into their order.
        args = jax.device_put(jax.device_put(args, device), made.input_formats[0])
        compiled.append((made, args))
        for _ in range(3):
            jax.block_until_ready(made(*compiled[-1][1]))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    options.host_tracer_level = 2
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(runs):
                for fn, args in compiled:
                    jax.block_until_ready(fn(*args))
        path = next(Path(folder).rglob("*.xplane.pb"))
        data = jax.profiler.ProfileData.from_file(str(path))
        return [
            execution_seconds(data, f"jit_timed_{i}", runs) for i in range(len(calls))
        ]


def execution_seconds(data: Any, module: str, runs: int) -> np.ndarray:
    """Seconds of each of `runs` executions of an XLA module in a profile.

    TPU: the events of the line "XLA Modules". CPU and GPU: from the first to the last
    event of a run_id on the host's XLA lines, or on the stream lines; where kernels
    carry no run_id, every execution has the same number of them.

    Raises:
      UserError: not so many executions of the module; says which planes there are.
    """
    spans: dict[Any, list[float]] = {}
    loose: list[tuple[float, float]] = []
    planes = list(data.planes)
    for line, on_tpu in _execution_lines(planes):
        for event in line.events:
            start, end = event.start_ns, event.start_ns + event.duration_ns
            if on_tpu:
                if event.name.split("(")[0] == module:
                    spans[start] = [start, end]
                continue
            stats = dict(event.stats)
            if stats.get("hlo_module") != module:
                continue
            if "run_id" not in stats:
                loose.append((start, end))
                continue
            span = spans.setdefault(stats["run_id"], [start, end])
            span[:] = min(span[0], start), max(span[1], end)
    made = sorted(spans.values())
    if not made and loose and len(loose) % runs == 0:
        each = np.asarray(sorted(loose)).reshape(runs, -1, 2)
        made = [(one[:, 0].min(), one[:, 1].max()) for one in each]
    if len(made) != runs:
        raise UserError(
            f"the profiler gave {len(made)} executions of {module}, needed {runs}; it "
            f"saw the planes {', '.join(plane.name for plane in planes)}"
        )
    return np.asarray([end - start for start, end in made]) / 1e9


def _execution_lines(planes: Sequence) -> Iterator[tuple[Any, bool]]:
    """The lines of the first device that tell of executions, and whether it is a TPU."""
    for plane in planes:
        for line in plane.lines:
            if plane.name.startswith("/device:TPU:0") and line.name == "XLA Modules":
                yield line, True
            elif (
                plane.name.startswith("/device:GPU:0")
                and line.name.startswith("Stream")
            ) or (plane.name == "/host:CPU" and line.name.startswith("tf_XLA")):
                yield line, False
