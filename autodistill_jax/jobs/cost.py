"""Job `cost`: what does one Arch cost, before anything is trained?"""

import json

from ml_collections import ConfigDict

from autodistill_jax.arch import parse
from autodistill_jax.cost import cost
from autodistill_jax.errors import UserError
from autodistill_jax.model import huggingface
from autodistill_jax.model.locate import locate


def run(config: ConfigDict, text: str | None) -> None:
    """Prints {arch, params, flops, params_paper, flops_paper} on stdout.

    params and flops (multiply-adds) in the `executed` convention, flops for one text of
    latency.length tokens; sizes of vocabulary and positions are the teacher's.
    """
    if not text:
        raise UserError(
            "--arch is missing; give --arch=layers=3,hidden=192,heads=6,ffn=768"
        )
    teacher, sizes = huggingface.read_config(locate(config.teacher))
    head_size = config.space.head_size or teacher.head_size
    arch = parse(text, head_size)
    made = cost(arch, sizes, config.latency.length)
    print(json.dumps({"arch": str(arch), **made}))
