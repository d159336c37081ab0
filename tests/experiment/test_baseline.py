"""Do the names of baselines say what they are, and are others refused?"""

import json

import pytest

from autodistill_jax import log
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import baseline


def test_a_name_says_method_layers_and_budget():
    names = {
        "twin": ("twin", 0, False, "steps"),
        "minilmv2-all_seconds": ("minilmv2", 0, False, "all_seconds"),
        "layer_reduction-12": ("layer_reduction", 12, False, "steps"),
        "layer_reduction-2-even-seconds": ("layer_reduction", 2, True, "seconds"),
    }
    for name, fields in names.items():
        assert baseline.parse_baseline(name) == fields
    ordered = ["teacher", "student", "twin-seconds", "layer_reduction-2", "minilm"]
    assert baseline.in_table_order(set(ordered)) == ordered
    label = baseline.model_label("layer_reduction-2-even-seconds")
    assert "2 layers evenly spread; in the seconds of the student" in label


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("twins", "must be some of truncated, scratch, twin"),
        ("", "must be some of"),
        ("layer_reduction", "says how many layers it keeps"),
        ("layer_reduction-0", "says how many layers it keeps"),
        ("twin-2", "says how many layers it keeps"),
        ("twin-even", "says how many layers it keeps"),
        ("scratch-seconds", "scratch does not train at all"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        baseline.parse_baseline(name)


def test_even_layers_are_the_middles_of_equal_parts():
    assert baseline.even_layers(4, 12) == (1, 4, 7, 10)
    assert baseline.even_layers(3, 6) == (1, 3, 5)
    assert baseline.even_layers(1, 6) == (3,)
    assert baseline.even_layers(6, 6) == tuple(range(6))


def test_training_seconds_leave_out_compiling_and_stops(tmp_path):
    # Half a second a step; a night between steps 30 and 40, of which 40 ran twice.
    times = {10: 100.0, 20: 105.0, 30: 110.0, 40: 50_000.0, 50: 50_005.0}
    lines = [{"job": "distill", "step": 40, "time": 115.0}]
    lines += [{"job": "distill", "step": s, "time": t} for s, t in times.items()]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert log.training_seconds(tmp_path, "distill") == pytest.approx(25.0)
    assert log.training_seconds(tmp_path, "finish/3x192") == 0.0
