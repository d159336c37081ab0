"""Do the names of baselines say what they are, and are others refused?"""

import dataclasses
import functools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from autodistill_jax import log, storage
from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.space import Space, single
from autodistill_jax.errors import DivergedError, UserError
from autodistill_jax.experiment import (
    baseline,
    baseline_training,
    fingerprints,
    model_costs,
    training_time,
)
from autodistill_jax.experiment.base_config import base_config
from autodistill_jax.experiment.workdir import arch_to_json, baseline_folder
from autodistill_jax.jobs import baselines


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
        ("twins", "must be some of before_finish, truncated, static, scratch, twin"),
        ("", "must be some of"),
        ("layer_reduction", "says how many layers it keeps"),
        ("layer_reduction-0", "says how many layers it keeps"),
        ("twin-2", "says how many layers it keeps"),
        ("twin-even", "says how many layers it keeps"),
        ("scratch-seconds", "scratch does not train itself"),
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


@dataclasses.dataclass
class FakeExperiment:
    config: ConfigDict
    spaces: dict


def experiment_of(**fields):
    config = base_config()
    config.distill.steps = 100
    config.update(fields)
    return FakeExperiment(config, {"main": None})


def test_a_baseline_has_the_time_of_a_students_share_and_its_finish(
    tmp_path, monkeypatch
):
    archs = [Arch(3, 64, 2, 128, 32), Arch(2, 64, 2, 128, 32)]
    front = {
        "choices": [{"arch": arch_to_json(arch)} for arch in archs],
        "trials": [{"arch": arch_to_json(arch), "space": "main"} for arch in archs],
    }
    ratios = []

    def ratio(training, reference, *_):
        ratios.append((list(training.space), list(reference.space)))
        return 4.0  # Steps of the Arch alone to each of the SuperLM.

    monkeypatch.setattr(training_time, "step_time_ratio", ratio)
    space = Space(layers=(2, 3), hidden=(64,), ffn=(128,), heads=(), head_size=32)
    experiment = dataclasses.replace(experiment_of(), spaces={"main": space})
    experiment.config.distill.finish_steps = 50

    def steps(name):
        return baselines._budget_steps(
            experiment, tmp_path, front, archs[0], name, "baselines"
        )

    assert steps("twin") is None
    assert steps("twin-seconds") == pytest.approx(100 * 4 / 2 + 50)
    assert steps("twin-all_seconds") == pytest.approx(100 * 4 + 50)
    assert ratios == [(list(space), [archs[0]])]  # Timed once, and kept.


def test_steps_are_timed_in_turn(tmp_path, monkeypatch):
    seconds = {"superlm": 4.0, "alone": 1.0}
    num_timed = 0

    def make_timer(training, *_):
        def timer(i, is_counted):
            # From the ninth on the machine is three times as slow.
            nonlocal num_timed
            num_timed += is_counted
            slowdown = 3 if num_timed > 8 else 1
            return seconds[training.space] * slowdown if is_counted else math.inf

        return timer

    monkeypatch.setattr(training_time, "_step_timer", make_timer)
    trainings = [training_time.Training(experiment_of(), name) for name in seconds]
    ratio = training_time.step_time_ratio(*trainings, tmp_path, "baselines")
    assert ratio == pytest.approx(4.0)


def test_flash_has_no_seconds_to_give():
    experiment = experiment_of(
        search={"proxy": "flash"}, baselines=("minilmv2-seconds",)
    )
    experiment.spaces = {"main": single(Arch(2, 64, 2, 128, 32))}
    experiment.teacher = SimpleNamespace(arch=Arch(3, 64, 2, 128, 32))
    with pytest.raises(UserError, match="flash trains no SuperLM in whose seconds"):
        baselines.check_baselines(experiment)


def test_what_may_change_in_a_workdir_makes_a_baseline_anew():
    origins = {
        fingerprints.model_origin(experiment_of(**fields).config, "twin-seconds")
        for fields in (
            {},
            {"distill": {"finish_steps": 10}},
            {"baseline_learning_rates": (1e-3,)},
            {"baseline_learning_rates": (2e-3,)},
            {"budget": {"flops_fraction": (0.5, 0.25)}},
        )
    }
    assert len(origins) == 5
    assert fingerprints.model_origin(experiment_of().config, "truncated") == ""


def test_costs_of_other_conditions_are_left_out(tmp_path):
    arch = Arch(2, 64, 2, 128, 32)
    trial = {"arch": arch_to_json(arch), "space": "main", "flops": 5, "latency_ms": 1.0}
    front = {"teacher": {}, "trials": [trial], "latency": {"batch": 1}}
    front["choices"] = [{"arch": trial["arch"]}]
    config = experiment_of(baselines=("truncated",)).config
    folder = baseline_folder(tmp_path, "truncated", arch)
    for batch, expected in ((1, {"flops": 7, "seconds": 0.0}), (2, {"seconds": 0.0})):
        costs = {"flops": 7, "seconds": 0.0, "conditions": {"batch": batch}}
        storage.write_json(folder / "costs.json", costs)
        costs = model_costs.model_costs(config, tmp_path, front, arch)
        assert costs["truncated"] == expected


def test_the_rate_with_the_lowest_held_out_loss_is_taken_and_kept(
    tmp_path, monkeypatch
):
    tried = []

    def train(variant, workdir, folder, *_):
        settings = variant.config.distill
        tried.append((settings.learning_rate, settings.steps))

        if settings.learning_rate == 8e-3:
            raise DivergedError("the loss is not finite")

    # The held-out loss of a rate: what the last training was run at says it.
    losses = {1e-3: 0.3, 2e-3: 0.2, 4e-3: np.nan, 8e-3: None}
    stand_ins = {
        "train_superlm": train,
        "trained_params": lambda *_: {},
        "proxy_inputs": lambda *_: tried[-1][0],
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(baseline_training, name, stand_in)
    monkeypatch.setattr(
        baseline_training.proxies,
        "make_proxy",
        lambda _, rate: lambda archs: {archs[0]: {"proxy": losses[rate]}},
    )
    variant = dataclasses.replace(
        experiment_of(baseline_learning_rates=tuple(losses)),
        spaces={"twin": single(Arch(3, 64, 2, 128, 32))},
    )
    choose = functools.partial(
        baseline_training._best_rate,
        variant,
        tmp_path,
        tmp_path,
        "baselines/twin",
        None,
        "baselines",
    )
    assert choose() == 2e-3
    assert tried == [(rate, 20) for rate in losses]  # A fifth of 100 steps.
    assert choose() == 2e-3 and len(tried) == 4
