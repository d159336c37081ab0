"""Job `report`: report.html, one file with its pictures, from what is in the workdir."""

import base64
import datetime
import html
import io
import json
from importlib import metadata

from etils import epath

from autodistill_jax import __version__
from autodistill_jax.jobs import experiment as common
from autodistill_jax.train import log, sandwich

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem;
  margin-top: 2.2rem; } p.note, figcaption { color: #5a6876; font-size: .9rem; }
table { border-collapse: collapse; margin: .6rem 0; width: 100%; }
th, td { text-align: right; padding: .35rem .7rem; border-bottom: 1px solid #dde3e9;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
tr.chosen td { background: #fff4e0; } figure { margin: 1rem 0; }
img { width: 100%; height: auto; } code { background: #f2f5f8; padding: 0 .25rem; }
.wide { overflow-x: auto; }
.lead { background: #f2f5f8; border-left: 4px solid #d9822b; padding: .8rem 1rem; }
"""
_COLORS = {"largest": "#1f5f99", "smallest": "#5aa469", "random": "#a4aeb8"}
_CHOSEN = "#d9822b"


def run(
    experiment: common.Experiment, workdir: epath.Path, stage: str = "report"
) -> None:
    """Writes report.html anew; parts whose job has not run yet say so."""
    found = common.read_json(workdir / "search" / "front.json", "search")
    arch = common.arch_of(found["chosen"])
    student = workdir / "students" / arch.name
    similarity = None
    if (student / "similarity.json").exists():
        similarity = json.loads((student / "similarity.json").read_text())
    tasks = _tasks(workdir / "finetune" / arch.name)
    steps = log.read(workdir, "distill")
    body = "\n".join(
        [
            _head(experiment, found, arch, student),
            _costs(found, arch),
            _front(found, arch),
            _quality(similarity, tasks, arch),
            _losses(steps, experiment),
            _trials(found, arch),
            _how(experiment, found),
        ]
    )
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(arch.name)} - autodistill_jax</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    path = workdir / "report.html"
    path.write_text(page)
    log.say(f"{stage}: made {path}")


def _tasks(folder: epath.Path) -> dict[str, dict[str, dict]]:
    if not folder.exists():
        return {}
    return {
        task.name: {
            path.stem: json.loads(path.read_text())
            for path in sorted(task.glob("*.json"))
        }
        for task in sorted(folder.iterdir())
        if any(task.glob("*.json"))
    }


def _head(experiment, found, arch, student) -> str:
    trial, teacher = _trial(found, arch), found["teacher"]
    told = (
        f"{trial['flops'] / teacher['flops']:.0%} of the teacher's multiply-adds, "
        f"{trial['params'] / teacher['params']:.0%} of its parameters"
    )
    if "latency_ms" in trial:
        faster = teacher["latency_ms"] / trial["latency_ms"]
        told += (
            f", {faster:.1f} times as fast (measured: {trial['latency_ms']:.2f} ms "
            f"against {teacher['latency_ms']:.2f} ms)"
        )
    where = html.escape(str(student))
    there = f"The student: <code>{where}</code>" if student.exists() else ""
    return (
        f"<h1>A student of {html.escape(experiment.config.teacher)}</h1>\n"
        f'<p class="note">{datetime.date.today()} &middot; '
        f"autodistill_jax {__version__} &middot; jax {metadata.version('jax')}</p>\n"
        f'<p class="lead"><b>{arch.layers} layers, hidden {arch.hidden}, '
        f"{arch.heads} heads, ffn {arch.ffn}</b>: {told}.<br>"
        f"Chosen as {html.escape(found['reason'])}.<br>{there}</p>"
    )


def _costs(found, arch) -> str:
    trial, teacher, how = _trial(found, arch), found["teacher"], found["latency"]
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
        ("latency (measured)", "latency_ms", 1, "ms", 2),
    ):
        mine, full = trial.get(key), teacher[key]
        cells = [label, f"{full / scale:.{digits}f} {unit}"]
        if mine is None:
            cells += ["not measured", ""]
        else:
            cells += [f"{mine / scale:.{digits}f} {unit}", f"{mine / full:.0%}"]
        rows.append(cells)
    return (
        "<h2>What it costs</h2>\n"
        + _table(["", "teacher", "student", "share"], rows)
        + f'<p class="note">{_latency_note(how)}</p>'
    )


def _latency_note(how) -> str:
    return html.escape(
        f"Latency: {how['source']} by XLA's profiler, median device time of a forward "
        f"pass, batch {how['batch']}, {how['length']} tokens, {how['dtype']}, "
        f"on {how['device']}."
    )


def _front(found, arch) -> str:
    how = found["latency"]
    timed = [t for t in found["trials"] if "latency_ms" in t]
    pictures = _figure(1, 2, (11, 4.4))
    figure, (left, right) = pictures
    for axes, trials, key, scale, label in (
        (
            left,
            timed,
            "latency_ms",
            1,
            f"latency, ms (measured, batch {how['batch']} x {how['length']})",
        ),
        (right, found["trials"], "flops", 1e9, "multiply-adds, G (executed)"),
    ):
        others = [t for t in trials if not t["on_front"]]
        on_front = sorted((t for t in trials if t["on_front"]), key=lambda t: t[key])
        axes.scatter(
            [t[key] / scale for t in others],
            [t["proxy"] for t in others],
            s=22,
            color="#a4aeb8",
            label="sub-network under the budget",
        ) if others else None
        axes.plot(
            [t[key] / scale for t in on_front],
            [t["proxy"] for t in on_front],
            "o-",
            color="#1f5f99",
            ms=5,
            lw=1,
            label="front of multiply-adds and proxy",
        )
        mine = _trial(found, arch)
        if key in mine:
            axes.plot(
                mine[key] / scale,
                mine["proxy"],
                "*",
                ms=17,
                color=_CHOSEN,
                label="chosen",
                zorder=5,
            )
        axes.plot(
            found["teacher"][key] / scale,
            0,
            "D",
            ms=8,
            color="#7a2f3a",
            label="teacher (loss 0 by definition)",
            clip_on=False,
        )
        axes.set_xlabel(label)
        axes.set_ylabel("held-out distillation loss")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
    right.legend(fontsize=8, loc="best", framealpha=0.9)
    return (
        "<h2>The front</h2>\n"
        + _picture(figure, "proxy against measured latency and multiply-adds")
        + f'<p class="note">{len(found["trials"])} of {found["space"]} sub-networks '
        "meet the budget. Each point is a sub-network with the weights it has in the "
        "SuperLM; lower and further left is better. Latencies are taken on the front "
        "only.</p>"
    )


def _quality(similarity, tasks, arch) -> str:
    parts = ["<h2>What it keeps</h2>"]
    if similarity is None:
        parts.append("<p>Not exported yet: run the job <code>export</code>.</p>")
    else:
        rows = [
            [name, f"{similarity[key]:.3f}", _below(similarity[key], 1.0)]
            for name, key in (
                ("teacher", "teacher"),
                ("student", "student"),
                ("the same slice of the teacher, before distillation", "truncated"),
            )
        ]
        parts += [
            "<h3>Text similarities that agree with the teacher's</h3>",
            _table(["", "Spearman", "below the teacher"], rows),
            (
                '<p class="note">Rank correlation of the cosine similarities of '
                f"{similarity['pairs']:,} held-out pairs of texts with the teacher's own, "
                f"seed {similarity['seed']}; no labels, no fine-tuning.</p>"
            ),
        ]
    if not tasks:
        parts.append("<p>Not fine-tuned yet: run the job <code>finetune</code>.</p>")
        return "\n".join(parts)
    labels = {
        "teacher": "teacher",
        "student": "student",
        "scratch": "the same Arch from scratch",
    }
    rows = []
    for task, models in tasks.items():
        reference = models.get("teacher", {}).get("score")
        for model, label in labels.items():
            if model not in models:
                continue
            made = models[model]
            rows.append(
                [
                    task,
                    f"{label} ({made['how']})",
                    made["metric"],
                    f"{made['score']:.4f}",
                    _below(made["score"], reference),
                    f"{made['train_rows']:,} / {made['dev_rows']:,}",
                ]
            )
    parts += [
        "<h3>Labelled tasks</h3>",
        _table(
            ["task", "model", "metric", "dev", "below the teacher", "train / dev rows"],
            rows,
        ),
        (
            '<p class="note">Best dev epoch, one seed. "docs" asks which package a '
            "docstring is from, packages' names blanked out, whole modules held out.</p>"
        ),
    ]
    return "\n".join(parts)


def _below(score, reference) -> str:
    return "" if reference is None else f"{reference - score:+.3f}".replace("+", "")


def _losses(steps, experiment) -> str:
    if not steps:
        return "<h2>Losses</h2>\n<p>Nothing in metrics.jsonl yet.</p>"
    terms = [
        name.split("/")[1]
        for name in steps[0]
        if name.startswith("largest/") and not name.endswith("/total")
    ]
    names = ["total", *terms] if len(terms) > 1 else ["total"]
    figure, axes = _figure(1, len(names), (11, 3.4))
    for place, name in zip(axes if len(names) > 1 else [axes], names):
        for role in sandwich.ROLES:
            points = [
                (line["step"], line[f"{role}/{name}"])
                for line in steps
                if f"{role}/{name}" in line
            ]
            if points:
                place.plot(*zip(*points), color=_COLORS[role], label=role, lw=1.4)
        place.set_title(name, fontsize=10)
        place.set_xlabel("step")
        place.grid(alpha=0.25)
    (axes if len(names) == 1 else axes[0]).legend(fontsize=8)
    weights = ", ".join(
        f"{weight:g} x {term}" for term, weight in experiment.objective.weights.items()
    )
    return (
        "<h2>Losses by role</h2>\n"
        + _picture(figure, "training losses of largest, smallest, random sub-networks")
        + f'<p class="note">total = {weights}; relation form '
        f"{html.escape(experiment.objective.relation_form)}. Each step trains the "
        "largest, the smallest and some random sub-networks.</p>"
    )


def _trials(found, arch) -> str:
    shown = sorted(
        (t for t in found["trials"] if t["on_front"]), key=lambda t: t["proxy"]
    )
    rows, marks = [], []
    for trial in shown:
        one = common.arch_of(trial["arch"])
        rows.append(
            [
                str(one),
                f"{trial['proxy']:.4f}",
                f"{trial['params'] / 1e6:.2f} M",
                f"{trial['flops'] / 1e9:.3f} G",
                f"{trial['latency_ms']:.2f} ms" if "latency_ms" in trial else "",
            ]
        )
        marks.append(one == arch)
    return (
        "<h2>Archs on the front</h2>\n"
        + _table(
            ["Arch", "held-out loss", "parameters", "multiply-adds", "measured"],
            rows,
            marks,
        )
        + '<p class="note">All trials: <code>search/trials.csv</code>; the study: '
        "<code>search/study.db</code> (Optuna).</p>"
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


def _trial(found, arch) -> dict:
    return next(t for t in found["trials"] if common.arch_of(t["arch"]) == arch)


def _table(head, rows, marks=()) -> str:
    def line(cells, tag, mark=False):
        inside = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
        return f'<tr class="chosen">{inside}</tr>' if mark else f"<tr>{inside}</tr>"

    marks = list(marks) or [False] * len(rows)
    body = "\n".join(line(row, "td", mark) for row, mark in zip(rows, marks))
    return f'<div class="wide"><table>\n{line(head, "th")}\n{body}\n</table></div>'


def _figure(rows, columns, size):
    import matplotlib

    matplotlib.use("Agg")  # No screen on a server.
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=size, layout="constrained")


def _picture(figure, alt) -> str:
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    pyplot.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    source = f"data:image/png;base64,{data}"
    return f'<figure><img alt="{html.escape(alt)}" src="{source}"></figure>\n'
