"""Is every mistake told in one line on stderr, with exit 2 and nothing written?"""

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT

from autodistill_jax.cli import main

SMOKE = f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke"


@pytest.fixture
def sst2(tmp_path):
    folder = tmp_path / "glue" / "SST-2"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    (folder / "dev.tsv").write_text("sentence\tlabel\ngood\t1\nshort row\n")
    return folder.parent


BAD = {
    "no such job": (["dance"], "unknown job 'dance'"),
    "unknown field": (["--config.distil.steps=3"], "distil"),
    "unknown leaf": (["--config.distill.stepz=3"], "preset: 'stepz' Did you mean"),
    "wrong type": (["--config.distill.steps=0.5"], "steps"),
    "words for a number": (["--config.distill.steps=many"], "steps"),
    "unknown flag": (["--confgi=x"], "confgi"),
    "stray argument": (["more"], "'more' is not a known flag"),
    "no config file": (["--config=nowhere.py"], "nowhere.py"),
    "unknown preset": (
        [SMOKE.replace(":smoke", ":huge")],
        "quickstart.py has no preset 'huge'. Presets: \"\" (minutes",
    ),
    "missing teacher": (["--config.teacher=./nowhere"], "./nowhere: no such folder"),
    "teacher offline": (["--config.teacher=some-bert"], "some-bert is not a folder"),
    "empty budget": (
        ["--config.budget.flops=1000.0"],
        "flops <= 1000 excludes all 8 Archs: the nearest, layers=2,hidden=64",
    ),
    "devices": (
        ["--config.distill.batch_size=12"],
        "batch_size 12 does not divide over 8 devices; use a multiple of 8",
    ),
    "mesh": (
        ["--config.mesh.data=3"],
        "mesh.data=3 x mesh.fsdp=1 x mesh.tensor=1 do not multiply to the 8 devices",
    ),
    "parts of a batch": (
        ["--config.mesh.gradient_accumulation_steps=3"],
        "use a multiple of 24",
    ),
    "heads over devices": (
        ["--config.mesh.tensor=8"],
        "mesh.tensor is 8, which does not divide heads=12 of the network",
    ),
    "space too large": (["--config.space.hidden=(512,)"], "hidden 512 is more than"),
    "no text": (["--config.data.source=nowhere"], "data.source=nowhere"),
    "little text": (
        [
            f"--config.data.source={ROOT / '.gitignore'}",
            "--config.finetune.tasks=()",  # Their text would be read first.
        ],
        "training and",
    ),
    "unknown task": (
        ["--config.finetune.tasks=('xyz',)"],
        "'xyz' is not a known task; known: docs, sst2",
    ),
    "no glue": (["--config.finetune.tasks=('rte',)"], "glue_dir is empty"),
    "frozen": (["--config.distill.freeze=('word',)"], "names 'word'; known: embed"),
    "dtype": (["--config.distill.compute_dtype=int8"], "one of float32, bfloat16"),
    "tensorboard": (["--config.tensorboard=True"], "[tensorboard]"),
    "fraction of a layer": (["--config.space.layers=(2.5,)"], "layers has 2.5"),
    "words for sizes": (["--config.space.hidden=('a',)"], "hidden has 'a'"),
    "seed": (["--config.seed=-1"], "seed is -1; it must be at least 0"),
    "no length": (
        ["--config.data.max_seq_length=1"],
        "data.max_seq_length is 1; it must be at least",
    ),
    "no batch": (["--config.distill.batch_size=0"], "batch_size is 0"),
    "no steps": (["--config.distill.steps=0"], "distill.steps is 0"),
    "unit": (["--config.data.row_format=words"], "one of sentence, chunk"),
    "few runs": (["--config.latency.runs=5"], "latency.runs is 5"),
    "few labels": (
        ["--config.finetune.max_train_rows=8"],
        "finetune.batch_size 16 needs",
    ),
    "percent": (["--config.budget.flops_fraction=25.0"], "must be from 0.0 to 1.0"),
    "flag of a field": (["--distill.steps=3"], "is --config.section.field=value"),
    "unknown loss": (["--config.distill.losses=relation+logit"], "losses has 'logit'"),
    "unknown baseline": (["--config.baselines=('bert',)"], "baselines has 'bert'"),
    "unknown proxy": (["--config.search.proxy=loss"], "proxy has 'loss'"),
    "proxy without a task": (["--config.search.proxy=probe"], "set search.proxy_task"),
    "rank without a task": (["--config.rank.archs=24"], "rank.task is empty"),
    "partition and grid": (["--config.space.partition=3"], "give one of the two"),
    "Arch outside": (
        ["--config.search.fixed_arch=layers=3,hidden=100,heads=3,ffn=400"],
        "is outside the space; the nearest inside is layers=3",
    ),
    "no start": (
        ["--config.distill.init_from="],
        "distill.init_from is empty; give teacher",
    ),
    "no such start": (["--config.distill.init_from=./nowhere"], "./nowhere: no such"),
    "too long": (["--config.data.max_seq_length=1024"], "more than the teacher's 512"),
    "part of no package": (["--config.data.packages=('no.such',)"], "names 'no.such'"),
    "nobody's home": (["--config.data.source=~nobody-here/x"], "~nobody-here/x: no"),
    "random and frozen": (["--config.distill.init_from=random"], "distill.freeze='()'"),
    "too little for a proxy": (
        ["--config.search.proxy=hidden", "--config.search.proxy_rows=64"],
        "needs ten a channel",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, tmp_path, capfd):
    more, expected = BAD[name]
    job = more.pop(0) if name == "no such job" else "run"
    workdir = tmp_path / "workdir"
    config = [] if any(flag.startswith("--config=") for flag in more) else [SMOKE]
    code = main(["autodistill_jax", job, *config, f"--workdir={workdir}", *more])
    out, err = capfd.readouterr()
    assert code == 2 and not out
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("autodistill_jax: ") and expected in lines[0]
    assert not workdir.exists()


def test_a_glue_file_with_a_short_row(sst2, tmp_path, capfd):
    more = [f"--config.finetune.glue_dir={sst2}", "--config.finetune.tasks=('sst2',)"]
    code = main(["autodistill_jax", "run", SMOKE, f"--workdir={tmp_path / 'w'}", *more])
    assert code == 2
    assert "dev.tsv, line 3: 1 columns, needed 2" in capfd.readouterr().err
    assert not (tmp_path / "w").exists()


def test_what_a_proxys_task_lacks_is_told_before_any_work(sst2, tmp_path, capfd):
    (sst2 / "SST-2" / "dev.tsv").unlink()
    flags = [f"--config.finetune.glue_dir={sst2}", "--config.search.proxy_task=sst2"]
    flags += ["--config.search.proxy=proxy", f"--workdir={tmp_path / 'w'}"]
    assert main(["autodistill_jax", "run", SMOKE, *flags]) == 2
    err = capfd.readouterr().err
    assert "lacks dev.tsv; put what" in err and err.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_a_label_outside_a_tasks_set(sst2, tmp_path, capfd):
    (sst2 / "SST-2" / "dev.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t7\n")
    flags = [f"--config.finetune.glue_dir={sst2}", "--config.finetune.tasks=('sst2',)"]
    flags += [f"--workdir={tmp_path / 'w'}"]
    assert main(["autodistill_jax", "run", SMOKE, *flags]) == 2
    assert "dev.tsv, line 3: label '7' is none of 0, 1" in capfd.readouterr().err


def test_a_teacher_of_an_unknown_type(minilm, tmp_path, capfd):
    config = json.loads((minilm.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    flags = [f"--config.teacher={tmp_path}", f"--workdir={tmp_path / 'w'}"]
    assert main(["autodistill_jax", "run", SMOKE, *flags]) == 2
    err = capfd.readouterr().err
    assert "'gpt2'; known: bert, electra, roberta, xlm-roberta" in err


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "1_Pooling/config.json"]
)
def test_a_teachers_broken_file(name, minilm, tmp_path, capfd):
    for path in minilm.folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).symlink_to(path)
    broken = tmp_path / name
    broken.parent.mkdir(exist_ok=True)
    broken.unlink(missing_ok=True)
    broken.write_text("{")
    flags = [f"--config.teacher={tmp_path}", f"--workdir={tmp_path / 'w'}"]
    assert main(["autodistill_jax", "run", SMOKE, *flags]) == 2
    err = capfd.readouterr().err
    assert str(broken) in err and err.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_a_config_of_other_fields(tmp_path, capfd):
    text = (ROOT / "configs" / "quickstart.py").read_text()
    last = "    return config\n"
    assert text.endswith(last)
    # A list put where a tuple is becomes one: ml_collections does that.
    a_list = 'del config.distill.unlock().freeze; config.distill.freeze = ["x"]'
    for name, line, expected in (
        ("typo", "config.unlock().budget.flop_fraction = 0.1", "budget.flop_fraction"),
        ("less", "del config.unlock().seed", "the field seed is missing"),
        ("list", a_list, "be a tuple"),
    ):
        path = tmp_path / f"{name}.py"
        path.write_text(text.removesuffix(last) + f"    {line}\n{last}")
        flags = [f"--config={path}:smoke", f"--workdir={tmp_path / 'w'}"]
        assert main(["autodistill_jax", "run", *flags]) == 2
        assert expected in capfd.readouterr().err


