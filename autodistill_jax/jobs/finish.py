"""Job `finish`: the chosen student trained alone, out of the SuperLM."""

import dataclasses

import jax
from etils import epath

from autodistill_jax import log, sharding
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.space import single
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.superlm import (
    config_alone,
    steps_done,
    train_superlm,
    trained_superlm,
)
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

    The same objective and text as the SuperLM's, in another order. It starts as it lies
    in the SuperLM, with what that has beside it folded into it where channels are
    ordered; the projections at what fits it best.

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
    front, steps = read_front(config, workdir), config.distill.finish_steps
    for arch in student_archs(config, front):
        folder, label = finish_folder(config, workdir, arch), f"{stage} {arch.name}"
        if steps_done(folder) >= steps:
            log.say(f"{label}: trained already ({steps} steps)")
            continue
        log.say(f"{label}: taking it out of the SuperLM ...")
        start = _extracted_student(
            experiment, workdir, find_trial(front, arch)["space"], arch
        )
        variant = dataclasses.replace(
            experiment,
            config=config_alone(config, steps),
            spaces={"finish": single(arch)},
        )
        train_superlm(
            variant,
            workdir,
            folder,
            variant.spaces["finish"],
            finish_job(config, arch),
            label,
            start,
        )


def _extracted_student(
    experiment: Experiment, workdir: epath.Path, space: str, arch: AnyArch
) -> dict:
    """A sub-network of a trained SuperLM with its heads, without projections; what is
    cut off it is folded into it."""
    params = trained_superlm(experiment, workdir, space)
    params = jax.tree.map(sharding.to_host, params)
    student = experiment.extract_student(
        experiment.spaces[space], heads.encoder_params(params), arch, is_folded=True
    )
    return student | heads.slice_heads(
        heads.head_params(params), arch.hidden, experiment.dims
    )
