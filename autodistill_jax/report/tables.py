"""Tables of teacher, student and baselines side by side on labelled tasks."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax.archs.published import PRINTED_RESULTS
from autodistill_jax.experiment.baseline import in_table_order, model_label
from autodistill_jax.experiment.finetune_results import read_results
from autodistill_jax.experiment.fingerprints import task_dirname
from autodistill_jax.experiment.workdir import arch_from_json, student_archs

_COSTS = ("parameters", "multiply-adds", "latency")


def task_table(
    tasks: Mapping[str, dict[str, dict]],
    costs: Mapping[str, Mapping[str, float]],
    source: str,
) -> tuple[list[str], list[list[str]]]:
    """One table of all models and tasks, a model a row.

    A row has the dev score of each task with its deviation over seeds, the mean over
    tasks, and what that retains of the teacher's mean (AutoDistil's retention). Where a
    task has pairs with a similarity, the column before it is the Spearman of the cosine
    of the embeddings, without any fine-tuning.

    Args:
      tasks: {task: {model: result}}, as `finetune_results.read_results` gives them.
      costs: of `model_costs.model_costs`; {} leaves their columns out.
      source: of latencies, "measured" or "compiled".

    Returns:
      (header, rows) of text cells.
    """
    models = in_table_order({m for by_model in tasks.values() for m in by_model})
    reference = {
        task: by_model["teacher"]["score"]
        for task, by_model in tasks.items()
        if "teacher" in by_model
    }
    header, rows = ["model"], [[model_label(model)] for model in models]
    if costs:
        header += [*_COSTS, "training"]
        for model, row in zip(models, rows):
            row += _format_costs(costs.get(model, {}), source)
            seconds = costs.get(model, {}).get("seconds")
            row.append("" if seconds is None else f"{seconds:.0f} s")
    for task, by_model in tasks.items():
        for key, side in (("similarity", ""), ("similarity_test", " test")):
            if any(key in result for result in by_model.values()):
                header.append(f"{task}{side}, no fine-tuning (Spearman)")
                for model, row in zip(models, rows):
                    value = by_model.get(model, {}).get(key)
                    row.append("" if value is None else f"{value:.3f}")
        metric = next(iter(by_model.values()))["metric"].replace("_", " ")
        header.append(f"{task} ({metric})")
        for model, row in zip(models, rows):
            row.append(_format_score(by_model[model]) if model in by_model else "")
    header += ["mean", "of the teacher's"]
    for model, row in zip(models, rows):
        scores = [
            by_model[model]["score"] for by_model in tasks.values() if model in by_model
        ]
        # Over the same tasks for all, or it would not compare.
        complete = len(scores) == len(tasks)
        row.append(f"{np.mean(scores):.3f}" if complete else "")
        comparable = (
            complete and len(reference) == len(tasks) and sum(reference.values()) > 0
        )
        share = sum(scores) / sum(reference.values()) if comparable else 0
        row.append(f"{share:.1%}" if comparable else "")
    return header, rows


def _format_score(result: dict) -> str:
    text = f"{result['score']:.3f}"
    if len(result.get("scores", ())) > 1:
        text += f" ± {result['deviation']:.3f}"
    if result["method"].startswith("frozen"):
        text += " (frozen)"
    if "exact_match" in result.get("metrics", {}):
        text += f" / {result['metrics']['exact_match']:.3f} exact"
    for name, value in result.get("extra_scores", {}).items():
        text += f" / {value:.3f} {name}"
    return text


def students_table(
    config: ConfigDict, front: dict, workdir: epath.Path
) -> tuple[list[str], list[list[str]]]:
    """All students of a search beside the teacher, with their costs.

    Below those of a search by Flash Distillation stands what the second paper
    (AutoDistill, arXiv 2201.08539) printed of others, which is marked so.

    Args:
      config: of the experiment, whose tasks are the columns.
      front: front.json.
      workdir: where finetune/<student>/ is.

    Returns:
      (header, rows) of text cells.
    """
    source = front["latency"]["source"]
    trials = {arch_from_json(trial["arch"]): trial for trial in front["trials"]}
    rows, names = [], [task_dirname(config.finetune, t) for t in config.finetune.tasks]
    teacher: dict[str, str] = {}
    for arch in student_archs(config, front):
        results = read_results(config, workdir / "finetune" / arch.name)
        cells = [
            _format_score(results[name]["student"])
            if "student" in results.get(name, {})
            else ""
            for name in names
        ]
        row = [arch.name, *_format_costs(trials[arch], source), "", *cells]
        path = workdir / "students" / arch.name / "similarity.json"
        if path.exists():
            row[4] = f"{json.loads(path.read_text())['student']:.3f}"
        rows.append(row)
        teacher = {
            n: _format_score(r["teacher"]) for n, r in results.items() if "teacher" in r
        } | teacher
    cells = [teacher.get(name, "") for name in names]
    rows.append(["teacher", *_format_costs(front["teacher"], source), "1", *cells])
    printed_results = PRINTED_RESULTS if front["proxy"] == "flash" else {}
    for name, (params, latency, answers) in printed_results.items():
        latency = f"{latency} (printed, TPUv4i)" if latency else ""
        cells = [f"{answers} exact (printed)" if n == "squad" else "" for n in names]
        rows.append([name, f"{params} (printed)", "", latency, "", *cells])
    return ["model", *_COSTS, "similarities (Spearman)", *names], rows


def kept_share(tasks: Mapping[str, dict], similarity: Mapping | None) -> str:
    """What the student keeps, in words.

    Args:
      tasks: {task: {model: result}}, as of `task_table`.
      similarity: similarity.json of the student's folder; None before the job export.

    Returns:
      Of STS-B's test rows where they are given, else of the teacher's similarities; ""
      where nothing was measured.
    """
    by_model = tasks.get("stsb", {})
    student, teacher = by_model.get("student", {}), by_model.get("teacher", {})
    if "similarity_test" in student and "similarity_test" in teacher:
        share = student["similarity_test"] / teacher["similarity_test"]
        return (
            f"keeps {share:.1%} of the teacher (STS-B test without fine-tuning, "
            f"{student['similarity_test']:.3f} of {teacher['similarity_test']:.3f})"
        )
    if similarity is None:
        return ""
    return (
        f"keeps {similarity['student']:.1%} of the teacher (rank correlation of the "
        "similarities of held-out pairs)"
    )


def describe_budget(budget: Mapping[str, Any]) -> str:
    """A budget's bounds in words, as its fields are called.

    Args:
      budget: of a choice in front.json, the fields of `budget.Budget`.

    Returns:
      As in "latency_ms 2, flops_fraction 0.5".
    """
    bounds = {k: v for k, v in budget.items() if k != "convention" and v}
    return ", ".join(f"{name} {value:g}" for name, value in bounds.items()) or "none"


def _format_costs(record: Mapping[str, Any], source: str) -> list[str]:
    cells = []
    for key, scale, unit in (
        ("params", 1e6, "{:.2f} M"),
        ("flops", 1e9, "{:.3f} G"),
        ("latency_ms", 1, f"{{:.3g}} ms ({source})"),
    ):
        value = record.get(key)
        cells.append("" if value is None else unit.format(value / scale))
    return cells


def cost_cells(
    trial: dict, teacher: dict, key: str, scale: float, unit: str, digits: int
) -> list[str]:
    """One cost of the teacher and of a student, and the student's share.

    Args:
      trial, teacher: records of front.json.
      key: of the cost in both; the trial may lack it ("not taken" then).
      scale: that the values are divided by, of the `unit`.
      digits: after the point.

    Returns:
      [teacher, student, share], text cells.
    """
    value, reference = trial.get(key), teacher[key]
    cells = [f"{reference / scale:.{digits}f} {unit}"]
    if value is None:
        return [*cells, "not taken", ""]
    return [*cells, f"{value / scale:.{digits}f} {unit}", f"{value / reference:.0%}"]


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table of text cells in Markdown: header, rule, rows."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def table_notes(
    tasks: dict[str, dict[str, dict]], head_report: dict | None
) -> list[str]:
    """What has to be known to read the table.

    Args:
      tasks: {task: {model: result}}, as of `task_table`.
      head_report: {steps, tokens, params, accuracy} of the masked-LM head that was
        trained first (mlm_head.json); None where none was.

    Returns:
      The notes, a sentence or two each.
    """
    results = [result for by_model in tasks.values() for result in by_model.values()]
    seeds = sorted({len(result.get("scores", [0])) for result in results})
    rows = ", ".join(
        f"{task}: {example['train_rows']:,} training and {example['dev_rows']:,} dev "
        "rows"
        for task, by_model in tasks.items()
        for example in [next(iter(by_model.values()))]
    )
    counts = " or ".join(map(str, seeds))
    notes = [f"{rows}. Best dev epoch; mean and deviation over {counts} seed(s)."]
    models = {result["model"] for result in results}
    if models - {"teacher", "student"}:
        rates = {
            result["settings"].get(f"{name}learning_rate")
            for result in results
            for name in ("", "scratch_")
            if result["model"] != "teacher"
        } - {None}
        untrained = "".join(
            f"; {text}"
            for name, text in (
                ("truncated", "truncated is fitted to a little text and not trained"),
                ("scratch", "from scratch sees no text before the task"),
            )
            if name in models
        )
        notes.append(
            "All students have the same teacher, text and fine-tuning and, layer "
            "reductions apart, the same Arch; what distils takes the steps of the SuperLM "
            "(of four passes each, if not set otherwise: the largest, the smallest, two "
            "others) and the finish where its row says nothing else, without those that "
            "chose its rate or fitted a head"
            + f"{untrained}."
            + (" From scratch has a learning rate of its own." * (len(rates) > 1))
        )
    if head_report:
        notes.append(
            "The teacher has no masked-LM head: one, tied to its word embeddings "
            f"({head_report['params']:,} parameters), was first trained on the frozen "
            f"teacher, {head_report['steps']:,} steps ({head_report['tokens']:,} "
            "tokens) that no other method has; it names "
            f"{head_report['accuracy']:.1%} of masked held-out tokens."
        )
    return notes
