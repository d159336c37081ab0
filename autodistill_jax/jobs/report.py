"""Job `report`: report.html, one file with its pictures, from what is in the workdir."""

import datetime
import functools
import html
import json
from importlib import metadata

from etils import epath

from autodistill_jax import __version__, log, multihost, storage
from autodistill_jax.archs.arch import described
from autodistill_jax.experiment import labelled_data
from autodistill_jax.experiment import workdir as common
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.latency import table
from autodistill_jax.report import html as page
from autodistill_jax.report import plots, tables

_DOCS = (
    ' "docs" asks which package a docstring is from, packages\' names blanked out, whole '
    "modules held out."
)


def run(experiment: Experiment, workdir: epath.Path, stage: str = "report") -> None:
    """Writes report.html anew; parts whose job has not run yet say so."""
    multihost.once(functools.partial(_write, experiment, workdir, stage))


def _write(experiment, workdir, stage) -> None:
    found = common.front(experiment.config, workdir)
    arch = common.arch_of(found["chosen"])
    student = workdir / "students" / arch.name

    def there(path):
        return json.loads(path.read_text()) if path.exists() else None

    tasks = tables.read(experiment.config, workdir / "finetune" / arch.name)
    body = "\n".join(
        [
            _head(experiment, found, arch, student),
            _costs(found, arch),
            plots.front(found, arch),
            _similarity(there(student / "similarity.json")),
            _tasks(tasks, labelled_data.words(experiment, workdir, tasks)),
            _ranks(common.ranked(experiment.config, workdir), found["proxy"]),
            _students(experiment, found, workdir),
            *_losses(experiment, found, workdir),
            _trials(found, arch),
            _how(experiment, found),
        ]
    )
    path = workdir / "report.html"
    storage.write_text(path, page.whole(arch.name, body))
    log.say(f"{stage}: made {path}")


def _losses(experiment, found, workdir) -> list[str]:
    if found["proxy"] == "flash":
        archs = common.students(experiment.config, found)
        lines = {a.name: log.read(workdir, f"transfer/{a.name}") for a in archs}
        return [plots.transfers(lines)]
    names = list(experiment.spaces)
    # One SuperLM's losses stand under the job's own name.
    jobs = {"": "distill"} if len(names) == 1 else {n: f"distill/{n}" for n in names}
    return [
        plots.losses(log.read(workdir, job), experiment.objective, name)
        for name, job in jobs.items()
    ]


def _students(experiment, found, workdir) -> str:
    """All that are handed over, where there are several."""
    if len(common.students(experiment.config, found)) < 2:
        return ""
    head, rows = tables.standing(experiment.config, found, workdir)
    return (
        "<h2>All students, side by side</h2>\n"
        + page.table(head, rows, [i == 0 for i in range(len(rows))])
        + '<p class="note">What is marked as printed stands in AutoDistill (arXiv '
        "2201.08539) and was not run here.</p>"
    )


def _head(experiment, found, arch, student) -> str:
    trial, teacher = common.trial_of(found, arch), found["teacher"]
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
        f"<h1>A student of {html.escape(experiment.taught_by)}</h1>\n"
        f'<p class="note">{datetime.date.today()} &middot; '
        f"autodistill_jax {__version__} &middot; jax {metadata.version('jax')}</p>\n"
        f'<p class="lead"><b>{described(arch)}'
        f"</b>: {told}.<br>"
        f"Chosen as {html.escape(found['reason'])}.<br>{there}</p>"
    )


def _costs(found, arch) -> str:
    trial, teacher, how = (
        common.trial_of(found, arch),
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
        + page.table(["", "teacher", "student", "share"], rows)
        + f'<p class="note">Latency: {html.escape(table.about(how))}.</p>'
    )


def _similarity(found: dict | None) -> str:
    head = "<h2>What it keeps</h2>\n"
    if found is None:
        return head + "<p>Not exported yet: run the job <code>export</code>.</p>"
    rows = [
        [name, f"{found[key]:.3f}", _below(found[key], 1.0)]
        for name, key in (
            ("teacher", "teacher"),
            ("student", "student"),
            ("the same Arch before this distillation", "truncated"),
        )
    ]
    return (
        head
        + "<h3>Text similarities that agree with the teacher's</h3>"
        + page.table(["", "Spearman", "against the teacher"], rows)
        + '<p class="note">Rank correlation of the cosine similarities of '
        f"{found['pairs']:,} held-out pairs of texts with the teacher's own, "
        f"seed {found['seed']}; no labels, no fine-tuning.</p>"
    )


def _tasks(tasks: dict, words: dict | None) -> str:
    if not tasks:
        return "<p>Not fine-tuned yet: run the job <code>finetune</code>.</p>"
    told = " ".join(tables.notes(tasks, words)) + (_DOCS if "docs" in tasks else "")
    return (
        "<h3>Labelled tasks, dev score</h3>"
        + page.table(*tables.side_by_side(tasks))
        + f'<p class="note">{html.escape(told)}</p>'
    )


def _ranks(found: dict | None, chosen_by: str) -> str:
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
        + page.table(head, rows, [name == chosen_by for name in found["table"]])
        + f'<p class="note">Kendall\'s tau with the dev score after fine-tuning on '
        f"{html.escape(found['task'])} ({seeds} seed(s)) of {len(found['archs'])} Archs "
        f"drawn over the whole space in {bands} bands of multiply-adds; within: only "
        "pairs of the same band, where multiply-adds say little. In brackets 95 % "
        "intervals by the bootstrap over Archs; differences are paired, and a tie where "
        "their interval holds 0.</p>"
    )


def _latency(trial) -> str:
    if "latency_ms" not in trial:
        return ""
    told = f"{trial['latency_ms']:.2f} ms"
    if "latency_spread_ms" in trial:
        told += f" ({trial['latency_spread_ms']:.2f})"
    return told


def _below(score, reference) -> str:
    if reference is None:
        return ""
    if score == reference:
        return "equal"
    return f"{abs(reference - score):.3f} {'below' if score <= reference else 'above'}"


def _trials(found, arch) -> str:
    shown = sorted(
        (t for t in found["trials"] if t["on_front"]), key=lambda t: t["proxy"]
    )
    source = found["latency"]["source"]
    spread = "Latency: median and spread (90th - 10th percentile). "
    spread = spread if source == "measured" else ""
    rows, marks = [], []
    for trial in shown:
        one = common.arch_of(trial["arch"])
        rows.append(
            [
                str(one),
                f"{trial['proxy']:.4f}",
                f"{trial['params'] / 1e6:.2f} M",
                f"{trial['flops'] / 1e9:.3f} G",
                _latency(trial),
            ]
        )
        marks.append(one == arch)
    return (
        "<h2>Archs on the front</h2>\n"
        + page.table(
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


def _how(experiment, found) -> str:
    settings = experiment.config.distill
    return (
        "<h2>How it was made</h2>\n"
        f'<p class="note">{settings.steps} steps of {settings.batch_size} texts of '
        f"{experiment.config.data.length} tokens from "
        f"<code>{html.escape(experiment.config.data.source)}</code>, seed "
        f"{experiment.config.seed}; a space of {found['space']} Archs. Everything is in "
        "<code>config.json</code>; the same command with another workdir makes it "
        "again.</p>"
    )
