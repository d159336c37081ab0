"""What does a run look like? The report's pictures: the front, and losses by role."""

import html

from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.arch import pareto_indices as pareto
from autodistill_jax.experiment import workdir as common
from autodistill_jax.report import html as page
from autodistill_jax.search.proxies import LABELLED_PROXIES, PROXIES
from autodistill_jax.train import sandwich

_COLORS = {"largest": "#1f5f99", "smallest": "#5aa469", "random": "#a4aeb8"}
_CHOSEN_COLOR = "#d9822b"


def plot_front(found: dict, arch: Arch) -> str:
    """Proxy against latency and against FLOPs; the choice and the teacher."""
    if len(found["trials"]) == 1:
        return "<h2>The front</h2>\n<p>One Arch alone: nothing to choose from.</p>"
    how = found["latency"]
    timed = [t for t in found["trials"] if "latency_ms" in t]
    drawn, (left, right) = page.new_figure(1, 2, (11, 4.4))
    for axes, trials, key, scale, label in (
        (
            left,
            timed,
            "latency_ms",
            1,
            f"latency, ms ({how['source']}, batch {how['batch']} x {how['length']})",
        ),
        (right, found["trials"], "flops", 1e9, "multiply-adds, G (executed)"),
    ):
        best = set(pareto((t[key], t["proxy"]) for t in trials))
        others = [t for i, t in enumerate(trials) if i not in best]
        on_front = sorted((trials[i] for i in best), key=lambda t: t[key])
        axes.scatter(
            [t[key] / scale for t in others],
            [t["proxy"] for t in others],
            s=22,
            color="#a4aeb8",
            label="under the budget",
        ) if others else None
        axes.plot(
            [t[key] / scale for t in on_front],
            [t["proxy"] for t in on_front],
            "o-",
            color="#1f5f99",
            ms=5,
            lw=1,
            label="front",
        )
        mine = common.find_trial(found, arch)
        if key in mine:
            axes.plot(
                mine[key] / scale,
                mine["proxy"],
                "*",
                ms=17,
                color=_CHOSEN_COLOR,
                label="chosen",
                zorder=5,
            )
        # All others compare with the teacher.
        if found["proxy"] not in (*LABELLED_PROXIES, "flash"):
            axes.plot(
                found["teacher"][key] / scale,
                0,
                "D",
                ms=8,
                color="#7a2f3a",
                label="teacher (0 by definition)",
                clip_on=False,
            )
        axes.set_xlabel(label)
        axes.set_ylabel(f"proxy: {found['proxy']}")
        if found["proxy"] != "flash":  # Whose candidates are all far from 0.
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
    right.legend(fontsize=8, loc="best", framealpha=0.9)
    return (
        "<h2>The front</h2>\n"
        + page.html_image(
            drawn, f"proxy against {how['source']} latency and multiply-adds"
        )
        + f'<p class="note">{_describe_points(found)} Lower and further left is better. The '
        f"proxy {html.escape(found['proxy'])}: "
        f"{html.escape(PROXIES[found['proxy']])}.</p>"
    )


def _describe_points(found: dict) -> str:
    count, space = len(found["trials"]), found["space"]
    inherited = "a sub-network with the weights it has in the SuperLM."
    if found["sampler"] == "all":
        return (
            f"{count} of {space} sub-networks are within the bounds on parameters and "
            f"multiply-adds. Each point is {inherited} Latencies are taken on the front "
            "only."
        )
    each = "an Arch trained by itself." if found["proxy"] == "flash" else inherited
    return (
        f"{count} trials within the budget, of {space} Archs, chosen by "
        f"{html.escape(found['sampler'])}; latency is asked first. Each point is {each}"
    )


def plot_transfers(lines: dict[str, list[dict]]) -> str:
    """The losses of full transfers, {name of the student: its lines}."""
    lines = {name: steps for name, steps in lines.items() if steps}
    if not lines:
        return "<h2>Losses</h2>\n<p>Nothing in metrics.jsonl yet.</p>"
    drawn, axes = page.new_figure(1, 1, (11, 3.4))
    for name, steps in lines.items():
        axes.plot(*zip(*((s["step"], s["loss"]) for s in steps)), label=name, lw=1.4)
    axes.set_xlabel("step")
    axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return (
        "<h2>Losses of the transfers</h2>\n"
        + page.html_image(drawn, "training loss of each student, block after block")
        + '<p class="note">A stage a block (attention and output), then soft labels, '
        "hidden words and what else there is to learn.</p>"
    )


def plot_losses(steps: list[dict], objective, space: str = "") -> str:
    """The training losses of each role, of one of several spaces if it is named."""
    of = f" of the SuperLM {html.escape(space)}" if space else ""
    if not steps:
        return f"<h2>Losses{of}</h2>\n<p>Nothing in metrics.jsonl yet.</p>"
    terms = [
        name.split("/")[1]
        for name in steps[0]
        if name.startswith("largest/") and not name.endswith("/total")
    ]
    names = ["total", *terms] if len(terms) > 1 else ["total"]
    drawn, axes = page.new_figure(1, len(names), (11, 3.4))
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
        f"{weight:g} x {term}" for term, weight in objective.weights.items()
    )
    return (
        f"<h2>Losses by role{of}</h2>\n"
        + page.html_image(
            drawn, "training losses of largest, smallest, random sub-networks"
        )
        + f'<p class="note">total = {weights}; relation form '
        f"{html.escape(objective.relation_form)}. Each step trains the "
        "largest, the smallest and some random sub-networks.</p>"
    )
