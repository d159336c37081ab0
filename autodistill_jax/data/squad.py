"""SQuAD 1.1: its questions, and the scores of predictions by its own measure.

python -m autodistill_jax.data.squad DATASET.json PREDICTIONS.json
"""

import json
import os
import re
import string
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from autodistill_jax.data import tfds
from autodistill_jax.errors import UserError

SQUAD = "squad"


class Question(NamedTuple):
    """A question about a text, and what people answered: pieces of that text.

    Attributes:
      id: SQuAD's own.
      question: its text.
      context: the text that it is about.
      answers: one or more pieces of the context.
      starts: the character of the context at which each answer begins.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


class Squad(NamedTuple):
    """SQuAD as a task, like `tasks.Task`. Its test side is nobody's.

    Attributes:
      train: questions to train on.
      dev: questions to score on.
      name: of the task.
      metric: a key of `squad_score`.
      test_texts: empty.
      notes: what the user should hear about how it was read.
    """

    train: list[Question]
    dev: list[Question]
    name: str = SQUAD
    metric: str = "f1"
    test_texts: Mapping[str, list] = MappingProxyType({})
    notes: tuple[str, ...] = ()


def load_squad(root: str = "", download: bool = False) -> Squad:
    """SQuAD's training and dev questions.

    Args:
      root: the folder of train-v1.1.json and dev-v1.1.json, or of one train*.json and
        one dev*.json in their place; "": tensorflow_datasets.
      download: whether tensorflow_datasets may fetch it where it is not on this
        machine.

    Returns:
      The task, without the training questions whose answer is misplaced.

    Raises:
      UserError: a file that is not there or not SQuAD 1.1 (names the question), or
        training answers that do not stand where the file says.
    """
    if not root:
        return _drop_misplaced(
            Squad(*_tfds_questions(download)), "squad of tensorflow_datasets"
        )
    paths = _squad_files(Path(os.path.expanduser(root)))
    official = ("train-v1.1.json", "dev-v1.1.json")
    notes = tuple(f"read {path}" for path in paths if path.name not in official)
    train, dev = (read_squad_file(path) for path in paths)
    return _drop_misplaced(Squad(train, dev, notes=notes), str(paths[0]))


def _drop_misplaced(squad: Squad, where: str) -> Squad:
    """Without the training questions whose answer stands elsewhere.

    A note says how many, and more than one in a hundred are refused.
    """
    misplaced = [q for q in squad.train if not _is_answer_in_place(q)]
    if 100 * len(misplaced) > len(squad.train):
        answer, start = misplaced[0].answers[0], misplaced[0].starts[0]
        raise UserError(
            f"{where}, question {misplaced[0].id!r}: the answer {answer!r} does not "
            f"stand at answer_start {start} of its context (so of {len(misplaced)} "
            "questions); use the original file"
        )
    if not misplaced:
        return squad
    note = (
        f"{where}: dropped {len(misplaced)} questions whose answer is not at "
        "answer_start"
    )
    train = [q for q in squad.train if _is_answer_in_place(q)]
    return squad._replace(train=train, notes=(*squad.notes, note))


def _is_answer_in_place(question: Question) -> bool:
    answer, start = question.answers[0], question.starts[0]
    return start >= 0 and question.context.startswith(answer, start)


def _squad_files(folder: Path) -> list[Path]:
    """The training and the dev file of a folder."""
    paths, missing = [], []
    for side in ("train", "dev"):
        matches = [folder / f"{side}-v1.1.json"]
        if not matches[0].is_file():
            matches = sorted(folder.glob(f"{side}*.json"))
        if len(matches) > 1:
            raise UserError(
                f"{folder} has {', '.join(path.name for path in matches)}; name the "
                f"one to use {side}-v1.1.json"
            )
        paths += matches
        missing += [] if matches else [f"{side}-v1.1.json"]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}; put what is missing there, or leave "
            "finetune.squad_dir empty to read SQuAD with tensorflow_datasets"
        )
    return paths


def read_squad_file(path: Path) -> list[Question]:
    """The questions of a file in SQuAD 1.1's own form.

    Args:
      path: of the .json file.

    Returns:
      The questions in the file's order.

    Raises:
      UserError: no such file, no JSON, something missing (which article, paragraph and
        question), or a question without an answer (as SQuAD 2.0 has them).
    """
    questions = []
    articles = _require_member(_read_json(path), "data", list, str(path))
    for i, article in enumerate(articles, 1):
        title = article.get("title") if isinstance(article, dict) else None
        about = f"{path}, article {i}" + (f" ({title})" if title else "")
        paragraphs = _require_member(article, "paragraphs", list, about)
        for j, paragraph in enumerate(paragraphs, 1):
            place = f"{about}, paragraph {j}"
            context = _require_member(paragraph, "context", str, place)
            entries = _require_member(paragraph, "qas", list, place)
            for k, entry in enumerate(entries, 1):
                where = f"{place}, question {k}"
                questions.append(_parse_question(entry, context, where))
    if not questions:
        raise UserError(f"{path} has no questions; put the whole file there")
    return questions


def _parse_question(entry: Any, context: str, where: str) -> Question:
    name = _require_member(entry, "id", str, where)
    where += f" ({name})"
    text = _require_member(entry, "question", str, where)
    answers = _require_member(entry, "answers", list, where)
    if not answers:
        raise UserError(
            f"{where} has no answer; SQuAD 1.1 is needed, where every question has one"
        )
    texts = tuple(_require_member(answer, "text", str, where) for answer in answers)
    starts = tuple(
        _require_member(answer, "answer_start", int, where) for answer in answers
    )
    return Question(name, text, context, texts, starts)


def _require_member(record: Any, name: str, kind: type, where: str) -> Any:
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        expected = {list: "a list", str: "a text", int: "a whole number"}[kind]
        raise UserError(
            f"{where}: {expected} {name!r} is needed, as SQuAD 1.1's files have"
        )
    return value


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def _tfds_questions(download: bool) -> tuple[list[Question], list[Question]]:
    """Training and dev questions as tensorflow_datasets has them."""
    description = "finetune.squad_dir is empty and squad/v1.1 of tensorflow_datasets"
    alternative = (
        "set finetune.squad_dir to the folder of train-v1.1.json and dev-v1.1.json"
    )
    builder = tfds.find_builder("squad/v1.1", description, alternative, download)
    tfds.prepare_builder(builder, description, alternative)

    def read_split(split: str) -> list[Question]:
        source = builder.as_data_source(split=split)
        # They are stored shuffled: the same order on every machine.
        rows = sorted(
            source.__getitems__(range(len(source))), key=lambda row: row["id"]
        )
        return [
            Question(
                row["id"].decode(),
                row["question"].decode(),
                row["context"].decode(),
                tuple(text.decode() for text in row["answers"]["text"]),
                tuple(int(start) for start in row["answers"]["answer_start"]),
            )
            for row in rows
        ]

    return read_split("train"), read_split("validation")


def squad_score(
    predictions: Mapping[str, str], dataset: Sequence[Question]
) -> dict[str, float]:
    """Scores predictions as SQuAD 1.1 does (arXiv 1606.05250, section 6.1).

    Of each question the best over its answers counts, and the mean over questions. A
    question without a prediction counts 0, and a line on stderr says so.

    Args:
      predictions: {question id: text}.
      dataset: the questions.

    Returns:
      {"exact_match", "f1"} in percent.
    """
    exact = overlap = 0.0
    for question in dataset:
        if question.id not in predictions:
            print(
                f"Unanswered question {question.id} will receive score 0.",
                file=sys.stderr,
            )
            continue
        prediction = normalize_answer(predictions[question.id])
        answers = [normalize_answer(answer) for answer in question.answers]
        exact += prediction in answers
        overlap += max(
            _token_f1(prediction.split(), answer.split()) for answer in answers
        )
    count = len(dataset)
    return {"exact_match": 100 * exact / count, "f1": 100 * overlap / count}


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:the|an|a)\b")


def normalize_answer(text: str) -> str:
    """A text in the form that SQuAD's scores compare.

    Lower case, without ASCII punctuation, articles and superfluous whitespace, in this
    order: "The U.S.A.'s" is "usas". Other punctuation stays, as in SQuAD's own script.
    """
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", bare).split())


def _token_f1(predicted: list[str], expected: list[str]) -> float:
    """F1 of two bags of words; 0 where they share none, even if both are empty."""
    shared = sum((Counter(predicted) & Counter(expected)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(expected)
    return 2 * precision * recall / (precision + recall)


def score_command(argv: Sequence[str]) -> int:
    """Prints the score of a file of predictions as JSON.

    Args:
      argv: DATASET.json and PREDICTIONS.json, {question id: text}.

    Returns:
      The exit status, 0; 2, after one line on stderr, if a file is wrong.
    """
    try:
        if len(argv) != 2:
            raise UserError(
                f"{len(argv)} arguments; give DATASET.json PREDICTIONS.json"
            )
        dataset, path = read_squad_file(Path(argv[0])), Path(argv[1])
        predictions = _read_json(path)
        if not isinstance(predictions, dict):
            raise UserError(f"{path} is not a JSON object of texts by question id")
        for name, text in predictions.items():
            if not isinstance(text, str):
                raise UserError(
                    f"{path}: the prediction of {name!r} is not a text: {text}"
                )
    except UserError as error:
        print(f"squad: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(squad_score(predictions, dataset)))
    return 0


if __name__ == "__main__":
    sys.exit(score_command(sys.argv[1:]))
