"""Is SQuAD read as it is, and scored by its own measure?"""

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from paths import ROOT
from real_data import DATA, needs_squad
from squad_questions import make_question, marked, write

from autodistill_jax.cli import main
from autodistill_jax.data import squad, tasks
from autodistill_jax.data.squad import Question, squad_score
from autodistill_jax.errors import UserError

SMOKE = f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke"


def gold(*answers):
    return [Question("q", "", "", answers, (0,) * len(answers))]


def percent(prediction, *answers):
    scores = squad_score({"q": prediction}, gold(*answers))
    return scores["exact_match"], pytest.approx(scores["f1"])


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
    assert squad_score({"x": "one", "other": "?"}, two) == {"exact_match": 50, "f1": 50}
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["Unanswered question y will receive score 0."]
    assert not captured.out


def by_another_route(prediction, answer):
    """(exact, F1) character by character, without a regular expression."""

    def words(text):
        chars = [
            c
            for c in text.lower()
            if not (c.isascii() and c.isprintable()) or c.isalnum() or c == " "
        ]
        runs, run = [], ""
        for c in [*chars, " "]:
            if c.isalnum() or c == "_":
                run += c
                continue
            runs += [" " if run in ("a", "an", "the") else run, c]
            run = ""
        return "".join(runs).split()

    predicted, expected = words(prediction), words(answer)
    unmatched, shared = Counter(expected), 0
    for word in predicted:
        if unmatched[word] > 0:
            unmatched[word] -= 1
            shared += 1
    return predicted == expected, 2 * shared / max(len(predicted) + len(expected), 1)


@needs_squad
def test_real_predictions_by_another_route():
    questions = squad.read_squad_file(DATA / "squad" / "dev-v1.1.json")
    assert len(questions) == 10570
    assert squad_score({q.id: q.answers[0] for q in questions}, questions) == {
        "exact_match": 100,
        "f1": 100,
    }
    rng = np.random.default_rng(0)
    sample, predictions, expected = questions[::7], {}, []
    for question in sample:
        # An answer with some of the text around it, or less than all of it.
        start, answer = question.starts[0], question.answers[0]
        a, b = rng.integers(-3, 4, 2)
        text = question.context[max(start + a, 0) : start + len(answer) + b]
        predictions[question.id] = text
        routes = [by_another_route(text, answer) for answer in question.answers]
        expected.append([max(figures) for figures in zip(*routes)])
    scores, (exact, f1) = (
        squad_score(predictions, sample),
        100 * np.mean(expected, axis=0),
    )
    assert scores == {"exact_match": pytest.approx(exact), "f1": pytest.approx(f1)}
    assert 5 < scores["exact_match"] < scores["f1"] < 95


def test_it_has_what_every_task_has():
    """GLUE's submission files are asked of whatever task there is."""
    shared = {"train", "dev", "name", "metric", "test_texts", "notes"}
    assert shared == set(squad.Squad._fields) & set(tasks.Task._fields)
    assert not squad.Squad([], []).test_texts


def test_the_files_and_the_command(tmp_path, capsys):
    questions = marked(4)
    file = write(tmp_path / "dev.json", questions)
    assert squad.read_squad_file(file) == questions
    predictions = tmp_path / "predictions.json"
    texts = {question.id: question.answers[0] for question in questions}
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
    scores = json.loads(done.stdout)
    assert scores == {"exact_match": 75.0, "f1": pytest.approx(100 * (3 + 2 / 3) / 4)}
    assert done.stdout.startswith('{"exact_match": 75.0, "f1": ')
    for args, expected in (
        ([], "0 arguments; give DATASET.json PREDICTIONS.json"),
        (
            [str(file), str(tmp_path / "no.json")],
            "no.json cannot be read: No such file",
        ),
        ([str(predictions), str(predictions)], "a list 'data' is needed"),
        ([str(file), str(file)], "the prediction of 'version' is not a text"),
    ):
        if expected.startswith("the prediction"):
            file.write_text(file.read_text().replace('"1.1"', "1.1"))
        assert squad.score_command(args) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and expected in err
    predictions.write_text("[]")
    assert squad.score_command([str(file), str(predictions)]) == 2
    assert "not a JSON object of texts by question id" in capsys.readouterr().err


