"""Checkpoint tensors <-> parameters, for each family; its names and its heads."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.errors import UserError
from autodistill_jax.interop.hf_tensor_names import checkpoint_tensors
from autodistill_jax.models import build


class Family(NamedTuple):
    """How a model type of transformers is named there, and differs from BERT.

    Attributes:
      class_prefix: its classes' names begin so.
      tensor_prefix: of the encoder's tensors, in a checkpoint that has a head too.
      mlm_head: names of the masked-LM head: its projection, its LayerNorm, and what
        its decoder's names begin with; None where there is none.
      nsp_head: name of the next-sentence head's projection; None where there is none.
      pooler: whether the encoder has one.
      positions_from_pad: positions are counted from the padding's id + 1; the rows of
        the position table before that are for padding.
      tokenizer_class: its tokenizer's class.
    """

    class_prefix: str
    tensor_prefix: str
    mlm_head: tuple[str, str, str] | None
    nsp_head: str | None
    pooler: bool
    positions_from_pad: bool
    tokenizer_class: str


_BERT_MLM_HEAD = (
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions",
)
_BERT_NSP_HEAD = "cls.seq_relationship"
_ROBERTA_MLM_HEAD = ("lm_head.dense", "lm_head.layer_norm", "lm_head")
FAMILIES = {
    "bert": Family(
        "Bert", "bert.", _BERT_MLM_HEAD, _BERT_NSP_HEAD, True, False, "BertTokenizer"
    ),
    "electra": Family("Electra", "electra.", None, None, False, False, "BertTokenizer"),
    "roberta": Family(
        "Roberta", "roberta.", _ROBERTA_MLM_HEAD, None, True, True, "RobertaTokenizer"
    ),
    "xlm-roberta": Family(
        "XLMRoberta",
        "roberta.",
        _ROBERTA_MLM_HEAD,
        None,
        True,
        True,
        "XLMRobertaTokenizer",
    ),
    "mobilebert": Family(
        "MobileBert",
        "mobilebert.",
        _BERT_MLM_HEAD,
        _BERT_NSP_HEAD,
        True,
        False,
        "BertTokenizer",
    ),
}


def params_from_tensors(
    tensors: Mapping[str, np.ndarray],
    arch: AnyArch,
    dims: ModelDims,
    position_offset: int,
    path: Path,
) -> dict[str, np.ndarray]:
    """A checkpoint's tensors as the parameters of an encoder, `build.build_module`.

    Args:
      tensors: {name: array}; names with or without the family's prefix.
      arch: the network's Arch.
      dims: its sizes that are not elastic.
      position_offset: leading rows of the position table that are for padding, and left
        out.
      path: the checkpoint's path, named in errors.

    Returns:
      {name: f32 array}; a missing pooler is zeros.

    Raises:
      UserError: a tensor is missing or has another shape than config.json says.
    """
    family = FAMILIES[dims.family]
    prefix = family.tensor_prefix
    prefix = prefix if any(name.startswith(prefix) for name in tensors) else ""
    shapes = jax.eval_shape(
        functools.partial(build.init_params, build.build_module(arch, dims)),
        jax.random.key(0),
    )
    params = {k: np.zeros(v.shape, np.float32) for k, v in shapes.items()}
    entries = checkpoint_tensors(arch, dims, position_offset, family.pooler)
    for name, parameter, shape, index in entries:
        tensor = _find_tensor(tensors, prefix + name)
        if tensor is None and name.startswith("pooler."):
            continue  # Masked-LM models have none.
        if tensor is None:
            raise UserError(
                f"{path} has no tensor {prefix + name}; "
                "config.json and the weights do not belong together"
            )
        if tensor.shape != shape:
            raise UserError(
                f"{path}: tensor {prefix + name} has shape {tensor.shape}, but "
                f"config.json needs {shape}"
            )
        value = np.asarray(tensor, np.float32)
        if parameter == "embeddings_position":
            value = value[position_offset:]
        params[parameter][index] = _transpose_kernel(parameter, value)
    return params


def tensors_from_params(
    params: Mapping[str, np.ndarray],
    arch: AnyArch,
    dims: ModelDims,
    position_offset: int,
    head: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Parameters as a checkpoint's tensors, the inverse of `params_from_tensors`.

    Args:
      params: {name: array} of an encoder, layers stacked.
      arch: the network's Arch.
      dims: its sizes that are not elastic.
      position_offset: leading rows of the position table that are for padding; they are
        zeros.
      head: of `read_mlm_head`, with or without that of `read_nsp_head`; the encoder's
        tensors then have the family's prefix. Without a next-sentence head the pooler
        is left out: nothing trained it.

    Returns:
      {name: f32 array}, contiguous.
    """
    tensors, family = {}, FAMILIES[dims.family]
    prefix = family.tensor_prefix if head else ""
    pooler = family.pooler and (not head or "nsp_kernel" in head)
    entries = checkpoint_tensors(arch, dims, position_offset, family.pooler)
    for name, parameter, _, index in entries:
        if name.startswith("pooler.") and not pooler:
            continue
        value = _transpose_kernel(
            parameter, np.asarray(params[parameter], np.float32)[index]
        )
        if parameter == "embeddings_position":
            value = np.pad(value, ((position_offset, 0), (0, 0)))
        tensors[prefix + name] = np.ascontiguousarray(value)
    if head:
        if dims.family == "mobilebert":  # As wide as its word embeddings: an empty one.
            head = {"mlm_more": np.zeros((0, dims.vocab)), **head}
        for parameter, name in (
            _mlm_tensor_names(dims) | _nsp_tensor_names(dims)
        ).items():
            if parameter in head:
                value = _transpose_kernel(
                    parameter, np.asarray(head[parameter], np.float32)
                )
                tensors[name] = np.ascontiguousarray(value)
    return tensors


