"""Which labelled rows does a config name? For fine-tuning and for labelled proxies."""

import json

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
    """The task of that name: "docs", one of GLUE's, or a file of one's own.

    Raises:
      UserError: an unknown task, one without labels (SQuAD), a file that cannot be
        used, too few rows.
    """
    settings = config.finetune
    if name == "docs":
        packages = tuple(config.data.packages)
        train, dev = docstrings.docstring_task(packages)
        split = (tuple(map(list, zip(*side))) for side in (train, dev))
        made = tasks.Task("docs", *split, len(packages), "accuracy", packages)
    elif name in glue.GLUE_TASKS:
        made = glue.load_glue_task(
            name, settings.glue_dir, config.data.download, label_names
        )
    elif name.endswith((".tsv", ".jsonl")):
        made = tasks.load_user_task(
            name,
            settings.dev_file,
            settings.text,
            settings.text_pair,
            settings.label,
            settings.metric,
        )
    elif name == squad.SQUAD:
        raise UserError(
            "squad has answers, not labels: finetune.tasks takes it, search.proxy_task and "
            "rank.task need another"
        )
    else:
        raise UserError(
            f"{name!r} is no task; known: docs, {', '.join(glue.GLUE_TASKS)}, squad, "
            "or a .tsv or .jsonl file"
        )
    for note in made.notes:
        log.say(f"{name}: {note}")
    limit = min(settings.max_train_rows or len(made.train[0]), len(made.train[0]))
    if limit < settings.batch_size or not made.dev[0]:
        raise UserError(
            f"task {name} has {limit} training and {len(made.dev[0])} dev rows; "
            f"finetune.batch_size {settings.batch_size} needs at least so many"
        )
    return made


def classification_data(
    experiment: Experiment, task: tasks.Task
) -> classification.ClassificationData:
    """A task's token rows, within the config's limits.

    The two texts of a pair go through in one pass or each on its own, as `finetune.pair_encoding` says;
    "auto": bi where the teacher embeds sentences.
    """
    settings = experiment.config.finetune
    kinds = {
        "cross": False,
        "bi": True,
        "auto": experiment.teacher.embeds_sentences,
    }
    apart = kinds[settings.pair_encoding] and not isinstance(task.train[0][0], str)

    def side(*given, limit=0):
        return _encode_split(experiment, task, apart, *given, limit=limit)

    # GLUE's files are in no order that a limit could trust: shuffle, by the seed.
    order = np.random.default_rng(experiment.config.seed).permutation(
        len(task.train[0])
    )
    train = ([task.train[0][i] for i in order], [task.train[1][i] for i in order])
    tests = task.tests if settings.glue_submission else {}
    return classification.ClassificationData(
        side(*train, limit=settings.max_train_rows),
        side(*task.dev, limit=settings.max_dev_rows),
        task.classes,
        task.metric,
        {
            name: side(*more, limit=settings.max_dev_rows)
            for name, more in task.more.items()
        },
        {name: side(texts) for name, texts in tests.items()},
    )


def row_counts(rows: classification.ClassificationData) -> dict[str, int]:
    return {
        "train_rows": len(rows.train["label"]),
        "dev_rows": len(rows.dev["label"]),
    }


def mlm_head_report(
    experiment: Experiment, workdir: epath.Path, results: dict
) -> dict | None:
    """What the masked-word head that the teacher lacked took (words.json), where a model
    of the results, {task: {model: result}}, learned from it."""
    path = workdir / "teacher" / "words.json"
    models = {model for found in results.values() for model in found}
    needed = experiment.objective.needs("mlm") or "distilbert" in models
    return json.loads(path.read_text()) if needed and path.exists() else None


def separate_pairs(experiment: Experiment, task: tasks.Task) -> dict[str, np.ndarray]:
    """The dev rows of a task of pairs, the two texts embedded each on its own."""
    limit = experiment.config.finetune.max_dev_rows
    return _encode_split(experiment, task, True, *task.dev, limit=limit)


def _encode_split(experiment, task, apart, texts, labels=None, limit=0) -> dict:
    def encoded(texts):
        length = experiment.config.finetune.max_seq_length
        return tokenization.encode_texts(experiment.tokenizer, texts, length)

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
