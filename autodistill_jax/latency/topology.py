"""TPU slices that are not here: their devices, and what programs take of them."""

import math
import re
from importlib import metadata
from typing import NamedTuple

import jax

from autodistill_jax.errors import UserError
from autodistill_jax.latency import chips, estimate

# Accelerator types count cores, two a chip, before v5e; a slice of so many chips has
# these sides (cloud.google.com/tpu/docs, the page of each version).
_COUNTED_BY_CORES = ("v4", "v5p")
_SLICE_SIDES = {
    2: {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16"}
    | {256: "16x16"},
    3: {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}
    | {256: "4x8x8", 512: "8x8x8"},
}

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class TpuSlice(NamedTuple):
    """A TPU slice.

    Attributes:
      name: chip and sides, as "v5e:8x8".
      chip: the key in `chips.CHIPS`.
      devices: one a chip, to compile for.
    """

    name: str
    chip: str
    devices: list[jax.Device]


def parse_topology(text: str) -> tuple[str, str]:
    """Splits the name of a TPU slice.

    Args:
      text: like "v5e:8x8", or an accelerator type like v5e-64 or v4-32.

    Returns:
      (chip, sides), like ("v5e", "8x8").

    Raises:
      UserError: the text is neither.
    """
    error = UserError(
        f"mesh.topology is {text!r}; it must be a chip and its sides, like v5e:8x8 or "
        f"v4:2x2x4 (chips: {', '.join(chips.CHIPS)}), or an accelerator type, like "
        "v5litepod-64 or v4-32"
    )
    match = re.fullmatch(r"(\w+)([:-])(\d+(?:x\d+)*)", text.replace("v5litepod", "v5e"))
    if not match or match[1] not in chips.CHIPS:
        raise error
    chip, kind, size = match.groups()
    if kind == ":":
        return chip, size
    sides = _SLICE_SIDES[3 if chip in _COUNTED_BY_CORES else 2]
    count = (
        int(size) // (2 if chip in _COUNTED_BY_CORES else 1) if size.isdigit() else 0
    )
    if count not in sides:
        raise error
    return chip, sides[count]


def find_slice(text: str) -> TpuSlice:
    """Finds the devices of a TPU slice, to compile for.

    Args:
      text: its name, see `parse_topology`.

    Returns:
      The `TpuSlice`.

    Raises:
      UserError: no such name; libtpu is not installed, or does not know the slice.
    """
    from jax.experimental import topologies

    name, sides = parse_topology(text)
    estimate.check_target(name, "mesh.topology")
    chip = chips.CHIPS[name]
    version = chip.topology.partition(":")[0]
    single_chip = math.prod(map(int, sides.split("x"))) == 1
    try:
        with estimate.libtpu_environment():
            topology = topologies.get_topology_desc(
                platform="tpu",
                topology_name=f"{version}:{sides}",
                chip_config_name=chip.config,
                **({"chips_per_host_bounds": (1, 1, 1)} if single_chip else {}),
            )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"libtpu {metadata.version('libtpu')} does not know mesh.topology {text} "
            f"({version}:{sides}: {str(error).splitlines()[0]}); give other sides"
        ) from error
    return TpuSlice(f"{name}:{sides}", name, topology.devices)


class CompiledProgram(NamedTuple):
    """A compiled program and the memory that it takes of one device.

    Attributes:
      bytes_by_part: {part: bytes}; empty where the program does not fit.
      total_bytes: in all.
      executable: the program; None where it does not fit.
    """

    bytes_by_part: dict[str, int]
    total_bytes: int
    executable: jax.stages.Compiled | None = None

    @property
    def text(self) -> str:
        """The optimised module, for `hlo.count_executed`; of one that fits."""
        return self.executable.as_text()


def compile_program(lowered: jax.stages.Lowered) -> CompiledProgram:
    """Compiles a program, whether it fits into the device's memory or not.

    Args:
      lowered: the program.

    Returns:
      The `CompiledProgram`.
    """
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if not message.startswith("RESOURCE_EXHAUSTED"):
            raise
        # "Used 20.1G of 15.75G hbm.", or "... memory required ... (20.1G)".
        match = re.search(r"Used ([\d.]+)([KMGT]?) of|\(([\d.]+)([KMGT]?)\)", message)
        size, unit = [part for part in match.groups() if part is not None]
        return CompiledProgram({}, int(float(size) * _UNITS[unit]))
    memory = executable.memory_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    # Aliased memory is both an argument and an output: it counts once, not three times.
    total = sum(parts.values()) - 2 * parts["aliased"]
    return CompiledProgram(parts, total, executable)
