"""Job `finetune`: student, baselines and teacher on each labelled task."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import log, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.data import glue, squad, tasks
from autodistill_jax.experiment import (
    finetune_results,
    fingerprints,
    labelled_data,
    qa_finetuning,
    similarity,
)
from autodistill_jax.experiment.baseline import STATIC
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.model_costs import model_costs
from autodistill_jax.experiment.workdir import (
    baseline_folder,
    chosen_arch,
    read_front,
    require_json,
    student_archs,
)
from autodistill_jax.interop import huggingface, sentence_transformers
from autodistill_jax.models import build
from autodistill_jax.report import tables
from autodistill_jax.train import classification
from autodistill_jax.train.classification import ClassificationData
from autodistill_jax.train.question_answering import SpanData

_FROZEN_TEXT = "frozen encoder, linear head"


def pending_tasks(
    experiment: Experiment, workdir: epath.Path
) -> list[tasks.Task | squad.Squad]:
    """The labelled tasks that have no result yet, read before any work starts.

    Args:
      experiment: whose `finetune.tasks` are meant.
      workdir: where earlier results may be.

    Returns:
      The tasks, under the names of their folders.

    Raises:
      UserError: an unknown task, a file that cannot be used, a setting that cannot be.
    """
    config = experiment.config
    settings = config.finetune
    pending = []
    chosen = chosen_arch(config, workdir)
    archs = student_archs(config, read_front(config, workdir)) if chosen else []
    for name in settings.tasks:
        folder = fingerprints.task_dirname(settings, name)
        keys = (
            glue.submission_keys(name)
            if settings.glue_submission and name in glue.GLUE_TASKS
            else ()
        )
        folders = [workdir / "finetune" / arch.name / folder for arch in archs]
        if folders and not any(
            _missing_models(path, config, keys, path == folders[0]) for path in folders
        ):
            continue
        if name == squad.SQUAD:
            pending.append(qa_finetuning.load_squad_task(experiment))
            continue
        task = labelled_data.load_task(config, name, experiment.teacher.class_names)
        pending.append(task._replace(name=folder))
    return pending


def run_finetune(
    experiment: Experiment,
    workdir: epath.Path,
    pending: list[tasks.Task | squad.Squad],
    stage: str = "finetune",
) -> None:
    """Leaves finetune/<student>/: <task>/<model>.json, table.md, the student's
    fine-tuned weights, and GLUE's submission files where `finetune.glue_submission`
    asks for them.

    Args:
      experiment: whose students, baselines and teacher are compared.
      workdir: with the students that the jobs export and baselines left.
      pending: the tasks to do, as of `pending_tasks`.
      stage: what log lines begin with.

    Raises:
      UserError: there was no search under these settings, or a student or a baseline is
        not there.
    """
    front = read_front(experiment.config, workdir)
    archs = student_archs(experiment.config, front)
    for arch in archs:
        require_json(workdir / "students" / arch.name / "similarity.json", "export")
    for task in pending:
        is_squad = task.name == squad.SQUAD
        prepare = (
            qa_finetuning.span_data if is_squad else labelled_data.classification_data
        )
        rows = prepare(experiment, task)
        submission = experiment.config.finetune.glue_submission
        keys = tuple(task.test_texts) if submission else ()
        glue_keys = (
            glue.submission_keys(task.name) if task.name in glue.GLUE_TASKS else ()
        )
        if submission and set(glue_keys) - set(keys):
            lacking = ", ".join(f"{key}.tsv" for key in glue_keys if key not in keys)
            log.say(f"{stage}: {task.name} has no texts for {lacking}: not written")
        for arch in archs:
            folder = workdir / "finetune" / arch.name / task.name
            models = _missing_models(folder, experiment.config, keys, arch == archs[0])
            if is_squad:  # The teacher's soft labels may be learned from.
                models.sort(key=lambda model: model != "teacher")
            for model in models:
                model_text = model if len(archs) == 1 else f"{model} {arch.name}"
                label = f"{stage} {task.name}, {model_text}"
                source = _starting_network(experiment, workdir, model, arch)
                first_folder = workdir / "finetune" / archs[0].name / task.name
                result = _finetune_model(
                    experiment, source, model, rows, folder, task, label, first_folder
                )
                storage.write_json(
                    folder / f"{model}.json",
                    {
                        "task": task.name,
                        "model": model,
                        "metric": task.metric,
                        "settings": finetune_results.result_settings(
                            experiment.config, model, task.name
                        ),
                        **result,
                    },
                )
                log.say(
                    f"{stage}: {task.name}, {model_text}: {task.metric} "
                    f"{result['score']:.4f}"
                )
    action = "made" if pending else "nothing left to do in"
    _write_tables(experiment, workdir, front, action, stage)


def _write_tables(
    experiment: Experiment, workdir: epath.Path, front: dict, action: str, stage: str
) -> None:
    """table.md of each student, and students.md where there are several."""
    archs = student_archs(experiment.config, front)
    for arch in archs:
        folder = workdir / "finetune" / arch.name
        if by_task := finetune_results.read_results(experiment.config, folder):
            costs = model_costs(experiment.config, workdir, front, arch)
            table = tables.markdown_table(
                *tables.task_table(by_task, costs, front["latency"]["source"])
            )
            notes = tables.table_notes(
                by_task, labelled_data.mlm_head_report(experiment, workdir, by_task)
            )
            text = table + "\n" + "\n".join(notes) + "\n"
            storage.write_text(folder / "table.md", text)
            log.say(table.rstrip())
        log.say(f"{stage}: {action} {folder}")
    if len(archs) > 1:
        table = tables.markdown_table(
            *tables.students_table(experiment.config, front, workdir)
        )
        storage.write_text(workdir / "finetune" / "students.md", table)
        log.say(table.rstrip())


def _missing_models(
    folder: epath.Path, config: ConfigDict, keys: Sequence[str], first: bool
) -> list[str]:
    """The models that lack their result on a task, in its folder, under these settings,
    or one of the submission files `keys`. What a student is compared with is made for
    the `first` one alone."""
    done = finetune_results.results_in_folder(config, folder)

    def submitted(model):
        # A head on what is frozen is there to compare with, and predicts nothing.
        if _is_frozen(config, model):
            return True
        return all(_submission_path(folder, model, key).exists() for key in keys)

    models = finetune_results.compared_models(config) if first else ["student"]
    if folder.name == squad.SQUAD:  # A token's vector does not tell where it stands.
        models = [model for model in models if model != STATIC]
    return [m for m in models if m not in done or not submitted(m)]


def _is_frozen(config: ConfigDict, model: str) -> bool:
    """Whether only a head is trained: a static table, or a teacher that stays."""
    return model == STATIC or (
        model == "teacher" and config.finetune.teacher == "frozen"
    )


def _submission_path(folder: epath.Path, model: str, key: str) -> epath.Path:
    return folder.parent / "submission" / model / f"{key}.tsv"


def _starting_network(
    experiment: Experiment, workdir: epath.Path, model: str, arch: AnyArch
) -> huggingface.Teacher:
    """The network a model starts its fine-tuning from."""
    if model == "teacher":
        return experiment.teacher
    if model in ("student", "scratch"):
        network = huggingface.load_pretrained(str(workdir / "students" / arch.name))
        # Random weights know no map to the teacher's embeddings.
        return network._replace(dense=None) if model == "scratch" else network
    folder = baseline_folder(workdir, model, arch)
    require_json(folder / "config.json", "baselines")
    if model == STATIC:
        table = sentence_transformers.read_static_table(storage.local_copy(folder))
        return huggingface.static_network(experiment.teacher, table)
    return huggingface.load_pretrained(str(folder))


def _finetune_model(
    experiment: Experiment,
    source: huggingface.Teacher,
    model: str,
    rows: ClassificationData | SpanData,
    folder: epath.Path,
    task: tasks.Task | squad.Squad,
    label: str,
    first_folder: epath.Path,
) -> dict[str, Any]:
    """One model's result on one task, over all seeds.

    source: the network it starts from. folder: of the task's results, of one student.
    label: for the progress line. first_folder: of the first student, which holds the
    teacher's too.
    """
    config, teacher = experiment.config, experiment.teacher
    settings = config.finetune.to_dict()
    is_squad = isinstance(task, squad.Squad)
    counts = (
        qa_finetuning.window_counts(task, rows)
        if is_squad
        else labelled_data.row_counts(rows)
    )
    frozen = _is_frozen(config, model)
    pooling = source.pooling if model == STATIC else teacher.pooling
    module = huggingface.network_module(
        source,
        dtype=jnp.dtype(settings["compute_dtype"]),
        dropout=settings["dropout"],
    )
    if frozen and not is_squad:
        log.say(f"{label}: a head on the frozen {model} ...")
        score = classification.frozen_score(
            module,
            source.params,
            rows,
            pooling,
            settings["batch_size"],
            experiment.mesh,
        )
        result = {"score": score, "method": _FROZEN_TEXT}
        cosines = similarity.cosine_spearman(
            experiment, module, source, source.params, pooling, task
        )
        return counts | result | cosines
    method, num_seeds = _FROZEN_TEXT if frozen else "fine-tuned", settings["seeds"]
    if model == "teacher":
        num_seeds = settings["teacher_seeds"]
    if model in ("teacher", "scratch"):
        settings["learning_rate"] = settings[f"{model}_learning_rate"]

    def params(seed):
        if model == "scratch":
            return build.init_params(module, jax.random.key(seed))
        return source.params

    if model == "scratch":
        method = "random weights, trained on the task alone"
    seeds = range(config.seed, config.seed + num_seeds)
    if is_squad:
        result = qa_finetuning.finetune_squad(
            experiment,
            module,
            source,
            model,
            params,
            settings,
            seeds,
            rows,
            folder,
            first_folder / "teacher",
            label,
        )
        return counts | result | {"method": method}
    seed_results = classification.finetune_classifier(
        module,
        params,
        rows,
        settings,
        pooling,
        experiment.mesh,
        seeds,
        label,
    )
    best = finetune_results.best_seed(seed_results)
    if model == "student":
        _save_classifier(experiment, folder, source, best.params, task.labels, rows)
    for key, predictions in best.test_predictions.items():
        text = glue.submission_text(task, key, predictions)
        storage.write_text(_submission_path(folder, model, key), text)
    result = {
        "method": method,
        "extra_scores": finetune_results.mean_figures(
            [seed.extra_scores for seed in seed_results]
        ),
    }
    cosines = similarity.cosine_spearman(
        experiment, module, source, params(config.seed), pooling, task
    )
    return counts | finetune_results.summarize_seeds(seed_results) | result | cosines


def _save_classifier(
    experiment: Experiment,
    folder: epath.Path,
    student: huggingface.Teacher,
    params: dict,
    labels: Sequence[str],
    rows: ClassificationData,
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
    head_input = "its embedding x"
    if rows.embeds_separately:
        head_input = (
            "16 * [u, v, |u - v|, u * v] of its unit embeddings u, v of two texts"
        )
        if rows.classes == 1:
            head_input = "the cosine of its embeddings of two texts"
    head_config = {
        "reads": head_input,
        "labels": labels,  # In the order of the logits; empty for a number.
        "embedding": teacher.pooling,
        "length": experiment.config.finetune.max_seq_length,
    }

    def add_head(partial):
        save_file(head, partial / "head.safetensors")
        (partial / "head.json").write_text(json.dumps(head_config, indent=2) + "\n")

    huggingface.save_pretrained(
        folder / "student",
        student.arch,
        student.dims,
        params,
        student.folder,
        teacher.pooling,
        teacher.embeds_sentences,
        f"# {student.arch.name}, fine-tuned\n\nThe encoder is a Hugging Face model. "
        f"`head.safetensors` (kernel, bias) reads {head_input} "
        f"({teacher.pooling} pooling): logits = x @ kernel + bias. `head.json` names "
        "the labels in the order of the logits. Texts had at most "
        f"{head_config['length']} tokens.\n",
        add_head,
    )
