"""Job `baselines`: the chosen Arch by other methods, from the same teacher and text."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from autodistill_jax import log, multihost, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.space import single
from autodistill_jax.data import loader
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import text_rows, trials
from autodistill_jax.experiment.baseline import (
    SECONDS,
    STATIC,
    STEPS,
    even_layers,
    is_trained,
    parse_baseline,
)
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.superlm import (
    steps_within,
    train_superlm,
    trained_params,
)
from autodistill_jax.experiment.workdir import (
    arch_from_json,
    baseline_folder,
    find_trial,
    read_front,
    student_archs,
    superlm_folder,
)
from autodistill_jax.interop import huggingface, sentence_transformers
from autodistill_jax.models import build, extract, heads, static_table
from autodistill_jax.train.objective import LOSS_RECIPES, parse_objective

_MIN_TIMED = 20  # Steps of which metrics.jsonl has two lines, and so a pace.


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
    for name in experiment.config.baselines:
        baseline = parse_baseline(name)
        num_layers = experiment.teacher.arch.layers
        if baseline.num_layers > num_layers:
            raise UserError(
                f"baselines has {name!r}; the teacher has {num_layers} layers"
            )
        if baseline.budget != STEPS:
            _check_seconds(experiment, name)
        if baseline.method == "truncated":
            _check_truncation(experiment)
        if is_trained(baseline.method):
            baseline_experiment(experiment, name, narrowest)


def _check_seconds(experiment: Experiment, name: str) -> None:
    """Raises UserError where no seconds of a student can be read off its training."""
    config = experiment.config
    if config.search.proxy == "flash":
        raise UserError(
            f"baselines has {name!r}, and search.proxy flash trains no SuperLM whose "
            "seconds could be taken; leave the seconds out"
        )
    finish_steps = config.distill.finish_steps or _MIN_TIMED
    if min(config.distill.steps, finish_steps) < _MIN_TIMED:
        raise UserError(
            f"baselines has {name!r}, and distill.steps is {config.distill.steps}, "
            f"distill.finish_steps {config.distill.finish_steps}; give {_MIN_TIMED} or "
            "more, so that their seconds can be taken"
        )


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
      baseline: its name: "twin" is the SuperLM's own objective on the Arch alone, a
        layer reduction the teacher with fewer layers, others are in
        `objective.LOSS_RECIPES`.
      arch: of the student.

    Returns:
      The experiment with that space, under the baseline's name, and that objective.

    Raises:
      UserError: the recipe does not fit the Arch.
    """
    method, num_layers = parse_baseline(baseline)[:2]
    if num_layers:
        arch = dataclasses.replace(experiment.teacher.arch, layers=num_layers)
    space = single(arch)
    settings = experiment.config.distill.to_dict()
    if method != "twin":
        settings |= LOSS_RECIPES[method]
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
    choices = [arch_from_json(choice["arch"]) for choice in front["choices"]]
    num_written = 0
    for arch, baseline in itertools.product(
        dict.fromkeys(choices), experiment.config.baselines
    ):
        folder = baseline_folder(workdir, baseline, arch)
        # From scratch, each seed of the fine-tuning has random weights of its own.
        if baseline == "scratch" or storage.is_complete(folder):
            continue
        if baseline == STATIC:
            _write_static(experiment, workdir, folder)
            num_written += 1
            continue
        seconds = _budget_seconds(experiment, workdir, front, arch, baseline)
        network = train_baseline(
            experiment, workdir, baseline, arch, seconds, f"{stage} {baseline}"
        )
        _save_baseline(experiment, folder, baseline, network)
        log.say(f"{stage}: made {folder}")
        num_written += 1
    if not num_written:
        log.say(f"{stage}: nothing left to do")


def static_baseline(experiment: Experiment, workdir: epath.Path) -> huggingface.Teacher:
    """The teacher as a static table, its weights by the training text.

    Args:
      experiment: whose teacher it is.
      workdir: with the text's rows.

    Returns:
      The network, see `huggingface.static_network`.
    """
    teacher, ids = experiment.teacher, experiment.special_tokens
    text = text_rows.text_rows(experiment, workdir, "train")
    is_text = np.asarray(text["attention_mask"], bool)
    tokens = np.asarray(text["input_ids"])[is_text]
    counts = np.bincount(tokens, minlength=teacher.dims.vocab)
    counts[[ids.cls_token_id, ids.sep_token_id]] = 0
    module = huggingface.network_module(teacher)
    pooled = jax.jit(lambda p, b: build.text_embeddings(module, p, b, teacher.pooling))

    def embed(rows: np.ndarray) -> np.ndarray:
        arrays = {"input_ids": rows, "attention_mask": np.ones_like(rows)}
        return loader.map_batches(
            functools.partial(pooled, teacher.params), arrays, 512, experiment.mesh
        )

    special_ids = (ids.cls_token_id, ids.sep_token_id)
    log.say(f"{STATIC}: the teacher's embedding of each of {len(counts):,} tokens ...")
    return huggingface.static_network(
        teacher, static_table.distill_static_table(embed, counts, special_ids)
    )


