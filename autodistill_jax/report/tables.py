"""How do student, baselines and teacher stand side by side on labelled tasks?"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax.archs.papers import PRINTED
from autodistill_jax.data import squad
from autodistill_jax.experiment.workdir import arch_of, origin, students, task_folder

LABELS = {
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


def models(config: ConfigDict) -> list[str]:
    """The models that a config compares."""
    teacher = ["teacher"] if config.finetune.teacher != "none" else []
    return ["student", *config.baselines, *teacher]


def recipe(config: ConfigDict, model: str, task: str) -> dict:
    """What a model's result on a task depends on besides the task."""
    names = {"tasks", "text", "text_pair", "label", "metric", "dev_file", "predict"}
    others = {
        "teacher": {"learning_rate", "scratch_learning_rate", "seeds"},
        "scratch": {"learning_rate", "teacher_learning_rate", "teacher_seeds"},
    }.get(model, {"scratch_learning_rate", "teacher_learning_rate", "teacher_seeds"})
    names |= others | (set() if model == "teacher" else {"teacher"})
    if task != squad.NAME:
        names |= {"squad_dir", "squad_length", "squad_soft"}
    else:
        names |= {"glue_dir", "length", "pairs"}
        if model == "teacher":
            names.add("squad_soft")
        elif config.finetune.squad_soft:  # They learn from the teacher's fine-tuning.
            names -= {"teacher_learning_rate", "teacher_seeds"}
    made = {k: v for k, v in config.finetune.to_dict().items() if k not in names}
    if model == "student" and config.search.proxy == "flash":
        made["origin"] = origin(config)
    return made


def best(made: Sequence) -> Any:
    """The seed with the best dev score, of what `fine_tune` gave."""
    return max(made, key=lambda one: max(one.scores))


def mean(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}


def over_seeds(made: Sequence) -> dict:
    """A model's result, of what `fine_tune` gave: the best epoch of every seed."""
    scores = [max(one.scores) for one in made]
    return {
        "score": float(np.mean(scores)),
        "deviation": float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
        "scores": scores,
        "epochs": [one.scores for one in made],
        "parts": mean([one.parts for one in made]),
    }


def there(config: ConfigDict, folder: epath.Path) -> dict[str, dict]:
    """The results in a task's folder that are of this config: {model: result}."""
    made = {}
    for model in models(config):
        path = folder / f"{model}.json"
        found = json.loads(path.read_text()) if path.exists() else None
        if found and found["settings"] == recipe(config, model, folder.name):
            made[model] = found
    return made


def read(config: ConfigDict, folder: epath.Path) -> dict[str, dict[str, dict]]:
    """The results there are on the config's tasks: {task: {model: result}}."""
    made = {}
    for name in config.finetune.tasks:
        task = task_folder(config.finetune, name)
        found = there(config, folder / task)
        if found:
            made[task] = {model: found[model] for model in LABELS if model in found}
    return made


def side_by_side(tasks: dict[str, dict[str, dict]]) -> tuple[list, list]:
    """(head, rows) of one table, a model a row: the dev score of each task with its
    deviation over seeds, the mean over tasks, and what that retains of the teacher's
    mean (AutoDistil's retention).

    Where a task has pairs with a similarity, the column before it is the Spearman of
    the cosine of the embeddings, without any fine-tuning.
    """
    models = [m for m in LABELS if any(m in found for found in tasks.values())]
    reference = {
        task: found["teacher"]["score"]
        for task, found in tasks.items()
        if "teacher" in found
    }
    head, rows = ["model"], [[LABELS[model]] for model in models]
    for task, found in tasks.items():
        if any("similarity" in result for result in found.values()):
            head.append(f"{task}, no fine-tuning (Spearman)")
            for model, row in zip(models, rows):
                value = found.get(model, {}).get("similarity")
                row.append("" if value is None else f"{value:.3f}")
        metric = next(iter(found.values()))["metric"].replace("_", " ")
        head.append(f"{task} ({metric})")
        for model, row in zip(models, rows):
            row.append(_score(found[model]) if model in found else "")
    head += ["mean", "of the teacher's"]
    for model, row in zip(models, rows):
        scores = [found[model]["score"] for found in tasks.values() if model in found]
        # Over the same tasks for all, or it would not compare.
        whole = len(scores) == len(tasks)
        row.append(f"{np.mean(scores):.3f}" if whole else "")
        kept = whole and len(reference) == len(tasks) and sum(reference.values()) > 0
        share = sum(scores) / sum(reference.values()) if kept else 0
        row.append(f"{share:.1%}" if kept else "")
    return head, rows


