"""Job `cost`: what does one Arch cost, before anything is trained?"""

from ml_collections import ConfigDict

from autodistill_jax import log
from autodistill_jax.archs.cost import cost
from autodistill_jax.experiment import arch_flag, schema


def run_cost(config: ConfigDict, text: str | None) -> None:
    """Prints {arch, params, flops, params_paper, flops_paper} on stdout.

    params and flops (multiply-adds) in the `executed` convention, flops for one text of
    data.max_seq_length tokens; sizes of vocabulary and positions are the teacher's. Any Arch
    will do, by sizes or by name; one that is outside the space is told on stderr.

    Raises:
      UserError: an Arch that is neither; a text longer than the teacher's positions.
    """
    schema.check_config(config)
    told, arch, dims = arch_flag.resolve_arch_flag(config, text, "data.max_seq_length")
    log.print_result({"arch": told, **cost(arch, dims, config.data.max_seq_length)})
