"""A config's labelled tasks as token rows, for fine-tuning and labelled proxies."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import log
from autodistill_jax.data import docstrings, glue, squad, tasks, tokenization
from autodistill_jax.errors import UserError
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.train import classification


def load_task(
    config: ConfigDict, name: str, label_names: tuple[str, ...] | None = None
) -> tasks.Task:
    """The labelled task of a name.

    Args:
      config: an experiment's; its section finetune says where and what files are.
      name: "docs", one of GLUE's, or a .tsv or .jsonl file of one's own.
      label_names: the classes in the order of the teacher's own head, where it has one.

    Returns:
      The task, texts and labels; notes on how it was read are logged.

    Raises:
      UserError: an unknown task, one without labels (SQuAD), a file that cannot be
        used, too few rows.
    """
    settings = config.finetune
    if name == "docs":
        packages = tuple(config.data.packages)
        sides = docstrings.docstring_task(packages)
        columns: list[Any] = [tuple(map(list, zip(*side))) for side in sides]
        train, dev = columns
        task = tasks.Task("docs", train, dev, len(packages), "accuracy", packages)
    elif name in glue.GLUE_TASKS:
        task = glue.load_glue_task(
            name, settings.glue_dir, config.data.download, label_names
        )
    elif name.endswith((".tsv", ".jsonl")):
        task = tasks.load_user_task(
            name,
            settings.dev_file,
            settings.text,
            settings.text_pair,
            settings.label,
            settings.metric,
        )
    elif name == squad.SQUAD:
        raise UserError(
            "squad has answers, not labels: finetune.tasks takes it, search.proxy_task "
            "and rank.task need another"
        )
    else:
        raise UserError(
            f"{name!r} is not a known task; known: docs, "
            f"{', '.join(glue.GLUE_TASKS)}, squad, or a .tsv or .jsonl file"
        )
    for note in task.notes:
        log.say(f"{name}: {note}")
    limit = min(settings.max_train_rows or len(task.train[0]), len(task.train[0]))
    if limit < settings.batch_size or not task.dev[0]:
        raise UserError(
            f"task {name} has {limit} training and {len(task.dev[0])} dev rows; "
            f"finetune.batch_size {settings.batch_size} needs at least so many"
        )
    return task


def classification_data(
    experiment: Experiment, task: tasks.Task
) -> classification.ClassificationData:
    """A task's token rows, within the config's limits.

    The two texts of a pair go through in one pass or each on its own, as
    `finetune.pair_encoding` says; "auto": each on its own where the teacher embeds
    sentences.

    Args:
      experiment: its tokenizer, and its config's section finetune.
      task: of `load_task`.

    Returns:
      Training rows in an order drawn by the seed, dev rows in the task's.
    """
    settings = experiment.config.finetune
    kinds = {
        "cross": False,
        "bi": True,
        "auto": experiment.teacher.embeds_sentences,
    }
    bi_encoder = kinds[settings.pair_encoding] and not isinstance(task.train[0][0], str)

    def encode(*texts_and_labels, limit=0):
        return _encode_split(
            experiment, task, bi_encoder, *texts_and_labels, limit=limit
        )

    # GLUE's files are in no order that a limit could trust: shuffle, by the seed.
    order = np.random.default_rng(experiment.config.seed).permutation(
        len(task.train[0])
    )
    train = ([task.train[0][i] for i in order], [task.train[1][i] for i in order])
    test_texts = task.test_texts if settings.glue_submission else {}
    return classification.ClassificationData(
        encode(*train, limit=settings.max_train_rows),
        encode(*task.dev, limit=settings.max_dev_rows),
        task.classes,
        task.metric,
        {
            name: encode(*side, limit=settings.max_dev_rows)
            for name, side in task.extra_dev.items()
        },
        {name: encode(texts) for name, texts in test_texts.items()},
    )


def row_counts(rows: classification.ClassificationData) -> dict[str, int]:
    """How many rows there are to train on and to score: {"train_rows", "dev_rows"}."""
    return {
        "train_rows": len(rows.train["label"]),
        "dev_rows": len(rows.dev["label"]),
    }


def mlm_head_report(
    experiment: Experiment, workdir: epath.Path, results: dict
) -> dict | None:
    """What fitting the MLM head that the teacher lacked took.

    Args:
      experiment: its objective says whether students learn from the head.
      workdir: where the head was fitted, see `superlm.teacher_mlm_head`.
      results: {task: {model: result}}.

    Returns:
      Its mlm_head.json; None where no model of the results learned from such a head.
    """
    path = workdir / "teacher" / "mlm_head.json"
    models = {model for by_model in results.values() for model in by_model}
    needed = experiment.objective.needs("mlm") or "distilbert" in models
    return json.loads(path.read_text()) if needed and path.exists() else None


def separate_pairs(
    experiment: Experiment, task: tasks.Task, side: tuple | None = None
) -> dict[str, np.ndarray]:
    """The dev rows of a task of pairs, the two texts embedded each on its own.

    Args:
      experiment: its tokenizer, and its config's section finetune.
      task: of `load_task`, its texts pairs.
      side: (texts, labels), of `task.extra_dev`; None: dev itself.

    Returns:
      {"input_ids", "attention_mask", ..., of the second text "other_input_ids", ...,
      "label"}.
    """
    limit = experiment.config.finetune.max_dev_rows
    texts, labels = side or task.dev
    return _encode_split(experiment, task, True, texts, labels, limit=limit)


def _encode_split(
    experiment: Experiment,
    task: tasks.Task,
    bi_encoder: bool,
    texts: Sequence[tasks.Text],
    labels: Sequence[float] | None = None,
    limit: int = 0,
) -> dict[str, np.ndarray]:
    """Token rows of texts or pairs, with their labels where they have some."""
    length = experiment.config.finetune.max_seq_length

    def encoded(texts):
        return tokenization.encode_texts(experiment.tokenizer, texts, length)

    texts = texts[: limit or None]
    if bi_encoder:
        rows = encoded([pair[0] for pair in texts])
        second_rows = encoded([pair[1] for pair in texts])
        rows |= {f"other_{name}": value for name, value in second_rows.items()}
    else:
        rows = encoded(texts)
    if labels is None:
        return rows
    kind = np.float32 if task.classes == 1 else np.int32
    return rows | {"label": np.asarray(labels[: limit or None], kind)}
