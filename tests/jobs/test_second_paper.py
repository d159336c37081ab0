"""Does the second paper go through, from trials to students, and on under other bounds?"""

import csv
import json

import pytest
from paths import ROOT

from autodistill_jax.archs.space import Space
from autodistill_jax.cli import main
from autodistill_jax.experiment import trials

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_device")]

TINY = {
    "data.packages": "('scipy',)",
    "data.max_train_rows": "200",
    "space.layers": "(1,2)",
    "space.hidden": "(128,)",
    "space.bottleneck": "(32,64)",
    "space.heads": "(2,)",
    "space.ffn": "(32,)",
    "space.stacks": "(1,)",
    "distill.batch_size": "8",
    "flash_distillation.block_steps": "4",
    "flash_distillation.last_stage_steps": "4",
    "flash_distillation.top_k": "2",
    "search.trials": "3",
    "search.proxy_rows": "16",
    "latency.max_seq_length": "8",
    "export.pairs": "20",
    "finetune.tasks": "()",
    "budget.latency_fraction": "0.0",
}


def job(name, workdir, **more):
    settings = TINY | {key.replace("__", "."): value for key, value in more.items()}
    config = ROOT / "configs" / "autodistill.py"
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    return main(
        ["autodistill_jax", name, f"--config={config}:smoke", f"--workdir={workdir}"]
        + flags
    )


def test_flash_and_transfer_from_trials_to_students(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(trials, "_MIN_MODELLED", 3)  # A model of three trials.
    workdir = tmp_path / "w"
    assert job("run", workdir) == 0
    err = capfd.readouterr().err
    assert err.count("with another seed ...") == 1
    assert "trial 3/3" in err and "1/7 search" in err and "2/7 transfer" in err
    front = json.loads((workdir / "search" / "front.json").read_text())
    assert len(front["trials"]) == 3 and front["sampler"] == "bayes"
    assert all(
        "transfer" in trial and trial["latency_ms"] > 0 for trial in front["trials"]
    )
    # The best by the model of all, which has seen one of them twice.
    posteriors = [trial["proxy_posterior"] for trial in front["trials"]]
    chosen = next(t for t in front["trials"] if t["arch"] == front["chosen"])
    assert chosen["proxy_posterior"] == min(posteriors)
    (looked_at,) = (t for t in front["trials"] if "second_proxy" in t)
    assert looked_at["second_proxy"] != looked_at["proxy"]
    with (workdir / "search" / "trials.csv").open() as file:
        assert {"bottleneck", "stacks", "proxy"} <= set(next(csv.reader(file)))
    students = [path for path in (workdir / "students").iterdir() if path.is_dir()]
    config = json.loads((students[0] / "config.json").read_text())
    assert config["model_type"] == "mobilebert" and "auto_map" not in config
    assert 1 <= len(students) <= 2
    report = (workdir / "report.html").read_text()
    assert "Losses of the transfers" in report and "3 trials within" in report
    # Again: nothing is left to do.
    assert job("run", workdir) == 0
    err = capfd.readouterr().err
    assert "trial " not in err and "another seed" not in err
    # Under another bound: a study of its own that knows what is known.
    flops = sorted(trial["flops"] for trial in front["trials"])
    assert job("search", workdir, budget__flops=f"{flops[0]:.1f}") == 0
    err = capfd.readouterr().err
    assert "1 trials under other bounds are known already" in err
    tightened = json.loads((workdir / "search" / "front.json").read_text())
    assert all(trial["flops"] <= flops[0] for trial in tightened["trials"])
    # One Arch by name is taken whatever else there is.
    arch = "layers=1,hidden=128,bottleneck=64,heads=2,ffn=32,stacks=1"
    assert job("search", workdir, search__fixed_arch=arch) == 0
    chosen = json.loads((workdir / "search" / "front.json").read_text())["chosen"]
    assert (chosen["layers"], chosen["bottleneck"]) == (1, 64)


def test_a_teacher_of_the_run_and_a_space_of_millions(tmp_path, capfd, monkeypatch):
    more = {
        "pretrain__steps": "3",
        "pretrain__arch": "layers=1,hidden=128,heads=2,ffn=64",
        "pretrain__batch_size": "8",
        "data__row_format": "pair",
        "space__layers": "(1,)",
        "space__hidden": str(tuple(range(128, 384))),
        "space__bottleneck": str(tuple(range(24, 224, 2))),
        "space__ffn": str(tuple(range(8, 264))),
        "space__stacks": "(1,2)",
        "budget__flops": "3e6",
        "search__trials": "2",
        "flash_distillation__top_k": "1",
    }
    assert job("search", tmp_path / "w", **more) == 2
    assert "run the job pretrain first" in capfd.readouterr().err
    # A space that the teacher to be does not fit is refused before it is trained.
    bad = more | {"search__proxy": "pooled", "distill__relation_heads": "300"}
    assert job("run", tmp_path / "w", **bad) == 2
    assert "distill.relation_heads is 300" in capfd.readouterr().err
    assert not (tmp_path / "w").exists()

    monkeypatch.setattr(Space, "__iter__", None)  # What listed it would raise.
    assert job("run", tmp_path / "w", **more) == 0
    err = capfd.readouterr().err
    assert "1/8 pretrain" in err and "3/8 transfer" in err
    front = json.loads((tmp_path / "w" / "search" / "front.json").read_text())
    assert front["space"] == 256 * 100 * 256 * 2 == 13_107_200
    assert (front["teacher"]["arch"]["layers"], len(front["trials"])) == (1, 2)
    # It has heads, and so what counts is what a student says of masked tokens.
    assert all(
        {"accuracy_mlm", "accuracy_nsp"} <= trial.keys() for trial in front["trials"]
    )
    assert all(trial["flops"] <= 3e6 for trial in front["trials"])
    (student,) = (p for p in (tmp_path / "w" / "students").iterdir() if p.is_dir())
    assert "1x128-h2-f64, pre-trained in the same run" in (
        student / "README.md"
    ).read_text().replace("\n", " ")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"search__sampler": "all"}, "search.sampler is all, which takes every Arch"),
        ({"rank__archs": "24", "rank__task": "docs"}, "search.proxy flash trains none"),
        (
            {"space__layers": "(1,)", "space__bottleneck": "(32,)"},
            "the space has one Arch, which needs no search",
        ),
        ({"space__partition": "3"}, "space.partition is 3 and space."),
        (
            {"search__storage": "postgresql://me:secret@localhost:9/db"},
            "search.storage=postgresql://me:***@localhost:9/db does not answer",
        ),
        ({"budget__convention": "paper"}, "does not count MobileBERTs"),
        (
            {"search__fixed_arch": "minilm"},
            "of another family than the space, whose axes",
        ),
        (
            {
                "search__sampler": "all",
                "search__proxy": "pooled",
                "search__storage": "journal",
            },
            "keeps its trials in the workdir",
        ),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, capfd, more, message):
    assert job("search", tmp_path / "w", **more) == 2
    out, err = capfd.readouterr()
    last = err.strip().splitlines()[-1]
    assert message in last and last.startswith("autodistill_jax: ") and not out
    assert "secret" not in err
