"""SQuAD questions as windows of token rows, and answers back from their logits."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from autodistill_jax.data import tokenization
from autodistill_jax.data.squad import Question
from autodistill_jax.errors import UserError


class Windows(NamedTuple):
    """Rows of a question with a piece of its context each, and the way back.

    Attributes:
      rows: {"input_ids", "attention_mask", "token_type_ids"}, [N, L] each.
      question: [N], the number of the question that a row is of.
      offsets: [N, L, 2], the characters of the context that a token stands for, first
        and past the last; (0, 0) where it is none of the context's.
      starts: [N, L] bool, where an answer may start: at each token of a context in one
        window alone, see `_max_context_tokens`.
    """

    rows: dict[str, np.ndarray]
    question: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray


def window_overlap(length: int) -> int:
    """Tokens that neighbouring windows share: more than an answer has, as a rule."""
    return length // 4


def check_windows_fit(
    tokenizer: Any, questions: Sequence[Question], length: int
) -> None:
    """Checks that questions can be cut into windows.

    Args:
      tokenizer: of `tokenization.load_tokenizer`.
      questions: one or more.
      length: tokens of a window.

    Raises:
      UserError: the tokenizer has no way back to the text, or a question leaves less
        than half a window to its context.
    """
    first = questions[0]
    pair = tokenizer.encode("what?", first.context)
    context_ends = [
        end for kind, (_, end) in zip(pair.sequence_ids, pair.offsets) if kind == 1
    ]
    cls_token_id = tokenization.special_tokens(tokenizer).cls_token_id
    if pair.ids[0] != cls_token_id or not any(context_ends):
        raise UserError(
            "the teacher's tokenizer puts no [CLS] (or <s>) before a pair of texts, or "
            "does not say which characters a token stands for: answers cannot be found "
            "with it; use the teacher's original tokenizer.json, or its vocabulary "
            "alone"
        )
    num_special = tokenizer.num_special_tokens_to_add(True)
    for start in range(0, len(questions), 4096):
        group = questions[start : start + 4096]
        encodings = tokenizer.encode_batch(
            [question.question.strip() for question in group], add_special_tokens=False
        )
        for question, encoded in zip(group, encodings):
            needed = num_special + len(encoded.ids)
            if length - needed < 2 * window_overlap(length):
                raise UserError(
                    f"finetune.squad_max_seq_length {length} leaves too little room "
                    f"for the context beside question {question.id!r} of "
                    f"{len(encoded.ids)} tokens; use at least {2 * needed}"
                )


def training_windows(
    tokenizer: Any, questions: Sequence[Question], length: int
) -> dict[str, np.ndarray]:
    """Rows to learn from (BERT, arXiv 1810.04805, section 4.2).

    Args:
      tokenizer: of `tokenization.load_tokenizer`.
      questions: with answers.
      length: tokens of a window.

    Returns:
      {"input_ids", "attention_mask", "token_type_ids"} [N, L], and "label" [N, 2], the
      first and the last token of the (first) answer; (0, 0), the first token of all,
      where a window does not hold the whole answer.
    """
    buffer, labels = _RowBuffer(tokenizer, length), []
    for number, windows in _encode_questions(tokenizer, questions, length):
        for window in windows:
            buffer.add(window)
            labels.append(_answer_span(window, questions[number]))
    return buffer.stacked() | {"label": np.asarray(labels, np.int32)}


def question_windows(
    tokenizer: Any, questions: Sequence[Question], length: int
) -> Windows:
    """Rows to be answered, see `decode_answers`.

    Args:
      tokenizer: of `tokenization.load_tokenizer`.
      questions: their answers are not read.
      length: tokens of a window.

    Returns:
      All windows of all questions, in order.
    """
    buffer = _RowBuffer(tokenizer, length)
    question_numbers, offsets, starts = [], [], []
    for number, windows in _encode_questions(tokenizer, questions, length):
        contexts = [
            np.array([kind == 1 for kind in window.sequence_ids]) for window in windows
        ]
        max_context = _max_context_tokens(
            [int(context.sum()) for context in contexts], length
        )
        for window, context, is_max_context in zip(windows, contexts, max_context):
            buffer.add(window)
            question_numbers.append(number)
            spans = np.zeros((length, 2), np.int32)
            spans[: len(context)] = np.asarray(window.offsets) * context[:, None]
            offsets.append(spans)
            start = np.zeros(length, bool)
            start[np.flatnonzero(context)] = is_max_context
            starts.append(start)
    return Windows(
        buffer.stacked(),
        np.asarray(question_numbers),
        np.stack(offsets),
        np.stack(starts),
    )


def decode_answers(
    windows: Windows,
    questions: Sequence[Question],
    logits: np.ndarray,
    max_answer_tokens: int = 30,
) -> dict[str, str]:
    """The answer of every question, cut from its context.

    Of all pairs of a first and a last token, the last not before the first, it is the
    pair with the highest sum of logits, over all windows of the question: the exact
    search that a list of n best only approximates. Whatever the logits: SQuAD 1.1
    always answers.

    Args:
      windows: of `question_windows`.
      questions: the same ones.
      logits: [N, L, 2], of first and last.
      max_answer_tokens: the most tokens of an answer.

    Returns:
      {question id: text}.
    """
    first = np.where(windows.starts, logits[:, :, 0], -np.inf)
    last = np.where(windows.offsets[:, :, 1] > 0, logits[:, :, 1], -np.inf)
    rows, length = first.shape
    score, begin, end = np.full(rows, -np.inf), np.zeros(rows, int), np.zeros(rows, int)
    for extra in range(min(max_answer_tokens, length)):
        pairs = first[:, : length - extra] + last[:, extra:]
        place = pairs.argmax(axis=1)
        value = pairs[np.arange(rows), place]
        better = value > score
        score[better], begin[better] = value[better], place[better]
        end[better] = place[better] + extra
    answers = {question.id: "" for question in questions}
    best: dict[int, float] = {}
    for row, number in enumerate(windows.question):
        if score[row] > best.get(number, -np.inf):
            best[number] = score[row]
            question = questions[number]
            a, b = (
                windows.offsets[row, begin[row], 0],
                windows.offsets[row, end[row], 1],
            )
            answers[question.id] = question.context[a:b].strip()
    return answers


class _RowBuffer:
    """Rows of tokens as they come, padded to one length."""

    def __init__(self, tokenizer: Any, length: int):
        self.length = length
        self.pad_token_id = tokenization.special_tokens(tokenizer).pad_token_id
        self.rows: dict[str, list] = {
            "input_ids": [],
            "attention_mask": [],
            "token_type_ids": [],
        }

    def add(self, window: Any) -> None:
        """Appends the row of a window, a `tokenizers.Encoding`."""
        for name, values, fill, dtype in (
            ("input_ids", window.ids, self.pad_token_id, np.int32),
            ("attention_mask", window.attention_mask, 0, np.int8),
            ("token_type_ids", window.type_ids, 0, np.int8),
        ):
            row = np.full(self.length, fill, dtype)
            row[: len(values)] = values
            self.rows[name].append(row)

    def stacked(self) -> dict[str, np.ndarray]:
        """All rows, [N, length] each."""
        return {name: np.stack(rows) for name, rows in self.rows.items()}


def _encode_questions(
    tokenizer: Any, questions: Sequence[Question], length: int
) -> Iterator[tuple[int, list]]:
    """(number of a question, its windows in the order of the context)."""
    tokenizer.enable_truncation(
        length, stride=window_overlap(length), strategy="only_second"
    )
    for start in range(0, len(questions), 1024):
        # Some questions have spaces in front, which byte-level tokens would keep.
        texts = [
            (question.question.strip(), question.context)
            for question in questions[start : start + 1024]
        ]
        for i, encoding in enumerate(tokenizer.encode_batch(texts), start):
            yield i, [encoding, *encoding.overflowing]
    tokenizer.no_truncation()


def _answer_span(window: Any, question: Question) -> tuple[int, int]:
    answer, start = question.answers[0], question.starts[0]
    start += len(answer) - len(answer.lstrip())
    end = start + len(answer.strip())
    context = [
        span
        for kind, span in zip(window.sequence_ids, window.offsets, strict=True)
        if kind == 1
    ]
    if end == start or not context:
        return 0, 0
    if start < context[0][0] or end > context[-1][1]:
        return 0, 0  # Also where it is only cut: half an answer would be none.
    # A token may stand for several characters, and some characters for none.
    places = (window.char_to_token(i, 1) for i in range(start, end))
    inside = [place for place in places if place is not None]
    return (inside[0], inside[-1]) if inside else (0, 0)


def _max_context_tokens(sizes: list[int], length: int) -> list[np.ndarray]:
    """Of each window's context tokens: is this the window to start an answer in?

    A token in several windows belongs to the one with the most context around it: the
    lesser of the tokens before and after it, plus a hundredth of the window's own
    (BERT's "max context"); of equal ones to the earliest.

    Args:
      sizes: the context tokens of each window of one question, all but the last full.
    """
    step = sizes[0] - window_overlap(length)
    first = [i * step for i in range(len(sizes))]
    room = np.full((len(sizes), first[-1] + sizes[-1]), -1.0)
    for i, (begin, size) in enumerate(zip(first, sizes)):
        place = np.arange(size)
        room[i, begin : begin + size] = np.minimum(place, size - 1 - place) + size / 100
    best = room.argmax(axis=0)
    return [best[a : a + size] == i for i, (a, size) in enumerate(zip(first, sizes))]
