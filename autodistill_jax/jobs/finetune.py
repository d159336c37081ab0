"""Job `finetune`: student, baselines and teacher on each labelled task."""

import json
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import log, metrics, storage
from autodistill_jax.data import glue, loader, squad, tasks
from autodistill_jax.experiment import (
    fingerprints,
    labelled_data,
    qa_finetuning,
    results,
)
from autodistill_jax.experiment import workdir as common
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.interop import huggingface
from autodistill_jax.models import build
from autodistill_jax.report import tables
from autodistill_jax.train import classification

_FROZEN_TEXT = "frozen encoder, linear head"


def pending_tasks(
    experiment: Experiment, workdir: epath.Path
) -> list[tasks.Task | squad.Squad]:
    """The labelled tasks that have no result yet, read before any work starts.

    Raises:
      UserError: an unknown task, a file that cannot be used, a setting that cannot be.
    """
    config = experiment.config
    settings = config.finetune
    made = []
    chosen = common.chosen_arch(config, workdir)
    archs = (
        common.student_archs(config, common.read_front(config, workdir))
        if chosen
        else []
    )
    for name in settings.tasks:
        folder = fingerprints.task_dirname(settings, name)
        keys = (
            glue.submission_keys(name)
            if settings.glue_submission and name in glue.GLUE_TASKS
            else ()
        )
        homes = [workdir / "finetune" / arch.name / folder for arch in archs]
        if homes and not any(
            _missing_models(h, config, keys, h == homes[0]) for h in homes
        ):
            continue
        if name == squad.SQUAD:
            made.append(qa_finetuning.load_squad_task(experiment))
            continue
        task = labelled_data.load_task(config, name, experiment.teacher.class_names)
        made.append(task._replace(name=folder))
    return made


def run_finetune(
    experiment: Experiment,
    workdir: epath.Path,
    given: list[tasks.Task | squad.Squad],
    stage: str = "finetune",
) -> None:
    """Leaves finetune/<student>/<task>/<model>.json, table.md, the student's fine-tuned
    weights, and GLUE's submission files where `finetune.glue_submission` asks for them."""
    found = common.read_front(experiment.config, workdir)
    archs = common.student_archs(experiment.config, found)
    for arch in archs:
        common.require_json(
            workdir / "students" / arch.name / "similarity.json", "export"
        )
    for task in given:
        asks = task.name == squad.SQUAD
        prepare = qa_finetuning.span_data if asks else labelled_data.classification_data
        rows = prepare(experiment, task)
        keys = tuple(task.tests) if experiment.config.finetune.glue_submission else ()
        wanted = glue.submission_keys(task.name) if task.name in glue.GLUE_TASKS else ()
        if experiment.config.finetune.glue_submission and set(wanted) - set(keys):
            lacking = ", ".join(f"{key}.tsv" for key in wanted if key not in keys)
            log.say(f"{stage}: {task.name} has no texts for {lacking}: not written")
        for arch in archs:
            home = workdir / "finetune" / arch.name / task.name
            models = _missing_models(home, experiment.config, keys, arch == archs[0])
            if asks:  # The teacher's soft labels may be learned from.
                models.sort(key=lambda model: model != "teacher")
            for model in models:
                which = model if len(archs) == 1 else f"{model} {arch.name}"
                what = f"{stage} {task.name}, {which}"
                source = _starting_network(experiment, workdir, model, arch)
                first = workdir / "finetune" / archs[0].name / task.name
                result = _finetune_model(
                    experiment, source, model, rows, home, task, what, first
                )
                storage.write_json(
                    home / f"{model}.json",
                    {
                        "task": task.name,
                        "model": model,
                        "metric": task.metric,
                        "settings": results.result_settings(
                            experiment.config, model, task.name
                        ),
                        **result,
                    },
                )
                log.say(
                    f"{stage}: {task.name}, {which}: {task.metric} {result['score']:.4f}"
                )
    for arch in archs:
        home = workdir / "finetune" / arch.name
        if made := results.read_results(experiment.config, home):
            table = tables.markdown_table(*tables.task_table(made))
            told = tables.table_notes(
                made, labelled_data.mlm_head_report(experiment, workdir, made)
            )
            text = table + "\n" + "\n".join(told) + "\n"
            storage.write_text(home / "table.md", text)
            log.say(table.rstrip())
        log.say(f"{stage}: {'made' if given else 'nothing left to do in'} {home}")
    if len(archs) > 1:
        table = tables.markdown_table(
            *tables.students_table(experiment.config, found, workdir)
        )
        storage.write_text(workdir / "finetune" / "students.md", table)
        log.say(table.rstrip())


def _missing_models(
    folder: epath.Path, config: ConfigDict, keys: Sequence[str], first: bool
) -> list[str]:
    """The models that lack their result on a task, in its folder, under these settings,
    or one of the submission files `keys`. What a student is compared with is made for
    the `first` one alone."""
    done = results.results_in_folder(config, folder)

    def submitted(model):
        # A head on the frozen teacher is there to compare with, and predicts nothing.
        if model == "teacher" and config.finetune.teacher == "frozen":
            return True
        return all(_submission_path(folder, model, key).exists() for key in keys)

    models = results.compared_models(config) if first else ["student"]
    return [m for m in models if m not in done or not submitted(m)]


def _submission_path(folder: epath.Path, model: str, key: str) -> epath.Path:
    return folder.parent / "submission" / model / f"{key}.tsv"


