"""Job `report`: report.html, one file with its pictures, from a workdir."""

import datetime
import functools
import html
import json
from importlib import metadata
from typing import Any

from etils import epath

from autodistill_jax import __version__, log, multihost, storage
from autodistill_jax.archs.arch import AnyArch, describe
from autodistill_jax.experiment import finetune_results, labelled_data
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.model_costs import model_costs
from autodistill_jax.experiment.workdir import (
    arch_from_json,
    find_trial,
    finish_job,
    read_front,
    read_rank_table,
    student_archs,
)
from autodistill_jax.latency import table
from autodistill_jax.report import plots, tables
from autodistill_jax.report.html import html_page, html_table
from autodistill_jax.search.selection import POSTERIOR, modelled_proxy

_DOCS_NOTE = (
    ' "docs" asks which package a docstring is from, packages\' names blanked out, '
    "whole modules held out."
)


def run_report(
    experiment: Experiment, workdir: epath.Path, stage: str = "report"
) -> None:
    """Writes report.html anew; parts whose job has not run yet say so.

    Args:
      experiment: that the report is about.
      workdir: with the front.json of the job search, and what other jobs left.
      stage: what log lines begin with.

    Raises:
      UserError: there was no search under these settings.
    """
    multihost.on_first_process(
        functools.partial(_write_report, experiment, workdir, stage)
    )


def _write_report(experiment: Experiment, workdir: epath.Path, stage: str) -> None:
    front = read_front(experiment.config, workdir)
    arch = arch_from_json(front["chosen"])
    student = workdir / "students" / arch.name

    def read_json(path: epath.Path) -> Any:
        return json.loads(path.read_text()) if path.exists() else None

    tasks = finetune_results.read_results(
        experiment.config, workdir / "finetune" / arch.name
    )
    similarity = read_json(student / "similarity.json")
    body = "\n".join(
        [
            _header(
                experiment, front, arch, student, tables.kept_share(tasks, similarity)
            ),
            _choices_section(front),
            _cost_section(front, arch),
            plots.plot_front(front, arch),
            _similarity_section(similarity),
            _task_section(
                tasks,
                model_costs(experiment.config, workdir, front, arch),
                front["latency"]["source"],
                labelled_data.mlm_head_report(experiment, workdir, tasks),
            ),
            _rank_section(read_rank_table(experiment.config, workdir), front["proxy"]),
            _students_section(experiment, front, workdir),
            *_loss_plots(experiment, front, workdir),
            _front_section(front),
            _recipe_section(experiment, front),
        ]
    )
    path = workdir / "report.html"
    storage.write_text(path, html_page(arch.name, body))
    log.say(f"{stage}: made {path}")


def _loss_plots(experiment: Experiment, front: dict, workdir: epath.Path) -> list[str]:
    if front["proxy"] == "flash":
        archs = student_archs(experiment.config, front)
        records = {
            a.name: log.read_metrics(workdir, f"transfer/{a.name}") for a in archs
        }
        return [plots.plot_transfers(records)]
    names = list(experiment.spaces)
    # One SuperLM's losses stand under the job's own name.
    jobs = {"": "distill"} if len(names) == 1 else {n: f"distill/{n}" for n in names}
    arch = arch_from_json(front["chosen"])
    finish = log.read_metrics(workdir, finish_job(experiment.config, arch))
    parent = find_trial(front, arch)["space"]
    return [
        plots.plot_losses(
            log.read_metrics(workdir, job),
            experiment.objective,
            name,
            finish if name in ("", parent) else (),
        )
        for name, job in jobs.items()
    ]


def _students_section(experiment: Experiment, front: dict, workdir: epath.Path) -> str:
    """All that are handed over, where there are several."""
    if len(student_archs(experiment.config, front)) < 2:
        return ""
    header, rows = tables.students_table(experiment.config, front, workdir)
    return (
        "<h2>All students, side by side</h2>\n"
        + html_table(header, rows, [i == 0 for i in range(len(rows))])
        + (
            '<p class="note">What is marked as printed stands in AutoDistill (arXiv '
            "2201.08539) and was not run here.</p>"
            if front["proxy"] == "flash"
            else ""
        )
    )