def test_a_workdir_that_is_a_file(tmp_path, capfd):
    (tmp_path / "w").write_text("")
    assert main(["autodistill_jax", "run", SMOKE, f"--workdir={tmp_path / 'w'}"]) == 2
    assert "is a file" in capfd.readouterr().err


def test_a_folder_of_other_files_is_left_alone(tmp_path, capfd):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["autodistill_jax", "run", SMOKE, f"--workdir={tmp_path}"]) == 2
    assert "no config.json of an experiment" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


JOBS = ["search", "finish", "export", "baselines", "finetune", "report"]


@pytest.mark.parametrize("job", JOBS)
def test_a_job_before_its_turn_says_what_to_run(job, tmp_path, capfd):
    flags = [f"--workdir={tmp_path / 'w'}", "--config.budget.latency_ms=50.0"]
    assert main(["autodistill_jax", job, SMOKE, *flags]) == 2
    error = capfd.readouterr().err
    assert "first" in error and "budget:" not in error  # Nothing is timed.
    assert not (tmp_path / "w").exists()


BAD_COST = {
    "no arch": ([], "--arch is missing; give --arch=layers=3,hidden=192"),
    "empty arch": (["--arch="], "--arch is missing"),
    "unknown name": (["--arch=enormous"], "known by name: agnostic, proxy_base"),
    "missing size": (["--arch=layers=3"], "lacks hidden, heads, ffn; needed: layers=3"),
    "no number": (["--arch=layers=three,hidden=1,heads=1,ffn=1"], "'layers=three'"),
    "no layers": (["--arch=layers=0,hidden=1,heads=1,ffn=1"], "'layers=0'"),
    "name and size": (["--arch=agnostic,layers=3"], "--arch has 'agnostic'"),
    "unknown teacher": (
        ["--arch=agnostic", "--config.teacher=some-bert"],
        "some-bert is not a folder",
    ),
    "too long": (
        ["--arch=agnostic", "--config.data.max_seq_length=1024"],
        "data.max_seq_length is 1024, more than the teacher's 512 positions",
    ),
    "bad space": (
        ["--arch=agnostic", "--config.space.hidden=(100,)"],
        "head_size 32 does not divide",
    ),
}


@pytest.mark.parametrize("name", BAD_COST)
def test_bad_input_of_cost(name, capfd):
    more, expected = BAD_COST[name]
    assert main(["autodistill_jax", "cost", SMOKE, *more]) == 2
    out, err = capfd.readouterr()
    lines = err.strip().splitlines()
    assert not out and len(lines) == 1, err
    assert lines[0].startswith("autodistill_jax: ") and expected in lines[0]


def test_as_a_command():
    """Through the real interpreter: exit status, no traceback, stdout empty."""
    process = subprocess.run(
        [sys.executable, "-m", "autodistill_jax", "run", SMOKE, "--config.nope=1"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    assert process.returncode == 2 and not process.stdout
    assert len(process.stderr.strip().splitlines()) == 1 and "nope" in process.stderr
