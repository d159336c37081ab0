"""Are pairs of sentences true pairs, half of them, and does nothing else tell?"""

import json
import re

import numpy as np
import pytest
from texts import stories

from autodistill_jax.data import corpus, tokenization
from autodistill_jax.data import nsp as data_pairs
from autodistill_jax.errors import UserError

PAIR_KEYS = {"input_ids", "attention_mask", "token_type_ids", "next_sentence_label"}


@pytest.fixture(scope="module")
def tokenizer(minilm):
    return tokenization.load_tokenizer(minilm.folder, minilm.dims.vocab)


def cut(source, tokenizer, length=48, **more):
    return corpus.corpus_rows(
        corpus.documents(str(source), row_format="pair"),
        tokenizer,
        "pair",
        length,
        **more,
    )


@pytest.fixture(scope="module")
def pairs(corpus, tokenizer):
    return cut(corpus, tokenizer)


def read(tokenizer, ids, types, real, kind):
    """The (story, line)s of one of a row's two texts."""
    text = tokenizer.decode(ids[(types == kind) & (real > 0)].tolist())
    text = text.replace(" ", "")
    return [(int(d), int(s)) for d, s in re.findall(r"story(\d+)line(\d+)again", text)]


def decoded_rows(tokenizer, side):
    for ids, types, real, label in zip(
        side["input_ids"],
        side["token_type_ids"],
        side["attention_mask"],
        side["next_sentence_label"],
    ):
        yield (*(read(tokenizer, ids, types, real, kind) for kind in (0, 1)), label)


def test_a_pair_continues_or_is_of_another_document(pairs, tokenizer):
    for side in pairs.values():
        assert side.keys() == PAIR_KEYS
        for first, second, different in decoded_rows(tokenizer, side):
            assert first and second
            for run in (first, second):  # Whole sentences of one document, in order.
                assert len({story for story, _ in run}) == 1
                lines = [line for _, line in run]
                assert lines == list(range(lines[0], lines[0] + len(run)))
            if different:
                assert first[0][0] != second[0][0]
            else:
                assert second[0] == (first[-1][0], first[-1][1] + 1)


def test_two_documents_of_unequal_length(tokenizer):
    """The long one has too few of the other's rows to exchange with."""
    story_a, story_b = stories(2, 100)
    documents = [
        (story_a, False),
        (story_b[:40], False),
        (story_a[:9], True),
        (story_b[:9], True),
    ]
    side = data_pairs.sentence_pair_rows(documents, tokenizer, 32)["train"]
    rows = list(decoded_rows(tokenizer, side))
    assert {run[0][0] for *runs, _ in rows for run in runs} == {0, 1}
    assert 0.1 < side["next_sentence_label"].mean() <= 0.5
    for first, second, different in rows:
        assert (first[0][0] != second[0][0]) == different


def test_pairs_are_half_and_half_and_their_form_tells_nothing(pairs, tokenizer):
    side = pairs["train"]
    assert abs(side["next_sentence_label"].mean() - 0.5) < 0.02
    lengths = side["attention_mask"].sum(axis=1)
    assert lengths.max() <= 48 and np.median(lengths) > 40  # Rows are filled.
    second = side["token_type_ids"].sum(axis=1)
    for size in (lengths, second):
        follows, differs = (
            size[side["next_sentence_label"] == kind].mean() for kind in (0, 1)
        )
        assert abs(follows - differs) < 2
    used = [
        line for row in decoded_rows(tokenizer, side) for run in row[:2] for line in run
    ]
    assert len(used) == len(set(used)) > 500  # Each sentence once.


def test_types_and_special_tokens_of_a_pair(pairs):
    side, (pad, cls, sep) = pairs["train"], (0, 101, 102)
    for ids, types, real in zip(
        side["input_ids"], side["token_type_ids"], side["attention_mask"]
    ):
        count = int(real.sum())
        ends = np.flatnonzero(ids == sep)
        assert ids[0] == cls and len(ends) == 2 and ends[1] == count - 1
        assert real[:count].all() and not ids[count:].any() and pad == 0
        where = np.arange(48)
        assert np.array_equal(types, (where > ends[0]) & (where <= ends[1]))


def test_documents_stay_on_one_side_and_rows_are_the_same_again(
    pairs, corpus, tokenizer
):
    story_ids = {
        name: {
            s
            for row in decoded_rows(tokenizer, side)
            for run in row[:2]
            for s, _ in run
        }
        for name, side in pairs.items()
    }
    assert (
        story_ids["train"]
        and story_ids["heldout"]
        and not story_ids["train"] & story_ids["heldout"]
    )
    repeated = cut(corpus, tokenizer)
    for name, side in pairs.items():
        for key, value in side.items():
            assert np.array_equal(value, repeated[name][key]), (name, key)
    few = cut(corpus, tokenizer, limit=20)
    assert (
        len(few["train"]["input_ids"]) == 20
        and 0 < few["train"]["next_sentence_label"].mean() < 1
    )


def test_sentences_that_are_too_long_are_cut(tmp_path, tokenizer):
    path = tmp_path / "long.jsonl"
    long = ["Here is " + "a long word " * 20 + f"and number {i}." for i in range(4)]
    lines = [json.dumps({"text": f"{' '.join(long)} Of {d}."}) for d in range(80)]
    path.write_text("\n".join(lines))
    rows = cut(path, tokenizer, 16)["train"]
    assert (
        rows["attention_mask"].all() and (rows["token_type_ids"].sum(axis=1) > 4).all()
    )


@pytest.mark.parametrize(
    "body", ["One sentence is here. " * 40, "\n".join(f"Line {i} is here." * 2 for i in range(300))]
)  # fmt: skip
def test_text_without_document_breaks_is_refused(tmp_path, tokenizer, body):
    path = tmp_path / "one.txt"
    path.write_text(body)
    with pytest.raises(UserError, match=r"gave . training and . held-out documents .*"
                       r"blank lines .*\.jsonl line.*data\.row_format=chunk"):  # fmt: skip
        cut(path, tokenizer)
