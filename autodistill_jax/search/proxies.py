"""How good is an Arch, without fine-tuning it? `superlm`: by inherited weights."""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from autodistill_jax.arch import Arch
from autodistill_jax.model.bert import Bert
from autodistill_jax.train import objectives
from autodistill_jax.train.sandwich import as_arrays


def superlm(
    module: Bert,
    params: dict,
    teacher: Bert,
    teacher_params: dict,
    batches: Sequence[Mapping[str, jax.Array]],
    objective: objectives.Objective,
) -> Callable[[Sequence[Arch]], dict[Arch, dict[str, float]]]:
    """proxy(archs) -> the mean held-out distillation terms of these sub-networks.

    The agnostic proxy of AutoDistil (section 3.3): sub-networks keep the weights that
    they have in the SuperLM. All Archs share one compiled program; the teacher's targets
    are made once a call, and only one batch of them is held at a time.

    Args:
      module, params: the SuperLM (with its matchers).
      batches: held-out batches; `rows` marks the real ones.
    """
    of_teacher = jax.jit(lambda p, b: objectives.targets(teacher, p, b, objective))

    @jax.jit
    def sums(params, batch, target, archs):
        arch = jax.tree.map(lambda x: x[0], archs)
        made = objectives.terms(module, params, batch, target, objective, arch)
        return {name: (value * batch["rows"]).sum() for name, value in made.items()}

    def proxy(archs):
        totals = {arch: [] for arch in archs}
        for batch in batches:
            target = of_teacher(teacher_params, batch)
            for arch in archs:
                totals[arch].append(sums(params, batch, target, as_arrays([arch])))
        rows = sum(float(batch["rows"].sum()) for batch in batches)
        return {
            arch: {
                name: float(np.sum([part[name] for part in parts])) / rows
                for name in parts[0]
            }
            for arch, parts in totals.items()
        }

    return proxy
