"""Does one command compare methods, rank proxies and write GLUE's files?"""

import json

import methods
import numpy as np
import pytest
from paths import ROOT

from autodistill_jax.cli import main
from autodistill_jax.experiment.baseline import model_label
from autodistill_jax.interop import huggingface

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_device")]

NAME = "3x192-h6-f768"


def glue(folder):
    """A small RTE in its original layout."""
    rng = np.random.default_rng(0)
    words = ["students", "teachers", "learn", "teach", "slowly", "well", "papers"]

    def lines(count, labelled):
        head = "index\tsentence1\tsentence2" + "\tlabel" * labelled
        yield head
        for i in range(count):
            first, second = (" ".join(rng.choice(words, 5)) for _ in range(2))
            label = ("entailment", "not_entailment")[i % 2]
            yield f"{i}\t{first}\t{second}" + f"\t{label}" * labelled

    (folder / "RTE").mkdir(parents=True)
    for split, count, labelled in (("train", 40, 1), ("dev", 20, 1), ("test", 9, 0)):
        text = "\n".join(lines(count, labelled)) + "\n"
        (folder / "RTE" / f"{split}.tsv").write_text(text)
    return folder


def run(workdir, *more):
    config = f"--config={ROOT / 'configs' / 'baselines.py'}:smoke"
    return main(["autodistill_jax", "run", config, f"--workdir={workdir}", *more])


def test_methods_stand_side_by_side(tmp_path, capfd):
    workdir = tmp_path / "w"
    flags = [
        "--config.space.hidden=(192,)",  # Two Archs: little to compile.
        "--config.distill.steps=2",
        "--config.baselines=('distilbert','truncated')",
        f"--config.finetune.glue_dir={glue(tmp_path / 'glue')}",
        "--config.finetune.tasks=('rte',)",
        "--config.finetune.glue_submission=True",
        "--config.rank.archs=2",
        "--config.rank.flops_bins=1",
        "--config.rank.task=rte",
        "--config.rank.proxies=('similarity','proxy')",
        "--config.search.proxy_steps=2",
    ]
    assert run(workdir, *flags) == 0
    err = capfd.readouterr().err
    assert "MLM head: the teacher has none; training one" in err
    for student in (NAME, f"distilbert-{NAME}", f"truncated-{NAME}"):
        assert (
            huggingface.load_pretrained(str(workdir / "students" / student)).arch.hidden
            == 192
        )
    words = json.loads((workdir / "teacher" / "mlm_head.json").read_text())
    assert words["tokens"] == 5 * 8 * 32
    folder = workdir / "finetune" / NAME
    table = (folder / "table.md").read_text()
    for text in (
        "| teacher |",
        "| DistilBERT (soft",
        " ± ",
        "masked-LM head: one, tied",
    ):
        assert text in table, text
    record = json.loads((folder / "rte" / "student.json").read_text())
    assert len(record["scores"]) == 2 and record["score"] == np.mean(record["scores"])
    for model in ("student", "distilbert", "truncated"):
        lines = (folder / "submission" / model / "RTE.tsv").read_text().splitlines()
        assert lines[0] == "index\tprediction" and len(lines) == 10
        assert {line.split("\t")[1] for line in lines[1:]} <= {
            "entailment",
            "not_entailment",
        }
    ranked = json.loads((workdir / "search" / "rank.json").read_text())
    assert set(ranked["table"]) == {"flops", "agnostic", "similarity", "proxy"}
    assert [len(entry["quality"]) for entry in ranked["archs"]] == [1, 1]
    assert "only 2 Archs: with fewer than 24" in err
    assert "How far to trust the ranking" in (workdir / "report.html").read_text()
    # Another baseline needs nothing of what is there anew; other texts to time, no more
    # than a look at its costs.
    flags[2] = (
        "--config.baselines=('before_finish','truncated','layer_reduction-1','static')"
    )
    flags += [
        "--config.baseline_learning_rates=(1e-3,1e-4)",
        "--config.latency.max_seq_length=24",
    ]
    weights = workdir / "students" / f"truncated-{NAME}" / "model.safetensors"
    written_at = weights.stat().st_mtime_ns
    assert run(workdir, *flags) == 0
    assert weights.stat().st_mtime_ns == written_at
    err = capfd.readouterr().err
    assert "rte, truncated" not in err and "rte, layer_reduction-1" in err
    (path,) = (workdir / "superlm").glob("layer_reduction-1-*/rates.json")
    tried = json.loads(path.read_text())
    assert set(tried["losses"]) == {"0.001", "0.0001"} and tried["steps"] == 1
    assert not list(path.parent.glob("rate-*"))
    assert tried["losses"][f"{tried['chosen']:g}"] == min(
        tried["losses"].values(), key=float
    )
    record = json.loads((folder / "rte" / "static.json").read_text())
    assert record["method"] == "frozen encoder, linear head"
    lines = (folder / "table.md").read_text().splitlines()
    cells = {line.split(" | ")[0]: line.split(" | ")[1:5] for line in lines}
    assert cells["| model"] == ["parameters", "multiply-adds", "latency", "training"]
    static = cells["| static table (a vector a token, no network)"]
    assert (
        static[1] == "0.000 G"
        and static[2].endswith("ms (measured)")
        and static[3] == "0 s"
    )
    student, early, truncated, reduced = (
        next(cells[label] for label in cells if label.startswith(f"| {method}"))
        for method in ("student", "student before", "truncated", "layer reduction")
    )
    # The same Arch has the same costs; another one is measured itself.
    assert student[:3] == early[:3] == truncated[:3] and truncated[3] == "0 s"
    assert all(reduced[:3]) and reduced[:3] != student[:3]
    # From the first of two steps on there are seconds.
    assert student[3].endswith(" s") and reduced[3].endswith(" s")
    # Of one seed, and of the same twice.
    table = methods.seeds_table([methods.model_figures(workdir)] * 2)
    by_model = {row[0]: dict(zip(table[0], row)) for row in table[1]}
    name = model_label("layer_reduction-1")
    assert f"{by_model[name]['multiply-adds, G']} G" == reduced[1]
    assert 0 <= float(by_model["teacher"]["rte, fine-tuned"]) <= 1
    assert "tau of" not in err
