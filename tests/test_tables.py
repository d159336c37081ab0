"""Does the table of models and tasks say what the results say?"""

import json

import pytest

from autodistill_jax.jobs import tables


def result(model, score, **more):
    return {
        "model": model,
        "score": score,
        "metric": "accuracy",
        "how": "fine-tuned",
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
        "teacher": result("teacher", 0.5, how="frozen encoder, linear head"),
        "student": result("student", 0.4, more={"mismatched": 0.41}),
    },
}


def test_scores_deviations_and_retention_stand_in_the_row_of_their_model():
    head, rows = tables.side_by_side(TASKS)
    assert [row[0] for row in rows] == [
        tables.LABELS[model] for model in ("teacher", "student", "scratch")
    ]
    cells = [dict(zip(head, row)) for row in rows]
    assert cells[1]["stsb (accuracy)"] == "0.720 ± 0.014"
    assert cells[1]["stsb, no fine-tuning (Spearman)"] == "0.786"
    assert cells[1]["mnli (accuracy)"] == "0.400 / 0.410 mismatched"
    assert cells[0]["mnli (accuracy)"] == "0.500 (frozen)"
    assert cells[1]["mean"] == "0.560"
    assert cells[1]["of the teacher's"] == "85.0%"  # The mean of 90 % and 80 %.
    # Of a model that lacks a task there is no mean that would compare.
    assert cells[2]["mean"] == cells[2]["of the teacher's"] == ""
    text = tables.markdown(head, rows)
    assert (
        text.count("\n") == 5
        and len({line.count("|") for line in text.split("\n")[:-1]}) == 1
    )


def test_the_head_that_was_trained_first_is_told():
    words = {"steps": 300, "tokens": 307200, "params": 11, "accuracy": 0.25}
    told = " ".join(tables.notes(TASKS, words))
    assert "307,200 tokens" in told and "25.0%" in told
    assert "4,096 training and 872 dev rows" in told
    assert "masked-word" not in " ".join(tables.notes(TASKS, None))


@pytest.mark.parametrize("known", ["student", "bert"])
def test_results_are_read_by_model(tmp_path, known):
    from ml_collections import ConfigDict

    folder = tmp_path / "sst2"
    folder.mkdir()
    (folder / f"{known}.json").write_text(json.dumps(result(known, 0.5)))
    made = tables.read(ConfigDict({"tasks": ("sst2", "rte")}), tmp_path)
    assert list(made.get("sst2", {})) == (["student"] if known == "student" else [])
    assert "rte" not in made
