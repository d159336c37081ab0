"""How do GLUE's original TSV folders read? Four tasks and their quirks."""

from pathlib import Path
from typing import NamedTuple

from autodistill_jax.data import tasks
from autodistill_jax.errors import UserError


class _Layout(NamedTuple):
    folder: str
    columns: tuple  # texts, then the label; positions where there is no header
    labels: tuple[str, ...]  # in order of their numbers; () for numbers
    metric: str
    header: bool = True


_TASKS = {
    "sst2": _Layout("SST-2", ("sentence", "label"), ("0", "1"), "accuracy"),
    "cola": _Layout("CoLA", (3, 1), ("0", "1"), "matthews", header=False),
    "rte": _Layout(
        "RTE",
        ("sentence1", "sentence2", "label"),
        ("entailment", "not_entailment"),
        "accuracy",
    ),
    "stsb": _Layout(
        "STS-B", ("sentence1", "sentence2", "score"), (), "pearson_spearman"
    ),
}
NAMES = tuple(_TASKS)


def load(name: str, root: str) -> tasks.Task:
    """A GLUE task from its folder below `root`: train.tsv and dev.tsv.

    Raises:
      UserError: a file that is not there, a short row, a label outside the task's set
        (file and line number).
    """
    layout = _TASKS[name]
    if not root:
        raise UserError(
            f"finetune.tasks has {name!r}, but finetune.glue_dir is empty; "
            f"set it to the folder that holds {layout.folder}/train.tsv and dev.tsv"
        )
    folder = Path(root).expanduser() / layout.folder
    missing = [f for f in ("train.tsv", "dev.tsv") if not (folder / f).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {' and '.join(missing)}, needed for {name}")
    splits = []
    for file in ("train.tsv", "dev.tsv"):
        path = folder / file
        texts, labels = [], []
        for line, row in tasks.tsv(path, list(layout.columns), layout.header):
            *text, label = row
            texts.append(text[0] if len(text) == 1 else tuple(text))
            if not layout.labels:
                labels.append(tasks.number_label(label, path, line))
            elif label in layout.labels:
                labels.append(layout.labels.index(label))
            else:
                raise UserError(
                    f"{path}, line {line}: label {label!r} is none of "
                    f"{', '.join(layout.labels)}"
                )
        splits.append((texts, labels))
    return tasks.Task(
        name, *splits, max(len(layout.labels), 1), layout.metric, layout.labels
    )