def _header(
    experiment: Experiment,
    front: dict,
    arch: AnyArch,
    student: epath.Path,
    kept_share: str,
) -> str:
    trial, teacher = find_trial(front, arch), front["teacher"]
    summary = (
        f"{f'{kept_share} at ' if kept_share else ''}"
        f"{trial['flops'] / teacher['flops']:.0%} of the teacher's multiply-adds, "
        f"{trial['params'] / teacher['params']:.0%} of its parameters"
    )
    if "latency_ms" in trial:
        faster = teacher["latency_ms"] / trial["latency_ms"]
        summary += (
            f", {faster:.1f} times as fast ({trial['latency_source']}: "
            f"{trial['latency_ms']:.2f} ms against {teacher['latency_ms']:.2f} ms)"
        )
    folder = html.escape(f"students/{student.name}")
    student_text = f"The student: <code>{folder}</code>" if student.exists() else ""
    return (
        f"<h1>A student of {html.escape(experiment.teacher_name)}</h1>\n"
        f'<p class="note">{datetime.date.today()} &middot; '
        f"autodistill_jax {__version__} &middot; jax {metadata.version('jax')}</p>\n"
        f'<p class="lead"><b>{describe(arch)}'
        f"</b>: {summary}.<br>"
        f"Chosen as {html.escape(front['reason'])}.<br>{student_text}</p>"
    )


def _choices_section(front: dict) -> str:
    """The student of each budget, where there are several budgets."""
    if len(front["choices"]) < 2:
        return ""
    rows = [
        [
            tables.describe_budget(choice["budget"]),
            arch_from_json(choice["arch"]).name,
            choice["reason"],
        ]
        for choice in front["choices"]
    ]
    return "<h2>A student for each budget</h2>\n" + html_table(
        ["budget", "student", "chosen as"], rows
    )


def _cost_section(front: dict, arch: AnyArch) -> str:
    trial, teacher = find_trial(front, arch), front["teacher"]
    conditions = front["latency"]
    length = conditions["length"]
    rows = []
    for label, key, scale, unit, digits in (
        ("parameters (executed)", "params", 1e6, "M", 2),
        ("parameters (paper's count)", "params_paper", 1e6, "M", 2),
        (f"multiply-adds, {length} tokens (executed)", "flops", 1e9, "G", 3),
        (f"multiply-adds, {length} tokens (paper's count)", "flops_paper", 1e9, "G", 3),
        (f"latency ({conditions['source']})", "latency_ms", 1, "ms", 2),
    ):
        rows.append(
            [label, *tables.cost_cells(trial, teacher, key, scale, unit, digits)]
        )
    note = html.escape(table.describe_conditions(conditions))
    return (
        "<h2>What it costs</h2>\n"
        + html_table(["", "teacher", "student", "share"], rows)
        + f'<p class="note">Latency: {note}.</p>'
    )


def _similarity_section(similarity: dict | None) -> str:
    title = "<h2>What it keeps</h2>\n"
    if similarity is None:
        return title + "<p>Not exported yet: run the job <code>export</code>.</p>"
    rows = [
        [name, f"{similarity[key]:.3f}", _compare_scores(similarity[key], 1.0)]
        for name, key in (
            ("teacher", "teacher"),
            ("student", "student"),
            ("student, out of the SuperLM, before it was finished", "before_finish"),
            ("the same Arch before this distillation", "truncated"),
        )
        if key in similarity
    ]
    return (
        title
        + "<h3>Text similarities that agree with the teacher's</h3>"
        + html_table(["", "Spearman", "against the teacher"], rows)
        + '<p class="note">Rank correlation of the cosine similarities of '
        f"{similarity['pairs']:,} held-out pairs of texts with the teacher's own, half "
        "of them drawn at random, half a text and its nearest neighbour by the teacher; "
        f"seed {similarity['seed']}; no labels, no fine-tuning.</p>"
    )


def _task_section(
    tasks: dict, costs: dict, source: str, head_report: dict | None
) -> str:
    if not tasks:
        return "<p>Not fine-tuned yet: run the job <code>finetune</code>.</p>"
    notes = " ".join(tables.table_notes(tasks, head_report)) + (
        _DOCS_NOTE if "docs" in tasks else ""
    )
    return (
        "<h3>Labelled tasks, dev score</h3>"
        + html_table(*tables.task_table(tasks, costs, source))
        + f'<p class="note">{html.escape(notes)}</p>'
    )


