"""GLUE's original TSV folders: nine tasks, and the quirks of their files."""

import os
import zlib
from pathlib import Path
from typing import NamedTuple

from autodistill_jax.data import tasks
from autodistill_jax.errors import UserError


class TaskLayout(NamedTuple):
    """Where a task's texts and labels stand, in its files and in tensorflow_datasets.

    Attributes:
      folder: the name of its folder.
      texts: the columns of its texts, one or a pair.
      label: the column of its labels.
      labels: the labels in order of their numbers; () where labels are numbers.
      metric: a name in `metrics.METRICS`.
      features: tensorflow_datasets' names of `texts`, where they differ.
      ends: what its dev and test files' stems end with, one for each side.
      submissions: the stems of GLUE's submission files; (): the folder's name.
    """

    folder: str
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metric: str
    features: tuple[str, ...] = ()
    ends: tuple[str, ...] = ("",)
    submissions: tuple[str, ...] = ()


class LabelledTexts(NamedTuple):
    """One side of a task.

    Attributes:
      texts: single texts, or pairs.
      labels: the number of each text's label; [] for a test side.
    """

    texts: list[tasks.Text]
    labels: list[float]


_PAIR = ("sentence1", "sentence2")
_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")

TASK_LAYOUTS = {
    "sst2": TaskLayout("SST-2", ("sentence",), "label", _BINARY, "accuracy"),
    "cola": TaskLayout("CoLA", ("sentence",), "label", _BINARY, "matthews"),
    "mrpc": TaskLayout(
        "MRPC", ("#1 String", "#2 String"), "Quality", _BINARY, "accuracy_f1", _PAIR
    ),
    "stsb": TaskLayout("STS-B", _PAIR, "score", (), "pearson_spearman"),
    "qqp": TaskLayout(
        "QQP", ("question1", "question2"), "is_duplicate", _BINARY, "accuracy_f1"
    ),
    "mnli": TaskLayout(
        "MNLI",
        _PAIR,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        "accuracy",
        ("premise", "hypothesis"),
        ("_matched", "_mismatched"),
        ("MNLI-m", "MNLI-mm", "AX"),
    ),
    "qnli": TaskLayout(
        "QNLI", ("question", "sentence"), "label", _ENTAILMENT, "accuracy"
    ),
    "rte": TaskLayout("RTE", _PAIR, "label", _ENTAILMENT, "accuracy"),
    "wnli": TaskLayout("WNLI", _PAIR, "label", _BINARY, "accuracy"),
}

LABELLED_TEST = "labelled_test"  # The stem of a test side that has labels.

# Where no line of a file says which column is which.
_HEADERLESS_COLUMNS = {"sentence": 3, "label": 1}


def read_glue_folder(
    layout: TaskLayout, root: str
) -> tuple[dict[str, LabelledTexts], tuple[str, ...]]:
    """Reads a task's folder.

    A test file that is not there is left out; STS-B's labelled one is read where the
    original split lies beside GLUE's files (original/sts-test.tsv); MNLI's also include
    `diagnostic`, the set of GLUE that is answered by MNLI's models, from a folder of its
    own. MRPC is also read as Microsoft gives it, see `_read_msr_paraphrases`. Rows of
    QQP's labelled files that lack columns are dropped, as everybody does: a note says
    how many.

    Args:
      layout: of `TASK_LAYOUTS`.
      root: the folder that holds CoLA/, SST-2/ and so on.

    Returns:
      ({stem of a file, as train, dev or test: its texts}, notes for the user).

    Raises:
      UserError: a file that is not there or has no rows, a short row, a label outside
        the task's set (file and line number).
    """
    folder = Path(os.path.expanduser(root)) / layout.folder
    labelled = ["train", *(f"dev{end}" for end in layout.ends)]
    missing = [
        f"{stem}.tsv" for stem in labelled if not (folder / f"{stem}.tsv").is_file()
    ]
    original = layout.folder == "MRPC"
    if missing and original and (folder / "msr_paraphrase_train.txt").is_file():
        return _read_msr_paraphrases(layout, folder)
    if missing:
        alternative = "msr_paraphrase_train.txt and dev_ids.tsv in place of"
        raise UserError(
            f"{folder} lacks {', '.join(missing)}"
            + (f" (or {alternative} train.tsv and dev.tsv)" if original else "")
            + "; put what is missing there, or leave finetune.glue_dir empty to read "
            "the task with tensorflow_datasets"
        )
    sides, notes = {}, []
    for stem in labelled:
        path = folder / f"{stem}.tsv"
        sides[stem], dropped = _read_labelled(layout, path)
        if dropped:
            notes.append(f"{path}: dropped {dropped} rows that lack columns")
    for stem in (f"test{end}" for end in layout.ends):
        if (folder / f"{stem}.tsv").is_file():
            sides[stem] = _read_unlabelled(layout, folder / f"{stem}.tsv")
    diagnostic_path = folder.parent / "diagnostic" / "diagnostic.tsv"
    if layout.folder == "MNLI" and diagnostic_path.is_file():
        sides["diagnostic"] = _read_unlabelled(layout, diagnostic_path)
    original_path = folder / "original" / "sts-test.tsv"
    if layout.folder == "STS-B" and original_path.is_file():
        sides[LABELLED_TEST] = _read_sts_test(layout, original_path)
    return sides, tuple(notes)