def _mlm_tensor_names(dims: ModelDims) -> dict[str, str]:
    """{parameter of the masked-LM head: its tensor}."""
    dense, norm, out = FAMILIES[dims.family].mlm_head
    names = {
        "mlm_kernel": f"{dense}.weight",
        "mlm_bias": f"{dense}.bias",
        "mlm_norm_scale": f"{norm}.weight",
        "mlm_norm_bias": f"{norm}.bias",
        "mlm_out_bias": f"{out}.bias",
    }
    if dims.family == "mobilebert":
        # Channels beyond the word embeddings' width have a table of their own, [in, V].
        names["mlm_more"] = f"{out}.dense.weight"
    return names


def _nsp_tensor_names(dims: ModelDims) -> dict[str, str]:
    """{parameter of the next-sentence head: its tensor}."""
    name = FAMILIES[dims.family].nsp_head
    return {"nsp_kernel": f"{name}.weight", "nsp_bias": f"{name}.bias"}


def read_mlm_head(
    tensors: Mapping[str, np.ndarray], dims: ModelDims
) -> dict[str, np.ndarray] | None:
    """The masked-LM head of a checkpoint.

    Of hidden states h [T, D] it makes logits [T, V] with the word embeddings
    `word` [V, D]: layer_norm(activation(h @ mlm_kernel + mlm_bias)) @ word.T +
    mlm_out_bias, the LayerNorm with mlm_norm_scale and mlm_norm_bias. MobileBERT's
    h is wider than `word`: the further channels go through mlm_more [D - E, V].

    Args:
      tensors: {name: array} of the checkpoint.
      dims: the network's sizes that are not elastic.

    Returns:
      {name: f32 array}, see `heads.init_mlm_head`; None if the checkpoint has no such
      head, or an unusual one.
    """
    family = FAMILIES[dims.family]
    if family.mlm_head is None:
        return None
    # RoBERTa's head has GELU, whatever its body has.
    if family.mlm_head == _ROBERTA_MLM_HEAD and dims.activation != "gelu":
        return None
    out = family.mlm_head[2]
    head = {
        name: _find_tensor(tensors, tensor)
        for name, tensor in _mlm_tensor_names(dims).items()
    }
    if head["mlm_out_bias"] is None:
        head["mlm_out_bias"] = tensors.get(f"{out}.decoder.bias")
    if any(value is None for value in head.values()):
        return None
    word_name = "embeddings.word_embeddings.weight"
    decoder = tensors.get(f"{out}.decoder.weight")
    word = tensors.get(family.tensor_prefix + word_name, tensors.get(word_name))
    if decoder is not None and not np.array_equal(decoder, word):
        return None  # Not tied to the word embeddings.
    # An empty table is as good as none.
    return {
        name: _param_from_tensor(name, value)
        for name, value in head.items()
        if value.size
    }


def read_nsp_head(
    tensors: Mapping[str, np.ndarray], dims: ModelDims
) -> dict[str, np.ndarray] | None:
    """The next-sentence head of a checkpoint.

    Args:
      tensors: {name: array} of the checkpoint.
      dims: the network's sizes that are not elastic.

    Returns:
      nsp_kernel [D, 2] and nsp_bias [2], f32, see `heads.nsp_logits`; None if the
      checkpoint has no such head.
    """
    if FAMILIES[dims.family].nsp_head is None:
        return None
    head = {
        name: tensors.get(tensor) for name, tensor in _nsp_tensor_names(dims).items()
    }
    if any(value is None for value in head.values()):
        return None
    return {name: _param_from_tensor(name, value) for name, value in head.items()}


def _param_from_tensor(parameter: str, tensor: np.ndarray) -> np.ndarray:
    return _transpose_kernel(parameter, np.asarray(tensor, np.float32))


def _find_tensor(tensors, name):
    # Checkpoints from before 2019 say gamma and beta.
    legacy_name = name.replace("Norm.weight", "Norm.gamma").replace(
        "Norm.bias", "Norm.beta"
    )
    return tensors.get(name, tensors.get(legacy_name))


def _transpose_kernel(parameter: str, value: np.ndarray) -> np.ndarray:
    """Torch keeps Linear weights as [out, in]; ours are [in, out]."""
    return value.T if parameter.endswith("_kernel") else value
