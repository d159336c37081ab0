"""Job `cost`: parameters and FLOPs of one Arch, before anything is trained."""

from typing import Any

from ml_collections import ConfigDict

from autodistill_jax import log
from autodistill_jax.archs.cost import cost
from autodistill_jax.experiment import arch_flag, schema


def run_cost(config: ConfigDict, text: str | None) -> dict[str, Any]:
    """Prints {arch, params, flops, params_paper, flops_paper} on stdout.

    params and flops (multiply-adds) are in the `executed` convention, flops for one
    text of data.max_seq_length tokens; sizes of vocabulary and positions are the
    teacher's. An Arch outside the space will do too, and stderr says that it is.

    Args:
      config: of the experiment; nothing of it is trained.
      text: the Arch as --arch takes it, by sizes or by name; None where it is missing.

    Returns:
      What it prints.

    Raises:
      UserError: an Arch that is neither; a text longer than the teacher's positions.
    """
    schema.check_config(config)
    arch_text, arch, dims = arch_flag.resolve_arch_flag(
        config, text, "data.max_seq_length"
    )
    record = {"arch": arch_text, **cost(arch, dims, config.data.max_seq_length)}
    log.print_result(record)
    return record
