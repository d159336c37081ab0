"""Does every kind of text and task come in as it should, or with one clear line?"""

import html
import json

import numpy as np
import pytest
from real_data import DATA, needs_data

from autodistill_jax.data import corpus, docstrings, loader, tasks, tokenization
from autodistill_jax.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(minilm):
    return tokenization.load_tokenizer(minilm.folder, minilm.dims.vocab)


def test_docstrings_are_deterministic_unique_and_held_out_by_module():
    docstrings.read_docstrings.cache_clear()
    first = docstrings.read_docstrings(("optax", "flax"))
    docstrings.read_docstrings.cache_clear()
    second = docstrings.read_docstrings(("optax", "flax"))
    assert first == second and len(first) > 500
    texts = [" ".join(doc.text.lower().split()) for doc in first]
    assert len(set(texts)) == len(texts)
    sides = {}
    for doc in first:
        assert sides.setdefault(doc.module, doc.held_out) == doc.held_out
    assert 0.05 < np.mean(list(sides.values())) < 0.5


def test_docstrings_are_read_and_never_imported(tmp_path, monkeypatch):
    package = tmp_path / "explosive"
    package.mkdir()
    body = '"""A module that must never be run, only read, to get its text."""\n'
    (package / "__init__.py").write_text(body + "raise RuntimeError('imported')\n")
    (package / "twin.py").write_text(body)
    (package / "single.py").write_text(
        '"""This docstring stands only here, and stands here once."""\n'
    )
    (package / "broken.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(tmp_path)
    docs = docstrings.read_docstrings(("explosive",))
    assert [doc.text for doc in docs] == [
        "This docstring stands only here, and stands here once."
    ]


def test_labelled_docs_give_no_package_away():
    packages = ("optax", "flax", "optuna")
    train, dev = docstrings.docstring_task(packages)
    assert {label for _, label in train} == {0, 1, 2}
    assert not {row[0] for row in train} & {row[0] for row in dev}
    joined = " ".join(row[0] for row in train + dev).lower()
    assert not any(name in joined for name in packages)
    assert docstrings.blank_package_names(
        "import numpy as np; np.linalg", ("numpy",)
    ) == ("import _ as _; _.linalg")
    assert (
        docstrings.blank_package_names("an example of input", ("numpy",))
        == "an example of input"
    )


def test_missing_package():
    with pytest.raises(UserError, match="'no_such_package', which is not an installed"):
        docstrings.read_docstrings(("no_such_package",))


def test_prose_of_a_docstring():
    doc = """Compute the mean of an array of numbers.

    Parameters
    ----------
    x : array

    >>> mean([1, 2])
    1.5

    The ``mean`` is taken along :func:`~pkg.axis` of the array."""
    import inspect

    assert list(docstrings.prose_paragraphs(inspect.cleandoc(doc))) == [
        "Compute the mean of an array of numbers.",
        "The mean is taken along pkg.axis of the array.",
    ]


def test_sources(tmp_path):
    long = " ".join(f"This is sentence number {i} of a text." for i in range(40))
    (tmp_path / "a.txt").write_text(long)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "From a JSON line."}) + "\n")
    wiki = f'<doc id="1" title="t">\nTitle\n\n{html.escape("R&D is a word. ")}{long}\n</doc>\n'
    (tmp_path / "AA").mkdir()
    (tmp_path / "AA" / "wiki_00").write_text(
        wiki + '<doc id="2">\nStub\n\nToo short.\n</doc>\n'
    )
    texts = [t for t, _ in corpus.documents(str(tmp_path))]
    assert len(texts) == 3 and sum("R&D" in t for t in texts) == 1
    assert len(list(corpus.documents(str(tmp_path / "*.txt")))) == 1
    (tmp_path / "c.jsonl").write_text('{"text": "fine"}\n{"words": 1}\n')
    with pytest.raises(UserError, match=r"c\.jsonl, line 2: .*field \"text\""):
        list(corpus.documents(str(tmp_path / "c.jsonl")))
    with pytest.raises(UserError, match="no .txt, .jsonl or wikiextractor file"):
        list(corpus.documents(str(tmp_path / "nowhere")))


def test_one_text_file_has_two_sides(tmp_path, tokenizer):
    """A file is documents of a page; no page is on both sides."""
    path = tmp_path / "corpus.txt"
    lines = [f"This is the line number {i} of a long corpus." for i in range(3000)]
    for between in ("\n", "\n\n"):
        path.write_text(between.join(lines))
        sides = corpus.corpus_rows(
            corpus.documents(str(path)), tokenizer, "sentence", 16
        )
        rows = {k: len(v["input_ids"]) for k, v in sides.items()}
        assert sum(rows.values()) == 3000 and 30 < rows["heldout"] < 600


