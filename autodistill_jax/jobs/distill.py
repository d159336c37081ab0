"""Job `distill`: trains the SuperLM of each space from the teacher."""

from etils import epath

from autodistill_jax import log
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.superlm import train_superlm
from autodistill_jax.experiment.workdir import superlm_folder


def run_distill(
    experiment: Experiment, workdir: epath.Path, stage: str = "distill"
) -> None:
    """Trains each SuperLM until `distill.steps`; goes on from the last checkpoints.

    Args:
      experiment: whose spaces have a SuperLM each; with search.proxy flash there is
        none.
      workdir: where superlm/<space>/checkpoints/ is left.
      stage: what log lines begin with.
    """
    if experiment.config.search.proxy == "flash":
        log.say(f"{stage}: off (search.proxy is flash: no weights are inherited)")
        return
    for name, space in experiment.spaces.items():
        several = len(experiment.spaces) > 1
        train_superlm(
            experiment,
            workdir,
            superlm_folder(workdir, name),
            space,
            # One SuperLM's losses stand under the job's own name.
            f"distill/{name}" if several else "distill",
            f"{stage} {name}" if several else stage,
        )
