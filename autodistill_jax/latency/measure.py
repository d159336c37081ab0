"""Device times of forward passes on the device at hand, by XLA's profiler."""

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
    """Measures the forward passes of standalone networks, layers unrolled.

    All are compiled first and then run in turns, so that what else the machine does
    falls on all alike.

    Args:
      networks: {name: (arch, its dims, its weights)}, of one vocabulary.
      batch: texts a pass.
      length: tokens a text, all real, none padding.
      dtype: of the products.
      runs: executions of each after warm-up; at least 10.

    Returns:
      {name: {arch, seconds (the median), minimum, spread (90th - 10th percentile; all
      in seconds), runs, and `measured_conditions`}}.

    Raises:
      UserError: fewer than 10 runs, or a profile without them.
    """
    vocab = min(dims.vocab for _, dims, _ in networks.values())
    input_ids = np.random.default_rng(0).integers(0, vocab, (batch, length))
    input_ids = jnp.asarray(input_ids, jnp.int32)
    calls = []
    for arch, dims, params in networks.values():
        weights = jax.device_put(serving_params(params, dtype))
        args = (weights, input_ids, jnp.ones_like(input_ids))
        calls.append((forward_fn(arch, dims, dtype), args))
    results = {}
    for (name, (arch, *_)), times in zip(networks.items(), device_times(calls, runs)):
        low, high = np.percentile(times, (10, 90))
        results[name] = {
            "arch": str(arch),
            "seconds": float(np.median(times)),
            "minimum": float(times.min()),
            "spread": float(high - low),
            "runs": len(times),
            **measured_conditions(batch, length, dtype),
        }
    return results


def forward_fn(arch: AnyArch, dims: ModelDims, dtype: str) -> Callable:
    """The forward pass that a latency is of, layers unrolled.

    Args:
      arch: the network's Arch.
      dims: its dimensions that are not elastic.
      dtype: of the products.

    Returns:
      (params as of `serving_params`, input_ids [B, L], attention_mask [B, L]) -> the
      last hidden states [B, L, D].
    """
    module = build.build_module(arch, dims, dtype=jnp.dtype(dtype), unroll=True)

    def run(params: dict, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        return module.apply({"params": params}, input_ids, attention_mask).hidden

    return run


def serving_params(params: dict, dtype: str) -> dict:
    """Weights as they would be served.

    Args:
      params: of a network, its layers stacked.
      dtype: of the products.

    Returns:
      {name: array}, each layer's parameters apart; those of products are in their
      dtype, or every pass would convert them.
    """
    return {
        name: jnp.asarray(value, dtype) if "kernel" in name else jnp.asarray(value)
        for name, value in build.unstack_layers(params).items()
    }


def lower_for_device(
    fn: Callable, args: Sequence, device: jax.Device
) -> jax.stages.Lowered:
    """Lowers a function for one device, free to say how its arguments lie in memory.

    They are put there once. In an order that is fixed beforehand a TPU's program would
    re-order whole look-up tables in every pass, those whose width its 128 lanes do not
    divide.

    Args:
      fn: the function.
      args: its arguments, arrays or their shapes.
      device: that it is to run on, here or not.

    Returns:
      The lowered function, ready to compile.
    """
    sharding = jax.sharding.SingleDeviceSharding(device)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    formats = jax.tree.map(lambda _: Format(Layout.AUTO, sharding), shapes)
    return jax.jit(fn, in_shardings=formats).lower(*shapes)


def measured_conditions(batch: int, length: int, dtype: str) -> dict[str, Any]:
    """What a measured latency depends on besides the network.

    Two latencies compare only where all of it is equal.

    Args:
      batch: texts a pass.
      length: tokens a text.
      dtype: of the products.

    Returns:
      {source: "measured", device: `device_name()`, batch, length, dtype, and the
      version of jax}.
    """
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
    """Times functions on the first device of this process, in turns.

    Args:
      calls: (function, its arguments) of each.
      runs: executions of each after warm-up; at least 10.

    Returns:
      For each function the seconds on the device of its executions, [runs].

    Raises:
      UserError: fewer than 10 runs, or a profile without them.
    """
    if runs < 10:
        raise UserError(f"latency.runs is {runs}; at least 10 make a median")
    compiled = []
    for i, (fn, args) in enumerate(calls):

        def timed(*args, fn=fn):
            return fn(*args)

        # The profile tells programs apart by their names.
        timed.__name__ = f"timed_{i}"
        device = jax.local_devices()[0]  # Of this process.
        program = lower_for_device(timed, args, device).compile()
        # First from all devices that they are on to the one, then into their layout.
        args = jax.device_put(jax.device_put(args, device), program.input_formats[0])
        compiled.append((program, args))
        for _ in range(3):
            jax.block_until_ready(program(*compiled[-1][1]))
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
    """Seconds of each execution of an XLA module in a profile.

    TPU: the events of the line "XLA Modules". CPU and GPU: from the first to the last
    event of a run_id on the host's XLA lines, or on the stream lines; where kernels
    carry no run_id, every execution has the same number of them.

    Args:
      data: a `jax.profiler.ProfileData`.
      module: name of the XLA module.
      runs: executions that the profile should hold.

    Returns:
      Seconds, [runs], in the order of the executions.

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
    intervals = sorted(spans.values())
    if not intervals and loose and len(loose) % runs == 0:
        grouped = np.asarray(sorted(loose)).reshape(runs, -1, 2)
        intervals = [(group[:, 0].min(), group[:, 1].max()) for group in grouped]
    if len(intervals) != runs:
        raise UserError(
            f"the profiler gave {len(intervals)} executions of {module}, needed "
            f"{runs}; it saw the planes {', '.join(plane.name for plane in planes)}"
        )
    return np.asarray([end - start for start, end in intervals]) / 1e9


def _execution_lines(planes: Sequence) -> Iterator[tuple[Any, bool]]:
    """The first device's lines that hold executions, and whether it is a TPU."""
    for plane in planes:
        for line in plane.lines:
            if plane.name.startswith("/device:TPU:0") and line.name == "XLA Modules":
                yield line, True
            elif (
                plane.name.startswith("/device:GPU:0")
                and line.name.startswith("Stream")
            ) or (plane.name == "/host:CPU" and line.name.startswith("tf_XLA")):
                yield line, False
