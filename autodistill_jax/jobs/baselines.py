"""Job `baselines`: the chosen Arch by other methods, from the same teacher and text."""

import dataclasses

import jax
import numpy as np
from etils import epath

from autodistill_jax import log, sharding, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.space import single
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import trials
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.superlm import train_superlm
from autodistill_jax.experiment.workdir import (
    arch_from_json,
    baseline_folder,
    read_front,
    superlm_folder,
)
from autodistill_jax.interop import huggingface
from autodistill_jax.models import extract, heads
from autodistill_jax.train import checkpoint
from autodistill_jax.train.objective import LOSS_RECIPES, parse_objective

# Those that distil nothing; all others are `twin` or in `objective.LOSS_RECIPES`.
UNTRAINED_BASELINES = ("truncated", "scratch")
BASELINES = (*UNTRAINED_BASELINES, "twin", *LOSS_RECIPES)


def check_baselines(experiment: Experiment) -> None:
    """Checks all baselines of a config before any work starts.

    Args:
      experiment: whose baselines they are, with its spaces and Archs under the budget.

    Raises:
      UserError: a baseline that is not known, or that no Arch could have.
    """
    spaces, fixed_arch = experiment.spaces.values(), experiment.config.search.fixed_arch
    archs = (
        list(experiment.affordable) if fixed_arch else [s.smallest() for s in spaces]
    )
    narrowest = min(archs, key=lambda arch: arch.heads)
    for baseline in experiment.config.baselines:
        if baseline not in BASELINES:
            raise UserError(
                f"baselines has {baseline!r}; it must be some of {', '.join(BASELINES)}"
            )
        if baseline == "truncated":
            _check_truncation(experiment)
        if baseline not in UNTRAINED_BASELINES:
            baseline_experiment(experiment, baseline, narrowest)


def _check_truncation(experiment: Experiment) -> None:
    """Raises UserError if the teacher does not hold all Archs that may be chosen."""
    teacher_arch = experiment.teacher.arch
    try:
        for space in experiment.spaces.values():
            extract.check_fits(teacher_arch, space.largest())
    except UserError:
        if experiment.num_archs() > trials.MAX_LISTED_ARCHS:
            raise
        for arch in experiment.affordable:  # The largest may cost too much.
            extract.check_fits(teacher_arch, arch)


def baseline_experiment(
    experiment: Experiment, baseline: str, arch: AnyArch
) -> Experiment:
    """The experiment of one baseline: a space of one Arch, its recipe, all else equal.

    Args:
      experiment: of the student that the baseline stands beside.
      baseline: "twin", which is the SuperLM's own objective on the Arch alone, or a
        name in `objective.LOSS_RECIPES`.
      arch: of the baseline's student.

    Returns:
      The experiment with that space, under the baseline's name, and that objective.

    Raises:
      UserError: the recipe does not fit the Arch.
    """
    space = single(arch)
    settings = experiment.config.distill.to_dict()
    if baseline != "twin":
        settings |= LOSS_RECIPES[baseline]
        # As many relation heads as there are channels, where those are fewer.
        settings["relation_heads"] = min(settings["relation_heads"], arch.width)
    objective = parse_objective(
        settings, [space], experiment.teacher, experiment.special_tokens
    )
    return dataclasses.replace(
        experiment, spaces={baseline: space}, objective=objective
    )


def run_baselines(
    experiment: Experiment, workdir: epath.Path, stage: str = "baselines"
) -> None:
    """Leaves students/<baseline>-<name>/, Hugging Face folders like the student's.

    Args:
      experiment: whose `baselines` are made; those that are there already stay.
      workdir: with the front.json of the job search.
      stage: what log lines begin with.

    Raises:
      UserError: there was no search under these settings.
    """
    front = read_front(experiment.config, workdir)
    arch = arch_from_json(front["chosen"])
    num_written = 0
    for baseline in experiment.config.baselines:
        folder = baseline_folder(workdir, baseline, arch)
        # From scratch, each seed of the fine-tuning has random weights of its own.
        if baseline == "scratch" or storage.is_complete(folder):
            continue
        params = _baseline_params(
            experiment, workdir, baseline, arch, f"{stage} {baseline}"
        )
        teacher = experiment.teacher
        huggingface.save_pretrained(
            folder,
            arch,
            experiment.dims,
            jax.tree.map(np.asarray, params),
            teacher.folder,
            teacher.pooling,
            teacher.embeds_sentences,
            f"# {arch.name}, {baseline}\n\nA baseline made by autodistill_jax from "
            f"{experiment.teacher_name}.\n",
            lambda folder: None,
        )
        log.say(f"{stage}: made {folder}")
        num_written += 1
    if not num_written:
        log.say(f"{stage}: nothing left to do")


def _baseline_params(
    experiment: Experiment,
    workdir: epath.Path,
    baseline: str,
    arch: AnyArch,
    stage: str,
) -> dict:
    """The encoder's parameters: a slice of the teacher, or trained here."""
    if baseline == "truncated":
        if experiment.config.distill.init_from == "teacher":
            return experiment.start_params(arch)
        return extract.extract(experiment.teacher.params, experiment.teacher.arch, arch)
    variant = baseline_experiment(experiment, baseline, arch)
    folder = superlm_folder(workdir, f"{baseline}-{arch.name}")
    train_superlm(
        variant,
        workdir,
        folder,
        variant.spaces[baseline],
        f"baselines/{baseline}",
        stage,
    )
    state = checkpoint.restore_sharded(
        checkpoint.checkpoint_manager(folder), sharding.replicated(experiment.mesh)
    )
    return heads.encoder_params({**state["params"], **state["frozen"]})
