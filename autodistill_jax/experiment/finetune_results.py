"""Results of fine-tuning: summed up over seeds, kept on disk, read back."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax.data import squad
from autodistill_jax.experiment.baseline import in_table_order
from autodistill_jax.experiment.fingerprints import model_origin, task_dirname


def compared_models(config: ConfigDict) -> list[str]:
    """The models that a config compares, by their names, see `baseline.model_label`."""
    teacher = ["teacher"] if config.finetune.teacher != "none" else []
    return ["student", *config.baselines, *teacher]


def result_settings(config: ConfigDict, model: str, task: str) -> dict:
    """What a model's result on a task depends on besides the task.

    Args:
      config: the experiment's.
      model: one of `compared_models`.
      task: as in `finetune.tasks`.

    Returns:
      The fields of the section finetune that count; of what was trained here also
      "origin".
    """
    unused = {
        "tasks",
        "text",
        "text_pair",
        "label",
        "metric",
        "dev_file",
        "glue_submission",
    }
    rates_and_seeds = {
        "teacher": {"learning_rate", "scratch_learning_rate", "seeds"},
        "scratch": {"learning_rate", "teacher_learning_rate", "teacher_seeds"},
    }.get(model, {"scratch_learning_rate", "teacher_learning_rate", "teacher_seeds"})
    unused |= rates_and_seeds | (set() if model == "teacher" else {"teacher"})
    if task != squad.SQUAD:
        unused |= {"squad_dir", "squad_max_seq_length", "soft_label_weight"}
    else:
        unused |= {"glue_dir", "max_seq_length", "pair_encoding"}
        if model == "teacher":
            unused.add("soft_label_weight")
        elif config.finetune.soft_label_weight:
            # They learn from the teacher's fine-tuning.
            unused -= {"teacher_learning_rate", "teacher_seeds"}
    settings = {k: v for k, v in config.finetune.to_dict().items() if k not in unused}
    if origin := model_origin(config, model):
        settings["origin"] = origin
    return settings


def best_seed(seed_results: Sequence) -> Any:
    """The seed with the best dev score.

    Args:
      seed_results: a `FinetuneResult` or `SpanFinetuneResult` of every seed.

    Returns:
      One of them, the first where two are equal.
    """
    return max(seed_results, key=lambda result: max(result.scores))


def mean_figures(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """{name: its mean over dicts with the same names}."""
    return {
        name: float(np.mean([values[name] for values in figures]))
        for name in figures[0]
    }


def summarize_seeds(seed_results: Sequence) -> dict:
    """A model's result, from the best epoch of every seed.

    Args:
      seed_results: as of `best_seed`.

    Returns:
      {"score": the mean over seeds, "deviation" of a sample (0.0 of one seed),
      "scores": of the seeds, "epochs": scores of every seed's epochs, "metrics": the
      means of the scores that make up "score"}.
    """
    scores = [max(result.scores) for result in seed_results]
    return {
        "score": float(np.mean(scores)),
        "deviation": float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
        "scores": scores,
        "epochs": [result.scores for result in seed_results],
        "metrics": mean_figures([result.metrics for result in seed_results]),
    }


def results_in_folder(config: ConfigDict, folder: epath.Path) -> dict[str, dict]:
    """The results in a task's folder that are of this config.

    Args:
      config: the experiment's.
      folder: finetune/<student>/<task>.

    Returns:
      {model: result}.
    """
    by_model = {}
    for model in compared_models(config):
        path = folder / f"{model}.json"
        result = json.loads(path.read_text()) if path.exists() else None
        if result and result["settings"] == result_settings(config, model, folder.name):
            by_model[model] = result
    return by_model


def read_results(config: ConfigDict, folder: epath.Path) -> dict[str, dict[str, dict]]:
    """The results there are on the config's tasks.

    Args:
      config: the experiment's.
      folder: finetune/<student>.

    Returns:
      {task: {model: result}}, models in the order of the tables.
    """
    by_task = {}
    for name in config.finetune.tasks:
        task = task_dirname(config.finetune, name)
        by_model = results_in_folder(config, folder / task)
        if by_model:
            by_task[task] = {
                model: by_model[model] for model in in_table_order(set(by_model))
            }
    return by_task
