"""The network that teaches: the config's, or what the job pretrain makes of it."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import storage
from autodistill_jax.archs import published
from autodistill_jax.archs.arch import AnyArch, Arch
from autodistill_jax.archs.cost import ModelDims, student_dims
from autodistill_jax.errors import UserError
from autodistill_jax.interop import hf_config, huggingface
from autodistill_jax.interop.hf_weights import FAMILIES
from autodistill_jax.models import build, heads
from autodistill_jax.models.build import Params


def pretrained_folder(workdir: epath.Path) -> epath.Path:
    """The folder of the teacher that the job pretrain leaves."""
    return epath.Path(workdir) / "pretrained"


def load_teachers(
    config: ConfigDict, workdir: epath.Path | None
) -> tuple[huggingface.Teacher, huggingface.Teacher]:
    """Loads what `teacher` names, and the teacher of the experiment.

    They are one unless there is a workdir and `pretrain.steps` is above 0: then the
    teacher is what the job pretrain has left there, or, before it, what it starts from.

    Args:
      config: the experiment's.
      workdir: where a pre-trained teacher may lie.

    Returns:
      (what `teacher` names, the teacher of the experiment).

    Raises:
      UserError: no such teacher, or none that can be pre-trained.
    """
    source = huggingface.load_pretrained(config.teacher)
    if workdir is None or not config.pretrain.steps:
        return source, source
    if storage.is_complete(pretrained_folder(workdir)):
        return source, huggingface.load_pretrained(str(pretrained_folder(workdir)))
    return source, pretraining_start(config, source)


def pretraining_dims(
    text: str, arch: AnyArch, dims: ModelDims
) -> tuple[AnyArch, ModelDims]:
    """The sizes of what is pre-trained: the network that `teacher` names, or the one
    that `pretrain.arch` does.

    A BERT given by sizes has heads of hidden / heads, as stock ones have.

    Args:
      text: `pretrain.arch`.
      arch, dims: of the network that `teacher` names.

    Returns:
      (the Arch, its model's dimensions).

    Raises:
      UserError: `pretrain.arch` is neither sizes nor a name.
    """
    if not text:
        return arch, dims
    arch = published.parse_arch_or_name(text, 0, "pretrain.arch")
    if isinstance(arch, Arch) and not arch.head_size:
        arch = dataclasses.replace(arch, head_size=arch.hidden // arch.heads)
    dims = student_dims(dims, type(arch))
    dims = published.named_dims(text, dims) if published.named_arch(text) else dims
    return arch, dims._replace(reference_heads=arch.heads)


def check_pretraining(config: ConfigDict, source: huggingface.Teacher) -> None:
    """Raises UserError for a network that the job pretrain cannot train.

    Args:
      config: the experiment's.
      source: what `teacher` names.
    """
    arch, dims = pretraining_dims(config.pretrain.arch, source.arch, source.dims)
    if FAMILIES[dims.family].nsp_head is None:
        raise UserError(
            f"pretrain trains BERTs and MobileBERTs, and under this teacher {arch} "
            f"would be of the type {dims.family}; use a BERT as teacher, or "
            "MobileBERT's sizes in pretrain.arch"
        )
    if not hf_config.is_stock(arch, dims):
        raise UserError(
            f"{config.pretrain.arch or config.teacher} is {arch}, with heads of "
            f"{arch.head_size}; pretrain writes stock models, whose heads divide their "
            "hidden width, so give pretrain.arch other heads"
        )
    if not isinstance(arch, Arch) and arch.hidden < dims.embedding:
        raise UserError(
            f"pretrain.arch has hidden {arch.hidden}, narrower than the "
            f"{dims.embedding} channels of a MobileBERT's word embeddings; give it at "
            "least so many"
        )


def pretraining_start(
    config: ConfigDict, source: huggingface.Teacher
) -> huggingface.Teacher:
    """What pre-training starts from: network and heads are the source's own where it
    has them, else random ones.

    Args:
      config: the experiment's.
      source: what `teacher` names.

    Returns:
      The source, with the network, both heads and what else is another's.

    Raises:
      UserError: as `check_pretraining`.
    """
    check_pretraining(config, source)
    arch, dims = pretraining_dims(config.pretrain.arch, source.arch, source.dims)
    key = jax.random.key(config.seed)
    params: Params
    mlm_head: Params | None
    nsp_head: Params | None
    from_source = not config.pretrain.arch
    if from_source:
        params, mlm_head, nsp_head = source.params, source.mlm_head, source.nsp_head
    else:
        params = build.init_params(build.build_module(arch, dims), key)
        mlm_head = nsp_head = None
    mlm_head = mlm_head or heads.init_mlm_head(arch.hidden, dims)
    has_pairs = config.data.row_format == "pair"
    if has_pairs:
        nsp_head = nsp_head or heads.init_nsp_head(
            arch.hidden, jax.random.fold_in(key, 1)
        )
    return source._replace(
        arch=arch,
        dims=dims,
        params={name: np.asarray(value) for name, value in params.items()},
        # A folder without a next-sentence head is one without a pooler.
        pooling="pooler" if has_pairs else "mean",
        embeds_sentences=False,
        mlm_head={name: np.asarray(value) for name, value in mlm_head.items()},
        class_names=None,
        nsp_head=nsp_head if has_pairs else None,
    )


def abstract_teacher(config: ConfigDict) -> huggingface.Teacher:
    """A teacher of the sizes that a run would have, before there is a workdir.

    One whose sizes all know is neither looked for nor downloaded: its weights are zeros
    that take no memory.

    Args:
      config: the experiment's.

    Returns:
      The teacher, without a tokenizer.

    Raises:
      UserError: no such teacher, or none that can be pre-trained.
    """
    name = config.teacher
    if config.pretrain.steps:
        return pretraining_start(config, huggingface.load_pretrained(name))
    if name not in published.NAMED_TEACHERS or Path(name).is_dir():
        return huggingface.load_pretrained(name)
    arch, dims = published.NAMED_TEACHERS[name]
    module = build.build_module(arch, dims)
    shapes = jax.eval_shape(
        lambda: (
            build.init_params(module, jax.random.key(0)),
            heads.init_mlm_head(arch.hidden, dims),
        )
    )
    params, mlm_head = jax.tree.map(
        lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), shapes
    )
    return huggingface.Teacher(
        arch, dims, params, "pooler", False, Path(name), mlm_head
    )
