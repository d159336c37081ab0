"""Job `cost`: what does one Arch cost, before anything is trained?"""

import json

from ml_collections import ConfigDict

from autodistill_jax.arch import Space, parse
from autodistill_jax.cost import cost
from autodistill_jax.errors import UserError
from autodistill_jax.jobs import fields
from autodistill_jax.model import huggingface
from autodistill_jax.model.locate import locate


def run(config: ConfigDict, text: str | None) -> None:
    """Prints {arch, params, flops, params_paper, flops_paper} on stdout.

    params and flops (multiply-adds) in the `executed` convention, flops for one text of
    latency.length tokens; sizes of vocabulary and positions are the teacher's.

    Raises:
      UserError: an Arch that is neither in the space nor the teacher's own.
    """
    if not text:
        raise UserError(
            "--arch is missing; give --arch=layers=3,hidden=192,heads=6,ffn=768"
        )
    fields.check(config)
    teacher, sizes = huggingface.read_config(locate(config.teacher))
    grid = config.space.to_dict()
    grid["head_size"] = grid["head_size"] or teacher.head_size
    arch = parse(text, grid["head_size"])
    if arch != teacher:
        Space(**grid).check(arch)
    made = cost(arch, sizes, config.latency.length)
    print(json.dumps({"arch": str(arch), **made}))
