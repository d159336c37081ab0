"""Unlabelled text from files, docstrings and data sets, cut into token rows."""

import glob
import html
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autodistill_jax.data import docstrings, nsp, tfds, tokenization
from autodistill_jax.errors import UserError

# Rows enough to choose an Arch on and to compare 2,000 further pairs.
_MAX_HELD_OUT_ROWS = 6000
# Sentences are drawn out of so many times as many: the more documents they come from, the
# more a student learns, and reading them costs little. (Chunks cost their tokenizing.)
_DRAWN_FROM = {"sentence": 8, "chunk": 1}
ROW_FORMATS = ("sentence", "chunk", "pair")

Document = tuple[str, bool]  # (text with blank lines between paragraphs, held out?)


def check_source(
    source: str, packages: Sequence[str] = (), download: bool = False
) -> None:
    """Checks in a moment, before any work, that a source of text is there.

    Args:
      source, packages, download: see `documents`.

    Raises:
      UserError: it is not.
    """
    if source == "docs":
        docstrings.check_packages(packages)
    elif source.startswith("tfds:"):
        _tfds_builder(source.removeprefix("tfds:"), download)
    else:
        _text_files(source)


def documents(
    source: str,
    packages: Sequence[str] = (),
    download: bool = False,
    row_format: str = "chunk",
) -> Iterator[Document]:
    """The documents of a source, each kept whole on one side of the evaluation split.

    Args:
      source: "docs" (docstrings of the installed `packages`); a file, folder or glob of
        .txt, .jsonl (field `text`) or wikiextractor files; or "tfds:NAME", a data set
        of tensorflow_datasets with a feature `text`.
      packages: for "docs".
      download: whether to fetch a tfds data set that is not on this machine.
      row_format: of `corpus_rows`; for "pair" the documents of a .txt file are what
        blank lines part, and no sentence goes over a line's end, as BERT's own text is
        written. For the others they are pages.

    Yields:
      (text with blank lines between paragraphs, whether it is held out).

    Raises:
      UserError: nothing there, or a line that cannot be read (file and line number).
    """
    if source == "docs":
        # In the order of a hash: any first part of it is of all packages.
        for doc in sorted(
            docstrings.read_docstrings(tuple(packages)),
            key=lambda d: _text_hash(d.text),
        ):
            text = "\n\n".join(docstrings.prose_paragraphs(doc.text))
            if text:
                yield text, doc.held_out
    elif source.startswith("tfds:"):
        for text in _tfds_documents(source.removeprefix("tfds:"), download):
            yield text, _is_held_out(text)
    else:
        for path in _text_files(source):
            for text in _file_documents(path, row_format):
                if text.strip():
                    yield text, _is_held_out(text)


