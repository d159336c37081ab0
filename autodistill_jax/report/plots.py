"""The report's pictures: the front, and losses by role."""

import html
from collections.abc import Sequence
from typing import Any

from autodistill_jax.archs.arch import AnyArch, pareto_indices
from autodistill_jax.experiment.workdir import find_trial
from autodistill_jax.report.html import html_image, new_figure
from autodistill_jax.search.proxies import LABELLED_PROXIES, PROXIES
from autodistill_jax.search.selection import POSTERIOR, modelled_proxy
from autodistill_jax.train import sandwich
from autodistill_jax.train.objective import Objective

_COLORS = {"largest": "#1f5f99", "smallest": "#5aa469", "random": "#a4aeb8"}
_CHOSEN_COLOR = _ALONE_COLOR = "#d9822b"


def plot_front(front: dict, arch: AnyArch) -> str:
    """Proxy against latency and against FLOPs; the choice and the teacher.

    Args:
      front: front.json.
      arch: the chosen one.

    Returns:
      HTML, a heading and the picture.
    """
    if len(front["trials"]) == 1:
        return "<h2>The front</h2>\n<p>One Arch alone: nothing to choose from.</p>"
    source = front["latency"]["source"]
    return (
        "<h2>The front</h2>\n"
        + html_image(
            front_figure(front, arch),
            f"proxy against {source} latency and multiply-adds",
        )
        + f'<p class="note">{_describe_points(front)} Lower and further left is '
        f"better. The proxy {html.escape(front['proxy'])}: "
        f"{html.escape(PROXIES[front['proxy']])}.</p>"
    )


def front_figure(front: dict, arch: AnyArch) -> Any:
    """Proxy against latency and against multiply-adds.

    Args:
      front: front.json, or of it trials, teacher, latency and proxy.
      arch: the chosen one.

    Returns:
      A matplotlib Figure.
    """
    conditions = front["latency"]
    source = conditions["source"]
    timed = [t for t in front["trials"] if "latency_ms" in t]
    figure, (latency_axes, flops_axes) = new_figure(1, 2, (11, 4.4))
    shape = f"batch {conditions['batch']} x {conditions['length']}"
    label = f"latency, ms ({source}, {shape})"
    _plot_trials(latency_axes, front, arch, timed, "latency_ms", 1, label)
    label = "multiply-adds, G (executed)"
    _plot_trials(flops_axes, front, arch, front["trials"], "flops", 1e9, label)
    flops_axes.legend(fontsize=8, loc="best", framealpha=0.9)
    return figure


def _plot_trials(
    axes: Any,
    front: dict,
    arch: AnyArch,
    trials: list[dict],
    key: str,
    scale: float,
    label: str,
) -> None:
    """Draws proxy against one cost, `key` of the trials in units of `scale`."""
    front_indices = set(pareto_indices((t[key], modelled_proxy(t)) for t in trials))
    off_front = [t for i, t in enumerate(trials) if i not in front_indices]
    on_front = sorted((trials[i] for i in front_indices), key=lambda t: t[key])
    if off_front:
        axes.scatter(
            [t[key] / scale for t in off_front],
            [modelled_proxy(t) for t in off_front],
            s=22,
            color="#a4aeb8",
            label="under the budget",
        )
    axes.plot(
        [t[key] / scale for t in on_front],
        [modelled_proxy(t) for t in on_front],
        "o-",
        color="#1f5f99",
        ms=5,
        lw=1,
        label="front",
    )
    chosen = find_trial(front, arch)
    if key in chosen:
        axes.plot(
            chosen[key] / scale,
            modelled_proxy(chosen),
            "*",
            ms=17,
            color=_CHOSEN_COLOR,
            label="chosen",
            zorder=5,
        )
    # All others compare with the teacher.
    if front["proxy"] not in (*LABELLED_PROXIES, "flash"):
        axes.plot(
            front["teacher"][key] / scale,
            0,
            "D",
            ms=8,
            color="#7a2f3a",
            label="teacher (0 by definition)",
            clip_on=False,
        )
    axes.set_xlabel(label)
    by_model = ", by the model of all trials" if POSTERIOR in chosen else ""
    axes.set_ylabel(f"proxy: {front['proxy']}{by_model}")
    if front["proxy"] != "flash":  # Whose candidates are all far from 0.
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)


