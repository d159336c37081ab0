"""Job `pretrain`: a teacher of one's own, trained on hidden words and next sentences."""

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
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import teacher as teachers
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.programs import pretraining_step
from autodistill_jax.experiment.text_rows import text_rows
from autodistill_jax.interop import hf_parity, huggingface
from autodistill_jax.interop.hf_config import read_config_json as read_config
from autodistill_jax.models import build, heads
from autodistill_jax.train import checkpoint, loop, optimizer
from autodistill_jax.train import pretraining as pretrain

_MAX_HELD_OUT_ROWS = 4096  # Held-out rows, at most.
_TOLERANCE = 1e-4


def check_pretrain(experiment: Experiment) -> None:
    """Raises UserError if the job cannot be done."""
    config = experiment.config
    if not config.pretrain.steps:
        raise UserError(
            "pretrain.steps is 0, which means that nothing is pre-trained; give "
            "--config.pretrain.steps=10000, say"
        )
    if experiment.special_tokens.mask_token_id is None:
        raise UserError(
            "pretrain hides words, and the teacher's tokenizer has no token for a hidden "
            "word ([MASK]); use the tokenizer files of another teacher"
        )
    teachers.check_pretraining(config, experiment.named_teacher)


def run_pretrain(
    experiment: Experiment, workdir: epath.Path, stage: str = "pretrain"
) -> None:
    """Leaves pretrained/, a Hugging Face folder with the heads; goes on from the last
    checkpoint."""
    settings = experiment.config.pretrain
    folder = teachers.pretrained_folder(workdir)
    if storage.is_complete(folder):
        log.say(f"{stage}: done already, {folder}")
        return
    seed, mesh = experiment.config.seed, experiment.mesh
    began = teachers.pretraining_start(experiment.config, experiment.named_teacher)
    arch, dims = began.arch, began.dims
    made = pretraining_step(experiment, began)
    module = made.module
    data = text_rows(experiment, workdir, "train")
    state = optimizer.init_state(made.tx, made.params, made.axes, mesh)
    kept = checkpoint.checkpoint_manager(workdir / "pretrain" / "checkpoints")
    start = kept.latest_step() or 0
    if start:
        state = checkpoint.restore_checkpoint(kept, state)
        log.say(f"{stage}: going on after step {start}")
    else:
        count = parameter_overview.count_parameters(made.params)
        source = "random weights" if settings.arch else experiment.config.teacher
        what = "hidden words" + " and next sentences" * ("next_sentence_label" in data)
        log.say(
            f"{stage}: {describe(arch)}, {count:,} parameters from {source}; {what}; "
            f"{mesh.size} device(s); compiling ..."
        )
    writer = log.MetricsWriter(workdir, experiment.config.tensorboard)
    feed = loader.train_batches(data, settings.batch_size, seed)
    key = jax.random.key(seed)
    with checkpoint.wait_until_saved(kept):
        state = loop.fit(
            made.step,
            state,
            lambda i: (loader.batch_at_step(feed, i, mesh), jax.random.fold_in(key, i)),
            settings.steps,
            what=stage,
            start=start,
            save=lambda done, state: checkpoint.save_checkpoint(kept, done, state),
            save_every=settings.checkpoint_every_steps,
            tell=lambda done, values: writer.write("pretrain", done, values),
        )
    params = jax.tree.map(sharding.to_host, state["params"])
    held_out = text_rows(experiment, workdir, "heldout")
    held_out = {name: value[:_MAX_HELD_OUT_ROWS] for name, value in held_out.items()}
    right = pretrain.pretraining_accuracies(
        module,
        heads.encoder_params(params),
        heads.head_params(params),
        held_out,
        experiment.special_tokens,
        mesh,
        fraction=settings.mlm_probability,
        at_most=settings.max_predictions_per_seq,
        batch_size=settings.batch_size,
        seed=seed,
    )
    writer.write("pretrain/heldout", settings.steps, right)
    sample = {name: value[:4] for name, value in held_out.items()}
    huggingface.save_pretrained(
        folder,
        arch,
        dims,
        params,
        experiment.named_teacher.folder,
        "pooler",
        False,
        _model_card(experiment, module, right, len(held_out["input_ids"])),
        lambda partial: _check_parity(partial, module, params, sample, stage),
        heads.head_params(params),
    )
    log.say(
        f"{stage}: on {len(held_out['input_ids']):,} held-out rows, {_format_accuracies(right)}"
    )
    log.say(f"{stage}: made {folder}, this run's teacher from here on")


def _check_parity(folder: Path, module, params: dict, sample: dict, stage: str) -> None:
    """Raises RuntimeError unless the written folder gives the trained network's logits,
    loaded by us, and by transformers where it is installed with torch."""
    module = module.clone(dtype=jnp.float32, mesh=None)
    places = np.tile(
        np.arange(sample["input_ids"].shape[1]), (len(sample["input_ids"]), 1)
    )
    batch = sample | {"masked_positions": places}
    again = huggingface.load_pretrained(str(folder))
    reread = {**again.params, **again.mlm_head, **(again.nsp_head or {})}
    alike = build.build_module(again.arch, again.dims)
    wanted = jax.jit(partial(pretrain.pretraining_logits, module))(params, batch)
    made = [jax.jit(partial(pretrain.pretraining_logits, alike))(reread, batch)]
    (kind,) = read_config(folder)["architectures"]
    theirs, by = (
        hf_parity.transformers_outputs(folder, sample, kind),
        hf_parity.NOT_INSTALLED,
    )
    if theirs is not None:
        by = f"transformers ({kind})"
        named_so = {"mlm": "prediction_logits", "nsp": "seq_relationship_logits"}
        if "nsp" not in wanted:
            named_so = {"mlm": "logits"}
        made.append({ours: theirs[name].numpy() for ours, name in named_so.items()})
    error, real = 0.0, sample["attention_mask"].astype(bool)
    for name, value in wanted.items():
        scale = max(1.0, float(jnp.abs(value).max()))
        for one in made:
            off = np.abs(np.asarray(one[name]) - np.asarray(value)) / scale
            error = max(error, float((off[real] if name == "mlm" else off).max()))
    log.say(f"{stage}: logits differ by at most {error:.1e} after reloading by {by}")
    if not error <= _TOLERANCE:
        raise RuntimeError(
            f"the written network's logits differ by {error}, over {_TOLERANCE}"
        )


def _format_accuracies(right: dict[str, float]) -> str:
    told = f"{right['mlm']:.1%} of hidden words named right"
    if "nsp" in right:
        told += f", {right['nsp']:.1%} of next sentences told right"
    return told


def _model_card(experiment: Experiment, module, right: dict, count: int) -> str:
    """The model card: what it is, what it was trained on, what it can do."""
    config, dims = experiment.config, module.dims
    settings = config.pretrain
    seen = settings.steps * settings.batch_size * config.data.max_seq_length
    start = (
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
from {start}.

{settings.steps:,} steps of {settings.batch_size} rows of {config.data.max_seq_length} tokens
({seen:,} tokens) of `{config.data.source}`, {settings.mlm_probability:.0%} of words hidden. On
{count:,} held-out rows: {_format_accuracies(right)}.
"""
