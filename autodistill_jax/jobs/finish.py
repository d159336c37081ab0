"""Job `finish`: the chosen student trained alone, out of the SuperLM."""

import dataclasses

import jax
from etils import epath

from autodistill_jax import log, sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.space import single
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.superlm import train_superlm, trained_superlm
from autodistill_jax.experiment.workdir import (
    find_trial,
    finish_folder,
    finish_job,
    read_front,
    student_archs,
)
from autodistill_jax.models import heads


def run_finish(
    experiment: Experiment, workdir: epath.Path, stage: str = "finish"
) -> None:
    """Leaves finish/<name>-<steps>/checkpoints/; goes on from the last checkpoint.

    The same objective and text as the SuperLM's, in another order; the projections start
    at what fits the extracted student best.

    Args:
      experiment: with `distill.finish_steps` above 0, else there is nothing to do.
      workdir: with the SuperLM, and the front.json of the job search.
      stage: what log lines begin with.

    Raises:
      UserError: there was no search under these settings, or no SuperLM.
    """
    config = experiment.config
    if config.search.proxy == "flash" or not config.distill.finish_steps:
        log.say(f"{stage}: off (distill.finish_steps is 0, or search.proxy is flash)")
        return
    front = read_front(config, workdir)
    alone = config.copy_and_resolve_references()
    alone.distill.steps = config.distill.finish_steps
    alone.seed = config.seed + 1  # Of the rows' order.
    for arch in student_archs(config, front):
        variant = dataclasses.replace(
            experiment, config=alone, spaces={"finish": single(arch)}
        )
        train_superlm(
            variant,
            workdir,
            finish_folder(config, workdir, arch),
            variant.spaces["finish"],
            finish_job(config, arch),
            f"{stage} {arch.name}",
            _extracted_student(
                experiment, workdir, find_trial(front, arch)["space"], arch
            ),
        )


def _extracted_student(
    experiment: Experiment, workdir: epath.Path, space: str, arch: AnyArch
) -> dict:
    """A sub-network of a trained SuperLM with its heads, without projections."""
    params = trained_superlm(experiment, workdir, space)
    params = jax.tree.map(sharding.to_host, params)
    student = experiment.extract_student(
        experiment.spaces[space], heads.encoder_params(params), arch
    )
    return student | heads.slice_heads(
        heads.head_params(params), arch.hidden, experiment.dims
    )