def _rank_section(ranking: dict | None, chosen_by: str) -> str:
    """How far the ranking can be trusted; nothing where it was not measured."""
    if ranking is None:
        return ""
    rows = []
    for name, scopes in ranking["table"].items():
        row = [name]
        for scope in ("overall", "within"):
            record = scopes[scope]
            low, high = record["interval"]
            row.append(f"{record['tau']:.2f} [{low:.2f}, {high:.2f}]")
            low, high = record["difference_interval"]
            difference = f"{record['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
            verdict = f"{record['verdict']} ({difference})"
            row.append(verdict if name != "flops" else "")
        rows.append(row)
    header = ["", "tau overall", "against FLOPs", "tau within bands", "against FLOPs"]
    bands = 1 + max(record["band"] for record in ranking["archs"])
    seeds = len(ranking["archs"][0]["quality"])
    return (
        "<h2>How far to trust the ranking</h2>\n"
        + html_table(header, rows, [name == chosen_by for name in ranking["table"]])
        + f'<p class="note">Kendall\'s tau with the dev score after fine-tuning on '
        f"{html.escape(ranking['task'])} ({seeds} seed(s)) of {len(ranking['archs'])} "
        f"Archs drawn over the whole space in {bands} bands of multiply-adds; within: "
        "only pairs of the same band, where multiply-adds say little. In brackets 95 % "
        "intervals by the bootstrap over Archs, fine-tuning seeds and dev rows; "
        "differences are paired, and a tie where their interval holds 0.</p>"
    )


def _format_trial_latency(trial: dict) -> str:
    if "latency_ms" not in trial:
        return ""
    text = f"{trial['latency_ms']:.2f} ms"
    if "latency_spread_ms" in trial:
        text += f" ({trial['latency_spread_ms']:.2f})"
    return text


def _compare_scores(score: float, reference: float | None) -> str:
    if reference is None:
        return ""
    if score == reference:
        return "equal"
    return f"{abs(reference - score):.3f} {'below' if score <= reference else 'above'}"


def _front_section(front: dict) -> str:
    # Within a latency bound the best need not be on the front of multiply-adds.
    chosen = {arch_from_json(choice["arch"]) for choice in front["choices"]}
    listed = sorted(
        (
            trial
            for trial in front["trials"]
            if trial["on_front"] or arch_from_json(trial["arch"]) in chosen
        ),
        key=modelled_proxy,
    )
    source = front["latency"]["source"]
    spread = "Latency: median and spread (90th - 10th percentile). "
    spread = spread if source == "measured" else ""
    rows, marks = [], []
    for trial in listed:
        trial_arch = arch_from_json(trial["arch"])
        rows.append(
            [
                str(trial_arch),
                _format_proxy(trial),
                f"{trial['params'] / 1e6:.2f} M",
                f"{trial['flops'] / 1e9:.3f} G",
                _format_trial_latency(trial),
            ]
        )
        marks.append(trial_arch in chosen)
    return (
        "<h2>Archs on the front, and chosen ones</h2>\n"
        + html_table(
            [
                "Arch",
                f"proxy: {front['proxy']}",
                "parameters",
                "multiply-adds",
                f"latency, {source} (spread)" if spread else f"latency, {source}",
            ],
            rows,
            marks,
        )
        + f'<p class="note">{spread}All trials: <code>search/trials.csv</code>; the '
        "study is Optuna's.</p>"
    )


def _format_proxy(trial: dict) -> str:
    by_model = f" (by the model {trial[POSTERIOR]:.4f})" if POSTERIOR in trial else ""
    return f"{trial['proxy']:.4f}{by_model}"


def _recipe_section(experiment: Experiment, front: dict) -> str:
    settings, data = experiment.config.distill, experiment.config.data
    steps = (
        f"{settings.steps} steps of a SuperLM, each of which trains "
        f"{2 + settings.random_subnetworks} sub-networks, a pass each; then "
        f"{settings.finish_steps} of the student alone; {settings.batch_size} texts a "
        "step"
    )
    if front["proxy"] == "flash":
        steps = "Flash Distillation, block by block"
    layers = ""
    if experiment.starts_from_teacher:
        depths = {d for space in experiment.spaces.values() for d in space.layers}
        by_depth = "; ".join(
            f"{depth}: {', '.join(map(str, experiment.kept_layers(depth)))}"
            for depth in sorted(depths)
        )
        layers = (
            "Layers of the teacher, from 0, that each depth starts from "
            f"(distill.kept_layers: {html.escape(settings.kept_layers)}): {by_depth}. "
        )
    return (
        "<h2>How it was made</h2>\n"
        f'<p class="note">{steps}, of {data.max_seq_length} tokens from '
        f"<code>{html.escape(data.source)}</code>, seed {experiment.config.seed}; a "
        f"space of {front['space']} Archs. {layers}Everything is in "
        "<code>config.json</code>; the same command with another workdir makes it "
        "again.</p>"
    )
