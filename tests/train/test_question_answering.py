"""Do windows lead back to the text, and does an encoder learn to answer?"""

import itertools
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from real_data import DATA, needs_squad
from safetensors.numpy import load_file
from squad_questions import make_question, marked
from texts import VOCAB
from tiny_networks import DIMS, mesh_of

from autodistill_jax.archs.arch import Arch
from autodistill_jax.data import squad, squad_windows, tokenization
from autodistill_jax.data.squad import squad_score
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import qa_finetuning
from autodistill_jax.interop import huggingface
from autodistill_jax.models import build
from autodistill_jax.models.bert import Bert
from autodistill_jax.train import question_answering

LONG = (
    " ".join(f"w{i}" for i in range(40))
    + " the \u00e9t\u00e9 \u6f22\u5b57, n'est-ce pas?"
)


@pytest.fixture(scope="module")
def wordpiece(minilm):
    return tokenization.load_tokenizer(minilm.folder, minilm.dims.vocab)


@pytest.fixture(scope="module", params=["wordpiece", "bytes"])
def tokenizer(request, byte_level):
    if request.param == "wordpiece":
        return request.getfixturevalue("wordpiece")
    return tokenization.load_tokenizer(byte_level, VOCAB)


def test_windows_cover_every_token_once_and_lead_back(tokenizer):
    questions = [
        make_question("a", LONG, " where? ", "w7"),
        make_question("b", "Short.", "?", "Short"),
    ]
    length = 32
    windows = squad_windows.question_windows(tokenizer, questions, length)
    encoding = tokenizer.encode(LONG, add_special_tokens=False)
    rows = np.flatnonzero(windows.question == 0)
    assert len(rows) > 2 and len(windows.question) == len(rows) + 1
    # Each token of the context in one window alone, in the order of the text.
    window_ids = [
        windows.rows["input_ids"][row][windows.starts[row]].tolist() for row in rows
    ]
    assert [*itertools.chain(*window_ids)] == encoding.ids
    spots = [windows.offsets[row][windows.starts[row]].tolist() for row in rows]
    assert [tuple(span) for span in itertools.chain(*spots)] == encoding.offsets
    # And with the most context: never at an edge that is not the text's.
    inner = windows.offsets[rows[1], :, 1] > 0
    first, last = np.flatnonzero(inner)[[0, -1]]
    assert not windows.starts[rows[1], [first, last]].any()
    # Neighbours share as much as is said.
    shared = [set(map(tuple, windows.offsets[row].tolist())) - {(0, 0)} for row in rows]
    if len(encoding.offsets) == len(set(encoding.offsets)):
        assert len(shared[0] & shared[1]) == squad_windows.window_overlap(length)
    special, row = tokenization.special_tokens(tokenizer), windows.rows["input_ids"][-1]
    assert (
        row[0] == special.cls_token_id
        and (row[windows.rows["attention_mask"][-1] == 0] == special.pad_token_id).all()
    )


def test_an_answer_cut_by_a_window_points_to_the_first_token(tokenizer):
    length = 32
    question = make_question("a", LONG, "where?", "w9")
    windows = squad_windows.question_windows(tokenizer, [question], length)
    edges = windows.offsets[0][windows.offsets[0, :, 1] > 0]
    start, end = int(edges[-squad_windows.window_overlap(length)][0]), int(edges[-1][1])
    # Inside the overlap: whole in both windows.
    inside = question._replace(answers=(LONG[start:end],), starts=(start,))
    label = squad_windows.training_windows(tokenizer, [inside], length)["label"]
    assert (label[:2] > 0).all() and not label[2:].any()
    # Two characters more on one side: whole in one.
    for a, b, window in ((start - 2, end, 0), (start, end + 2, 1)):
        cut = question._replace(answers=(LONG[a:b],), starts=(a,))
        label = squad_windows.training_windows(tokenizer, [cut], length)["label"]
        assert label[window].all() and not label[1 - window].any()
    # Wider than a window: in none.
    wide = question._replace(answers=(LONG,), starts=(0,))
    assert not squad_windows.training_windows(tokenizer, [wide], length)["label"].any()


def pointed(windows, labels):
    """Logits that say just these labels, [rows, 2]."""
    logits = np.zeros((*windows.starts.shape, 2))
    for row, (first, last) in enumerate(labels):
        if last:
            logits[row, first, 0] += 1
            logits[row, last, 1] += 1
    return logits


@needs_squad
def test_real_answers_come_back_to_the_character(tokenizer):
    questions = squad.read_squad_file(DATA / "squad" / "dev-v1.1.json")[::100]
    length = 160
    squad_windows.check_windows_fit(tokenizer, questions, 2 * length)
    rows = squad_windows.training_windows(tokenizer, questions, length)
    windows = squad_windows.question_windows(tokenizer, questions, length)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert np.array_equal(rows[name], windows.rows[name])
    answerable = 0
    for row, (first, last) in enumerate(rows["label"]):
        if not last:
            continue
        question = questions[windows.question[row]]
        a, b = windows.offsets[row, first, 0], windows.offsets[row, last, 1]
        assert question.context[a:b].strip() == question.answers[0] or (
            # A piece of a number, which the vocabulary does not split there.
            question.answers[0] in question.context[a:b]
            and question.context[a:b].split() == [question.context[a:b]]
        )
        answerable += 1
    assert answerable >= 0.9 * len(questions)
    scores = squad_score(
        squad_windows.decode_answers(
            windows, questions, pointed(windows, rows["label"]), 60
        ),
        questions,
    )
    assert scores["exact_match"] > 95


