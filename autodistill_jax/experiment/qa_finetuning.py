"""Fine-tuning on SQuAD in the job finetune: questions in, answers and scores out."""

import json
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from autodistill_jax import log, storage
from autodistill_jax.data import squad, squad_windows
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import finetune_results
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.interop import huggingface
from autodistill_jax.models.build import Module
from autodistill_jax.train import question_answering
from autodistill_jax.train.question_answering import SpanData

_HEAD_PARAMS = ("kernel", "bias")


def load_squad_task(experiment: Experiment) -> squad.Squad:
    """SQuAD, within the config's limits.

    Args:
      experiment: its tokenizer, and its config's section finetune.

    Returns:
      The task; training questions in an order drawn by the seed.

    Raises:
      UserError: no such files, or not SQuAD's; settings that cannot be.
    """
    config, settings = experiment.config, experiment.config.finetune
    positions = experiment.teacher.dims.positions
    if settings.squad_max_seq_length > positions:
        raise UserError(
            f"finetune.squad_max_seq_length {settings.squad_max_seq_length} is more "
            f"than the teacher's {positions} positions; use at most so many"
        )
    if settings.soft_label_weight and settings.teacher != "full":
        raise UserError(
            f"finetune.soft_label_weight is {settings.soft_label_weight}, but "
            f"finetune.teacher is {settings.teacher}: soft labels are those of a "
            "fine-tuned teacher; give --config.finetune.teacher=full, or 0.0"
        )
    task = squad.load_squad(settings.squad_dir, config.data.download)
    for note in task.notes:
        log.say(f"{squad.SQUAD}: {note}")
    # The questions of a text stand together: shuffle, by the seed, before a limit.
    order = np.random.default_rng(config.seed).permutation(len(task.train))
    task = task._replace(
        train=[task.train[i] for i in order[: settings.max_train_rows or None]],
        dev=task.dev[: settings.max_dev_rows or None],
    )
    if len(task.train) < settings.batch_size:
        raise UserError(
            f"task squad has {len(task.train)} training questions; finetune.batch_size "
            f"{settings.batch_size} needs at least so many"
        )
    squad_windows.check_windows_fit(
        experiment.tokenizer, task.train + task.dev, settings.squad_max_seq_length
    )
    return task


def span_data(experiment: Experiment, task: squad.Squad) -> SpanData:
    """The windows of the task's questions, of `finetune.squad_max_seq_length` tokens.

    Args:
      experiment: its tokenizer, and its config's section finetune.
      task: of `load_squad_task`.

    Returns:
      Windows to train on, and windows to answer.
    """
    tokenizer = experiment.tokenizer
    length = experiment.config.finetune.squad_max_seq_length
    data = SpanData(
        squad_windows.training_windows(tokenizer, task.train, length),
        squad_windows.question_windows(tokenizer, task.dev, length),
        task.dev,
    )
    log.say(
        f"{squad.SQUAD}: {len(task.train):,} training and {len(task.dev):,} dev "
        f"questions in {len(data.train['input_ids']):,} and {len(data.dev.starts):,} "
        f"windows of {length} tokens"
    )
    return data