def _read_sts_test(layout: TaskLayout, path: Path) -> LabelledTexts:
    """The test rows of STS-B's original split: no header, seven columns."""
    rows = tasks.read_tsv(path, (5, 6, 4), header=False)
    return LabelledTexts(
        [(first, second) for _, (first, second, _) in rows],
        [_label_number(layout, score, path, line) for line, (*_, score) in rows],
    )


def _label_number(layout: TaskLayout, label: str, path: Path, line: int) -> float:
    """A label's number.

    Raises:
      UserError: it is none of the task's labels, or no number where one is needed.
    """
    if not layout.labels:
        number = tasks.parse_number_label(label, path, line)
        if not 0 <= number <= 5:
            raise UserError(
                f"{path}, line {line}: score {label!r} is outside STS-B's 0 to 5"
            )
        return number
    if label not in layout.labels:
        raise UserError(
            f"{path}, line {line}: label {label!r} is none of "
            f"{', '.join(layout.labels)}"
        )
    return layout.labels.index(label)


def _read_msr_paraphrases(
    layout: TaskLayout, folder: Path
) -> tuple[dict[str, LabelledTexts], tuple[str, ...]]:
    """MRPC from Microsoft's own files, msr_paraphrase_train.txt and _test.txt.

    GLUE's dev rows are those of the training file whose pair of ids stands in
    dev_ids.tsv. Without that file every tenth row is dev, by a hash of its ids: the
    same rows everywhere, but not GLUE's, and a note says so.
    """
    path, dev_ids_path = folder / "msr_paraphrase_train.txt", folder / "dev_ids.tsv"
    columns = ("#1 ID", "#2 ID", *layout.texts, layout.label)
    notes = ()
    if dev_ids_path.is_file():
        dev_rows = tasks.read_tsv(dev_ids_path, (0, 1), header=False)
        dev_ids = {tuple(row) for _, row in dev_rows}
    else:
        dev_ids = None
        note = (
            f"{folder} has no dev_ids.tsv: every tenth row of {path.name} is dev, by a "
            "hash of its ids, and scores are not those of GLUE's dev set; put "
            "dev_ids.tsv there for that"
        )
        notes = (note,)
    train, dev = LabelledTexts([], []), LabelledTexts([], [])
    for line, (first, second, *text, label) in tasks.read_tsv(path, columns):
        if dev_ids is None:
            held_out = zlib.crc32(f"{first} {second}".encode()) % 10 == 0
        else:
            held_out = (first, second) in dev_ids
        side = dev if held_out else train
        side.texts.append(tuple(text))
        side.labels.append(_label_number(layout, label, path, line))
    if not train.texts or not dev.texts:
        raise UserError(
            f"{path} gives {len(train.texts)} training and {len(dev.texts)} dev rows "
            f"{'with' if dev_ids_path.is_file() else 'without'} dev_ids.tsv; both "
            "sides need some"
        )
    sides = {"train": train, "dev": dev}
    for name in ("test.tsv", "msr_paraphrase_test.txt"):
        if (folder / name).is_file():
            sides["test"] = _read_unlabelled(layout, folder / name)
            break
    return sides, notes


def _read_labelled(layout: TaskLayout, path: Path) -> tuple[LabelledTexts, int]:
    """The labelled rows of a file, and how many rows were dropped."""
    columns, header = (*layout.texts, layout.label), layout.folder != "CoLA"
    if not header:
        columns = [_HEADERLESS_COLUMNS[column] for column in columns]
    broken = layout.folder == "QQP"
    rows = tasks.read_tsv(path, columns, header, short=broken)
    side = LabelledTexts([], [])
    for line, row in rows:
        if not broken or (row and row[-1]):
            side.texts.append(_text_or_pair(row[:-1]))
            side.labels.append(_label_number(layout, row[-1], path, line))
    return _check_nonempty(side, path), len(rows) - len(side.texts)


def _read_unlabelled(layout: TaskLayout, path: Path) -> LabelledTexts:
    # A short row is refused, in QQP too: the server wants a line for each.
    rows = tasks.read_tsv(path, layout.texts)
    return _check_nonempty(
        LabelledTexts([_text_or_pair(row) for _, row in rows], []), path
    )


def _text_or_pair(cells: list[str]) -> tasks.Text:
    return cells[0] if len(cells) == 1 else tuple(cells)


def _check_nonempty(side: LabelledTexts, path: Path) -> LabelledTexts:
    if not side.texts:
        raise UserError(f"{path} has no rows; put the whole file there")
    return side