def _describe_points(front: dict) -> str:
    count, space = len(front["trials"]), front["space"]
    subnetwork = "a sub-network with the weights it has in the SuperLM."
    if front["sampler"] == "all":
        return (
            f"{count} of {space} sub-networks are within the bounds on parameters and "
            f"multiply-adds. Each point is {subnetwork} Latencies are taken of "
            "some: within a latency bound where it asks for them, else of the front."
        )
    point = "an Arch trained by itself." if front["proxy"] == "flash" else subnetwork
    return (
        f"{count} trials within the budget, of {space} Archs, chosen by "
        f"{html.escape(front['sampler'])}; latency is asked first. Each point is "
        f"{point}"
    )


def plot_transfers(records: dict[str, list[dict]]) -> str:
    """The training losses of full transfers, a line each student.

    Args:
      records: {name of the student: its records in metrics.jsonl}, {step, loss, ...}
        each; one that has none is left out.

    Returns:
      HTML, a heading and the picture.
    """
    records = {name: steps for name, steps in records.items() if steps}
    if not records:
        return "<h2>Losses</h2>\n<p>Nothing in metrics.jsonl yet.</p>"
    figure, axes = new_figure(1, 1, (11, 3.4))
    for name, steps in records.items():
        axes.plot(*zip(*((s["step"], s["loss"]) for s in steps)), label=name, lw=1.4)
    axes.set_xlabel("step")
    axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return (
        "<h2>Losses of the transfers</h2>\n"
        + html_image(figure, "training loss of each student, block after block")
        + '<p class="note">A stage a block (attention and output), then soft labels, '
        "masked tokens and what else there is to learn.</p>"
    )


def plot_losses(
    records: list[dict],
    objective: Objective,
    space: str = "",
    finish_records: Sequence[dict] = (),
) -> str:
    """The training losses of each role (largest, smallest, random sub-networks).

    Args:
      records: of metrics.jsonl, {step, "<role>/<loss>": value, ...} each.
      objective: whose weights and relation form stand below.
      space: the name of one of several spaces; "" where there is one.
      finish_records: of the student alone, behind the SuperLM's steps.

    Returns:
      HTML, a heading and the picture.
    """
    suffix = f" of the SuperLM {html.escape(space)}" if space else ""
    if not records:
        return f"<h2>Losses{suffix}</h2>\n<p>Nothing in metrics.jsonl yet.</p>"
    losses = [
        name.split("/")[1]
        for name in records[0]
        if name.startswith("largest/") and not name.endswith("/total")
    ]
    names = ["total", *losses] if len(losses) > 1 else ["total"]
    figure, axes = new_figure(1, len(names), (11, 3.4))
    for subplot, name in zip(axes if len(names) > 1 else [axes], names):
        for role in sandwich.ROLES:
            points = [
                (record["step"], record[f"{role}/{name}"])
                for record in records
                if f"{role}/{name}" in record
            ]
            if points:
                subplot.plot(*zip(*points), color=_COLORS[role], label=role, lw=1.4)
        points = [
            (records[-1]["step"] + record["step"], record[f"largest/{name}"])
            for record in finish_records
            if f"largest/{name}" in record
        ]
        if points:
            label = "the student alone"
            subplot.plot(*zip(*points), color=_ALONE_COLOR, label=label, lw=1.4)
        subplot.set_title(name, fontsize=10)
        subplot.set_xlabel("step")
        subplot.grid(alpha=0.25)
    (axes if len(names) == 1 else axes[0]).legend(fontsize=8)
    weights = ", ".join(
        f"{weight:g} x {loss}" for loss, weight in objective.weights.items()
    )
    return (
        f"<h2>Losses by role{suffix}</h2>\n"
        + html_image(
            figure, "training losses of largest, smallest, random sub-networks"
        )
        + f'<p class="note">total = {weights}; relation form '
        f"{html.escape(objective.relation_form)}. Each step trains the "
        "largest, the smallest and some random sub-networks"
        + ("; behind them the student alone." if finish_records else ".")
        + "</p>"
    )
