"""Which devices has a TPU slice that is not here, and what does a program take of them?"""

import math
import re
from importlib import metadata
from typing import NamedTuple

import jax

from autodistill_jax.errors import UserError
from autodistill_jax.latency import estimate

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
    """name: as "v5e:8x8". chip: the key in `estimate.CHIPS`. devices: one a chip."""

    name: str
    chip: str
    devices: list[jax.Device]


def parse_topology(text: str) -> tuple[str, str]:
    """(chip, sides) of "v5e:8x8", or of an accelerator type like v5e-64 or v4-32.

    Raises:
      UserError: neither.
    """
    wrong = UserError(
        f"mesh.topology is {text!r}; it must be a chip and its sides, like v5e:8x8 or "
        f"v4:2x2x4 (chips: {', '.join(estimate.CHIPS)}), or an accelerator type, like "
        "v5litepod-64 or v4-32"
    )
    found = re.fullmatch(r"(\w+)([:-])(\d+(?:x\d+)*)", text.replace("v5litepod", "v5e"))
    if not found or found[1] not in estimate.CHIPS:
        raise wrong
    chip, kind, rest = found.groups()
    if kind == ":":
        return chip, rest
    sides = _SLICE_SIDES[3 if chip in _COUNTED_BY_CORES else 2]
    count = (
        int(rest) // (2 if chip in _COUNTED_BY_CORES else 1) if rest.isdigit() else 0
    )
    if count not in sides:
        raise wrong
    return chip, sides[count]


def find_slice(text: str) -> TpuSlice:
    """Raises UserError: no such name; libtpu is not installed, or does not know it."""
    from jax.experimental import topologies

    name, sides = parse_topology(text)
    estimate.check_target(name, "mesh.topology")
    chip = estimate.CHIPS[name]
    version = chip.topology.partition(":")[0]
    alone = math.prod(map(int, sides.split("x"))) == 1
    try:
        with estimate.libtpu_environment():
            found = topologies.get_topology_desc(
                platform="tpu",
                topology_name=f"{version}:{sides}",
                chip_config_name=chip.config,
                **({"chips_per_host_bounds": (1, 1, 1)} if alone else {}),
            )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"libtpu {metadata.version('libtpu')} does not know mesh.topology {text} "
            f"({version}:{sides}: {str(error).splitlines()[0]}); give other sides"
        ) from error
    return TpuSlice(f"{name}:{sides}", name, found.devices)


class CompiledProgram(NamedTuple):
    """A program's bytes on one device, by part (none where it did not fit), and in all;
    and the program (None, then)."""

    bytes_by_part: dict[str, int]
    total_bytes: int
    executable: jax.stages.Compiled | None = None

    @property
    def text(self) -> str:
        return self.executable.as_text()


def compile_program(lowered: jax.stages.Lowered) -> CompiledProgram:
    """Compiles a program, whether it fits or not."""
    try:
        made = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        told = str(error)
        if not told.startswith("RESOURCE_EXHAUSTED"):
            raise
        # "Used 20.1G of 15.75G hbm.", or "... memory required ... (20.1G)".
        found = re.search(r"Used ([\d.]+)([KMGT]?) of|\(([\d.]+)([KMGT]?)\)", told)
        size, unit = [part for part in found.groups() if part is not None]
        return CompiledProgram({}, int(float(size) * _UNITS[unit]))
    memory = made.memory_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    # What is given away is the place of what comes out.
    total = sum(parts.values()) - 2 * parts["aliased"]
    return CompiledProgram(parts, total, made)
