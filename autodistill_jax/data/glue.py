"""GLUE tasks from a folder or tensorflow_datasets, and GLUE's submission files."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from autodistill_jax.data import glue_tsv, tasks, tfds
from autodistill_jax.data.glue_tsv import TASK_LAYOUTS, LabelledTexts, TaskLayout
from autodistill_jax.errors import UserError

GLUE_TASKS = tuple(TASK_LAYOUTS)


def load_glue_task(
    name: str,
    root: str = "",
    download: bool = False,
    label_names: Sequence[str] | None = None,
) -> tasks.Task:
    """A GLUE task with its dev and test sides.

    MNLI's `dev` is the matched side, `extra_dev` has the mismatched one, and of STS-B
    the labelled test rows where they lie beside it, "test". `test_texts`
    has a side for each submission file, by its stem ("RTE", "MNLI-m", ...), as far as
    it is there; for MNLI one is "AX", GLUE's diagnostic set.

    Args:
      name: of `GLUE_TASKS`.
      root: the folder that holds CoLA/, SST-2/ and so on, in GLUE's original TSVs; "":
        tensorflow_datasets.
      download: whether to fetch a task of tensorflow_datasets that is not on this
        machine.
      label_names: the classes of a teacher that was fine-tuned on the task, in the
        order of its logits (`id2label` of its config.json); see `label_order`.

    Returns:
      The task, its classes in the order of `label_order`.

    Raises:
      UserError: a file that is not there or has no rows, a short row, a label outside
        the task's set (file and line number), label names that half fit.
    """
    layout = TASK_LAYOUTS[name]
    labels = label_order(layout.labels, label_names)
    if layout.metric == "accuracy_f1" and labels != layout.labels:
        raise UserError(
            f"the teacher's config.json (id2label) orders the classes of {name} as "
            f"{', '.join(labels)}, but F1 is of the last of "
            f"{', '.join(layout.labels)}; use a teacher with that order"
        )
    if root:
        sides, notes = glue_tsv.read_glue_folder(layout, root)
    else:
        sides, notes = _tfds_splits(name, layout, download), ()
    if labels != layout.labels:
        places = [labels.index(label) for label in layout.labels]
        sides = {
            stem: LabelledTexts(side.texts, [places[label] for label in side.labels])
            for stem, side in sides.items()
        }
    first_end, *later_ends = layout.ends
    # GLUE's diagnostic set comes last, if at all.
    stems = (*(f"test{end}" for end in layout.ends), "diagnostic")
    test_stems = dict(zip(submission_keys(name), stems, strict=False))
    extra_dev = {end.removeprefix("_"): tuple(sides[f"dev{end}"]) for end in later_ends}
    if glue_tsv.LABELLED_TEST in sides:
        extra_dev["test"] = tuple(sides[glue_tsv.LABELLED_TEST])
    return tasks.Task(
        name,
        tuple(sides["train"]),
        tuple(sides[f"dev{first_end}"]),
        max(len(labels), 1),
        layout.metric,
        labels,
        extra_dev,
        {key: sides[stem].texts for key, stem in test_stems.items() if stem in sides},
        notes,
    )


def submission_keys(name: str) -> tuple[str, ...]:
    """The stems of GLUE's submission files of a task of `GLUE_TASKS`."""
    return TASK_LAYOUTS[name].submissions or (TASK_LAYOUTS[name].folder,)


def label_order(
    labels: Sequence[str], teacher_labels: Sequence[str] | None
) -> tuple[str, ...]:
    """The task's labels in the order that a teacher's config.json says.

    The order is the teacher's where it names just the task's labels, in whatever case.
    It is the task's own where the teacher says nothing, has another number of classes
    or is of another task (LABEL_0, ...; "neutral" alone is also a sentiment).

    Args:
      labels: the task's.
      teacher_labels: the teacher's class names in the order of its logits, or None.

    Returns:
      The task's labels, reordered.

    Raises:
      UserError: the teacher names most of the labels, but not all.
    """
    canonical = {label.lower(): label for label in labels}
    names = [name.strip().lower() for name in teacher_labels or ()]
    num_shared = len(canonical.keys() & set(names))
    if len(names) != len(canonical) or 2 * num_shared <= len(canonical):
        return tuple(labels)
    if set(names) != canonical.keys():
        raise UserError(
            "the teacher's config.json (id2label) names the classes "
            f"{', '.join(teacher_labels)}, but the task's are {', '.join(labels)}; "
            "give each class its task's name there, or all of them LABEL_0, LABEL_1, "
            "... for the task's own order"
        )
    return tuple(canonical[name] for name in names)


def submission_text(task: tasks.Task, key: str, predictions: np.ndarray) -> str:
    """The text of GLUE's submission file `<key>.tsv`: columns index and prediction.

    Args:
      task: of `load_glue_task`.
      key: of `task.test_texts`.
      predictions: [rows of that side], numbers of classes in the order of
        `task.labels`, or scores (STS-B: cut to 0..5, three decimals).

    Returns:
      The text of the whole file, with its header.
    """
    predictions = np.asarray(predictions)
    if predictions.shape != (len(task.test_texts[key]),):
        raise ValueError(
            f"{key}: {predictions.shape} for {len(task.test_texts[key])} rows"
        )
    if task.labels:
        values = [task.labels[prediction] for prediction in predictions.astype(int)]
    else:
        values = [f"{score:.3f}" for score in np.clip(predictions, 0, 5)]
    rows = (f"{i}\t{value}\n" for i, value in enumerate(values))
    return "index\tprediction\n" + "".join(rows)


def _tfds_splits(
    name: str, layout: TaskLayout, download: bool
) -> dict[str, LabelledTexts]:
    """The sides as tensorflow_datasets has them, by the stems of GLUE's files."""
    description = f"finetune.glue_dir is empty and glue/{name} of tensorflow_datasets"
    alternative = f"set finetune.glue_dir to the folder that holds {layout.folder}/"
    builder = tfds.find_builder(f"glue/{name}", description, alternative, download)
    tfds.prepare_builder(builder, description, alternative)
    sides = {}
    labelled = ["train", *(f"dev{end}" for end in layout.ends)]
    for stem in (*labelled, *(f"test{end}" for end in layout.ends)):
        split = stem.replace("dev", "validation")
        if split in builder.info.splits:
            sides[stem] = _tfds_split(layout, builder, split, stem in labelled)
        elif stem in labelled:
            raise UserError(f"{description} lacks the split {split}; {alternative}")
    if name == "mnli":
        # Nobody's fine-tuning should fail for want of it.
        with contextlib.suppress(UserError):
            builder = tfds.find_builder("glue/ax", "glue/ax", alternative, download)
            tfds.prepare_builder(builder, "glue/ax", alternative)
            sides["diagnostic"] = _tfds_split(layout, builder, "test", False)
    return sides


def _tfds_split(
    layout: TaskLayout, builder: Any, split: str, labelled: bool
) -> LabelledTexts:
    source = builder.as_data_source(split=split)
    # All at once takes half the time (MNLI: 13 s); they are stored shuffled, and `idx`
    # is the place in GLUE's file.
    rows = sorted(source.__getitems__(range(len(source))), key=lambda row: row["idx"])
    texts = [
        tuple(row[feature].decode() for feature in layout.features or layout.texts)
        for row in rows
    ]
    # tfds numbers the labels as `layout.labels` does.
    number = int if layout.labels else float
    return LabelledTexts(
        [pair[0] if len(pair) == 1 else pair for pair in texts],
        [number(row["label"]) for row in rows] if labelled else [],
    )
