"""The network that --arch asks for: its Arch and dimensions, without weights."""

from pathlib import Path

from ml_collections import ConfigDict

from autodistill_jax import log
from autodistill_jax.archs import published
from autodistill_jax.archs.arch import AnyArch, Arch, nearest_arch
from autodistill_jax.archs.cost import ModelDims, student_dims
from autodistill_jax.archs.space import Space
from autodistill_jax.errors import UserError
from autodistill_jax.experiment.loading import spaces_from_config
from autodistill_jax.experiment.teacher import pretraining_dims
from autodistill_jax.interop import hf_config
from autodistill_jax.interop.hub import locate_teacher


def resolve_arch_flag(
    config: ConfigDict, text: str | None, field: str
) -> tuple[str, AnyArch, ModelDims]:
    """What --arch stands for; an Arch outside the space is noted on stderr.

    Args:
      config: an experiment's.
      text: the flag's value, sizes or a name.
      field: the config's field with the tokens of a text, "latency.max_seq_length".

    Returns:
      (the Arch as --arch takes it, the Arch, its model's dimensions).

    Raises:
      UserError: neither sizes nor a name; texts longer than the teacher's positions.
    """
    if not text:
        raise UserError(
            "--arch is missing; give --arch=layers=3,hidden=192,heads=6,ffn=768 or a "
            f"name: {', '.join(published.NAMED_ARCHS)}"
        )
    teacher, dims, spaces = teacher_dims_and_spaces(config, field)
    arch = published.parse_arch_or_name(text, spaces[0].head_size)
    arch_text = _arch_flag_text(arch, spaces[0])
    if arch != teacher and not any(arch in space for space in spaces):
        alike = [space.nearest(arch) for space in spaces if space.family is type(arch)]
        near = f"; the nearest inside is {nearest_arch(alike, arch)}" if alike else ""
        log.say(f"note: the Arch {arch_text} is outside the space of the config{near}")
    dims = student_dims(dims, type(arch), config.space.norm)
    if published.named_arch(text):
        dims = published.named_dims(text, dims)
    return arch_text, arch, dims


def teacher_dims_and_spaces(
    config: ConfigDict, field: str
) -> tuple[AnyArch, ModelDims, list[Space]]:
    """The teacher's sizes and the config's spaces.

    Args:
      config: an experiment's.
      field: as of `resolve_arch_flag`.

    Returns:
      (the teacher's Arch, its model's dimensions, the spaces).

    Raises:
      UserError: as `resolve_arch_flag`; spaces that cannot be.
    """
    teacher, dims = _teacher_dims(config.teacher)
    if config.pretrain.steps:
        teacher, dims = pretraining_dims(config.pretrain.arch, teacher, dims)
    section, name = field.split(".")
    if config[section][name] > dims.positions:
        raise UserError(
            f"{field} is {config[section][name]}, more than the teacher's "
            f"{dims.positions} positions; give a shorter one"
        )
    return teacher, dims, list(spaces_from_config(config.space, teacher).values())


def _teacher_dims(name: str) -> tuple[AnyArch, ModelDims]:
    """A teacher's sizes; of one that all know, from no further than this package."""
    if name in published.NAMED_TEACHERS and not Path(name).is_dir():
        return published.NAMED_TEACHERS[name]
    return hf_config.read_arch_and_dims(locate_teacher(name))


def _arch_flag_text(arch: AnyArch, space: Space) -> str:
    """As --arch takes it: with the head size where it is not the space's."""
    needs_head_size = isinstance(arch, Arch) and arch.head_size != space.head_size
    return f"{arch},head_size={arch.head_size}" if needs_head_size else str(arch)