def corpus_rows(
    docs: Iterator[Document],
    tokenizer: Any,
    row_format: str,
    length: int,
    limit: int = 0,
    span_ratio: float = 0.0,
    replaced_ratio: float = 0.0,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """Token rows of documents.

    A row of the held-out side that also stands in the training side is dropped.

    Args:
      docs: of `documents`.
      tokenizer: of `tokenization.load_tokenizer`.
      row_format: "sentence": a row is one sentence (best for sentence-embedding
        teachers); "chunk": rows are filled with running text of one document; "pair":
        two texts, and whether the second follows the first, see
        `nsp.sentence_pair_rows`.
      length: tokens a row, [CLS] and [SEP] included.
      limit: at most so many training rows, spans not among them; 0 means all.
        Sentences are drawn evenly from the first 8 times as many.
      span_ratio: of sentences, so many spans a training row, see `random_spans`.
      replaced_ratio: of the spans' tokens so many are random words of the vocabulary.
      seed: of the spans.

    Returns:
      {"train": arrays, "heldout": arrays}, each of `tokenization.encode_texts`, of
      pairs with "next_sentence_label".

    Raises:
      UserError: an unknown format, or too little text.
    """
    if row_format not in ROW_FORMATS:
        raise UserError(
            f"data.row_format is {row_format!r}; it must be one of "
            f"{', '.join(ROW_FORMATS)}"
        )
    if row_format == "pair":
        sentence_docs = ((_all_sentences(text), held_out) for text, held_out in docs)
        return nsp.sentence_pair_rows(
            sentence_docs, tokenizer, length, limit, _MAX_HELD_OUT_ROWS
        )
    texts = {False: {}, True: {}}  # Dicts keep order and drop what stands twice.
    for text, held_out in docs:
        if row_format == "sentence":
            pieces = _all_sentences(text)
        else:
            pieces = _chunks(tokenizer, _paragraphs(text), length - 2)
        texts[held_out].update(dict.fromkeys(pieces))
        if (
            limit
            and len(texts[False]) >= _DRAWN_FROM[row_format] * limit
            and len(texts[True]) >= min(limit, _MAX_HELD_OUT_ROWS)
        ):
            break
    train = _drawn_evenly(list(texts[False]), limit)
    heldout = [text for text in texts[True] if text not in texts[False]]
    heldout = _drawn_evenly(heldout, min(limit, _MAX_HELD_OUT_ROWS))
    if len(train) < 2 or len(heldout) < 4:
        raise UserError(
            f"data.source gave {len(train)} training and {len(heldout)} held-out rows; "
            "at least 2 and 4 are needed: give it more text"
        )
    train_rows = tokenization.encode_texts(tokenizer, train, length)
    count = int(span_ratio * len(train)) if row_format == "sentence" else 0
    if count:
        pad = tokenization.special_tokens(tokenizer).pad_token_id
        words = tokenization.whole_words(tokenizer) if replaced_ratio else ()
        if replaced_ratio and not words:
            raise UserError(
                f"data.replaced_ratio {replaced_ratio} needs whole words, of two "
                "letters or more, and the vocabulary has none; set it to 0"
            )
        spans = random_spans(train_rows, count, pad, seed, replaced_ratio, words)
        train_rows = {k: np.concatenate([x, spans[k]]) for k, x in train_rows.items()}
    return {
        "train": train_rows,
        "heldout": tokenization.encode_texts(tokenizer, heldout, length),
    }


def random_spans(
    rows: Mapping[str, np.ndarray],
    count: int,
    pad_token_id: int,
    seed: int,
    replaced_ratio: float = 0.0,
    replacements: Sequence[int] = (),
) -> dict[str, np.ndarray]:
    """Spans of 4 to 14 tokens out of sentences: short texts, of which there are many.

    A teacher says of any text what it means, so a student learns from them as well as
    from whole sentences, at a third of the compute. With some of the tokens replaced
    it also learns what it means of words that the text does not hold.

    Args:
      rows: of `tokenization.encode_texts`, of single sentences.
      count: how many spans.
      pad_token_id: of the tokenizer.
      seed: which spans.
      replaced_ratio: the probability that a token is replaced.
      replacements: token ids to replace them by, the commonest first, as vocabularies
        are: the n-th is drawn in proportion to 1 / (n + 100).

    Returns:
      {name: [count, L]}, each between the special tokens of its row.
    """
    rng = np.random.default_rng(seed)
    lengths = rows["attention_mask"].sum(axis=1)
    picked = rng.integers(0, len(lengths), count)
    inner = np.maximum(lengths[picked] - 2, 1)
    sizes = np.minimum(rng.integers(4, 15, count), inner)
    starts = 1 + np.floor(rng.random(count) * (inner - sizes + 1)).astype(int)
    spans = {name: np.zeros((count, x.shape[1]), x.dtype) for name, x in rows.items()}
    spans["input_ids"][:] = pad_token_id
    if replaced_ratio:
        weights = 1 / (np.arange(len(replacements)) + 100)
        words = rng.choice(replacements, (count, 14), p=weights / weights.sum())
    for i, (row, start, size) in enumerate(zip(picked, starts, sizes)):
        ids = rows["input_ids"][row]
        span = ids[start : start + size]
        if replaced_ratio:
            is_replaced = rng.random(size) < replaced_ratio
            span = np.where(is_replaced, words[i, :size], span)
        tokens = [ids[0], *span, ids[lengths[row] - 1]]
        spans["input_ids"][i, : len(tokens)] = tokens
        spans["attention_mask"][i, : len(tokens)] = 1
    return spans


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph that have four words or more."""
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])", " ".join(paragraph.split()))
    return [part for part in parts if len(part.split()) >= 4]


def _all_sentences(text: str) -> list[str]:
    return [
        sentence for part in _paragraphs(text) for sentence in split_sentences(part)
    ]


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text) if part.strip()]


def _chunks(tokenizer: Any, paragraphs: list[str], length: int) -> list[str]:
    """Running text, cut at a token boundary every `length` tokens."""
    text = " ".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    encoded = tokenizer.encode(text, add_special_tokens=False)
    chunks = []
    for start in range(0, len(encoded.ids), length):
        offsets = encoded.offsets[start : start + length]
        if len(offsets) >= min(8, length):
            chunks.append(text[offsets[0][0] : offsets[-1][1]])
    return chunks


def _drawn_evenly(texts: list[str], limit: int) -> list[str]:
    """At most so many of the texts, in order; 0: all."""
    if not limit or len(texts) <= limit:
        return texts
    return [texts[i] for i in np.linspace(0, len(texts) - 1, limit).astype(int)]


def _is_held_out(text: str) -> bool:
    return _text_hash(text) % 20 == 0


def _text_hash(text: str) -> int:
    return zlib.crc32(text.encode())


def _text_files(source: str) -> list[Path]:
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        paths = [
            p
            for p in path.rglob("*")
            if p.is_file() and (p.suffix in (".txt", ".jsonl") or _is_wiki(p))
        ]
    else:
        paths = [Path(p) for p in glob.glob(str(path), recursive=True)]
        paths = [p for p in paths if p.is_file()]
    if not paths:
        raise UserError(
            f"data.source={source}: no .txt, .jsonl or wikiextractor file there; give "
            "a file, a folder, a glob, 'docs' or 'tfds:NAME'"
        )
    return sorted(paths, key=lambda path: (_text_hash(path.name), path))


def _is_wiki(path: Path) -> bool:
    return re.fullmatch(r"wiki_\d+", path.name) is not None


def _file_documents(path: Path, row_format: str) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason})") from error
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                yield str(json.loads(line)["text"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f'{path}, line {number}: needed a JSON object with the field "text"'
                ) from error
    elif _is_wiki(path):
        for body in re.findall(r"<doc [^>]*>\n(.*?)</doc>", text, re.DOTALL):
            body = html.unescape(body)
            if len(body.split()) >= 50:  # Stubs say nothing.
                yield re.sub(r"\n+", "\n\n", body)
    elif row_format == "pair":
        for part in re.split(r"\n\s*\n", text):
            yield "\n\n".join(part.split("\n"))
    else:
        yield from _page_documents(text)


def _page_documents(text: str) -> Iterator[str]:
    """A .txt file in documents of a page or so, so that even one file has two sides.

    Cut between paragraphs (at blank lines), or between lines where there is no blank
    line.
    """
    paragraphs = re.split(r"\n\s*\n", text)
    if len(paragraphs) == 1:
        paragraphs = text.split("\n")
    block: list[str] = []
    for paragraph in paragraphs:
        block.append(paragraph)
        if sum(map(len, block)) >= 1000:
            yield "\n\n".join(block)
            block = []
    yield "\n\n".join(block)


def _tfds_builder(name: str, download: bool, fetch: bool = False) -> Any:
    description, alternative = f"data.source=tfds:{name}", "point data.source to files"
    builder = tfds.find_builder(name, description, alternative, download)
    if fetch:
        tfds.prepare_builder(builder, description, alternative)
    if builder.info.splits and "text" not in builder.info.features:
        raise UserError(
            f"{description} has no feature 'text', only "
            f"{', '.join(builder.info.features)}"
        )
    return builder


def _tfds_documents(name: str, download: bool) -> Iterator[str]:
    for example in _tfds_builder(name, download, True).as_data_source(split="train"):
        text = example["text"]
        yield text.decode() if isinstance(text, bytes) else str(text)
