"""Job `baselines`: the chosen Arch by other methods, from the same teacher and text."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import log, multihost, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import trials
from autodistill_jax.experiment.baseline import (
    ALL_SECONDS,
    BEFORE_FINISH,
    STATIC,
    STEPS,
    is_trained,
    parse_baseline,
)
from autodistill_jax.experiment.baseline_training import (
    baseline_experiment,
    job_name,
    static_baseline,
    train_baseline,
)
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.fingerprints import model_origin
from autodistill_jax.experiment.model_costs import (
    COSTS_FILE,
    superlm_seconds,
)
from autodistill_jax.experiment.student_latencies import (
    baseline_latency,
    static_latency,
)
from autodistill_jax.experiment.training_time import steps_alone
from autodistill_jax.experiment.workdir import (
    arch_from_json,
    baseline_folder,
    find_trial,
    read_front,
    student_archs,
)
from autodistill_jax.interop import huggingface, sentence_transformers
from autodistill_jax.models import extract


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
    rates = experiment.config.baseline_learning_rates
    if rates and (min(rates) <= 0 or len({f"{rate:g}" for rate in rates}) < len(rates)):
        raise UserError(
            f"baseline_learning_rates is {rates}; each must be above 0 and there once"
        )
    for name in experiment.config.baselines:
        baseline = parse_baseline(name)
        num_layers = experiment.teacher.arch.layers
        if baseline.num_layers > num_layers:
            raise UserError(
                f"baselines has {name!r}; the teacher has {num_layers} layers"
            )
        if baseline.budget != STEPS and experiment.config.search.proxy == "flash":
            raise UserError(
                f"baselines has {name!r}, and search.proxy flash trains no SuperLM in "
                "whose seconds it could train; leave the seconds out"
            )
        if name == BEFORE_FINISH and experiment.config.search.proxy == "flash":
            raise UserError(
                f"baselines has {name!r}, and search.proxy flash trains no SuperLM; "
                "leave it out"
            )
        if baseline.method == "truncated":
            _check_truncation(experiment)
        if is_trained(baseline.method):
            baseline_experiment(experiment, name, narrowest)


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


def run_baselines(
    experiment: Experiment, workdir: epath.Path, stage: str = "baselines"
) -> None:
    """Leaves students/<baseline>-<name>/, Hugging Face folders like the student's.

    They stand beside the first budget's student, which is the one that tables and the
    report compare.

    Args:
      experiment: whose `baselines` are made; those that are there already stay, and
        what has changed of how a latency is taken is taken anew.
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
        costs_before = _made_costs(experiment.config, folder, baseline)
        # From scratch, each seed of the fine-tuning has random weights of its own.
        if baseline == "scratch" or costs_before.get("conditions") == front["latency"]:
            continue
        num_written += 1
        if costs_before:
            if baseline == STATIC:
                table = sentence_transformers.read_static_table(
                    storage.local_copy(folder)
                )
                network = huggingface.static_network(experiment.teacher, table)
            else:
                network = huggingface.load_pretrained(str(folder))
            costs = _costs(experiment, workdir, front, network, costs_before, stage)
            multihost.on_first_process(
                functools.partial(storage.write_json, folder / COSTS_FILE, costs)
            )
            continue
        if baseline == STATIC:  # Nothing of it is trained.
            network = static_baseline(experiment, workdir)
            training = {"origin": "", "seconds": 0.0}
            costs = _costs(experiment, workdir, front, network, training, stage)
            _write_static(experiment, network, costs, folder)
            continue
        num_steps = _budget_steps(experiment, workdir, front, arch, baseline, stage)
        network = train_baseline(
            experiment, workdir, baseline, arch, num_steps, f"{stage} {baseline}"
        )
        training = {"origin": model_origin(experiment.config, baseline), "seconds": 0.0}
        if training["origin"]:
            job = job_name(experiment.config, baseline, arch)
            training["seconds"] = log.training_seconds(workdir, job) or None
        elif baseline == BEFORE_FINISH:
            training["seconds"] = (
                superlm_seconds(experiment.config, workdir, front, arch) or None
            )
        costs = _costs(experiment, workdir, front, network, training, stage)
        _save_baseline(experiment, folder, baseline, network, costs)
        log.say(f"{stage}: made {folder}")
    if not num_written:
        log.say(f"{stage}: nothing left to do")


def _made_costs(
    config: ConfigDict, folder: epath.Path, baseline: str
) -> dict[str, Any]:
    """The costs of a baseline that is there, of the steps and rates that are asked now;
    {} where there is none."""
    path = folder / COSTS_FILE
    if not storage.is_complete(folder) or not path.exists():
        return {}
    costs = json.loads(path.read_text())
    return costs if costs["origin"] == model_origin(config, baseline) else {}


def _costs(
    experiment: Experiment,
    workdir: epath.Path,
    front: dict,
    network: huggingface.Teacher,
    training: Mapping[str, Any],
    stage: str,
) -> dict[str, Any]:
    """What goes into costs.json: of its training where it came from and the seconds, and
    what it costs to run, with the conditions of its latency where there is one."""
    if not network.arch.layers:  # A look-up has no products.
        costs = {"params": network.params["table"].size, "flops": 0}
        latency_ms = static_latency(experiment, front, network, stage)
    else:
        costs = experiment.cost(network.arch)
        if network.arch == arch_from_json(front["chosen"]):
            latency_ms = find_trial(front, network.arch).get("latency_ms")
        else:
            latency_ms = baseline_latency(experiment, workdir, front, network, stage)
    # None where it cannot be taken here; a later run asks again.
    conditions = None if latency_ms is None else front["latency"]
    return {**training, **costs, "latency_ms": latency_ms, "conditions": conditions}


def _write_static(
    experiment: Experiment,
    network: huggingface.Teacher,
    costs: Mapping[str, Any],
    folder: epath.Path,
) -> None:
    def write() -> None:
        with storage.atomic_write(folder, folder=True) as partial:
            table = network.params["table"]
            sentence_transformers.write_static_table(
                partial, table, experiment.tokenizer
            )
            sizes = dict(zip(("vocab_size", "hidden_size"), table.shape))
            (partial / "config.json").write_text(json.dumps(sizes) + "\n")
            storage.write_json(partial / COSTS_FILE, costs)

    multihost.on_first_process(write)
    log.say(f"baselines: made {folder}")


def _save_baseline(
    experiment: Experiment,
    folder: epath.Path,
    name: str,
    network: huggingface.Teacher,
    costs: Mapping[str, Any],
) -> None:
    teacher, arch = experiment.teacher, network.arch
    huggingface.save_pretrained(
        folder,
        arch,
        network.dims,
        jax.tree.map(np.asarray, network.params),
        teacher.folder,
        teacher.pooling,
        teacher.embeds_sentences,
        f"# {arch.name}, {name}\n\nA baseline made by autodistill_jax from "
        f"{experiment.teacher_name}.\n",
        lambda folder: storage.write_json(folder / COSTS_FILE, costs),
        dense=network.dense,
    )


def _budget_steps(
    experiment: Experiment,
    workdir: epath.Path,
    front: dict,
    arch: AnyArch,
    baseline: str,
    stage: str,
) -> float | None:
    """What a baseline may train for, in steps of the Arch alone, whose time it takes;
    None: for as many steps as the student."""
    budget = parse_baseline(baseline).budget
    if budget == STEPS:
        return None
    archs = student_archs(experiment.config, front)
    return steps_alone(
        experiment,
        workdir,
        find_trial(front, arch)["space"],
        arch,
        1 if budget == ALL_SECONDS else len(archs),
        stage,
    )
