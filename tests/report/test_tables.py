"""Does the table of models and tasks say what the results say?"""

import importlib.util
import json

import pytest
from paths import ROOT

from autodistill_jax.experiment import finetune_results, fingerprints
from autodistill_jax.report import tables


def result(model, score, **more):
    return {
        "model": model,
        "score": score,
        "metric": "accuracy",
        "method": "fine-tuned",
        "settings": {"learning_rate": 1e-3},
        "train_rows": 4096,
        "dev_rows": 872,
        **more,
    }


TASKS = {
    "stsb": {
        "teacher": result("teacher", 0.8, similarity=0.867),
        "student": result(
            "student", 0.72, similarity=0.786, scores=[0.71, 0.73], deviation=0.014
        ),
        "scratch": result("scratch", 0.2, similarity=0.5),
    },
    "mnli": {
        "teacher": result("teacher", 0.5, method="frozen encoder, linear head"),
        "student": result("student", 0.4, extra_scores={"mismatched": 0.41}),
    },
}


def test_scores_deviations_and_retention_stand_in_the_row_of_their_model():
    head, rows = tables.task_table(TASKS, {}, "measured")
    assert [row[0] for row in rows] == [
        tables.model_label(model) for model in ("teacher", "student", "scratch")
    ]
    cells = [dict(zip(head, row)) for row in rows]
    assert cells[1]["stsb (accuracy)"] == "0.720 ± 0.014"
    assert cells[1]["stsb, no fine-tuning (Spearman)"] == "0.786"
    assert cells[1]["mnli (accuracy)"] == "0.400 / 0.410 mismatched"
    assert cells[0]["mnli (accuracy)"] == "0.500 (frozen)"
    assert cells[1]["mean"] == "0.560"
    # Of the means: 1.12 of 1.30.
    assert cells[1]["of the teacher's"] == "86.2%"
    # Of a model that lacks a task there is no mean that would compare.
    assert cells[2]["mean"] == cells[2]["of the teacher's"] == ""
    text = tables.markdown_table(head, rows)
    assert (
        text.count("\n") == 5
        and len({line.count("|") for line in text.split("\n")[:-1]}) == 1
    )


def test_costs_stand_beside_the_scores():
    trial = {"params": 2e6, "flops": 3e9, "latency_ms": 1.5}
    costs = {"teacher": trial, "student": {**trial, "seconds": 61.7}}
    head, rows = tables.task_table(TASKS, costs, "compiled")
    cells = [row[1:5] for row in rows]
    assert head[1:5] == ["parameters", "multiply-adds", "latency", "training"]
    assert cells[0] == ["2.00 M", "3.000 G", "1.5 ms (compiled)", ""]
    # Of what costs nothing was found there are no figures.
    assert cells[1][3] == "62 s" and cells[2] == [""] * 4


def test_the_head_that_was_trained_first_is_told():
    words = {"steps": 300, "tokens": 307200, "params": 11, "accuracy": 0.25}
    notes = " ".join(tables.table_notes(TASKS, words))
    assert "307,200 tokens" in notes and "25.0%" in notes
    assert "4,096 training and 872 dev rows" in notes
    assert "masked-LM" not in " ".join(tables.table_notes(TASKS, None))


def test_what_is_kept_is_of_sts_b_where_that_is_given():
    similarity = {"student": 0.968, "teacher": 1.0}
    assert tables.kept_share({}, None) == ""
    text = tables.kept_share(TASKS, similarity)  # Of its dev rows alone.
    assert text.startswith("keeps 96.8% of the teacher (rank correlation")
    by_model = {
        "teacher": {"similarity_test": 0.82},
        "student": {"similarity_test": 0.779, "similarity": 0.8},
    }
    text = tables.kept_share({"stsb": by_model}, similarity)
    assert text.startswith("keeps 95.0% of the teacher (STS-B test without fine-tuning")


def test_a_budget_in_words():
    budget = {"latency_ms": 2.0, "flops": 0.0, "flops_fraction": 0.5}
    text = tables.describe_budget(budget | {"convention": "executed"})
    assert text == "latency_ms 2, flops_fraction 0.5"


def settings(**more):
    path = ROOT / "configs" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("smoke")
    config.update_from_flattened_dict(more)
    return config


def test_results_are_read_that_this_config_would_make(tmp_path):
    config = settings(**{"finetune.tasks": ("docs",), "baselines": ("minilm",)})
    folder = tmp_path / "docs"
    folder.mkdir()

    def put(model, config):
        result_settings = json.loads(
            json.dumps(finetune_results.result_settings(config, model, "docs"))
        )
        record = result(model, 0.5) | {"settings": result_settings}
        (folder / f"{model}.json").write_text(json.dumps(record))

    put("student", config)
    put("teacher", settings(**{"finetune.teacher_learning_rate": 1.0}))
    put("distilbert", config)  # Not asked for.
    put("minilm", settings(**{"finetune.epochs": 7}))  # By other settings.
    assert list(finetune_results.read_results(config, tmp_path)["docs"]) == ["student"]
    put("minilm", config)
    assert list(finetune_results.read_results(config, tmp_path)["docs"]) == [
        "student",
        "minilm",
    ]


def test_a_result_depends_on_its_own_tasks_fields_alone():
    """Another window length makes SQuAD anew, and nothing else; soft labels all but
    the teacher that gives them."""

    def changed(_soft=0.0, **more):
        base = {"finetune.soft_label_weight": _soft}
        return {
            (model, task)
            for model in ("student", "teacher")
            for task in ("docs", "squad")
            if finetune_results.result_settings(settings(**base), model, task)
            != finetune_results.result_settings(settings(**base | more), model, task)
        }

    squad = {("student", "squad"), ("teacher", "squad")}
    assert changed(**{"finetune.squad_max_seq_length": 128}) == squad
    assert changed(**{"finetune.soft_label_weight": 0.5}) == {("student", "squad")}
    rate = {"finetune.teacher_learning_rate": 1.0}
    assert changed(**rate) == {("teacher", "docs"), ("teacher", "squad")}
    assert changed(0.5, **rate) == squad | {("teacher", "docs")}
    docs = {("student", "docs"), ("teacher", "docs")}
    assert changed(**{"finetune.glue_dir": "x"}) == docs
    assert changed(**{"finetune.epochs": 7}) == squad | docs


def test_the_exact_match_stands_beside_f1():
    parts = {"exact_match": 0.4, "f1": 0.5}
    record = result("student", 0.5, metric="f1", metrics=parts)
    head, rows = tables.task_table({"squad": {"student": record}}, {}, "measured")
    assert dict(zip(head, rows[0]))["squad (f1)"] == "0.500 / 0.400 exact"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("finetune.learning_rate", 1e-2),
        ("finetune.glue_dir", "elsewhere"),
        ("finetune.label", "other"),
        ("finetune.max_train_rows", 7),
        ("search.proxy_steps", 3),
        ("search.proxy_task", "docs"),
    ],
)
def test_what_a_choice_by_a_labelled_proxy_depends_on(tmp_path, field, value):
    tsv = tmp_path / "own.tsv"
    tsv.write_text("text\tlabel\na\tb\n")
    options = {"search.proxy": "proxy", "search.proxy_task": str(tsv)}
    fingerprint = fingerprints.choice_fingerprint(settings(**options))
    assert fingerprint == fingerprints.choice_fingerprint(settings(**options))
    assert fingerprint != fingerprints.choice_fingerprint(
        settings(**options | {field: value})
    )
    tsv.write_text("text\tlabel\na\tc\n")
    assert fingerprint != fingerprints.choice_fingerprint(settings(**options))