def test_separators_inside_a_json_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\u2028line of text"}\n', encoding="utf-8")
    assert [t for t, _ in corpus.documents(str(path))] == ["one\u2028line of text"]


def test_a_clone_below_a_folder_called_tests(tmp_path, monkeypatch):
    package = tmp_path / "tests" / "belowtests"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        '"""A docstring long enough to be read here."""'
    )
    monkeypatch.syspath_prepend(tmp_path / "tests")
    assert len(docstrings.read_docstrings(("belowtests",))) == 1


def test_any_part_of_the_docs_is_of_all_packages():
    packages = ("optax", "flax", "optuna")
    by_text = {
        " ".join(d.text.split())[:30]: d.package
        for d in docstrings.read_docstrings(packages)
    }
    first = [t for t, _ in corpus.documents("docs", packages)][:60]
    assert {by_text.get(" ".join(t.split())[:30]) for t in first} >= set(packages)


def test_tfds_without_a_network():
    with pytest.raises(UserError, match="tfds:no_such_set cannot be read"):
        list(corpus.documents("tfds:no_such_set"))


def test_tfds_on_this_machine(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    class LocalText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(5):
                yield i, {"text": f"Text number {i}."}

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    builder = LocalText(data_dir=tmp_path, file_format="array_record")
    with pytest.raises(UserError, match="config.data.download=True"):
        list(corpus.documents("tfds:local_text"))
    builder.download_and_prepare()
    texts = sorted(t for t, _ in corpus.documents("tfds:local_text"))
    assert texts == [f"Text number {i}." for i in range(5)]


@needs_data
def test_wikipedia(tokenizer):
    source = corpus.documents(str(DATA / "wikipedia-2015" / "AA" / "wiki_00"))
    rows = corpus.corpus_rows(source, tokenizer, "chunk", 32, limit=300)
    assert rows["train"]["input_ids"].shape == (300, 32)
    assert rows["train"]["attention_mask"].mean() > 0.9  # Chunks are filled.


def test_rows_do_not_leak(tokenizer):
    pieces = [(f"Sentence number {i} of all these. Shared by both of them.", i % 2 == 0)
              for i in range(10)]  # fmt: skip
    rows = corpus.corpus_rows(iter(pieces), tokenizer, "sentence", 16)
    assert (
        len(rows["train"]["input_ids"]) == 6 and len(rows["heldout"]["input_ids"]) == 5
    )
    with pytest.raises(UserError, match="one of sentence, chunk, pair"):
        corpus.corpus_rows(iter(pieces), tokenizer, "word", 16)
    with pytest.raises(UserError, match="0 held-out rows"):
        corpus.corpus_rows(iter([("One sentence of text here. And one more of it.", False)]),
                  tokenizer, "sentence", 16)  # fmt: skip


def test_few_rows_come_from_all_of_the_text(tokenizer):
    docs = [(f"This is sentence number {i}.", i % 2 == 0) for i in range(100)]
    rows = corpus.corpus_rows(iter(docs), tokenizer, "sentence", 16, limit=5)
    expected = [docs[i][0].lower() for i in (1, 19, 39, 59, 79)]
    # Read are 8 times as many; the other side is drawn alike.
    texts = tokenizer.decode_batch(rows["train"]["input_ids"].tolist())
    assert texts == expected
    assert len(rows["heldout"]["input_ids"]) == 5


def test_encode_pads_cuts_and_pairs(tokenizer):
    encoded = tokenization.encode_texts(tokenizer, ["word " * 20, "a b"], 8)
    assert encoded["attention_mask"].tolist() == [[1] * 8, [1] * 4 + [0] * 4]
    assert encoded["input_ids"][0, -1] == tokenizer.token_to_id("[SEP]")
    pair = tokenization.encode_texts(tokenizer, [("one", "two")], 8)
    assert pair["token_type_ids"][0].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]


def test_batches_are_a_function_of_the_step():
    rows = {"x": np.arange(10)}
    first, second = (
        loader.train_batches(rows, 4, seed=1),
        loader.train_batches(rows, 4, seed=1),
    )
    assert all(np.array_equal(first[i]["x"], second[i]["x"]) for i in (7, 0, 3))
    epoch = np.concatenate([first[i]["x"] for i in range(5)])
    assert sorted(epoch) == sorted([*range(10), *range(10)])
    last = list(loader.eval_batches(rows, 4))[-1]
    assert last["valid_rows"].tolist() == [True, True, False, False]
    with pytest.raises(UserError, match="batch_size 11 is larger than the 10 rows"):
        loader.train_batches(rows, 11, seed=0)