def finetune_squad(
    experiment: Experiment,
    module: Module,
    source: huggingface.Teacher,
    model: str,
    params: Callable[[int], dict],
    settings: dict,
    seeds: Sequence[int],
    rows: SpanData,
    folder: epath.Path,
    teacher_folder: epath.Path,
    label: str,
) -> dict:
    """One model's result over all seeds.

    Leaves the best seed's answers as SQuAD's own predictions file, and of student and
    fine-tuned teacher the network.

    Args:
      experiment: its teacher, mesh and config.
      module: of the model.
      source: the network that fine-tuning starts from.
      model: its name in the results, "student" or "teacher", say.
      params: the parameters to start from, of a seed.
      settings: the section finetune, at this model's learning rate; soft labels are
        entered into it.
      seeds: the seeds of the runs.
      rows: of `span_data`; the teacher's soft labels are kept in it.
      folder: where the files go.
      teacher_folder: of the fine-tuned teacher, for its soft labels.
      label: of the log's lines.

    Returns:
      As `finetune_results.summarize_seeds`.
    """
    frozen = model == "teacher" and settings["teacher"] == "frozen"
    if settings["soft_label_weight"] and model != "teacher":
        if "soft" not in rows.train:  # The same for all students.
            rows.train["soft"] = _soft_labels(experiment, module, rows, teacher_folder)
        settings["soft"] = settings["soft_label_weight"]
        settings["temperature"] = experiment.config.distill.temperature
    seed_results = question_answering.finetune_spans(
        module, params, rows, settings, experiment.mesh, seeds, label, frozen
    )
    best = finetune_results.best_seed(seed_results)
    if model in ("student", "teacher") and not frozen:
        _save_span_model(experiment, folder / model, source, best.params)
    path = folder / f"predictions-{model}.json"
    storage.write_text(path, json.dumps(best.answers) + "\n")
    scores_text = ", ".join(f"{100 * x:.2f} {name}" for name, x in best.metrics.items())
    log.say(f"{label}: {scores_text}; {path}")
    return finetune_results.summarize_seeds(seed_results)


def window_counts(task: squad.Squad, rows: SpanData) -> dict[str, int]:
    """How many questions and windows there are: {"train_rows", "dev_rows",
    "train_windows", "dev_windows"}."""
    return {
        "train_rows": len(task.train),
        "dev_rows": len(task.dev),
        "train_windows": len(rows.train["input_ids"]),
        "dev_windows": len(rows.dev.starts),
    }


def _soft_labels(
    experiment: Experiment, module: Module, rows: SpanData, folder: epath.Path
) -> np.ndarray:
    """The logits of the fine-tuned teacher, as `_save_span_model` left it."""
    teacher = huggingface.load_pretrained(str(folder))
    head = _load_span_head(folder)
    module = experiment.teacher_module().clone(dtype=module.dtype)
    batch_size = experiment.config.finetune.batch_size
    log.say(f"{squad.SQUAD}: the soft labels of {folder} ...")
    return question_answering.teacher_span_logits(
        module, teacher.params | head, rows, batch_size, experiment.mesh
    )


def _load_span_head(folder: epath.Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    head = load_file(storage.local_copy(folder / "head.safetensors"))
    return {f"head_{name}": value for name, value in head.items()}


def _save_span_model(
    experiment: Experiment,
    folder: epath.Path,
    source: huggingface.Teacher,
    params: dict,
) -> None:
    """The best epoch: the encoder as a Hugging Face folder, the head beside it."""
    from safetensors.numpy import save_file

    teacher = experiment.teacher
    length = experiment.config.finetune.squad_max_seq_length
    overlap = squad_windows.window_overlap(length)
    head = {name: np.ascontiguousarray(params[f"head_{name}"]) for name in _HEAD_PARAMS}
    head_description = {
        "reads": "the last hidden state x of every token",
        "logits": ["start", "end"],
        "length": length,
        "overlap": overlap,
    }

    def add(partial):
        save_file(head, partial / "head.safetensors")
        (partial / "head.json").write_text(
            json.dumps(head_description, indent=2) + "\n"
        )

    huggingface.save_pretrained(
        folder,
        source.arch,
        source.dims,
        params,
        source.folder,
        teacher.pooling,
        teacher.embeds_sentences,
        f"# {source.arch.name}, fine-tuned on SQuAD 1.1\n\nThe encoder is a Hugging "
        "Face model. `head.safetensors` (kernel, bias) reads the last hidden state x "
        "of every token of a question with its context: x @ kernel + bias are the "
        "logits of the answer's first and last token. Windows had at most "
        f"{length} tokens, {overlap} of them shared with the next.\n",
        add,
    )
