"""Job `pretrain`: a teacher of one's own, trained on masked tokens and NSP."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from etils import epath

from autodistill_jax import log, sharding, storage
from autodistill_jax.archs.arch import describe
from autodistill_jax.data import loader
from autodistill_jax.data.mlm import MlmMasking
from autodistill_jax.errors import UserError
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.programs import pretraining_step
from autodistill_jax.experiment.teacher import (
    check_pretraining,
    pretrained_folder,
    pretraining_start,
)
from autodistill_jax.experiment.text_rows import text_rows
from autodistill_jax.interop import hf_parity, huggingface
from autodistill_jax.interop.hf_config import read_config_json
from autodistill_jax.models import build, heads
from autodistill_jax.train import checkpoint, loop, optimizer, pretraining

_MAX_HELD_OUT_ROWS = 4096  # Held-out rows, at most.
_TOLERANCE = 1e-4


def check_pretrain(experiment: Experiment) -> None:
    """Checks the job before any work starts.

    Args:
      experiment: whose section `pretrain` and teacher are meant.

    Raises:
      UserError: the job cannot be done: no steps, a tokenizer without a mask token, a
        network that cannot be trained so.
    """
    config = experiment.config
    if not config.pretrain.steps:
        raise UserError(
            "pretrain.steps is 0, which means that nothing is pre-trained; give "
            "--config.pretrain.steps=10000, say"
        )
    if experiment.special_tokens.mask_token_id is None:
        raise UserError(
            "pretrain masks tokens, and the teacher's tokenizer has no mask token "
            "([MASK]); use the tokenizer files of another teacher"
        )
    check_pretraining(config, experiment.named_teacher)


def run_pretrain(
    experiment: Experiment, workdir: epath.Path, stage: str = "pretrain"
) -> None:
    """Leaves pretrained/, a Hugging Face folder with the heads; goes on from the last
    checkpoint.

    Args:
      experiment: whose section `pretrain` says what is trained, from what, how long.
      workdir: where pretrained/ and pretrain/checkpoints/ are left.
      stage: what log lines begin with.

    Raises:
      UserError: a network that cannot be trained so, see `check_pretraining`.
      RuntimeError: the written folder's logits are not the trained network's.
    """
    settings = experiment.config.pretrain
    folder = pretrained_folder(workdir)
    if storage.is_complete(folder):
        log.say(f"{stage}: done already, {folder}")
        return
    seed, mesh = experiment.config.seed, experiment.mesh
    initial = pretraining_start(experiment.config, experiment.named_teacher)
    arch, dims = initial.arch, initial.dims
    train_step = pretraining_step(experiment, initial)
    module = train_step.module
    data = text_rows(experiment, workdir, "train")
    state = optimizer.init_state(
        train_step.tx, train_step.params, train_step.axes, mesh
    )
    checkpoints = checkpoint.checkpoint_manager(workdir / "pretrain" / "checkpoints")
    start = checkpoints.latest_step() or 0
    if start:
        state = checkpoint.restore_checkpoint(checkpoints, state)
        log.say(f"{stage}: going on after step {start}")
    else:
        count = parameter_overview.count_parameters(train_step.params)
        source = "random weights" if settings.arch else experiment.config.teacher
        is_paired = "next_sentence_label" in data
        tasks = "masked tokens" + " and next sentences" * is_paired
        log.say(
            f"{stage}: {describe(arch)}, {count:,} parameters from {source}; {tasks}; "
            f"{mesh.size} device(s); compiling ..."
        )
    writer = log.MetricsWriter(workdir, experiment.config.tensorboard)
    batches = loader.train_batches(data, settings.batch_size, seed)
    key = jax.random.key(seed)
    with checkpoint.wait_until_saved(checkpoints):
        state = loop.fit(
            train_step.step,
            state,
            lambda i: (
                loader.batch_at_step(batches, i, mesh),
                jax.random.fold_in(key, i),
            ),
            settings.steps,
            label=stage,
            start=start,
            save_fn=lambda done, state: checkpoint.save_checkpoint(
                checkpoints, done, state
            ),
            save_every=settings.checkpoint_every_steps,
            log_fn=lambda done, values: writer.write("pretrain", done, values),
        )
    params = jax.tree.map(sharding.to_host, state["params"])
    held_out = text_rows(experiment, workdir, "heldout")
    held_out = {name: value[:_MAX_HELD_OUT_ROWS] for name, value in held_out.items()}
    accuracies = pretraining.pretraining_accuracies(
        module,
        heads.encoder_params(params),
        heads.head_params(params),
        held_out,
        MlmMasking(
            settings.mlm_probability,
            settings.max_predictions_per_seq,
            experiment.special_tokens,
        ),
        mesh,
        batch_size=settings.batch_size,
        seed=seed,
    )
    writer.write("pretrain/heldout", settings.steps, accuracies)
    sample = {name: value[:4] for name, value in held_out.items()}
    huggingface.save_pretrained(
        folder,
        arch,
        dims,
        params,
        experiment.named_teacher.folder,
        "pooler",
        False,
        _model_card(experiment, module, accuracies, len(held_out["input_ids"])),
        lambda partial: _check_parity(partial, module, params, sample, stage),
        heads.head_params(params),
    )
    log.say(
        f"{stage}: on {len(held_out['input_ids']):,} held-out rows, "
        f"{_format_accuracies(accuracies)}"
    )
    log.say(f"{stage}: made {folder}, this run's teacher from here on")


def _check_parity(
    folder: Path,
    module: build.Module,
    params: dict[str, np.ndarray],
    sample: dict[str, np.ndarray],
    stage: str,
) -> None:
    """Raises RuntimeError unless the written folder gives the trained network's logits,
    loaded by us, and by transformers where it is installed with torch."""
    module = module.clone(dtype=jnp.float32, mesh=None)
    positions = np.tile(
        np.arange(sample["input_ids"].shape[1]), (len(sample["input_ids"]), 1)
    )
    batch = sample | {"masked_positions": positions}
    reloaded = huggingface.load_pretrained(str(folder))
    reloaded_params = {
        **reloaded.params,
        **reloaded.mlm_head,
        **(reloaded.nsp_head or {}),
    }
    reloaded_module = build.build_module(reloaded.arch, reloaded.dims)
    expected = jax.jit(partial(pretraining.pretraining_logits, module))(params, batch)
    candidates = [
        jax.jit(partial(pretraining.pretraining_logits, reloaded_module))(
            reloaded_params, batch
        )
    ]
    (kind,) = read_config_json(folder)["architectures"]
    hf_outputs = hf_parity.transformers_outputs(folder, sample, kind)
    loaders = hf_parity.NOT_INSTALLED
    if hf_outputs is not None:
        loaders = f"transformers ({kind})"
        hf_names = {"mlm": "prediction_logits", "nsp": "seq_relationship_logits"}
        if "nsp" not in expected:
            hf_names = {"mlm": "logits"}
        candidates.append(
            {head: hf_outputs[name].numpy() for head, name in hf_names.items()}
        )
    error, real = 0.0, sample["attention_mask"].astype(bool)
    for name, value in expected.items():
        scale = max(1.0, float(jnp.abs(value).max()))
        for logits in candidates:
            difference = np.abs(np.asarray(logits[name]) - np.asarray(value)) / scale
            # NSP has one pair of logits a row; MLM has some at padding too.
            compared = difference[real] if name == "mlm" else difference
            error = max(error, float(compared.max()))
    log.say(
        f"{stage}: logits differ by at most {error:.1e} after reloading by {loaders}"
    )
    if not error <= _TOLERANCE:
        raise RuntimeError(
            f"the written network's logits differ by {error}, over {_TOLERANCE}"
        )


def _format_accuracies(accuracies: dict[str, float]) -> str:
    text = f"{accuracies['mlm']:.1%} of masked tokens named right"
    if "nsp" in accuracies:
        text += f", {accuracies['nsp']:.1%} of next sentences told right"
    return text


def _model_card(
    experiment: Experiment,
    module: build.Module,
    accuracies: dict[str, float],
    num_held_out: int,
) -> str:
    """The model card: what it is, what it was trained on, what it can do."""
    config, dims = experiment.config, module.dims
    settings = config.pretrain
    num_tokens = settings.steps * settings.batch_size * config.data.max_seq_length
    source = (
        f"random weights, with the tokenizer of {config.teacher}"
        if settings.arch
        else config.teacher
    )
    return f"""---
library_name: transformers
tags: [{dims.family}, autodistill_jax]
---

# {module.arch.name}, pre-trained

A model of type {dims.family}: {describe(module.arch)}; pre-trained by autodistill_jax
from {source}.

{settings.steps:,} steps of {settings.batch_size} rows of {config.data.max_seq_length} tokens
({num_tokens:,} tokens) of `{config.data.source}`, {settings.mlm_probability:.0%} of tokens masked. On
{num_held_out:,} held-out rows: {_format_accuracies(accuracies)}.
"""
