"""What a student is compared with: the network of each baseline, made from the teacher."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import log, multihost, sharding, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.space import single
from autodistill_jax.data import loader
from autodistill_jax.errors import DivergedError, UserError
from autodistill_jax.experiment import text_rows
from autodistill_jax.experiment.baseline import (
    BEFORE_FINISH,
    STATIC,
    even_layers,
    parse_baseline,
)
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.fingerprints import model_origin, short_hash
from autodistill_jax.experiment.proxy_inputs import proxy_inputs
from autodistill_jax.experiment.superlm import (
    config_alone,
    train_superlm,
    trained_params,
    trained_superlm,
)
from autodistill_jax.experiment.training_time import (
    Training,
    step_time_ratio,
    training_alone,
)
from autodistill_jax.experiment.workdir import superlm_folder
from autodistill_jax.interop import huggingface
from autodistill_jax.models import build, extract, heads, static_table
from autodistill_jax.search import proxies
from autodistill_jax.train.objective import LOSS_RECIPES, parse_objective

_JOB = "baselines/"
_RATE_SHARE = 5  # Each rate is tried for a fifth of the steps.


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


def train_baseline(
    experiment: Experiment,
    workdir: epath.Path,
    baseline: str,
    arch: AnyArch,
    num_steps_alone: float | None,
    stage: str,
) -> huggingface.Teacher:
    """A baseline's network: a slice of the teacher or of the SuperLM, or trained here.

    Args:
      experiment: complete.
      workdir: with the text's rows; checkpoints of the training go there.
      baseline: its name.
      arch: of the student that it stands beside.
      num_steps_alone: it trains for the time that so many steps of the Arch alone take,
        see `training_time.steps_alone`; None: for as many steps as the student, of the
        SuperLM and of its finish.
      stage: what log lines begin with.

    Returns:
      The network, with the map to the teacher's embeddings where `export.align` asks
      for it and there is one.
    """
    if parse_baseline(baseline).method == BEFORE_FINISH:
        name = experiment.affordable[arch]
        superlm = trained_superlm(experiment, workdir, name)
        params = jax.tree.map(sharding.to_host, superlm)
        student = experiment.extract_student(
            experiment.spaces[name], heads.encoder_params(params), arch
        )
        network = _network(experiment, arch, student)
        return network._replace(dense=experiment.aligning_map(arch, params))
    if parse_baseline(baseline).method == "truncated":
        if experiment.config.distill.init_from == "teacher":
            params = experiment.start_params(arch)
        else:
            teacher = experiment.teacher
            params = extract.extract(teacher.params, teacher.arch, arch)
        dense = experiment.fitted_map(arch, params)
        return _network(experiment, arch, params)._replace(dense=dense)
    variant = baseline_experiment(experiment, baseline, arch)
    space = variant.spaces[baseline]
    start = None
    if parse_baseline(baseline).num_layers:
        start = baseline_start(experiment, baseline, arch).params
    name = job_name(experiment.config, baseline, arch)
    folder = superlm_folder(workdir, name.removeprefix(_JOB))
    settings = experiment.config.distill
    steps = settings.steps
    if experiment.config.search.proxy != "flash":  # It has no finish.
        steps += settings.finish_steps
    if num_steps_alone is not None:
        # Kept: whoever goes on must have the same schedule.
        path = folder.parent / "steps.json"
        if not path.exists():
            ratio = 1.0
            if parse_baseline(baseline).method != "twin":  # It is the Arch alone.
                ratio = step_time_ratio(
                    Training(variant, space, start),
                    training_alone(experiment, arch),
                    workdir,
                    stage,
                )
            steps = max(round(num_steps_alone / ratio), 1)
            log.say(f"{stage}: {steps:,} steps take as long as all of the student's")
            storage.write_json(path, {"steps": steps, "steps_alone_per_step": ratio})
        steps = json.loads(path.read_text())["steps"]
    alone = config_alone(variant.config, steps)
    variant = dataclasses.replace(variant, config=alone)
    rate = _best_rate(variant, workdir, folder.parent, name, start, stage)
    variant = _with_settings(variant, learning_rate=rate)
    train_superlm(variant, workdir, folder, space, name, stage, start)
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


def _best_rate(
    variant: Experiment,
    workdir: epath.Path,
    folder: epath.Path,
    job: str,
    start: dict | None,
    stage: str,
) -> float:
    """Of `baseline_learning_rates`, the one that has the lowest held-out loss after a
    part of the steps; kept in the folder."""
    rates = variant.config.baseline_learning_rates
    if not rates:
        return variant.config.distill.learning_rate
    path = folder / "rates.json"
    if path.exists():
        return json.loads(path.read_text())["chosen"]
    ((space_name, space),) = variant.spaces.items()
    steps = max(variant.config.distill.steps // _RATE_SHARE, 1)
    losses = {}
    for rate in rates:
        tried = _with_settings(variant, steps=steps, learning_rate=rate)
        name, label = f"rate-{rate:g}", f"{stage}, rate {rate:g}"
        job_of_rate = f"{job}/{name}"
        try:
            train_superlm(
                tried, workdir, folder / name, space, job_of_rate, label, start
            )
        except DivergedError as error:  # What a trial is there to find out.
            log.say(str(error))
            losses[rate] = math.inf
            continue
        params = trained_params(tried, folder / name, steps, "baselines")
        inputs = proxy_inputs(tried, workdir, space_name, params, None, 0)
        (result,) = proxies.make_proxy("agnostic", inputs)([space[0]]).values()
        losses[rate] = result["proxy"] if math.isfinite(result["proxy"]) else math.inf
        log.say(f"{label}: held-out loss {result['proxy']:.4f} after {steps} steps")
    chosen = min(rates, key=lambda rate: losses[rate])
    if math.isinf(losses[chosen]):
        raise UserError(
            f"{stage}: the loss is not finite at any of baseline_learning_rates "
            f"{rates}; give lower ones"
        )
    by_rate = {f"{rate:g}": f"{loss:.6g}" for rate, loss in losses.items()}
    storage.write_json(path, {"chosen": chosen, "steps": steps, "losses": by_rate})

    def forget() -> None:
        for rate in rates:
            if (folder / f"rate-{rate:g}").exists():
                (folder / f"rate-{rate:g}").rmtree()

    multihost.on_first_process(forget)
    return chosen


def _with_settings(experiment: Experiment, **settings: Any) -> Experiment:
    """The experiment under other settings of its section distill."""
    config = experiment.config.copy_and_resolve_references()
    config.distill.update(settings)
    return dataclasses.replace(experiment, config=config)


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
    module = build.build_module(teacher.arch, teacher.dims)
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


def job_name(config: ConfigDict, baseline: str, arch: AnyArch) -> str:
    """The name under which a baseline's losses stand in metrics.jsonl."""
    return f"{_JOB}{baseline}-{arch.name}-{short_hash(model_origin(config, baseline))}"
