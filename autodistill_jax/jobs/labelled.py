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


def rows(
    experiment: Experiment, task: tasks.Task, apart: bool | None = None
) -> supervised.Rows:
    """A task's token rows, within the config's limits.

    apart: are the two texts of a pair embedded each on its own? None: as
    `finetune.pairs` says; "auto": where the teacher embeds sentences.
    """
    settings, teacher = experiment.config.finetune, experiment.teacher
    if apart is None:
        kinds = {"together": False, "apart": True, "auto": teacher.embeds}
        apart = kinds[settings.pairs]
    apart = apart and not isinstance(task.train[0][0], str)

    def encoded(texts):
        return tokens.encode(experiment.tokenizer, texts, settings.length)

    def side(texts, labels=None, limit=0):
        texts = texts[: limit or None]
        if apart:
            made = encoded([one for one, _ in texts])
            others = encoded([other for _, other in texts])
            made |= {f"other_{name}": value for name, value in others.items()}
        else:
            made = encoded(texts)
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