def _write_static(
    experiment: Experiment, workdir: epath.Path, folder: epath.Path
) -> None:
    network = static_baseline(experiment, workdir)

    def write() -> None:
        with storage.atomic_write(folder, folder=True) as partial:
            table = network.params["table"]
            sentence_transformers.write_static_table(
                partial, table, experiment.tokenizer
            )
            sizes = dict(zip(("vocab_size", "hidden_size"), table.shape))
            (partial / "config.json").write_text(json.dumps(sizes) + "\n")

    multihost.on_first_process(write)
    log.say(f"baselines: made {folder}")


def _save_baseline(
    experiment: Experiment,
    folder: epath.Path,
    name: str,
    network: huggingface.Teacher,
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
        lambda folder: None,
        dense=network.dense,
    )


def train_baseline(
    experiment: Experiment,
    workdir: epath.Path,
    baseline: str,
    arch: AnyArch,
    seconds: float | None,
    stage: str,
) -> huggingface.Teacher:
    """A baseline's network: a slice of the teacher, or trained here.

    Args:
      experiment: complete.
      workdir: with the text's rows; checkpoints of the training go there.
      baseline: its name.
      arch: of the student that it stands beside.
      seconds: that it trains for; None: for `distill.steps`.
      stage: what log lines begin with.

    Returns:
      The network, with the map to the teacher's embeddings where `export.align` asks
      for it and there is one.
    """
    if parse_baseline(baseline).method == "truncated":
        if experiment.config.distill.init_from == "teacher":
            return baseline_start(experiment, baseline, arch)
        teacher = experiment.teacher
        params = extract.extract(teacher.params, teacher.arch, arch)
        return _network(experiment, arch, params)
    variant = baseline_experiment(experiment, baseline, arch)
    space = variant.spaces[baseline]
    start = None
    if parse_baseline(baseline).num_layers:
        start = baseline_start(experiment, baseline, arch).params
    folder = superlm_folder(workdir, f"{baseline}-{arch.name}")
    if seconds is not None:
        # Kept: whoever goes on must have the same schedule.
        path = folder.parent / "steps.json"
        if not path.exists():
            steps = steps_within(variant, workdir, space, seconds, stage, start)
            storage.write_json(path, {"steps": steps, "seconds": seconds})
        config = variant.config.copy_and_resolve_references()
        config.distill.steps = json.loads(path.read_text())["steps"]
        variant = dataclasses.replace(variant, config=config)
    name = f"baselines/{baseline}"
    train_superlm(variant, workdir, folder, space, name, stage, start)
    steps = variant.config.distill.steps
    params = trained_params(experiment, folder, steps, "baselines")
    network = _network(experiment, space[0], heads.encoder_params(params))
    if not variant.objective.weights.keys() & {"pooled", "embedding"}:
        return network
    return network._replace(dense=experiment.aligning_map(space[0], params))


def baseline_start(
    experiment: Experiment, baseline: str, arch: AnyArch
) -> huggingface.Teacher:
    """What a baseline's training starts from, out of the teacher.

    Args:
      experiment: complete.
      baseline: its name.
      arch: of the student that it stands beside.

    Returns:
      The network, without a map to the teacher's embeddings.
    """
    _, num_layers, are_even, _ = parse_baseline(baseline)
    teacher = experiment.teacher
    if not num_layers:
        return _network(experiment, arch, experiment.start_params(arch))
    arch = dataclasses.replace(teacher.arch, layers=num_layers)
    layers = experiment.kept_layers(num_layers)
    if are_even:
        layers = even_layers(num_layers, teacher.arch.layers)
    # Of the teacher itself, whatever the students start from.
    return _network(
        experiment, arch, extract.extract(teacher.params, teacher.arch, arch, layers)
    )


def _network(
    experiment: Experiment, arch: AnyArch, params: Mapping[str, Any]
) -> huggingface.Teacher:
    of_arch = dataclasses.replace(experiment, spaces={"": single(arch)})
    return experiment.teacher._replace(
        arch=arch,
        dims=of_arch.dims,
        params=dict(params),
        mlm_head=None,
        nsp_head=None,
        dense=None,
    )


def _budget_seconds(
    experiment: Experiment,
    workdir: epath.Path,
    front: dict,
    arch: AnyArch,
    baseline: str,
) -> float | None:
    """What a baseline may train for, in seconds; None: for as many steps."""
    budget = parse_baseline(baseline).budget
    if budget == STEPS:
        return None
    config, spaces = experiment.config, experiment.spaces
    space = find_trial(front, arch)["space"]
    name = f"distill/{space}" if len(spaces) > 1 else "distill"
    superlm_seconds = log.training_seconds(workdir, name)
    if budget == SECONDS:
        superlm_seconds /= len(student_archs(config, front))
    finish_seconds = log.training_seconds(workdir, f"finish/{arch.name}")
    return superlm_seconds + (finish_seconds if config.distill.finish_steps else 0.0)
