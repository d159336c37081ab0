"""What a run left in its workdir, as values: for Python and notebooks."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.experiment.finetune_results import read_results
from autodistill_jax.experiment.model_costs import model_costs
from autodistill_jax.experiment.workdir import arch_from_json, find_trial, read_front
from autodistill_jax.report import tables
from autodistill_jax.report.plots import front_figure
from autodistill_jax.search.selection import modelled_proxy

_COMPARED = ("teacher", "student", "before_finish", "truncated")


class Choice(NamedTuple):
    """The student of one budget.

    Attributes:
      budget: its bounds, the fields of `budget.Budget`.
      arch: that was chosen.
      reason: why, in words.
      student: the exported folder, local; None before the job export.
    """

    budget: dict[str, Any]
    arch: AnyArch
    reason: str
    student: Path | None


class Result(NamedTuple):
    """The outcome of a run, as far as its jobs have come.

    Attributes:
      workdir: where all of it lies, local or gs://.
      student: the first budget's exported folder, local; None before the job export.
      arch: the first budget's.
      reason: why it was chosen, in words.
      choices: the student of each budget, in their order.
      chosen: its trial: proxy, params, flops (multiply-adds), latency_ms, ...
      teacher: the same figures of the teacher.
      front: the trials on the front of proxy and cost, lowest proxy first.
      trials: all trials under the budget.
      proxy: what Archs were judged by.
      latency: the conditions of latencies: source ("measured" or "compiled"), device,
        batch, length, dtype.
      similarity: Spearman of text similarities with the teacher's, by model; {} before
        the job export.
      tasks: {labelled task: {model: result}}; {} before the job finetune.
      costs: {model: its costs}, see `model_costs.model_costs`.
      report: report.html; None before the job report.
    """

    workdir: epath.Path
    student: Path | None
    arch: AnyArch
    reason: str
    choices: tuple[Choice, ...]
    chosen: dict[str, Any]
    teacher: dict[str, Any]
    front: list[dict[str, Any]]
    trials: list[dict[str, Any]]
    proxy: str
    latency: dict[str, Any]
    similarity: dict[str, float]
    tasks: dict[str, dict[str, dict]]
    costs: dict[str, dict[str, Any]]
    report: Path | None

    def table(self) -> str:
        """Costs of student and teacher, what the student keeps, and the labelled tasks,
        as Markdown."""
        length, source = self.latency["length"], self.latency["source"]
        rows = [
            [name, *tables.cost_cells(self.chosen, self.teacher, *cost)]
            for name, *cost in (
                ("parameters", "params", 1e6, "M", 2),
                (f"multiply-adds, {length} tokens", "flops", 1e9, "G", 3),
                (f"latency, {source}", "latency_ms", 1, "ms", 2),
            )
        ]
        if self.similarity:
            student = f"{self.similarity['student']:.3f}"
            rows.append(["similarities (Spearman)", "1", student, ""])
        text = tables.markdown_table(["", "teacher", "student", "share"], rows)
        if self.tasks:
            text += "\n" + tables.markdown_table(
                *tables.task_table(self.tasks, self.costs, source)
            )
        return text

    def plot_front(self) -> Any:
        """The front as a matplotlib figure, for a notebook: proxy against latency
        and against multiply-adds, the choice and the teacher."""
        front = {
            "trials": self.trials,
            "teacher": self.teacher,
            "latency": self.latency,
            "proxy": self.proxy,
        }
        return front_figure(front, self.arch)


def read_result(config: ConfigDict, workdir: epath.Path) -> Result:
    """The result that the jobs run so far have left.

    Args:
      config: of the run, under which its Arch was chosen.
      workdir: of the run.

    Returns:
      The `Result`, with the tasks fine-tuned so far.

    Raises:
      UserError: no search has chosen an Arch yet, or one under other settings.
    """
    front = read_front(config, workdir)
    choices = tuple(_read_choice(workdir, choice) for choice in front["choices"])
    _, arch, reason, student = choices[0]
    scores = {}
    if student:
        path = workdir / "students" / arch.name / "similarity.json"
        scores = json.loads(path.read_text())
    on_front = [trial for trial in front["trials"] if trial["on_front"]]
    report = workdir / "report.html"
    return Result(
        workdir,
        student,
        arch,
        reason,
        choices,
        find_trial(front, arch),
        front["teacher"],
        sorted(on_front, key=modelled_proxy),
        front["trials"],
        front["proxy"],
        front["latency"],
        {k: scores[k] for k in _COMPARED if k in scores},
        read_results(config, workdir / "finetune" / arch.name),
        model_costs(config, workdir, front, arch),
        storage.local_copy(report) if report.exists() else None,
    )


def _read_choice(workdir: epath.Path, choice: dict) -> Choice:
    arch = arch_from_json(choice["arch"])
    folder = workdir / "students" / arch.name
    is_exported = (folder / "similarity.json").exists()
    student = storage.local_copy(folder) if is_exported else None
    return Choice(choice["budget"], arch, choice["reason"], student)
