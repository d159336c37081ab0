"""Which labelled rows does a config name? For fine-tuning and for labelled proxies."""

import numpy as np
from ml_collections import ConfigDict

from autodistill_jax.data import docs, glue, tasks, tokens
from autodistill_jax.errors import UserError
from autodistill_jax.jobs.experiment import Experiment
from autodistill_jax.train import log, supervised


def task(
    config: ConfigDict, name: str, label_names: tuple[str, ...] | None = None
) -> tasks.Task:
    """The task of that name: "docs", one of GLUE's, or a file of one's own.

    Raises:
      UserError: an unknown task, a file that cannot be used, too few rows.
    """
    settings = config.finetune
    if name == "docs":
        packages = tuple(config.data.packages)
        train, dev = docs.labelled(packages)
        split = (tuple(map(list, zip(*side))) for side in (train, dev))
        made = tasks.Task("docs", *split, len(packages), "accuracy", packages)
    elif name in glue.NAMES:
        made = glue.load(name, settings.glue_dir, config.data.download, label_names)
    elif name.endswith((".tsv", ".jsonl")):
        made = tasks.own(
            name,
            settings.dev_file,
            settings.text,
            settings.text_pair,
            settings.label,
            settings.metric,
        )
    else:
        raise UserError(
            f"{name!r} is no task; known: docs, {', '.join(glue.NAMES)}, "
            "or a .tsv or .jsonl file"
        )
    for note in made.notes:
        log.say(f"{name}: {note}")
    limit = min(settings.rows or len(made.train[0]), len(made.train[0]))
    if limit < settings.batch_size or not made.dev[0]:
        raise UserError(
            f"task {name} has {limit} training and {len(made.dev[0])} dev rows; "
            f"finetune.batch_size {settings.batch_size} needs at least so many"
        )
    return made


def rows(experiment: Experiment, task: tasks.Task) -> supervised.Rows:
    """A task's token rows, within the config's limits."""
    settings = experiment.config.finetune

    def side(texts, labels=None, limit=0):
        made = tokens.encode(
            experiment.tokenizer, texts[: limit or None], settings.length
        )
        if labels is None:
            return made
        kind = np.float32 if task.classes == 1 else np.int32
        return made | {"label": np.asarray(labels[: limit or None], kind)}

    # GLUE's files are in no order that a limit could trust: shuffle, by the seed.
    order = np.random.default_rng(experiment.config.seed).permutation(
        len(task.train[0])
    )
    train = ([task.train[0][i] for i in order], [task.train[1][i] for i in order])
    tests = task.tests if settings.predict else {}
    return supervised.Rows(
        side(*train, settings.rows),
        side(*task.dev, settings.dev_rows),
        task.classes,
        task.metric,
        {name: side(*more, settings.dev_rows) for name, more in task.more.items()},
        {name: side(texts) for name, texts in tests.items()},
    )


def pairs(experiment: Experiment, task: tasks.Task) -> tuple[dict, dict] | None:
    """Both texts of each dev pair, apart; None unless the labels are numbers of pairs
    (how alike they are)."""
    settings = experiment.config.finetune
    texts = task.dev[0][: settings.dev_rows or None]
    if task.classes != 1 or isinstance(texts[0], str):
        return None
    one, other = (
        tokens.encode(
            experiment.tokenizer, [pair[i] for pair in texts], settings.length
        )
        for i in (0, 1)
    )
    return one, other