def test_a_training_answer_that_stands_elsewhere_is_dropped(tmp_path):
    questions = marked(101)
    misplaced = questions[7]._replace(starts=(questions[7].starts[0] + 1,))
    write(tmp_path / "train-v1.1.json", [*questions[:7], misplaced, *questions[8:]])
    write(tmp_path / "dev-v1.1.json", questions[:2])
    dataset = squad.load_squad(str(tmp_path))
    assert dataset.train == questions[:7] + questions[8:]
    (note,) = dataset.notes
    assert note.endswith("dropped 1 questions whose answer is not at answer_start")


def broken(path, change):
    write(path, [make_question("q7", "one two", "?", "two")])
    content = json.loads(path.read_text())
    paragraph = content["data"][0]["paragraphs"][0]
    change(content, paragraph, paragraph["qas"][0])
    path.write_text(json.dumps(content))


WRONG = {
    "no data": (lambda m, p, q: m.pop("data"), "json: a list 'data' is needed"),
    "no paragraphs": (
        lambda m, p, q: m["data"].append({"title": "U"}),
        "article 2 (U): a list 'paragraphs'",
    ),
    "no context": (
        lambda m, p, q: p.pop("context"),
        "article 1 (Made up), paragraph 1: a text 'context' is needed",
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
    broken(tmp_path / "dev.json", change)
    with pytest.raises(UserError) as error:
        squad.read_squad_file(tmp_path / "dev.json")
    assert expected in str(error.value)


def test_tensorflow_datasets(tmp_path, monkeypatch, server):
    from tensorflow_datasets.datasets.squad import squad_dataset_builder

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    monkeypatch.setattr(squad_dataset_builder, "_URL", f"{server}/")
    with pytest.raises(UserError, match=r"cannot be fetched \(.*404.*\); set finetune"):
        squad.load_squad(download=True)
    several = [
        make_question(
            "b",
            "\u00e9t\u00e9, an \u00e9t\u00e9",
            "when?",
            "\u00e9t\u00e9",
            "an \u00e9t\u00e9",
        )
    ]
    write(tmp_path / "web" / "train-v1.1.json", marked(5))
    write(tmp_path / "web" / "dev-v1.1.json", [*several, *marked(1)])
    dataset = squad.load_squad(download=True)
    assert dataset.train == marked(5)
    assert dataset.dev == [*several, *marked(1)]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "squad"
    path.mkdir()
    write(path / "train-v1.1.json", marked(24))
    write(path / "dev-v1.1.json", marked(8, seed=1))
    return path


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
    err = refused(
        folder,
        tmp_path,
        capfd,
        "--config.search.proxy_task=squad",
        "--config.search.proxy=probe",
    )
    assert "squad has answers, not labels" in err
    err = refused(folder, tmp_path, capfd, "--config.finetune.squad_max_seq_length=8")
    assert (
        "squad_max_seq_length 8 leaves too little room" in err and "use at least" in err
    )
    err = refused(folder, tmp_path, capfd, "--config.finetune.squad_max_seq_length=600")
    assert "more than the teacher's 512 positions" in err
    err = refused(folder, tmp_path, capfd, "--config.finetune.soft_label_weight=0.5")
    assert "finetune.teacher is frozen" in err
    err = refused(folder, tmp_path, capfd, "--config.finetune.max_train_rows=8")
    assert "8 training questions; finetune.batch_size 16" in err
    err = refused("", tmp_path, capfd)
    assert "squad_dir is empty and squad/v1.1 of tensorflow_datasets is not" in err
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
    misplaced = [marked(1)[0]._replace(starts=(1,)), *marked(24)[1:]]
    write(folder / "train-v1.1.json", misplaced)
    err = refused(folder, tmp_path, capfd)
    assert "question 'q0': the answer" in err and "at answer_start 1 of" in err
