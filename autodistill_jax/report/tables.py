"""How do student, baselines and teacher stand side by side on labelled tasks?"""

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax.archs.published import PRINTED_RESULTS
from autodistill_jax.experiment.fingerprints import task_dirname
from autodistill_jax.experiment.results import MODEL_LABELS, read_results
from autodistill_jax.experiment.workdir import arch_from_json, student_archs


def task_table(tasks: dict[str, dict[str, dict]]) -> tuple[list, list]:
    """(head, rows) of one table, a model a row: the dev score of each task with its
    deviation over seeds, the mean over tasks, and what that retains of the teacher's
    mean (AutoDistil's retention).

    Where a task has pairs with a similarity, the column before it is the Spearman of
    the cosine of the embeddings, without any fine-tuning.
    """
    models = [m for m in MODEL_LABELS if any(m in found for found in tasks.values())]
    reference = {
        task: found["teacher"]["score"]
        for task, found in tasks.items()
        if "teacher" in found
    }
    head, rows = ["model"], [[MODEL_LABELS[model]] for model in models]
    for task, found in tasks.items():
        if any("similarity" in result for result in found.values()):
            head.append(f"{task}, no fine-tuning (Spearman)")
            for model, row in zip(models, rows):
                value = found.get(model, {}).get("similarity")
                row.append("" if value is None else f"{value:.3f}")
        metric = next(iter(found.values()))["metric"].replace("_", " ")
        head.append(f"{task} ({metric})")
        for model, row in zip(models, rows):
            row.append(_format_score(found[model]) if model in found else "")
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


def _format_score(result: dict) -> str:
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


def students_table(
    config: ConfigDict, found: dict, workdir: epath.Path
) -> tuple[list[str], list[list[str]]]:
    """(head, rows): all students of a search beside the teacher, and what the second
    paper printed of others, which is marked so.

    found: front.json.
    """
    source = found["latency"]["source"]
    trials = {arch_from_json(one["arch"]): one for one in found["trials"]}
    rows, names = [], [task_dirname(config.finetune, t) for t in config.finetune.tasks]
    teacher: dict[str, str] = {}
    for arch in student_archs(config, found):
        results = read_results(config, workdir / "finetune" / arch.name)
        cells = [
            _format_score(results[name]["student"])
            if "student" in results.get(name, {})
            else ""
            for name in names
        ]
        rows.append([arch.name, *_format_costs(trials[arch], source), *cells])
        teacher = {
            n: _format_score(r["teacher"]) for n, r in results.items() if "teacher" in r
        } | (teacher)
    cells = [teacher.get(name, "") for name in names]
    rows.append(["teacher", *_format_costs(found["teacher"], source), *cells])
    for name, (params, latency, answers) in PRINTED_RESULTS.items():
        latency = f"{latency} (printed, TPUv4i)" if latency else ""
        cells = [f"{answers} exact (printed)" if n == "squad" else "" for n in names]
        rows.append([name, f"{params} (printed)", "", latency, *cells])
    return ["model", "parameters", "multiply-adds", "latency", *names], rows


def _format_costs(one: dict, source: str) -> list[str]:
    ms = one.get("latency_ms")
    told = f"{ms:.3g} ms ({source})" if ms is not None else ""
    return [f"{one['params'] / 1e6:.2f} M", f"{one['flops'] / 1e9:.3f} G", told]


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def table_notes(tasks: dict[str, dict[str, dict]], words: dict | None) -> list[str]:
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