def _score(result: dict) -> str:
    told = f"{result['score']:.3f}"
    if len(result.get("scores", ())) > 1:
        told += f" ± {result['deviation']:.3f}"
    if result["how"].startswith("frozen"):
        told += " (frozen)"
    if "exact_match" in result.get("parts", {}):
        told += f" / {result['parts']['exact_match']:.3f} exact"
    for name, value in result.get("more", {}).items():
        told += f" / {value:.3f} {name}"
    return told


def standing(
    config: ConfigDict, found: dict, workdir: epath.Path
) -> tuple[list[str], list[list[str]]]:
    """(head, rows): all students of a search beside the teacher, and what the second
    paper printed of others, which is marked so.

    found: front.json.
    """
    source = found["latency"]["source"]
    trials = {arch_of(one["arch"]): one for one in found["trials"]}
    rows, names = [], [task_folder(config.finetune, t) for t in config.finetune.tasks]
    teacher: dict[str, str] = {}
    for arch in students(config, found):
        results = read(config, workdir / "finetune" / arch.name)
        cells = [
            _score(results[name]["student"])
            if "student" in results.get(name, {})
            else ""
            for name in names
        ]
        rows.append([arch.name, *_costs(trials[arch], source), *cells])
        teacher = {
            n: _score(r["teacher"]) for n, r in results.items() if "teacher" in r
        } | (teacher)
    cells = [teacher.get(name, "") for name in names]
    rows.append(["teacher", *_costs(found["teacher"], source), *cells])
    for name, (params, latency, answers) in PRINTED.items():
        latency = f"{latency} (printed, TPUv4i)" if latency else ""
        cells = [f"{answers} exact (printed)" if n == "squad" else "" for n in names]
        rows.append([name, f"{params} (printed)", "", latency, *cells])
    return ["model", "parameters", "multiply-adds", "latency", *names], rows


def _costs(one: dict, source: str) -> list[str]:
    ms = one.get("latency_ms")
    told = f"{ms:.3g} ms ({source})" if ms is not None else ""
    return [f"{one['params'] / 1e6:.2f} M", f"{one['flops'] / 1e9:.3f} G", told]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def notes(tasks: dict[str, dict[str, dict]], words: dict | None) -> list[str]:
    """What has to be known to read the table, a sentence or two each."""
    results = [result for found in tasks.values() for result in found.values()]
    seeds = sorted({len(result.get("scores", [0])) for result in results})
    rows = ", ".join(
        f"{task}: {one['train_rows']:,} training and {one['dev_rows']:,} dev rows"
        for task, found in tasks.items()
        for one in [next(iter(found.values()))]
    )
    counts = " or ".join(map(str, seeds))
    told = [f"{rows}. Best dev epoch; mean and deviation over {counts} seed(s)."]
    models = {result["model"] for result in results}
    if models - {"teacher", "student"}:
        rates = {
            result["settings"].get(f"{name}learning_rate")
            for result in results
            for name in ("", "scratch_")
            if result["model"] != "teacher"
        } - {None}
        untaught = " and ".join(m for m in ("truncated", "scratch") if m in models)
        told.append(
            "All students have the same Arch, teacher, text, steps, tokens and "
            "fine-tuning"
            + (f"; no text before it for {untaught}." if untaught else ".")
            + (" From scratch has a learning rate of its own." * (len(rates) > 1))
        )
    if words:
        told.append(
            "The teacher has no masked-word head: one, tied to its word embeddings "
            f"({words['params']:,} parameters), was first trained on the frozen teacher, "
            f"{words['steps']:,} steps ({words['tokens']:,} tokens) that no other "
            f"method has; it names {words['accuracy']:.1%} of hidden held-out words."
        )
    return told