def test_a_task_of_ones_own(tmp_path):
    path = tmp_path / "mine.tsv"
    rows = "\n".join(f"text {i}\t{'yes' if i % 3 else 'no'}" for i in range(60))
    path.write_text(f"body\tanswer\n{rows}\n")
    task = tasks.load_user_task(str(path), "", "body", "", "answer", "accuracy")
    assert task.classes == 2 and len(task.train[0]) + len(task.dev[0]) == 60
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"a": "x", "b": "y", "s": 0.5}\n{"a": "u", "b": "v", "s": 2}\n')
    task = tasks.load_user_task(str(pairs), str(pairs), "a", "b", "s", "spearman")
    assert task.classes == 1 and task.dev == ([("x", "y"), ("u", "v")], [0.5, 2.0])
    with pytest.raises(UserError, match="but not words"):
        tasks.load_user_task(str(path), "", "words", "", "answer", "accuracy")
    with pytest.raises(UserError, match="line 2: label 'no' is not a number"):
        tasks.load_user_task(str(path), str(path), "body", "", "answer", "spearman")
    dev = tmp_path / "dev.tsv"
    dev.write_text("body\tanswer\nt\tmaybe\nu\tyes\n")
    with pytest.raises(UserError, match=r"dev\.tsv, line 2: label 'maybe'"):
        tasks.load_user_task(str(path), str(dev), "body", "", "answer", "accuracy")
    path.write_text("body\tanswer\n" + "a\tx\nb\ty\nc\tz\n" * 2)
    with pytest.raises(UserError, match="has 3 labels, .* accuracy_f1 is for two"):
        tasks.load_user_task(str(path), str(path), "body", "", "answer", "accuracy_f1")
    path.write_text("body\tanswer\n" + "text\tyes\n" * 40)
    with pytest.raises(UserError, match="the one label 'yes'"):
        tasks.load_user_task(str(path), str(path), "body", "", "answer", "accuracy")
    path.write_bytes(b"body\tanswer\nt\xe9xt\tyes\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        tasks.load_user_task(str(path), "", "body", "", "answer", "accuracy")
    with pytest.raises(UserError, match="is not there"):
        tasks.load_user_task(
            str(tmp_path / "no.tsv"), "", "body", "", "answer", "accuracy"
        )


def test_spans_are_pieces_of_their_sentences():
    """Between the special tokens of their row, of 4 to 14 tokens or all there are."""
    ids = np.zeros((3, 20), np.int32)
    for i, count in enumerate((3, 10, 18)):
        ids[i, : count + 2] = [1, *range(100 * i + 10, 100 * i + 10 + count), 2]
    mask = (ids > 0).astype(np.int8)
    rows = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * mask}
    spans = corpus.random_spans(rows, 50, 0, seed=0)
    for row, real in zip(spans["input_ids"], spans["attention_mask"]):
        tokens = row[real.astype(bool)]
        assert tokens[0] == 1 and tokens[-1] == 2 and not row[len(tokens) :].any()
        inner = tokens[1:-1]
        assert (np.diff(inner) == 1).all() and 3 <= len(inner) <= 14
        assert len({token // 100 for token in inner}) == 1
    assert np.array_equal(
        corpus.random_spans(rows, 50, 0, seed=0)["input_ids"], spans["input_ids"]
    )


def test_spans_hold_words_that_the_text_does_not():
    """The commonest of the vocabulary most often, the special tokens never."""
    ids = np.zeros((1, 20), np.int32)
    ids[0] = [1, *[9] * 18, 2]
    rows = {"input_ids": ids, "attention_mask": np.ones_like(ids, np.int8)}
    words = list(range(10, 2010))
    spans = corpus.random_spans(rows, 500, 0, 0, 0.5, words)
    inner = np.concatenate(
        [
            row[real.astype(bool)][1:-1]
            for row, real in zip(spans["input_ids"], spans["attention_mask"])
        ]
    )
    is_replaced = inner != 9
    assert is_replaced.mean() == pytest.approx(0.5, abs=0.05)
    assert set(inner[is_replaced]) <= set(words)
    assert np.median(inner[is_replaced]) < 600  # Evenly drawn it would be 1,000.
    assert (spans["input_ids"][:, 0] == 1).all()