def test_only_what_can_be_an_answer_is_answered(wordpiece):
    question = make_question("a", "one two three four five six", "two which?", "two")
    windows = squad_windows.question_windows(wordpiece, [question], 24)
    context = np.flatnonzero(windows.starts[0])
    where = {word: context[i] for i, word in enumerate(question.context.split())}

    def answer(first, last, longest=30):
        logits = np.zeros((1, 24, 2))
        for place, value in first.items():
            logits[0, where.get(place, place), 0] = value
        for place, value in last.items():
            logits[0, where.get(place, place), 1] = value
        return squad_windows.decode_answers(windows, [question], logits, longest)["a"]

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
    question = make_question("a", LONG, "where?", "w9")
    windows = squad_windows.question_windows(wordpiece, [question], 32)
    logits = np.zeros((*windows.starts.shape, 2))
    for row, value in ((0, 1), (1, 2)):
        place = np.flatnonzero(windows.starts[row])[2]
        logits[row, place] = value
        expected = LONG[slice(*windows.offsets[row, place])]
    # In both windows, but the second is not where it has the most context.
    twice = np.flatnonzero((windows.offsets[1, :, 1] > 0) & ~windows.starts[1])[0]
    logits[1, twice] = 5
    # It may end there, so the start is what must be refused.
    logits[1, twice, 1] = 0
    assert squad_windows.decode_answers(windows, [question], logits)["a"] == expected


BATCH = 16


def rows_of(tokenizer, count=160, length=24):
    questions, dev = marked(count), marked(32, seed=1)
    return question_answering.SpanData(
        squad_windows.training_windows(tokenizer, questions, length),
        squad_windows.question_windows(tokenizer, dev, length),
        dev,
    )


def test_an_encoder_learns_to_answer(wordpiece):
    """Nine words to choose from: 11 % by chance."""
    rows = rows_of(wordpiece)
    dims = DIMS._replace(vocab=wordpiece.get_vocab_size(), positions=24)
    module = Bert(Arch(2, 16, 2, 32, 8), dims)
    params = build.init_params(module, jax.random.key(0))
    settings = {
        "learning_rate": 1e-3,
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "grad_clip_norm": 1.0,
        "epochs": 3,
        "batch_size": BATCH,
    }
    mesh = mesh_of(1)

    def fine_tuned(rows, seeds=(0,), **more):
        run_settings = {**settings, **more.pop("settings", {})}
        return question_answering.finetune_spans(
            module, lambda seed: params, rows, run_settings, mesh, seeds, "test", **more
        )

    first, second = fine_tuned(rows, (0, 1))
    assert first.scores != second.scores and len(first.scores) == 3
    best = max(first, second, key=lambda result: result.metrics["exact_match"])
    assert best.metrics["exact_match"] > 0.8 and best.scores[0] < best.scores[-1]
    assert best.metrics["f1"] == pytest.approx(max(best.scores))
    scores = squad_score(best.answers, rows.questions)
    assert scores["f1"] == pytest.approx(100 * best.metrics["f1"])
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
    module = Bert(Arch(1, 16, 2, 16, 8), minilm.dims)
    source = minilm._replace(
        arch=module.arch, params=build.init_params(module, jax.random.key(0))
    )
    settings = {
        "learning_rate": 5e-3,
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "grad_clip_norm": 1.0,
        "epochs": 5,
        "batch_size": BATCH,
        "teacher": "full",
        "squad_max_seq_length": 24,
        "soft_label_weight": 1.0,  # Nothing of the labels.
    }
    experiment = SimpleNamespace(
        config=ConfigDict({"finetune": settings, "distill": {"temperature": 2.0}}),
        teacher=source,
        mesh=mesh_of(1),
        teacher_module=lambda: module,
    )
    rows = rows_of(wordpiece)

    def finetune(model):
        return qa_finetuning.finetune_squad(
            experiment,
            module,
            source,
            model,
            lambda seed: source.params,
            dict(settings),
            (0,),
            rows,
            tmp_path,
            tmp_path / "teacher",
            "test",
        )

    teacher = finetune("teacher")
    assert teacher["metrics"]["exact_match"] == 1 and "soft" not in rows.train
    rows.train["label"][:] = 0  # No answer anywhere.
    student = finetune("student")
    assert student["metrics"]["exact_match"] > 0.5 and student["score"] > 0.5
    read = jax.jit(
        lambda params, batch: question_answering.span_logits(module, params, batch)
    )
    for model, result in (("teacher", teacher), ("student", student)):
        answers = json.loads((tmp_path / f"predictions-{model}.json").read_text())
        scores = squad_score(answers, rows.questions)
        assert scores["exact_match"] == pytest.approx(
            100 * result["metrics"]["exact_match"]
        )
        # What is kept answers as it did.
        network = huggingface.load_pretrained(str(tmp_path / model))
        head = load_file(tmp_path / model / "head.safetensors")
        params = network.params | {f"head_{name}": x for name, x in head.items()}
        logits = read(params, rows.dev.rows)
        assert (
            squad_windows.decode_answers(rows.dev, rows.questions, np.asarray(logits))
            == answers
        )
        said = json.loads((tmp_path / model / "head.json").read_text())
        assert said["logits"] == ["start", "end"] and said["length"] == 24


def test_a_tokenizer_that_does_not_lead_back(wordpiece):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[CLS]", "[SEP]", "here", "which", "?"]
    word_level = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(words)}, "[PAD]")
    )
    word_level.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    with pytest.raises(UserError, match="answers cannot be found"):
        squad_windows.check_windows_fit(word_level, marked(2), 24)
    squad_windows.check_windows_fit(wordpiece, marked(2), 24)
