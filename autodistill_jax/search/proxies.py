"""How good is an Arch, without fine-tuning it? `superlm`: by inherited weights."""

from collections.abc import Callable, Iterable, Mapping

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
    batches: Iterable[Mapping[str, jax.Array]],
    objective: objectives.Objective,
) -> Callable[[Arch], dict[str, float]]:
    """proxy(arch) -> the mean held-out distillation terms of that sub-network.

    The agnostic proxy of AutoDistil (section 3.3): sub-networks keep the weights that
    they have in the SuperLM. The teacher's targets are made once and kept; all Archs
    share one compiled program.

    Args:
      module, params: the SuperLM (with its matchers).
      batches: held-out batches; `rows` marks the real ones.
    """
    of_teacher = jax.jit(lambda p, b: objectives.targets(teacher, p, b, objective))
    kept = [(batch, of_teacher(teacher_params, batch)) for batch in batches]

    @jax.jit
    def sums(params, batch, target, archs):
        arch = jax.tree.map(lambda x: x[0], archs)
        made = objectives.terms(module, params, batch, target, objective, arch)
        return {name: (value * batch["rows"]).sum() for name, value in made.items()}

    def proxy(arch: Arch) -> dict[str, float]:
        archs = as_arrays([arch])
        parts = [sums(params, batch, target, archs) for batch, target in kept]
        rows = sum(float(batch["rows"].sum()) for batch, _ in kept)
        return {
            name: float(np.sum([part[name] for part in parts])) / rows
            for name in parts[0]
        }

    return proxy
