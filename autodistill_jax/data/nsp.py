"""Rows of sentence pairs for next-sentence prediction (NSP), out of documents."""

import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from autodistill_jax.data import tokenization
from autodistill_jax.errors import UserError


class _SentencePair(NamedTuple):
    """Two runs of whole sentences, one after the other in a document.

    Attributes:
      first: a text.
      second: the text that follows it.
      size: tokens of the second.
      document: its document's number.
    """

    first: str
    second: str
    size: int
    document: int


def sentence_pair_rows(
    documents: Iterable[tuple[Sequence[str], bool]],
    tokenizer: Any,
    length: int,
    limit: int = 0,
    held_out_limit: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """Rows [CLS] A [SEP] B [SEP] for next-sentence prediction.

    A and B are runs of whole sentences that fill the row (BERT, arXiv 1810.04805,
    appendix A.2). `next_sentence_label` is 0 where B is what follows A, 1 where it is
    of another document of the same side (as transformers counts), half and half; fewer
    of the latter where one document has most of the rows. BERT draws such a B anywhere;
    here two rows with a B of about the same length exchange theirs, so that every
    sentence is used once, and a row's length tells nothing of `next_sentence_label`.
    The same text gives the same rows.

    Args:
      documents: (a document's sentences in order, whether it is held out) of each.
      tokenizer: of `tokenization.load_tokenizer`.
      length: tokens a row, special ones included.
      limit, held_out_limit: reading stops with so many rows of each side; 0: never.

    Returns:
      {"train": arrays, "heldout": arrays}, each {"input_ids", "attention_mask",
      "token_type_ids"} [rows, length] and "next_sentence_label" [rows].

    Raises:
      UserError: fewer than two documents of two sentences or more on one side.
    """
    room = length - tokenizer.num_special_tokens_to_add(True)
    # Dicts keep order, and drop what stands twice.
    sides: dict[bool, dict[tuple, _SentencePair]] = {False: {}, True: {}}
    count = {False: 0, True: 0}
    for number, (sentences, held_out) in enumerate(documents):
        if len(sentences) < 2:
            continue
        count[held_out] += 1
        for pair in _document_pairs(tokenizer, sentences, room, number):
            sides[held_out].setdefault((pair.first, pair.second), pair)
        enough = len(sides[True]) >= min(limit, held_out_limit)
        if limit and len(sides[False]) >= limit and enough and count[True] > 1:
            break
    if min(count.values()) < 2:
        raise UserError(
            f"data.row_format is 'pair', and data.source gave {count[False]} training "
            f"and {count[True]} held-out documents of two sentences or more; two of "
            "each are needed: put blank lines between the documents of a .txt file, "
            "give one document a .jsonl line, wikiextractor files, more text, or "
            "data.row_format=chunk"
        )
    train = list(sides[False].values())[: limit or None]
    heldout = [pair for key, pair in sides[True].items() if key not in sides[False]]
    return {
        "train": _encode_pairs(tokenizer, train, length),
        "heldout": _encode_pairs(tokenizer, heldout, length),
    }


def _document_pairs(
    tokenizer: Any, sentences: Sequence[str], room: int, number: int
) -> Iterable[_SentencePair]:
    """A document as pairs of `room` tokens, each cut in two between two sentences."""
    rng = np.random.default_rng(zlib.crc32(" ".join(sentences).encode()))
    encoded = tokenizer.encode_batch(list(sentences), add_special_tokens=False)
    sizes = [len(sentence.ids) for sentence in encoded]
    start = 0
    while start + 2 <= len(sentences):
        end = start + 2  # Cut to the row's length where even these are too long.
        while end < len(sentences) and sum(sizes[start : end + 1]) <= room:
            end += 1
        middle = int(rng.integers(start + 1, end))
        yield _SentencePair(
            " ".join(sentences[start:middle]),
            " ".join(sentences[middle:end]),
            sum(sizes[middle:end]),
            number,
        )
        start = end


def _encode_pairs(
    tokenizer: Any, pairs: list[_SentencePair], length: int
) -> dict[str, np.ndarray]:
    second, labels = _swap_second_texts(pairs)
    texts = [(pair.first, text) for pair, text in zip(pairs, second)]
    return tokenization.encode_texts(tokenizer, texts, length) | {
        "next_sentence_label": labels
    }


def _swap_second_texts(pairs: list[_SentencePair]) -> tuple[list[str], np.ndarray]:
    """(second texts, `next_sentence_label`), half exchanged between documents."""
    second = [pair.second for pair in pairs]
    labels = np.zeros(len(pairs), np.int32)
    candidates = np.random.default_rng(0).permutation(len(pairs))[
        : (len(pairs) + 1) // 2
    ]
    waiting: list[int] = []  # All of one document.
    for i in sorted(candidates, key=lambda i: (pairs[i].size, i)):
        if waiting and pairs[waiting[-1]].document != pairs[i].document:
            j = waiting.pop()
            second[i], second[j] = second[j], second[i]
            labels[[i, j]] = 1
        else:
            waiting.append(i)
    return second, labels
