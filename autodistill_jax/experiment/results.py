"""Results of fine-tuning as they are kept on disk, and summed up over seeds."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax.data import squad
from autodistill_jax.experiment.fingerprints import task_dirname, weight_source

# The models that are compared, in the order of the tables, in words.
MODEL_LABELS = {
    "teacher": "teacher",
    "student": "student",
    "twin": "twin (the same objective, this Arch alone)",
    "truncated": "truncated (the teacher's slice, no distillation)",
    "scratch": "from scratch (random weights)",
    "autodistil": "AutoDistil's loss, this Arch alone",
    "distilbert": "DistilBERT (soft labels at hidden words)",
    "tinybert": "TinyBERT (general stage)",
    "minilm": "MiniLM",
    "minilmv2": "MiniLMv2",
}


def compared_models(config: ConfigDict) -> list[str]:
    """The models that a config compares."""
    teacher = ["teacher"] if config.finetune.teacher != "none" else []
    return ["student", *config.baselines, *teacher]


def result_settings(config: ConfigDict, model: str, task: str) -> dict:
    """What a model's result on a task depends on besides the task."""
    names = {
        "tasks",
        "text",
        "text_pair",
        "label",
        "metric",
        "dev_file",
        "glue_submission",
    }
    others = {
        "teacher": {"learning_rate", "scratch_learning_rate", "seeds"},
        "scratch": {"learning_rate", "teacher_learning_rate", "teacher_seeds"},
    }.get(model, {"scratch_learning_rate", "teacher_learning_rate", "teacher_seeds"})
    names |= others | (set() if model == "teacher" else {"teacher"})
    if task != squad.SQUAD:
        names |= {"squad_dir", "squad_max_seq_length", "soft_label_weight"}
    else:
        names |= {"glue_dir", "max_seq_length", "pair_encoding"}
        if model == "teacher":
            names.add("soft_label_weight")
        elif (
            config.finetune.soft_label_weight
        ):  # They learn from the teacher's fine-tuning.
            names -= {"teacher_learning_rate", "teacher_seeds"}
    made = {k: v for k, v in config.finetune.to_dict().items() if k not in names}
    if model == "student" and config.search.proxy == "flash":
        made["origin"] = weight_source(config)
    return made


def best_seed(made: Sequence) -> Any:
    """The seed with the best dev score, of what `fine_tune` gave."""
    return max(made, key=lambda one: max(one.scores))


def mean_figures(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}


def summarize_seeds(made: Sequence) -> dict:
    """A model's result, of what `fine_tune` gave: the best epoch of every seed."""
    scores = [max(one.scores) for one in made]
    return {
        "score": float(np.mean(scores)),
        "deviation": float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
        "scores": scores,
        "epochs": [one.scores for one in made],
        "parts": mean_figures([one.parts for one in made]),
    }


def results_in_folder(config: ConfigDict, folder: epath.Path) -> dict[str, dict]:
    """The results in a task's folder that are of this config: {model: result}."""
    made = {}
    for model in compared_models(config):
        path = folder / f"{model}.json"
        found = json.loads(path.read_text()) if path.exists() else None
        if found and found["settings"] == result_settings(config, model, folder.name):
            made[model] = found
    return made


def read_results(config: ConfigDict, folder: epath.Path) -> dict[str, dict[str, dict]]:
    """The results there are on the config's tasks: {task: {model: result}}."""
    made = {}
    for name in config.finetune.tasks:
        task = task_dirname(config.finetune, name)
        found = results_in_folder(config, folder / task)
        if found:
            made[task] = {
                model: found[model] for model in MODEL_LABELS if model in found
            }
    return made