def _starting_network(experiment, workdir, model, arch) -> huggingface.Teacher:
    """The network a model starts its fine-tuning from."""
    if model == "teacher":
        return experiment.teacher
    if model in ("student", "scratch"):
        return huggingface.load_pretrained(str(workdir / "students" / arch.name))
    folder = common.baseline_folder(workdir, model, arch)
    common.require_json(folder / "config.json", "baselines")
    return huggingface.load_pretrained(str(folder))


def _finetune_model(experiment, source, model, rows, folder, task, what, first) -> dict:
    """One model's result on one task, over all seeds."""
    config, teacher = experiment.config, experiment.teacher
    settings = config.finetune.to_dict()
    asks = task.name == squad.SQUAD
    counts = (
        qa_finetuning.window_counts(task, rows)
        if asks
        else labelled_data.row_counts(rows)
    )
    frozen = model == "teacher" and settings["teacher"] == "frozen"
    module = build.build_module(
        source.arch,
        source.dims,
        dtype=jnp.dtype(settings["compute_dtype"]),
        dropout=settings["dropout"],
    )
    if frozen and not asks:
        log.say(f"{what}: a head on the frozen teacher ...")
        score = classification.frozen_score(
            module,
            source.params,
            rows,
            teacher.pooling,
            settings["batch_size"],
            experiment.mesh,
        )
        told = {"score": score, "how": _FROZEN_TEXT}
        return counts | told | _cosine_spearman(experiment, module, source.params, task)
    how, count = _FROZEN_TEXT if frozen else "fine-tuned", settings["seeds"]
    if model == "teacher":
        count = settings["teacher_seeds"]
    if model in ("teacher", "scratch"):
        settings["learning_rate"] = settings[f"{model}_learning_rate"]

    def params(seed):
        if model == "scratch":
            return build.init_params(module, jax.random.key(seed))
        return source.params

    if model == "scratch":
        how = "random weights, trained on the task alone"
    seeds = range(config.seed, config.seed + count)
    if asks:
        rest = (settings, seeds, rows, folder, first / "teacher", what)
        made = qa_finetuning.finetune_squad(
            experiment, module, source, model, params, *rest
        )
        return counts | made | {"how": how}
    made = classification.finetune_classifier(
        module,
        params,
        rows,
        settings,
        teacher.pooling,
        experiment.mesh,
        seeds,
        what,
    )
    best = results.best_seed(made)
    if model == "student":
        _save_classifier(experiment, folder, source, best.params, task.labels, rows)
    for key, predictions in best.tests.items():
        text = glue.submission_text(task, key, predictions)
        storage.write_text(_submission_path(folder, model, key), text)
    told = {"how": how, "more": results.mean_figures([one.more for one in made])}
    similarity = _cosine_spearman(experiment, module, params(config.seed), task)
    return counts | results.summarize_seeds(made) | told | similarity


def _cosine_spearman(experiment, module, params, task) -> dict[str, float]:
    """Without any fine-tuning: the Spearman of the cosines of a task's pairs with its
    labels; nothing for a task whose labels are not numbers of pairs."""
    if task.classes != 1 or isinstance(task.dev[0][0], str):
        return {}
    dev = labelled_data.separate_pairs(experiment, task)
    pooling = experiment.teacher.pooling
    cosines = jax.jit(
        lambda p, b: classification.task_features(module, p, b, pooling, 1)
    )
    made = loader.map_batches(
        partial(cosines, params),
        dev,
        experiment.config.finetune.batch_size,
        experiment.mesh,
    )
    return {"similarity": metrics.spearman(dev["label"], made[:, 0])}


def _save_classifier(
    experiment, folder: epath.Path, student, params: dict, labels, rows
) -> None:
    """The best epoch: the encoder as a Hugging Face folder, the head beside it."""
    from safetensors.numpy import save_file

    head = {
        name.removeprefix("head_"): np.ascontiguousarray(value)
        for name, value in params.items()
        if name.startswith("head_")
    }
    teacher = experiment.teacher
    # On the labels' own scale.
    mean, deviation = rows.label_scale
    head = {
        "kernel": head["kernel"] * deviation,
        "bias": head["bias"] * deviation + mean,
    }
    reads = "its embedding x"
    if rows.embeds_separately:
        reads = "16 * [u, v, |u - v|, u * v] of its unit embeddings u, v of two texts"
        if rows.classes == 1:
            reads = "the cosine of its embeddings of two texts"
    said = {
        "reads": reads,
        "labels": labels,  # In the order of the logits; empty for a number.
        "embedding": teacher.pooling,
        "length": experiment.config.finetune.max_seq_length,
    }

    def add(partial):
        save_file(head, partial / "head.safetensors")
        (partial / "head.json").write_text(json.dumps(said, indent=2) + "\n")

    huggingface.save_pretrained(
        folder / "student",
        student.arch,
        student.dims,
        params,
        student.folder,
        teacher.pooling,
        teacher.embeds_sentences,
        f"# {student.arch.name}, fine-tuned\n\nThe encoder is a Hugging Face model. "
        f"`head.safetensors` (kernel, bias) reads {reads} ({teacher.pooling} pooling): "
        "logits = x @ kernel + bias. `head.json` names the labels in the order "
        f"of the logits. Texts had at most {said['length']} tokens.\n",
        add,
    )
