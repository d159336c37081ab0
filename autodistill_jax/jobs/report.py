"""Job `report`: report.html, one file with its pictures, from what is in the workdir."""

import datetime
import functools
import html
import json
from importlib import metadata

from etils import epath

from autodistill_jax import __version__, log, multihost, storage
from autodistill_jax.archs.arch import describe
from autodistill_jax.experiment import labelled_data, results
from autodistill_jax.experiment import workdir as common
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.latency import table
from autodistill_jax.report import html as page
from autodistill_jax.report import plots, tables

_DOCS_NOTE = (
    ' "docs" asks which package a docstring is from, packages\' names blanked out, whole '
    "modules held out."
)


def run_report(
    experiment: Experiment, workdir: epath.Path, stage: str = "report"
) -> None:
    """Writes report.html anew; parts whose job has not run yet say so."""
    multihost.on_first_process(
        functools.partial(_write_report, experiment, workdir, stage)
    )


def _write_report(experiment, workdir, stage) -> None:
    found = common.read_front(experiment.config, workdir)
    arch = common.arch_from_json(found["chosen"])
    student = workdir / "students" / arch.name

    def there(path):
        return json.loads(path.read_text()) if path.exists() else None

    tasks = results.read_results(experiment.config, workdir / "finetune" / arch.name)
    body = "\n".join(
        [
            _header(experiment, found, arch, student),
            _cost_section(found, arch),
            plots.plot_front(found, arch),
            _similarity_section(there(student / "similarity.json")),
            _task_section(
                tasks, labelled_data.mlm_head_report(experiment, workdir, tasks)
            ),
            _rank_section(
                common.read_rank_table(experiment.config, workdir), found["proxy"]
            ),
            _students_section(experiment, found, workdir),
            *_loss_plots(experiment, found, workdir),
            _front_section(found, arch),
            _recipe_section(experiment, found),
        ]
    )
    path = workdir / "report.html"
    storage.write_text(path, page.html_page(arch.name, body))
    log.say(f"{stage}: made {path}")


def _loss_plots(experiment, found, workdir) -> list[str]:
    if found["proxy"] == "flash":
        archs = common.student_archs(experiment.config, found)
        lines = {a.name: log.read_metrics(workdir, f"transfer/{a.name}") for a in archs}
        return [plots.plot_transfers(lines)]
    names = list(experiment.spaces)
    # One SuperLM's losses stand under the job's own name.
    jobs = {"": "distill"} if len(names) == 1 else {n: f"distill/{n}" for n in names}
    return [
        plots.plot_losses(log.read_metrics(workdir, job), experiment.objective, name)
        for name, job in jobs.items()
    ]


def _students_section(experiment, found, workdir) -> str:
    """All that are handed over, where there are several."""
    if len(common.student_archs(experiment.config, found)) < 2:
        return ""
    head, rows = tables.students_table(experiment.config, found, workdir)
    return (
        "<h2>All students, side by side</h2>\n"
        + page.html_table(head, rows, [i == 0 for i in range(len(rows))])
        + '<p class="note">What is marked as printed stands in AutoDistill (arXiv '
        "2201.08539) and was not run here.</p>"
    )


def _header(experiment, found, arch, student) -> str:
    trial, teacher = common.find_trial(found, arch), found["teacher"]
    told = (
        f"{trial['flops'] / teacher['flops']:.0%} of the teacher's multiply-adds, "
        f"{trial['params'] / teacher['params']:.0%} of its parameters"
    )
    if "latency_ms" in trial:
        faster = teacher["latency_ms"] / trial["latency_ms"]
        told += (
            f", {faster:.1f} times as fast ({trial['latency_source']}: {trial['latency_ms']:.2f} ms "
            f"against {teacher['latency_ms']:.2f} ms)"
        )
    where = html.escape(f"students/{student.name}")
    there = f"The student: <code>{where}</code>" if student.exists() else ""
    return (
        f"<h1>A student of {html.escape(experiment.teacher_name)}</h1>\n"
        f'<p class="note">{datetime.date.today()} &middot; '
        f"autodistill_jax {__version__} &middot; jax {metadata.version('jax')}</p>\n"
        f'<p class="lead"><b>{describe(arch)}'
        f"</b>: {told}.<br>"
        f"Chosen as {html.escape(found['reason'])}.<br>{there}</p>"
    )


def _cost_section(found, arch) -> str:
    trial, teacher, how = (
        common.find_trial(found, arch),
        found["teacher"],
        found["latency"],
    )
    rows = []
    for label, key, scale, unit, digits in (
        ("parameters (executed)", "params", 1e6, "M", 2),
        ("parameters (paper's count)", "params_paper", 1e6, "M", 2),
        (f"multiply-adds, {how['length']} tokens (executed)", "flops", 1e9, "G", 3),
        (
            f"multiply-adds, {how['length']} tokens (paper's count)",
            "flops_paper",
            1e9,
            "G",
            3,
        ),
        (f"latency ({how['source']})", "latency_ms", 1, "ms", 2),
    ):
        mine, full = trial.get(key), teacher[key]
        cells = [label, f"{full / scale:.{digits}f} {unit}"]
        if mine is None:
            cells += ["not taken", ""]
        else:
            cells += [f"{mine / scale:.{digits}f} {unit}", f"{mine / full:.0%}"]
        rows.append(cells)
    return (
        "<h2>What it costs</h2>\n"
        + page.html_table(["", "teacher", "student", "share"], rows)
        + f'<p class="note">Latency: {html.escape(table.describe_conditions(how))}.</p>'
    )


