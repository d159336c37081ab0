"""Is SQuAD scored by its own measure, cut into windows, answered, and learned?"""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import DATA, SIZES, VOCAB
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from autodistill_jax import sharding
from autodistill_jax.arch import Arch
from autodistill_jax.data import spans, squad, tokens
from autodistill_jax.data.squad import Question, score
from autodistill_jax.errors import UserError
from autodistill_jax.jobs import spans as job
from autodistill_jax.main import main
from autodistill_jax.model import extract, huggingface
from autodistill_jax.model.bert import Bert
from autodistill_jax.train import spans as train

ROOT = Path(__file__).parents[1]
SMOKE = f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke"
needs_squad = pytest.mark.skipif(
    not (DATA / "squad").is_dir(), reason="SQuAD is not among the real data sets"
)


def asked(name, context, question, *answers):
    starts = tuple(context.find(answer) for answer in answers)
    return Question(name, question, context, answers, starts)


def gold(*answers):
    return [Question("q", "", "", answers, (0,) * len(answers))]


def percent(prediction, *answers):
    made = score({"q": prediction}, gold(*answers))
    return made["exact_match"], pytest.approx(made["f1"])


# What the published definition gives, worked out by hand.
SCORES = {
    "same": ("Denver Broncos", ["Denver Broncos"], 100, 100),
    "case and article": ("the denver broncos", ["Denver  Broncos"], 100, 100),
    "an article inside": ("Bank of the West", ["bank of a west"], 100, 100),
    "no article": ("Theatre", ["atre"], 0, 0),
    "punctuation joins": ("U.S.A.", ["USA"], 100, 100),
    "a hyphen joins": ("well-known", ["well known"], 0, 0),
    "an underscore goes": ("a_b", ["ab"], 100, 100),
    "other punctuation stays": ("\u201cup\u201d", ["up"], 0, 0),
    "another dash stays": ("1990\u20131995", ["1990-1995"], 0, 0),
    "an article at a dash": ("the\u2013end", ["\u2013end"], 100, 100),
    "an accent stays": ("Beyonc\u00e9", ["Beyonce"], 0, 0),
    "capitals with accents": ("\u00c9T\u00c9", ["\u00e9t\u00e9"], 100, 100),
    "nothing": ("", ["Denver"], 0, 0),
    "nothing is left": ("The", ["Denver"], 0, 0),
    # Equal texts, but no word in common.
    "nothing of nothing": ("The", ["an"], 100, 0),
    "best of several": ("Santa Clara", ["Clara", "Santa Clara, California"], 0, 80),
    "another than the first": ("two", ["one", "two"], 100, 100),
    # 2 shared; precision 2/3, recall 2/2.
    "repeated words": ("big big cat", ["big big"], 0, 80),
    # 1 shared: a word counts as often as both have it.
    "repeated once": ("big big", ["big cat"], 0, 50),
    "numbers": ("24\u201310", ["24-10"], 0, 0),
    "a number with a comma": ("1,000", ["1000"], 100, 100),
    "number and word": ("3 million", ["3"], 0, 200 / 3),
    "no-break space": ("New\u00a0York", ["New York"], 100, 100),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_known_by_definition(name):
    prediction, answers, exact, f1 = SCORES[name]
    assert percent(prediction, *answers) == (exact, f1)


def test_an_unanswered_question_counts_nothing_and_is_told(capsys):
    two = [gold("one")[0]._replace(id=name) for name in ("x", "y")]
    assert score({"x": "one", "other": "?"}, two) == {"exact_match": 50, "f1": 50}
    told = capsys.readouterr()
    assert told.err.splitlines() == ["Unanswered question y will receive score 0."]
    assert not told.out


def by_another_route(prediction, answer):
    """(exact, F1) character by character, without a regular expression."""

    def words(text):
        kept = [
            c
            for c in text.lower()
            if not (c.isascii() and c.isprintable()) or c.isalnum() or c == " "
        ]
        runs, run = [], ""
        for c in [*kept, " "]:
            if c.isalnum() or c == "_":
                run += c
                continue
            runs += [" " if run in ("a", "an", "the") else run, c]
            run = ""
        return "".join(runs).split()

    mine, theirs = words(prediction), words(answer)
    rest, shared = Counter(theirs), 0
    for word in mine:
        if rest[word] > 0:
            rest[word] -= 1
            shared += 1
    return mine == theirs, 2 * shared / max(len(mine) + len(theirs), 1)


@needs_squad
def test_real_predictions_by_another_route():
    questions = squad.read(DATA / "squad" / "dev-v1.1.json")
    assert len(questions) == 10570
    assert score({q.id: q.answers[0] for q in questions}, questions) == {
        "exact_match": 100,
        "f1": 100,
    }
    rng = np.random.default_rng(0)
    some, made, wanted = questions[::7], {}, []
    for question in some:
        # An answer with some of the text around it, or less than all of it.
        start, answer = question.starts[0], question.answers[0]
        a, b = rng.integers(-3, 4, 2)
        text = question.context[max(start + a, 0) : start + len(answer) + b]
        made[question.id] = text
        routes = [by_another_route(text, answer) for answer in question.answers]
        wanted.append([max(figures) for figures in zip(*routes)])
    found, (exact, f1) = score(made, some), 100 * np.mean(wanted, axis=0)
    assert found == {"exact_match": pytest.approx(exact), "f1": pytest.approx(f1)}
    assert 5 < found["exact_match"] < found["f1"] < 95


@pytest.fixture(scope="module")
def wordpiece(minilm):
    return tokens.tokenizer(minilm.folder, minilm.sizes.vocab)


@pytest.fixture(scope="module", params=["wordpiece", "bytes"])
def tokenizer(request, byte_level):
    if request.param == "wordpiece":
        return request.getfixturevalue("wordpiece")
    return tokens.tokenizer(byte_level, VOCAB)


LONG = (
    " ".join(f"w{i}" for i in range(40))
    + " the \u00e9t\u00e9 \u6f22\u5b57, n'est-ce pas?"
)


def test_windows_cover_every_token_once_and_lead_back(tokenizer):
    questions = [asked("a", LONG, " where? ", "w7"), asked("b", "Short.", "?", "Short")]
    length = 32
    made = spans.windows(tokenizer, questions, length)
    whole = tokenizer.encode(LONG, add_special_tokens=False)
    rows = np.flatnonzero(made.question == 0)
    assert len(rows) > 2 and len(made.question) == len(rows) + 1
    # Each token of the context in one window alone, in the order of the text.
    found = [made.rows["ids"][row][made.starts[row]].tolist() for row in rows]
    assert [*itertools.chain(*found)] == whole.ids
    spots = [made.offsets[row][made.starts[row]].tolist() for row in rows]
    assert [tuple(span) for span in itertools.chain(*spots)] == whole.offsets
    # And with the most context: never at an edge that is not the text's.
    inner = made.offsets[rows[1], :, 1] > 0
    first, last = np.flatnonzero(inner)[[0, -1]]
    assert not made.starts[rows[1], [first, last]].any()
    # Neighbours share as much as is said.
    shared = [set(map(tuple, made.offsets[row].tolist())) - {(0, 0)} for row in rows]
    if len(whole.offsets) == len(set(whole.offsets)):
        assert len(shared[0] & shared[1]) == spans.overlap(length)
    special, row = tokens.special(tokenizer), made.rows["ids"][-1]
    assert (
        row[0] == special.cls
        and (row[made.rows["tokens"][-1] == 0] == special.pad).all()
    )


def test_an_answer_cut_by_a_window_points_to_the_first_token(tokenizer):
    length = 32
    question = asked("a", LONG, "where?", "w9")
    made = spans.windows(tokenizer, [question], length)
    edges = made.offsets[0][made.offsets[0, :, 1] > 0]
    start, end = int(edges[-spans.overlap(length)][0]), int(edges[-1][1])
    # Inside the overlap: whole in both windows.
    inside = question._replace(answers=(LONG[start:end],), starts=(start,))
    label = spans.training(tokenizer, [inside], length)["label"]
    assert (label[:2] > 0).all() and not label[2:].any()
    # Two characters more on one side: whole in one.
    for a, b, there in ((start - 2, end, 0), (start, end + 2, 1)):
        cut = question._replace(answers=(LONG[a:b],), starts=(a,))
        label = spans.training(tokenizer, [cut], length)["label"]
        assert label[there].all() and not label[1 - there].any()
    # Wider than a window: in none.
    wide = question._replace(answers=(LONG,), starts=(0,))
    assert not spans.training(tokenizer, [wide], length)["label"].any()


def pointed(made, labels):
    """Logits that say just these labels, [rows, 2]."""
    logits = np.zeros((*made.starts.shape, 2))
    for row, (first, last) in enumerate(labels):
        if last:
            logits[row, first, 0] += 1
            logits[row, last, 1] += 1
    return logits


@needs_squad
def test_real_answers_come_back_to_the_character(tokenizer):
    questions = squad.read(DATA / "squad" / "dev-v1.1.json")[::100]
    length = 160
    spans.check(tokenizer, questions, 2 * length)
    rows = spans.training(tokenizer, questions, length)
    made = spans.windows(tokenizer, questions, length)
    for name in ("ids", "tokens", "types"):
        assert np.array_equal(rows[name], made.rows[name])
    answerable = 0
    for row, (first, last) in enumerate(rows["label"]):
        if not last:
            continue
        question = questions[made.question[row]]
        a, b = made.offsets[row, first, 0], made.offsets[row, last, 1]
        assert question.context[a:b].strip() == question.answers[0] or (
            # A piece of a number, which the vocabulary does not split there.
            question.answers[0] in question.context[a:b]
            and question.context[a:b].split() == [question.context[a:b]]
        )
        answerable += 1
    assert answerable >= 0.9 * len(questions)
    found = score(
        spans.answers(made, questions, pointed(made, rows["label"]), 60), questions
    )
    assert found["exact_match"] > 95


def test_only_what_can_be_an_answer_is_answered(wordpiece):
    question = asked("a", "one two three four five six", "two which?", "two")
    made = spans.windows(wordpiece, [question], 24)
    context = np.flatnonzero(made.starts[0])
    where = {word: context[i] for i, word in enumerate(question.context.split())}

    def answer(first, last, longest=30):
        logits = np.zeros((1, 24, 2))
        for place, value in first.items():
            logits[0, where.get(place, place), 0] = value
        for place, value in last.items():
            logits[0, where.get(place, place), 1] = value
        return spans.answers(made, [question], logits, longest)["a"]

    assert answer({"two": 1}, {"four": 1}) == "two three four"
    # The end before the start: the best pair in order.
    assert answer({"five": 3}, {"two": 4, "six": 2}) == "five six"
    # Too long: no more than is allowed, and the best of that.
    assert answer({"one": 3}, {"six": 3, "two": 2}, 3) == "one two"
    assert answer({"one": 3}, {"six": 3, "two": 2}, 6) == question.context
    # Neither the first token of all, nor the question, nor padding.
    assert answer({0: 9, 1: 9, "six": 1}, {0: 9, 2: 9, 23: 9}) == "six"
    assert answer({23: 9}, {23: 9}) in question.context.split()
    # Always something, whatever the logits say.
    assert answer({}, {}) in question.context.split()


def test_the_best_window_answers_and_a_start_counts_where_it_has_context(wordpiece):
    question = asked("a", LONG, "where?", "w9")
    made = spans.windows(wordpiece, [question], 32)
    logits = np.zeros((*made.starts.shape, 2))
    for row, value in ((0, 1), (1, 2)):
        place = np.flatnonzero(made.starts[row])[2]
        logits[row, place] = value
        wanted = LONG[slice(*made.offsets[row, place])]
    # In both windows, but the second is not where it has the most context.
    twice = np.flatnonzero((made.offsets[1, :, 1] > 0) & ~made.starts[1])[0]
    logits[1, twice] = 5
    # It may end there, so the start is what must be refused.
    logits[1, twice, 1] = 0
    assert spans.answers(made, [question], logits)["a"] == wanted


def write(path, questions, version="1.1"):
    paragraphs = [
        {
            "context": one.context,
            "qas": [
                {
                    "id": one.id,
                    "question": one.question,
                    "answers": [
                        {"text": text, "answer_start": start}
                        for text, start in zip(one.answers, one.starts)
                    ],
                }
            ],
        }
        for one in questions
    ]
    data = [{"title": "Made up", "paragraphs": paragraphs}]
    path.write_text(json.dumps({"version": version, "data": data}))
    return path


def marked(count, seed=0):
    """The answer is the one name among eight colours."""
    rng = np.random.default_rng(seed)
    words = ["red", "blue", "green", "black", "white", "brown", "pink", "grey"]
    made = []
    for i in range(count):
        context = [str(word) for word in rng.permutation(words)]
        name = str(rng.choice(["Paris", "London", "Rome", "Berlin"]))
        context.insert(int(rng.integers(0, 9)), name)
        made.append(asked(f"q{i}", " ".join(context), "which?", name))
    return made


def test_the_files_and_the_command(tmp_path, capsys):
    questions = marked(4)
    file = write(tmp_path / "dev.json", questions)
    assert squad.read(file) == questions
    predictions = tmp_path / "predictions.json"
    texts = {one.id: one.answers[0] for one in questions}
    texts["q1"] = f"red the {texts['q1']}!"
    predictions.write_text(json.dumps(texts))
    done = subprocess.run(
        [sys.executable, "-m", "autodistill_jax.data.squad", file, predictions],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    assert done.returncode == 0 and not done.stderr
    found = json.loads(done.stdout)
    assert found == {"exact_match": 75.0, "f1": pytest.approx(100 * (3 + 2 / 3) / 4)}
    assert done.stdout.startswith('{"exact_match": 75.0, "f1": ')
    for args, expected in (
        ([], "0 arguments; give DATASET.json PREDICTIONS.json"),
        (
            [str(file), str(tmp_path / "no.json")],
            "no.json cannot be read: No such file",
        ),
        ([str(predictions), str(predictions)], "a list 'data' is needed"),
        ([str(file), str(file)], "the prediction of 'version' is no text"),
    ):
        if expected.startswith("the prediction"):
            file.write_text(file.read_text().replace('"1.1"', "1.1"))
        assert squad.main(args) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and expected in err
    predictions.write_text("[]")
    assert squad.main([str(file), str(predictions)]) == 2
    assert "no JSON object of texts by question id" in capsys.readouterr().err


def test_a_training_answer_that_stands_elsewhere_is_dropped(tmp_path):
    questions = marked(101)
    moved = questions[7]._replace(starts=(questions[7].starts[0] + 1,))
    write(tmp_path / "train-v1.1.json", [*questions[:7], moved, *questions[8:]])
    write(tmp_path / "dev-v1.1.json", questions[:2])
    made = squad.load(str(tmp_path))
    assert made.train == questions[:7] + questions[8:]
    (note,) = made.notes
    assert note.endswith("dropped 1 questions whose answer is not at answer_start")


def broken(change):
    made = {
        "data": [
            {
                "title": "T",
                "paragraphs": [
                    {
                        "context": "one two",
                        "qas": [
                            {
                                "id": "q7",
                                "question": "?",
                                "answers": [{"text": "two", "answer_start": 4}],
                            }
                        ],
                    }
                ],
            }
        ]
    }
    paragraph = made["data"][0]["paragraphs"][0]
    change(made, paragraph, paragraph["qas"][0])
    return json.dumps(made)


WRONG = {
    "no data": (lambda m, p, q: m.pop("data"), "json: a list 'data' is needed"),
    "no paragraphs": (
        lambda m, p, q: m["data"].append({"title": "U"}),
        "article 2 (U): a list 'paragraphs'",
    ),
    "no context": (
        lambda m, p, q: p.pop("context"),
        "article 1 (T), paragraph 1: a text 'context' is needed",
    ),
    "no answers": (
        lambda m, p, q: q.pop("answers"),
        "paragraph 1, question 1 (q7): a list 'answers' is needed",
    ),
    "2.0": (lambda m, p, q: q["answers"].clear(), "(q7) has no answer; SQuAD 1.1 is"),
    "no start": (
        lambda m, p, q: q["answers"][0].pop("answer_start"),
        "(q7): a whole number 'answer_start' is needed",
    ),
    "nothing": (lambda m, p, q: m["data"].clear(), "has no questions"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_malformed_file_says_where(name, tmp_path):
    change, expected = WRONG[name]
    (tmp_path / "dev.json").write_text(broken(change))
    with pytest.raises(UserError) as error:
        squad.read(tmp_path / "dev.json")
    assert expected in str(error.value)


BATCH = 16


def rows_of(tokenizer, count=160, length=24):
    questions, dev = marked(count), marked(32, seed=1)
    return train.Rows(
        spans.training(tokenizer, questions, length),
        spans.windows(tokenizer, dev, length),
        dev,
    )


def test_an_encoder_learns_to_answer(wordpiece):
    """Nine words to choose from: 11 % by chance."""
    rows = rows_of(wordpiece)
    sizes = SIZES._replace(vocab=wordpiece.get_vocab_size(), positions=24)
    module = Bert(Arch(2, 16, 2, 32, 8), sizes)
    params = extract.init(module, jax.random.key(0))
    settings = {
        "learning_rate": 1e-3,
        "warmup": 0.1,
        "weight_decay": 0.01,
        "clip": 1.0,
        "epochs": 3,
        "batch_size": BATCH,
    }
    mesh = sharding.make_mesh(BATCH, 1)

    def fine_tuned(rows, seeds=(0,), **more):
        given = {**settings, **more.pop("settings", {})}
        return train.fine_tune(
            module, lambda seed: params, rows, given, mesh, seeds, "test", **more
        )

    first, second = fine_tuned(rows, (0, 1))
    assert first.scores != second.scores and len(first.scores) == 3
    best = max(first, second, key=lambda one: one.parts["exact_match"])
    assert best.parts["exact_match"] > 0.8 and best.scores[0] < best.scores[-1]
    assert best.parts["f1"] == pytest.approx(max(best.scores))
    found = score(best.answers, rows.questions)
    assert found["f1"] == pytest.approx(100 * best.parts["f1"])
    assert {k: v.shape for k, v in best.params.items() if "head_" not in k} == {
        k: v.shape for k, v in params.items()
    }
    # Of a frozen encoder the head alone moves.
    (frozen,) = fine_tuned(rows, frozen=True, settings={"epochs": 1})
    for name, value in params.items():
        assert np.array_equal(frozen.params[name], value), name
    assert frozen.params["head_kernel"].shape == (16, 2)


def test_the_job_keeps_answers_and_networks_and_learns_from_its_teacher(
    wordpiece, minilm, tmp_path
):
    module = Bert(Arch(1, 16, 2, 16, 8), minilm.sizes)
    source = minilm._replace(
        arch=module.arch, params=extract.init(module, jax.random.key(0))
    )
    settings = {
        "learning_rate": 5e-3,
        "warmup": 0.1,
        "weight_decay": 0.01,
        "clip": 1.0,
        "epochs": 5,
        "batch_size": BATCH,
        "teacher": "full",
        "squad_length": 24,
        "squad_soft": 1.0,  # Nothing of the labels.
    }
    experiment = SimpleNamespace(
        config=ConfigDict({"finetune": settings, "distill": {"temperature": 2.0}}),
        teacher=source,
        mesh=sharding.make_mesh(BATCH, 1),
        teacher_module=lambda: module,
    )
    rows = rows_of(wordpiece)

    def one(model):
        return job.one(
            experiment,
            module,
            source,
            model,
            lambda seed: source.params,
            dict(settings),
            (0,),
            rows,
            tmp_path,
            "test",
        )

    teacher = one("teacher")
    assert teacher["parts"]["exact_match"] == 1 and "soft" not in rows.train
    rows.train["label"][:] = 0  # No answer anywhere.
    student = one("student")
    assert student["parts"]["exact_match"] > 0.5 and student["score"] > 0.5
    read = jax.jit(lambda params, batch: train.logits(module, params, batch))
    for model, made in (("teacher", teacher), ("student", student)):
        kept = json.loads((tmp_path / f"predictions-{model}.json").read_text())
        found = score(kept, rows.questions)
        assert found["exact_match"] == pytest.approx(100 * made["parts"]["exact_match"])
        # What is kept answers as it did.
        network = huggingface.load(str(tmp_path / model))
        head = load_file(tmp_path / model / "head.safetensors")
        params = network.params | {f"head_{name}": x for name, x in head.items()}
        logits = read(params, rows.dev.rows)
        assert spans.answers(rows.dev, rows.questions, np.asarray(logits)) == kept
        said = json.loads((tmp_path / model / "head.json").read_text())
        assert said["logits"] == ["start", "end"] and said["length"] == 24


def test_tensorflow_datasets(tmp_path, monkeypatch, server):
    from tensorflow_datasets.datasets.squad import squad_dataset_builder as theirs

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    monkeypatch.setattr(theirs, "_URL", f"{server}/")
    with pytest.raises(UserError, match=r"cannot be fetched \(.*404.*\); set finetune"):
        squad.load(download=True)
    several = [
        asked(
            "b",
            "\u00e9t\u00e9, an \u00e9t\u00e9",
            "when?",
            "\u00e9t\u00e9",
            "an \u00e9t\u00e9",
        )
    ]
    write(tmp_path / "web" / "train-v1.1.json", marked(5))
    write(tmp_path / "web" / "dev-v1.1.json", [*several, *marked(1)])
    made = squad.load(download=True)
    assert made.train == marked(5)
    assert made.dev == [*several, *marked(1)]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "squad"
    made.mkdir()
    write(made / "train-v1.1.json", marked(24))
    write(made / "dev-v1.1.json", marked(8, seed=1))
    return made


def refused(folder, tmp_path, capfd, *more):
    flags = [f"--config.finetune.squad_dir={folder}", f"--workdir={tmp_path / 'w'}"]
    if not any("tasks" in flag or "search" in flag for flag in more):
        flags += ["--config.finetune.tasks=('squad',)"]
    assert main(["autodistill_jax", "run", SMOKE, *flags, *more]) == 2
    out, err = capfd.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("autodistill_jax: ")
    assert not (tmp_path / "w").exists()
    return err


def test_what_squad_lacks_is_told_before_any_work(folder, tmp_path, capfd):
    told = refused(
        folder,
        tmp_path,
        capfd,
        "--config.search.task=squad",
        "--config.search.proxy=probe",
    )
    assert "squad has answers, not labels" in told
    told = refused(folder, tmp_path, capfd, "--config.finetune.squad_length=8")
    assert "squad_length 8 leaves too little room" in told and "use at least" in told
    told = refused(folder, tmp_path, capfd, "--config.finetune.squad_length=600")
    assert "more than the teacher's 512 positions" in told
    told = refused(folder, tmp_path, capfd, "--config.finetune.squad_soft=0.5")
    assert "finetune.teacher is frozen" in told
    told = refused(folder, tmp_path, capfd, "--config.finetune.rows=8")
    assert "8 training questions; finetune.batch_size 16" in told
    told = refused("", tmp_path, capfd)
    assert "squad_dir is empty and squad/v1.1 of tensorflow_datasets is not" in told
    (folder / "dev-v1.1.json").rename(folder / "dev-2.json")
    (folder / "dev-1.json").write_text("{}")
    assert "has dev-1.json, dev-2.json" in refused(folder, tmp_path, capfd)
    (folder / "dev-2.json").unlink()
    assert "dev-1.json: a list 'data' is" in refused(folder, tmp_path, capfd)
    (folder / "dev-1.json").unlink()
    assert "lacks dev-v1.1.json; put" in refused(folder, tmp_path, capfd)
    (folder / "dev-v1.1.json").write_text("{")
    assert "dev-v1.1.json is not JSON" in refused(folder, tmp_path, capfd)
    write(folder / "dev-v1.1.json", marked(8))
    moved = [marked(1)[0]._replace(starts=(1,)), *marked(24)[1:]]
    write(folder / "train-v1.1.json", moved)
    told = refused(folder, tmp_path, capfd)
    assert "question 'q0': the answer" in told and "at answer_start 1 of" in told


def test_a_tokenizer_that_does_not_lead_back(wordpiece):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[CLS]", "[SEP]", "here", "which", "?"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[PAD]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    with pytest.raises(UserError, match="answers cannot be found"):
        spans.check(made, marked(2), 24)
    spans.check(wordpiece, marked(2), 24)
