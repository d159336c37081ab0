"""Labelled tasks: the record that all share, and one read from the user's own files."""

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from autodistill_jax.errors import UserError
from autodistill_jax.metrics import METRICS

Text = str | tuple[str, str]


class Task(NamedTuple):
    """A labelled task: texts (or pairs of texts) and labels for training and dev.

    Labels are whole numbers below `classes`, or floats where `classes` is 1
    (regression).

    Attributes:
      name: of the task.
      train: (texts, labels) to train on.
      dev: (texts, labels) to score on.
      classes: the number of classes; 1 for regression.
      metric: a name in `metrics.METRICS`; more is better.
      labels: names of the classes; () for regression.
      extra_dev: {name: (texts, labels)} of further dev sides.
      test_texts: {stem of the submission file: texts without labels}, in the order of
        the test file: a text's index is its place.
      notes: what the user should hear about how it was read.
    """

    name: str
    train: tuple[list[Text], list[float]]
    dev: tuple[list[Text], list[float]]
    classes: int
    metric: str
    labels: tuple[str, ...] = ()
    extra_dev: Mapping[str, tuple[list[Text], list[float]]] = MappingProxyType({})
    test_texts: Mapping[str, list[Text]] = MappingProxyType({})
    notes: tuple[str, ...] = ()


def load_user_task(
    path: str, dev_file: str, text: str, text_pair: str, label: str, metric: str
) -> Task:
    """A task from a .tsv (with a header) or .jsonl file.

    Args:
      path: the training rows.
      dev_file: the dev rows; "": every tenth training row (by a hash of its text).
      text, text_pair, label: column or field names; text_pair "" for single texts.
      metric: of `METRICS`; with a correlation the labels are numbers, else classes.

    Returns:
      A task named after the file of the training rows.

    Raises:
      UserError: a file that is not there, a row that is too short, a label that is no
        number or that only dev has (file and line number).
    """
    if metric not in METRICS:
        raise UserError(
            f"finetune.metric is {metric!r}; it must be one of {', '.join(METRICS)}"
        )
    columns = [column for column in (text, text_pair, label) if column]
    train = _read_rows(Path(path), columns)
    if dev_file:
        dev, dev_path = _read_rows(Path(dev_file), columns), Path(dev_file)
    else:
        dev = [row for row in train if zlib.crc32(row[1][0].encode()) % 10 == 0]
        train = [row for row in train if zlib.crc32(row[1][0].encode()) % 10 != 0]
        dev_path = Path(path)
    if len(train) < 2 or len(dev) < 2:
        raise UserError(
            f"{path} gives {len(train)} training and {len(dev)} dev rows; "
            "at least 2 of each are needed"
        )
    if "spearman" in metric:
        classes, values = 1, None
    else:
        names = sorted({row[-1] for _, row in train})
        classes, values = len(names), {name: i for i, name in enumerate(names)}
        if classes < 2:
            raise UserError(
                f"{path} has the one label {names[0]!r}; {metric} needs two or more"
            )
        if metric == "accuracy_f1" and classes > 2:
            raise UserError(
                f"{path} has {classes} labels, but finetune.metric accuracy_f1 is for "
                "two (F1 of the second, in the order of the alphabet); use accuracy"
            )

    def split(rows: list, where: Path) -> tuple[list[Text], list[float]]:
        texts, labels = [], []
        for number, row in rows:
            texts.append(row[0] if not text_pair else (row[0], row[1]))
            labels.append(_label_value(row[-1], values, where, number))
        return texts, labels

    name = Path(path).stem
    sides = split(train, Path(path)), split(dev, dev_path)
    return Task(name, *sides, classes, metric, tuple(values or ()))


def _label_value(
    value: str, values: dict[str, int] | None, path: Path, line: int
) -> float:
    if values is None:
        return parse_number_label(value, path, line)
    if value not in values:
        raise UserError(
            f"{path}, line {line}: label {value!r} is none of the training labels "
            f"{', '.join(list(values)[:10])}"
        )
    return values[value]


def parse_number_label(value: str, path: Path, line: int) -> float:
    """A label as a finite number.

    Args:
      value: the label's text.
      path, line: where it stands, for the error.

    Returns:
      The number.

    Raises:
      UserError: it is not a number, or not finite.
    """
    try:
        number = float(value)
    except ValueError as error:
        raise UserError(
            f"{path}, line {line}: label {value!r} is not a number"
        ) from error
    if not math.isfinite(number):
        raise UserError(f"{path}, line {line}: label {value!r} is not finite")
    return number


def _read_rows(path: Path, columns: list[str]) -> list[tuple[int, list[str]]]:
    if path.suffix == ".jsonl":
        rows = []
        for number, line in _numbered_lines(path):
            try:
                record = json.loads(line)
                rows.append((number, [str(record[column]) for column in columns]))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number}: needed a JSON object with the fields "
                    f"{', '.join(columns)}; finetune.text, text_pair and label name "
                    "them"
                ) from error
        return rows
    return read_tsv(path, columns)


def read_tsv(
    path: Path,
    columns: Sequence[str | int],
    header: bool = True,
    short: bool = False,
) -> list[tuple[int, list[str]]]:
    """Rows of a tab-separated file.

    Quotes are text: GLUE's files are not CSV.

    Args:
      path: of the file.
      columns: names of the columns to read, or without a header their positions.
      header: whether the first line names the columns.
      short: whether a row with too few columns is given as (line number, []).

    Returns:
      [(line number, the cells of `columns`)].

    Raises:
      UserError: a file that is not there, not UTF-8 or empty, lacks a column, or has a
        row with too few (file and line number).
    """
    lines = list(_numbered_lines(path))
    if not lines:
        raise UserError(f"{path} is empty")
    if header:
        names = lines.pop(0)[1].split("\t")
        missing = [column for column in columns if column not in names]
        if missing:
            raise UserError(
                f"{path} has the columns {', '.join(names)}, but not "
                f"{', '.join(map(str, missing))} (finetune.text, text_pair and label "
                "name those of a file of your own)"
            )
        places, width = [names.index(column) for column in columns], len(names)
    else:
        places, width = columns, max(columns) + 1
    rows = []
    for number, line in lines:
        cells = line.split("\t")
        # Some rows of STS-B have more cells than the header; none may have fewer.
        if len(cells) < width and not short:
            raise UserError(
                f"{path}, line {number}: {len(cells)} columns, needed {width}"
            )
        if len(cells) < width:
            rows.append((number, []))
            continue
        rows.append((number, [cells[place].strip() for place in places]))
    return rows


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise UserError(f"{path} is not there; give a .tsv or .jsonl file that is")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason})") from error
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line:
            yield number, line
