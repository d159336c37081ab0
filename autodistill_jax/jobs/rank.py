"""Job `rank`: Kendall's tau of every proxy's order of Archs with fine-tuning's."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from autodistill_jax import log, metrics, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.data.tasks import Task
from autodistill_jax.experiment import fingerprints, labelled_data, proxy_inputs
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.superlm import trained_superlm
from autodistill_jax.experiment.workdir import arch_to_json, read_rank_table
from autodistill_jax.models import build, heads
from autodistill_jax.search import proxies, ranking
from autodistill_jax.train import classification

# Below it a bootstrap over Archs says little.
_MIN_ARCHS = 24
_MAX_DRAWN_FROM = 20_000  # Archs of a space, at most.


class _RankPlan(NamedTuple):
    """What is compared, and by what.

    Attributes:
      bands: {Arch drawn: its band of multiply-adds}.
      archs_by_space: {space: its Archs among them}, of spaces that have some.
      flops: {Arch: multiply-adds}, of all that were drawn from.
      proxy_names: the proxies whose order is compared.
    """

    bands: dict[AnyArch, int]
    archs_by_space: dict[str, list[AnyArch]]
    flops: dict[AnyArch, int]
    proxy_names: tuple[str, ...]


def run_rank(
    experiment: Experiment,
    workdir: epath.Path,
    task: Task | None = None,
    stage: str = "rank",
) -> None:
    """Leaves search/rank.json: `rank.archs` Archs drawn over the whole space(s), evenly
    over bands of multiply-adds, each fine-tuned on `rank.task`; every proxy's tau with
    that quality, overall and within the bands, beside the multiply-adds' own.

    The drawn Archs need not meet the budget: they are to stand for the space.

    Args:
      experiment: with its spaces, see `loading.load_experiment`.
      workdir: holds the trained SuperLMs.
      task: `rank.task`; None only where `rank.archs` is 0 or rank.json is there.
      stage: what lines to the user begin with.
    """
    if not experiment.config.rank.archs:
        log.say(f"{stage}: off (rank.archs is 0)")
        return
    path = workdir / "search" / "rank.json"
    if read_rank_table(experiment.config, workdir):
        log.say(f"{stage}: done already, {path}")
        return
    plan = _plan_rank(experiment, stage)
    superlms = {
        space: trained_superlm(experiment, workdir, space)
        for space in plan.archs_by_space
    }
    rows = labelled_data.classification_data(experiment, task._replace(test_texts={}))
    quality_rows, proxy_rows = _split_dev_rows(rows, plan.proxy_names)
    quality, predictions = _finetuned_quality(
        experiment, workdir, plan, superlms, quality_rows, stage
    )
    scores = _proxy_scores(experiment, workdir, plan, superlms, proxy_rows, stage)
    log.say(f"{stage}: how sure are the taus? Drawing Archs, seeds and dev rows ...")
    record = _rank_record(
        experiment, plan, task, quality_rows, quality, predictions, scores
    )
    storage.write_json(path, record)
    _say_taus(record["table"], stage)
    log.say(f"{stage}: made {path}")


def _plan_rank(experiment: Experiment, stage: str) -> _RankPlan:
    settings = experiment.config.rank
    space_of = {}
    for name, space in experiment.spaces.items():
        archs = space.subset(_MAX_DRAWN_FROM, experiment.config.seed)
        space_of = dict.fromkeys(archs, name) | space_of
    flops = {arch: experiment.cost(arch)["flops"] for arch in space_of}
    bands = ranking.draw_by_flops(
        flops, settings.archs, settings.flops_bins, experiment.config.seed
    )
    if len(bands) < _MIN_ARCHS:
        log.say(
            f"{stage}: only {len(bands)} Archs: with fewer than {_MIN_ARCHS} the "
            "intervals are too wide to tell proxies apart"
        )
    by_space = {
        name: [arch for arch in bands if space_of[arch] == name]
        for name in experiment.spaces
    }
    return _RankPlan(
        bands,
        {name: archs for name, archs in by_space.items() if archs},
        flops,
        proxy_inputs.ranked_proxies(experiment.config),
    )


def _split_dev_rows(
    rows: classification.ClassificationData, names: tuple[str, ...]
) -> tuple[classification.ClassificationData, classification.ClassificationData]:
    """What quality is measured on, and what the proxies see of the task.

    Each other dev row for either where a proxy has labels: on the same rows both would
    have the same luck.
    """
    if not set(names) & set(proxies.LABELLED_PROXIES):
        return rows, rows
    quality_rows, proxy_rows = (
        rows._replace(dev={name: x[start::2] for name, x in rows.dev.items()})
        for start in (0, 1)
    )
    return quality_rows, proxy_rows


def _finetuned_quality(
    experiment: Experiment,
    workdir: epath.Path,
    plan: _RankPlan,
    superlms: Mapping[str, dict],
    rows: classification.ClassificationData,
    stage: str,
) -> tuple[dict[AnyArch, list[float]], dict[AnyArch, list[list[float]]]]:
    """({Arch: its dev scores after fine-tuning, a seed each}, {Arch: the predictions
    behind them}), as the job finetune makes them; those there are are kept, and written
    as they come."""
    settings, config = experiment.config.rank, experiment.config
    fingerprint = fingerprints.rank_fingerprint(config)["tuning"] | {
        "dev": len(rows.dev["label"])
    }
    path = workdir / "search" / f"quality-{fingerprint['task']}.json"
    quality, predictions = _read_quality(path, fingerprint)
    count = sum(len(archs) for archs in plan.archs_by_space.values())
    done = 0
    for space, archs in plan.archs_by_space.items():
        params = jax.tree.map(np.asarray, heads.encoder_params(superlms[space]))
        for arch in archs:
            done += 1
            scores = quality.setdefault(str(arch), [])
            seeds = range(config.seed + len(scores), config.seed + settings.seeds)
            if not seeds:
                continue
            student = experiment.extract_student(experiment.spaces[space], params, arch)
            label = f"{stage} {done}/{count}, {arch}"
            results = _finetune(experiment, arch, student, rows, seeds, label)
            scores += [max(result.scores) for result in results]
            predictions.setdefault(str(arch), []).extend(
                np.round(result.dev_predictions.astype(float), 5).tolist()
                for result in results
            )
            record = {"quality": quality, "predictions": predictions}
            storage.write_json(path, {"asked": fingerprint, **record})
            scores_text = ", ".join(f"{score:.4f}" for score in scores)
            log.say(f"{stage}: {done}/{count}, {arch}: {scores_text}")
    return tuple(
        {
            arch: by_name[str(arch)][: settings.seeds]
            for archs in plan.archs_by_space.values()
            for arch in archs
        }
        for by_name in (quality, predictions)
    )


def _read_quality(path: epath.Path, fingerprint: dict) -> tuple[dict, dict]:
    """({Arch as text: dev scores}, {Arch as text: predictions}) of a file, if of that
    fingerprint; else empty ones."""
    record = json.loads(path.read_text()) if path.exists() else {"asked": None}
    if record["asked"] != fingerprint or "predictions" not in record:
        return {}, {}
    return record["quality"], record["predictions"]


def _finetune(
    experiment: Experiment,
    arch: AnyArch,
    student: dict,
    rows: classification.ClassificationData,
    seeds: range,
    label: str,
) -> list[classification.FinetuneResult]:
    """A student fine-tuned, once a seed."""
    settings = experiment.config.finetune
    return classification.finetune_classifier(
        build.build_module(
            arch,
            experiment.dims,
            dtype=jnp.dtype(settings.compute_dtype),
            dropout=settings.dropout,
        ),
        lambda seed: student,
        rows,
        settings.to_dict(),
        experiment.teacher.pooling,
        experiment.mesh,
        seeds,
        label,
    )


def _proxy_scores(
    experiment: Experiment,
    workdir: epath.Path,
    plan: _RankPlan,
    superlms: Mapping[str, dict],
    rows: classification.ClassificationData,
    stage: str,
) -> dict[str, dict[AnyArch, float]]:
    """{"flops" and each proxy: {Arch: score, more is better}}."""
    # A seed that quality has not seen: the first steps of its fine-tuning would be
    # those of the proxy.
    seed = experiment.config.seed + experiment.config.rank.seeds
    inputs = {
        space: proxy_inputs.proxy_inputs(
            experiment, workdir, space, superlms[space], rows, seed
        )
        for space in plan.archs_by_space
    }
    scores: dict[str, dict] = {"flops": plan.flops}
    for name in plan.proxy_names:
        log.say(f"{stage}: {name}: {proxies.PROXIES[name]} ...")
        scores[name] = {}
        for space, archs in plan.archs_by_space.items():
            for arch, values in proxies.make_proxy(name, inputs[space])(archs).items():
                scores[name][arch] = -values["proxy"]  # More is better here.
    return scores


def _rank_record(
    experiment: Experiment,
    plan: _RankPlan,
    task: Task,
    rows: classification.ClassificationData,
    quality: Mapping[AnyArch, list[float]],
    predictions: Mapping[AnyArch, list[list[float]]],
    scores: Mapping[str, Mapping[AnyArch, float]],
) -> dict[str, Any]:
    """What rank.json holds. rows: those that quality was measured on."""
    archs = list(plan.bands)
    table = ranking.rank_table(
        [np.mean(quality[arch]) for arch in archs],
        {name: [values[arch] for arch in archs] for name, values in scores.items()},
        [plan.bands[arch] for arch in archs],
        quality_draws=ranking.redraw_quality(
            metrics.METRICS[task.metric],
            rows.dev["label"],
            [np.asarray(predictions[arch]) for arch in archs],
        ),
    )
    return {
        "asked": fingerprints.rank_fingerprint(experiment.config),
        "task": task.name,
        "dev_rows": len(rows.dev["label"]),
        "metric": task.metric,
        "table": table,
        "archs": [
            {
                "arch": arch_to_json(arch),
                "band": plan.bands[arch],
                "quality": quality[arch],
                **{name: float(values[arch]) for name, values in scores.items()},
            }
            for arch in archs
        ],
    }


def _say_taus(table: Mapping[str, Mapping[str, Any]], stage: str) -> None:
    for name, scopes in table.items():
        text = ", ".join(
            f"{scope} {entry['tau']:.2f} [{entry['interval'][0]:.2f}, "
            f"{entry['interval'][1]:.2f}]"
            + (f" ({entry['verdict']})" if name != "flops" else "")
            for scope, entry in scopes.items()
        )
        log.say(f"{stage}: tau of {name}: {text}")