def _similarity_section(found: dict | None) -> str:
    head = "<h2>What it keeps</h2>\n"
    if found is None:
        return head + "<p>Not exported yet: run the job <code>export</code>.</p>"
    rows = [
        [name, f"{found[key]:.3f}", _compare_scores(found[key], 1.0)]
        for name, key in (
            ("teacher", "teacher"),
            ("student", "student"),
            ("the same Arch before this distillation", "truncated"),
        )
    ]
    return (
        head
        + "<h3>Text similarities that agree with the teacher's</h3>"
        + page.html_table(["", "Spearman", "against the teacher"], rows)
        + '<p class="note">Rank correlation of the cosine similarities of '
        f"{found['pairs']:,} held-out pairs of texts with the teacher's own, "
        f"seed {found['seed']}; no labels, no fine-tuning.</p>"
    )


def _task_section(tasks: dict, words: dict | None) -> str:
    if not tasks:
        return "<p>Not fine-tuned yet: run the job <code>finetune</code>.</p>"
    told = " ".join(tables.table_notes(tasks, words)) + (
        _DOCS_NOTE if "docs" in tasks else ""
    )
    return (
        "<h3>Labelled tasks, dev score</h3>"
        + page.html_table(*tables.task_table(tasks))
        + f'<p class="note">{html.escape(told)}</p>'
    )


def _rank_section(found: dict | None, chosen_by: str) -> str:
    """How far the ranking can be trusted; nothing where it was not measured."""
    if found is None:
        return ""
    rows = []
    for name, scopes in found["table"].items():
        row = [name]
        for scope in ("overall", "within"):
            one = scopes[scope]
            low, high = one["interval"]
            row.append(f"{one['tau']:.2f} [{low:.2f}, {high:.2f}]")
            low, high = one["difference_interval"]
            told = (
                f"{one['verdict']} ({one['difference']:+.2f} [{low:+.2f}, {high:+.2f}])"
            )
            row.append(told if name != "flops" else "")
        rows.append(row)
    head = ["", "tau overall", "against FLOPs", "tau within bands", "against FLOPs"]
    bands = 1 + max(one["band"] for one in found["archs"])
    seeds = len(found["archs"][0]["quality"])
    return (
        "<h2>How far to trust the ranking</h2>\n"
        + page.html_table(head, rows, [name == chosen_by for name in found["table"]])
        + f'<p class="note">Kendall\'s tau with the dev score after fine-tuning on '
        f"{html.escape(found['task'])} ({seeds} seed(s)) of {len(found['archs'])} Archs "
        f"drawn over the whole space in {bands} bands of multiply-adds; within: only "
        "pairs of the same band, where multiply-adds say little. In brackets 95 % "
        "intervals by the bootstrap over Archs; differences are paired, and a tie where "
        "their interval holds 0.</p>"
    )


def _format_trial_latency(trial) -> str:
    if "latency_ms" not in trial:
        return ""
    told = f"{trial['latency_ms']:.2f} ms"
    if "latency_spread_ms" in trial:
        told += f" ({trial['latency_spread_ms']:.2f})"
    return told


def _compare_scores(score, reference) -> str:
    if reference is None:
        return ""
    if score == reference:
        return "equal"
    return f"{abs(reference - score):.3f} {'below' if score <= reference else 'above'}"


def _front_section(found, arch) -> str:
    shown = sorted(
        (t for t in found["trials"] if t["on_front"]), key=lambda t: t["proxy"]
    )
    source = found["latency"]["source"]
    spread = "Latency: median and spread (90th - 10th percentile). "
    spread = spread if source == "measured" else ""
    rows, marks = [], []
    for trial in shown:
        one = common.arch_from_json(trial["arch"])
        rows.append(
            [
                str(one),
                f"{trial['proxy']:.4f}",
                f"{trial['params'] / 1e6:.2f} M",
                f"{trial['flops'] / 1e9:.3f} G",
                _format_trial_latency(trial),
            ]
        )
        marks.append(one == arch)
    return (
        "<h2>Archs on the front</h2>\n"
        + page.html_table(
            [
                "Arch",
                f"proxy: {found['proxy']}",
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


def _recipe_section(experiment, found) -> str:
    settings = experiment.config.distill
    return (
        "<h2>How it was made</h2>\n"
        f'<p class="note">{settings.steps} steps of {settings.batch_size} texts of '
        f"{experiment.config.data.max_seq_length} tokens from "
        f"<code>{html.escape(experiment.config.data.source)}</code>, seed "
        f"{experiment.config.seed}; a space of {found['space']} Archs. Everything is in "
        "<code>config.json</code>; the same command with another workdir makes it "
        "again.</p>"
    )
