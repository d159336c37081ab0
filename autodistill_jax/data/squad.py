"""What is SQuAD 1.1? Its files, and what predictions are worth by its own measure.

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

    `starts`: the character of `context` at which each answer begins.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


class Squad(NamedTuple):
    """SQuAD as a task: questions for training and dev. Its test side is nobody's."""

    train: list[Question]
    dev: list[Question]
    name: str = SQUAD
    metric: str = "f1"
    tests: Mapping[str, list] = MappingProxyType({})
    notes: tuple[str, ...] = ()


def load_squad(root: str = "", download: bool = False) -> Squad:
    """SQuAD's training and dev questions.

    Args:
      root: the folder of train-v1.1.json and dev-v1.1.json, or of one train*.json and
        one dev*.json in their place; "": tensorflow_datasets.
      download: may tensorflow_datasets fetch it where it is not on this machine?

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


def _drop_misplaced(made: Squad, where: str) -> Squad:
    """Without the training questions whose answer stands elsewhere: a note says how
    many, and more than one in a hundred are refused."""
    lost = [one for one in made.train if not _is_answer_in_place(one)]
    if 100 * len(lost) > len(made.train):
        answer, start = lost[0].answers[0], lost[0].starts[0]
        raise UserError(
            f"{where}, question {lost[0].id!r}: the answer {answer!r} does not stand at "
            f"answer_start {start} of its context (so of {len(lost)} questions); use "
            "the original file"
        )
    if not lost:
        return made
    note = f"{where}: dropped {len(lost)} questions whose answer is not at answer_start"
    train = [one for one in made.train if _is_answer_in_place(one)]
    return made._replace(train=train, notes=(*made.notes, note))


def _is_answer_in_place(question: Question) -> bool:
    answer, start = question.answers[0], question.starts[0]
    return start >= 0 and question.context.startswith(answer, start)


def _squad_files(folder: Path) -> list[Path]:
    """The training and the dev file of a folder."""
    made, missing = [], []
    for side in ("train", "dev"):
        there = [folder / f"{side}-v1.1.json"]
        if not there[0].is_file():
            there = sorted(folder.glob(f"{side}*.json"))
        if len(there) > 1:
            raise UserError(
                f"{folder} has {', '.join(path.name for path in there)}; name the one "
                f"to use {side}-v1.1.json"
            )
        made += there
        missing += [] if there else [f"{side}-v1.1.json"]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}; put what is missing there, or leave "
            "finetune.squad_dir empty to read SQuAD with tensorflow_datasets"
        )
    return made


def read_squad_file(path: Path) -> list[Question]:
    """The questions of a file in SQuAD 1.1's own form, in its order.

    Raises:
      UserError: no such file, no JSON, something missing (which article, paragraph and
        question), or a question without an answer (as SQuAD 2.0 has them).
    """
    made = []
    for i, article in enumerate(
        _require_member(_read_json(path), "data", list, str(path)), 1
    ):
        named = article.get("title") if isinstance(article, dict) else None
        about = f"{path}, article {i}" + (f" ({named})" if named else "")
        for j, paragraph in enumerate(
            _require_member(article, "paragraphs", list, about), 1
        ):
            place = f"{about}, paragraph {j}"
            context = _require_member(paragraph, "context", str, place)
            for k, asked in enumerate(
                _require_member(paragraph, "qas", list, place), 1
            ):
                made.append(_parse_question(asked, context, f"{place}, question {k}"))
    if not made:
        raise UserError(f"{path} has no questions; put the whole file there")
    return made


def _parse_question(asked: Any, context: str, where: str) -> Question:
    name = _require_member(asked, "id", str, where)
    where += f" ({name})"
    text = _require_member(asked, "question", str, where)
    answers = _require_member(asked, "answers", list, where)
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
        told = {list: "a list", str: "a text", int: "a whole number"}[kind]
        raise UserError(
            f"{where}: {told} {name!r} is needed, as SQuAD 1.1's files have"
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
    asked = "finetune.squad_dir is empty and squad/v1.1 of tensorflow_datasets"
    instead = (
        "set finetune.squad_dir to the folder of train-v1.1.json and dev-v1.1.json"
    )
    builder = tfds.find_builder("squad/v1.1", asked, instead, download)
    tfds.prepare_builder(builder, asked, instead)

    def side(split):
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

    return side("train"), side("validation")


def squad_score(
    predictions: Mapping[str, str], dataset: Sequence[Question]
) -> dict[str, float]:
    """{"exact_match", "f1"} in percent, as SQuAD 1.1 defines them (arXiv 1606.05250,
    section 6.1): of each question the best over its answers, the mean over questions.

    A question without a prediction counts 0, and a line on stderr says so.
    """
    exact = overlap = 0.0
    for question in dataset:
        if question.id not in predictions:
            print(
                f"Unanswered question {question.id} will receive score 0.",
                file=sys.stderr,
            )
            continue
        mine = normalize_answer(predictions[question.id])
        theirs = [normalize_answer(answer) for answer in question.answers]
        exact += mine in theirs
        overlap += max(_token_f1(mine.split(), answer.split()) for answer in theirs)
    count = len(dataset)
    return {"exact_match": 100 * exact / count, "f1": 100 * overlap / count}


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:the|an|a)\b")


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and superfluous whitespace, in
    this order: "The U.S.A.'s" is "usas". Other punctuation stays, as it does there."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", bare).split())


def _token_f1(mine: list[str], theirs: list[str]) -> float:
    """Of two bags of words; 0 where they share none, even if both are empty."""
    shared = sum((Counter(mine) & Counter(theirs)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(mine), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)


def score_command(argv: Sequence[str]) -> int:
    """Prints the score as JSON; 2 with one line on stderr if a file is wrong."""
    try:
        if len(argv) != 2:
            raise UserError(
                f"{len(argv)} arguments; give DATASET.json PREDICTIONS.json"
            )
        dataset, path = read_squad_file(Path(argv[0])), Path(argv[1])
        predictions = _read_json(path)
        if not isinstance(predictions, dict):
            raise UserError(f"{path} is no JSON object of texts by question id")
        for name, text in predictions.items():
            if not isinstance(text, str):
                raise UserError(
                    f"{path}: the prediction of {name!r} is no text: {text}"
                )
    except UserError as error:
        print(f"squad: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(squad_score(predictions, dataset)))
    return 0


if __name__ == "__main__":
    sys.exit(score_command(sys.argv[1:]))
