"""Job `finetune`: student, the same Arch from scratch and the teacher on each task."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax.data import docs, glue, tasks, tokens
from autodistill_jax.errors import UserError
from autodistill_jax.jobs import experiment as common
from autodistill_jax.model import extract, huggingface
from autodistill_jax.model.bert import Bert
from autodistill_jax.train import log, supervised


def read(config: ConfigDict, workdir: epath.Path) -> list[tasks.Task]:
    """The labelled tasks that have no result yet, read before any work starts.

    Raises:
      UserError: an unknown task, a file that cannot be used, a setting that cannot be.
    """
    settings = config.finetune
    made = []
    chosen = common.chosen_already(config, workdir)
    for name in settings.tasks:
        if chosen:
            folder = (
                workdir / "finetune" / chosen.name / common.task_folder(settings, name)
            )
            if not _missing(folder, settings):
                continue
        if name == "docs":
            packages = tuple(config.data.packages)
            train, dev = docs.labelled(packages)
            split = (tuple(map(list, zip(*side))) for side in (train, dev))
            task = tasks.Task("docs", *split, len(packages), "accuracy", packages)
        elif name in glue.NAMES:
            task = glue.load(name, settings.glue_dir)
        elif name.endswith((".tsv", ".jsonl")):
            task = tasks.own(
                name,
                settings.dev_file,
                settings.text,
                settings.text_pair,
                settings.label,
                settings.metric,
            )
        else:
            raise UserError(
                f"finetune.tasks has {name!r}; known: docs, {', '.join(glue.NAMES)}, "
                "or a .tsv or .jsonl file"
            )
        limit = min(settings.rows or len(task.train[0]), len(task.train[0]))
        if limit < settings.batch_size or not task.dev[0]:
            raise UserError(
                f"task {name} has {limit} training and {len(task.dev[0])} dev rows; "
                f"finetune.batch_size {settings.batch_size} needs at least so many"
            )
        made.append(task._replace(name=common.task_folder(settings, name)))
    return made


def run(
    experiment: common.Experiment,
    workdir: epath.Path,
    labelled: list[tasks.Task],
    stage: str = "finetune",
) -> None:
    """Leaves finetune/<student>/<task>/<model>.json, and the fine-tuned weights."""
    found = common.read_json(workdir / "search" / "front.json", "search")
    arch = common.arch_of(found["chosen"])
    common.read_json(workdir / "students" / arch.name / "similarity.json", "export")
    student = huggingface.load(str(workdir / "students" / arch.name))
    settings = experiment.config.finetune
    for task in labelled:
        folder = workdir / "finetune" / arch.name / task.name
        rows = _rows(experiment, task)
        for model in _missing(folder, settings):
            path = folder / f"{model}.json"
            result = _one(
                experiment,
                student,
                model,
                rows,
                folder,
                task.labels,
                f"{stage} {task.name}, {model}",
            )
            common.write_json(
                path,
                {
                    "task": task.name,
                    "model": model,
                    "metric": task.metric,
                    "settings": _recipe(settings),
                    "train_rows": len(rows.train["label"]),
                    "dev_rows": len(rows.dev["label"]),
                    **result,
                },
            )
            log.say(
                f"{stage}: {task.name}, {model}: {task.metric} {result['score']:.4f}"
            )
    told = "made" if labelled else "nothing left to do in"
    log.say(f"{stage}: {told} {workdir / 'finetune' / arch.name}")


def _missing(folder: epath.Path, settings: ConfigDict) -> list[str]:
    """The models with no result on a task, in its folder, under these settings."""
    models = [
        "student",
        "scratch",
        *(["teacher"] if settings.teacher != "none" else []),
    ]

    def is_there(model):
        path = folder / f"{model}.json"
        return path.exists() and json.loads(path.read_text())["settings"] == (
            _recipe(settings)
        )

    return [model for model in models if not is_there(model)]


def _recipe(settings: ConfigDict) -> dict:
    """What a result depends on besides the task."""
    names = ("tasks", "glue_dir", "text", "text_pair", "label", "metric", "dev_file")
    return {k: v for k, v in settings.to_dict().items() if k not in names}


def _rows(experiment, task: tasks.Task) -> supervised.Rows:
    settings = experiment.config.finetune

    def side(texts, labels, limit):
        texts, labels = texts[: limit or None], labels[: limit or None]
        made = tokens.encode(experiment.tokenizer, texts, settings.length)
        kind = np.float32 if task.classes == 1 else np.int32
        return made | {"label": np.asarray(labels, kind)}

    # GLUE's files are in no order that a limit could trust: shuffle, by the seed.
    order = np.random.default_rng(experiment.config.seed).permutation(
        len(task.train[0])
    )
    train = ([task.train[0][i] for i in order], [task.train[1][i] for i in order])
    return supervised.Rows(
        side(*train, settings.rows),
        side(*task.dev, settings.dev_rows),
        task.classes,
        task.metric,
    )


def _one(experiment, student, model, rows, folder, labels, what) -> dict:
    config = experiment.config
    settings = config.finetune.to_dict()
    teacher = experiment.teacher
    source = teacher if model == "teacher" else student
    module = Bert(
        source.arch,
        source.sizes,
        dtype=jnp.dtype(settings["dtype"]),
        dropout=settings["dropout"],
    )
    params = jax.tree.map(jnp.asarray, source.params)
    if model == "teacher" and settings["teacher"] == "frozen":
        log.say(f"{what}: a head on the frozen teacher ...")
        score = supervised.frozen(
            module,
            params,
            rows,
            teacher.pooling,
            settings["batch_size"],
            experiment.mesh,
        )
        return {"score": score, "how": "frozen encoder, linear head"}
    how = "fine-tuned"
    if model != "student":
        settings["learning_rate"] = settings[f"{model}_learning_rate"]
    if model == "scratch":
        how = "random weights, trained on the task alone"
        params = extract.init(module, jax.random.key(config.seed))
    best, scores = supervised.fine_tune(
        module,
        params,
        rows,
        settings,
        teacher.pooling,
        experiment.mesh,
        config.seed,
        what,
    )
    if model == "student":
        _save(experiment, Path(folder), student, best, labels)
    return {"score": max(scores), "how": how, "epochs": scores}


def _save(experiment, folder: Path, student, params: dict, labels) -> None:
    """The best epoch: the encoder as a Hugging Face folder, the head beside it."""
    from safetensors.numpy import save_file

    head = {
        name.removeprefix("head_"): np.ascontiguousarray(value)
        for name, value in params.items()
        if name.startswith("head_")
    }
    teacher = experiment.teacher
    said = {
        "labels": labels,  # In the order of the logits; empty for a number.
        "embedding": teacher.pooling,
        "length": experiment.config.finetune.length,
    }

    def add(partial):
        save_file(head, partial / "head.safetensors")
        (partial / "head.json").write_text(json.dumps(said, indent=2) + "\n")

    huggingface.save(
        folder / "student",
        student.arch,
        student.sizes,
        params,
        student.folder,
        teacher.pooling,
        teacher.embeds,
        f"# {student.arch.name}, fine-tuned\n\nThe encoder is a Hugging Face model. "
        f"`head.safetensors` (kernel, bias) reads its {teacher.pooling} embedding: "
        "logits = embedding @ kernel + bias. `head.json` names the labels in the order "
        f"of the logits. Texts had at most {said['length']} tokens.\n",
        add,
    )
