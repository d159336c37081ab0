"""Latency estimates for TPUs that are not here: programs compiled, never run."""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import ModelDims, cost
from autodistill_jax.errors import UserError
from autodistill_jax.latency import hlo, measure
from autodistill_jax.latency.chips import CHIPS
from autodistill_jax.models import build

# Without a TPU libtpu would ask the cloud where it is, and would let one process at a
# time load it.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}
# Two estimates further apart than this disagree.
MAX_DISAGREEMENT = 3.0


def check_target(target: str, field: str = "latency.target") -> None:
    """Checks that a target can be compiled for.

    Args:
      target: a name of `CHIPS`.
      field: the config field that names it, for the error.

    Raises:
      UserError: an unknown name; libtpu is not installed.
    """
    if target not in CHIPS:
        raise UserError(f"{field} is {target!r}; it must be one of {', '.join(CHIPS)}")
    if not importlib.util.find_spec("libtpu"):
        raise UserError(
            f"{field} is {target}, which only libtpu can compile for, and it is "
            "not installed; run: pip install 'autodistill_jax[tpu]'"
        )


def compiled_conditions(
    target: str, batch: int, length: int, dtype: str
) -> dict[str, Any]:
    """What a compiled latency depends on besides the network.

    Args:
      target: a name of `CHIPS`.
      batch: texts a pass.
      length: tokens a text.
      dtype: of the products.

    Returns:
      {source: "compiled", device: the target, batch, length, dtype, and the versions
      of jax and libtpu}.
    """
    return {
        "source": "compiled",
        "device": target,
        "batch": batch,
        "length": length,
        "dtype": dtype,
        "jax": metadata.version("jax"),
        "libtpu": metadata.version("libtpu"),
    }


def estimate_latency(
    arch: AnyArch, dims: ModelDims, *, target: str, batch: int, length: int, dtype: str
) -> dict[str, Any]:
    """Estimates one forward pass, layers unrolled, in three ways side by side.

    - cycles_seconds: the compiler's own estimate of each instruction, summed, over the
      chip's clock. It leaves out what runs beside the work, above all the way of the
      weights, and on a v5e of the whole token embedding, out of main memory; and
      custom calls (the softmax of attention and the product behind it).
    - roofline_seconds: max(operations / peak, bytes / bandwidth), the bytes being those
      that no pass can do without: every weight once, of the look-up tables the rows
      looked up.
    - optimal_seconds: the compiler's cost analysis; coarse, and it takes whole look-up
      tables and what stays on the chip for traffic of main memory.

    `seconds` is the larger of the first two: units and memory work side by side, and
    each leaves out what the other counts. None of them was checked on a TPU.

    Args:
      arch: the network's Arch.
      dims: its dimensions that are not elastic.
      target: a name of `CHIPS`.
      batch: texts a pass.
      length: tokens a text.
      dtype: of the products.

    Returns:
      {arch, seconds, the three estimates, apart (optimal_seconds over seconds, or the
      other way round: at least 1), bytes (of memory: arguments, results, temporaries),
      and `compiled_conditions`}.

    Raises:
      UserError: as `check_target`; libtpu does not know the chip; the pass does not fit
        into its memory.
    """
    chip, device = CHIPS[target], _target_device(target)
    weights = jax.eval_shape(functools.partial(_abstract_weights, arch, dims, dtype))
    compiled = _compile_forward(arch, dims, weights, device, batch, length, dtype)
    memory = compiled.memory_analysis()
    traffic = _min_traffic_bytes(weights, arch, batch, length)
    operations = 2 * batch * cost(arch, dims, length)["flops"]
    estimates = {
        "cycles_seconds": hlo.count_executed(compiled.as_text()).cycles / chip.clock,
        "roofline_seconds": max(operations / chip.peak, traffic / chip.bandwidth),
        "optimal_seconds": repair_optimal_seconds(
            compiled.cost_analysis()["optimal_seconds"]
        ),
    }
    seconds = max(estimates["cycles_seconds"], estimates["roofline_seconds"])
    ratio = estimates["optimal_seconds"] / seconds
    return {
        "arch": str(arch),
        "seconds": seconds,
        **estimates,
        "apart": max(ratio, 1 / ratio),
        "bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes,
        **compiled_conditions(target, batch, length, dtype),
    }


def repair_optimal_seconds(optimal: float) -> float:
    """The compiler's `optimal_seconds` without the -1 s that some custom calls add.

    Args:
      optimal: seconds as returned; below 0 where there are such calls.

    Returns:
      Seconds of the instructions that it has an estimate for.
    """
    return optimal + round(-optimal) if optimal < 0 else optimal


def _target_device(target: str) -> jax.Device:
    from jax.experimental import topologies

    check_target(target)
    chip = CHIPS[target]
    with libtpu_environment():
        try:
            topology = topologies.get_topology_desc(
                platform="tpu",
                topology_name=chip.topology,
                chips_per_host_bounds=(1, 1, 1),
                chip_config_name=chip.config,
            )
        except jax.errors.JaxRuntimeError as error:
            raise UserError(
                f"libtpu {metadata.version('libtpu')} does not know {target} "
                f"({chip.topology!r}: {str(error).splitlines()[0]}); try another of "
                f"{', '.join(CHIPS)}"
            ) from error
    return topology.devices[0]


@contextlib.contextmanager
def libtpu_environment() -> Iterator[None]:
    """Sets what libtpu reads from the environment where there is no TPU.

    For as long as libtpu may be loading, no longer; what the user has set stays.
    """
    # Asking for the backend makes the ordinary devices first, under the user's
    # environment.
    variables = {} if jax.default_backend() == "tpu" else _ENVIRONMENT
    variables = {
        name: value for name, value in variables.items() if name not in os.environ
    }
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def _min_traffic_bytes(
    weights: dict[str, jax.ShapeDtypeStruct], arch: AnyArch, batch: int, length: int
) -> int:
    """Bytes that a pass must read and write, whatever the compiler does."""
    tables = {"embeddings_word": batch * length, "embeddings_position": length}
    nbytes = 4 * batch * length * arch.hidden  # the result
    for name, weight in weights.items():
        if not name.startswith("pooler"):  # The pass ends before it.
            rows = min(tables.get(name, weight.shape[0]), weight.shape[0])
            nbytes += rows * (weight.size // weight.shape[0]) * weight.dtype.itemsize
    return nbytes


def _abstract_weights(
    arch: AnyArch, dims: ModelDims, dtype: str
) -> dict[str, jax.Array]:
    module = build.build_module(arch, dims)
    return measure.serving_params(build.init_params(module, jax.random.key(0)), dtype)


def _compile_forward(
    arch: AnyArch,
    dims: ModelDims,
    weights: dict[str, jax.ShapeDtypeStruct],
    device: jax.Device,
    batch: int,
    length: int,
    dtype: str,
) -> jax.stages.Compiled:
    input_ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    forward = measure.forward_fn(arch, dims, dtype)
    try:
        return measure.lower_for_device(
            forward, (weights, input_ids, input_ids), device
        ).compile()
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        # "Ran out of memory on HBM, the total memory required ... (300.24G) exceeds"
        message = str(error).splitlines()[0].partition(": ")[2].rstrip(".")
        raise UserError(
            f"{arch} at batch {batch} x {length} does not fit into one chip: "
            f"{message}; give a smaller latency.batch or latency.max_seq_length"
        ) from error
