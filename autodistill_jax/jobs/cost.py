"""Job `cost`: what does one Arch cost, before anything is trained?"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from autodistill_jax import named
from autodistill_jax.arch import AnyArch, Arch, nearest
from autodistill_jax.cost import Sizes, cost, student_sizes
from autodistill_jax.errors import UserError
from autodistill_jax.jobs import fields
from autodistill_jax.jobs.experiment import spaces
from autodistill_jax.model import huggingface
from autodistill_jax.model.locate import locate
from autodistill_jax.space import Space
from autodistill_jax.train import log


def run(config: ConfigDict, text: str | None) -> None:
    """Prints {arch, params, flops, params_paper, flops_paper} on stdout.

    params and flops (multiply-adds) in the `executed` convention, flops for one text of
    data.length tokens; sizes of vocabulary and positions are the teacher's. Any Arch
    will do, by sizes or by name; one that is outside the space is told on stderr.

    Raises:
      UserError: an Arch that is neither; a text longer than the teacher's positions.
    """
    if not text:
        raise UserError(
            "--arch is missing; give --arch=layers=3,hidden=192,heads=6,ffn=768 or a "
            f"name: {', '.join(named.ARCHS)}"
        )
    fields.check(config)
    teacher, sizes = _teacher(config.teacher)
    length = config.data.length
    if length > sizes.positions:
        raise UserError(
            f"data.length is {length}, more than the teacher's {sizes.positions} "
            "positions; give a shorter one"
        )
    homes = list(spaces(config.space, teacher).values())
    arch = named.read(text, homes[0].head_size)
    told = _told(arch, homes[0])
    grid = [other for space in homes for other in space.grid()]
    if arch not in grid and arch != teacher:
        alike = [other for other in grid if type(other) is type(arch)]
        near = f"; the nearest inside is {nearest(alike, arch)}" if alike else ""
        log.say(f"note: the Arch {told} is outside the space of the config{near}")
    sizes = student_sizes(sizes, type(arch), config.space.norm)
    if named.by_name(text):
        sizes = named.sizes(text, sizes)
    print(json.dumps({"arch": told, **cost(arch, sizes, length)}))


def _teacher(name: str) -> tuple[AnyArch, Sizes]:
    """A teacher's sizes; of one that all know, from no further than this package."""
    if name in named.TEACHERS and not Path(name).is_dir():
        return named.TEACHERS[name]
    return huggingface.read_config(locate(name))


def _told(arch: AnyArch, space: Space) -> str:
    """As --arch takes it: with the head size where it is not the space's."""
    other = isinstance(arch, Arch) and arch.head_size != space.head_size
    return f"{arch},head_size={arch.head_size}" if other else str(arch)
