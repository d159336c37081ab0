"""What do the tensors of each family's checkpoint mean?"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from autodistill_jax.arch import Arch
from autodistill_jax.cost import Sizes
from autodistill_jax.errors import UserError
from autodistill_jax.model import bert, extract


class Family(NamedTuple):
    """How a model type of transformers is named there, and differs from BERT.

    model: its classes' names begin so. prefix: of its body's tensors, in a checkpoint
    that has a head too. head: the names of the masked-word head's projection, its
    LayerNorm and its decoder's place; None where there is none. pooler: the body has
    one. counted: positions are counted from the padding's id + 1, the first rows of
    the table are for padding. tokenizer: its tokenizer's class.
    """

    model: str
    prefix: str
    head: tuple[str, str, str] | None
    pooler: bool
    counted: bool
    tokenizer: str


_BERT_HEAD = (
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions",
)
_ROBERTA_HEAD = ("lm_head.dense", "lm_head.layer_norm", "lm_head")
FAMILIES = {
    "bert": Family("Bert", "bert.", _BERT_HEAD, True, False, "BertTokenizer"),
    "electra": Family("Electra", "electra.", None, False, False, "BertTokenizer"),
    "roberta": Family(
        "Roberta", "roberta.", _ROBERTA_HEAD, True, True, "RobertaTokenizer"
    ),
    "xlm-roberta": Family(
        "XLMRoberta", "roberta.", _ROBERTA_HEAD, True, True, "XLMRobertaTokenizer"
    ),
}


def read(
    tensors: Mapping[str, np.ndarray],
    arch: Arch,
    sizes: Sizes,
    skipped: int,
    path: Path,
) -> dict[str, np.ndarray]:
    """A checkpoint's tensors as the parameters of `bert.Bert`.

    `skipped` leading rows of the position table are for padding, and left out. A
    missing pooler is zeros. `path` is named in errors.

    Raises:
      UserError: a tensor is missing or has another shape than config.json says.
    """
    prefix = FAMILIES[sizes.family].prefix
    prefix = prefix if any(name.startswith(prefix) for name in tensors) else ""
    shapes = jax.eval_shape(
        functools.partial(extract.init, bert.Bert(arch, sizes)), jax.random.key(0)
    )
    params = {k: np.zeros(v.shape, np.float32) for k, v in shapes.items()}
    for name, parameter, shape, place in _tensors(arch, sizes, skipped):
        tensor = _find(tensors, prefix + name)
        if tensor is None and name.startswith("pooler."):
            continue  # Masked-word models have none.
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
            value = value[skipped:]
        params[parameter][place] = _turned(parameter, value)
    return params


def write(
    params: Mapping[str, np.ndarray], arch: Arch, sizes: Sizes, skipped: int
) -> dict[str, np.ndarray]:
    """The parameters as a checkpoint's tensors: `read` the other way round.

    The `skipped` rows of the position table that are for padding are zeros.
    """
    tensors = {}
    for name, parameter, _, place in _tensors(arch, sizes, skipped):
        value = _turned(parameter, np.asarray(params[parameter], np.float32)[place])
        if parameter == "embeddings_position":
            value = np.pad(value, ((skipped, 0), (0, 0)))
        tensors[name] = np.ascontiguousarray(value)
    return tensors


def head(
    tensors: Mapping[str, np.ndarray], sizes: Sizes
) -> dict[str, np.ndarray] | None:
    """The masked-word head of a checkpoint; None if it has none, or an unusual one.

    Of hidden states h [T, D] it makes logits [T, V] with the word embeddings
    `word` [V, D]: layer_norm(activation(h @ words_kernel + words_bias)) @ word.T +
    words_out_bias, the LayerNorm with words_norm_scale and words_norm_bias.
    """
    family = FAMILIES[sizes.family]
    if family.head is None:
        return None
    # RoBERTa's head has GELU, whatever its body has.
    if family.head == _ROBERTA_HEAD and sizes.activation != "gelu":
        return None
    dense, norm, out = family.head

    def find(*names):
        found = (_find(tensors, name) for name in names)
        found = next((tensor for tensor in found if tensor is not None), None)
        return None if found is None else np.asarray(found, np.float32)

    made = {
        "words_kernel": find(f"{dense}.weight"),
        "words_bias": find(f"{dense}.bias"),
        "words_norm_scale": find(f"{norm}.weight"),
        "words_norm_bias": find(f"{norm}.bias"),
        "words_out_bias": find(f"{out}.bias", f"{out}.decoder.bias"),
    }
    if any(value is None for value in made.values()):
        return None
    word = "embeddings.word_embeddings.weight"
    own, word = find(f"{out}.decoder.weight"), find(family.prefix + word, word)
    if own is not None and not np.array_equal(own, word):
        return None  # Not tied to the word embeddings.
    return {name: _turned(name, value) for name, value in made.items()}


def _tensors(arch: Arch, sizes: Sizes, skipped: int) -> Iterator[tuple]:
    """(tensor, parameter, the tensor's shape, its place in the parameter)."""
    d, w, f = arch.hidden, arch.heads * arch.head_size, arch.ffn
    e = sizes.embedding or d
    for name, parameter, shape in (
        ("word_embeddings.weight", "word", (sizes.vocab, e)),
        ("position_embeddings.weight", "position", (sizes.positions + skipped, e)),
        ("token_type_embeddings.weight", "type", (sizes.types, e)),
        ("LayerNorm.weight", "norm_scale", (e,)),
        ("LayerNorm.bias", "norm_bias", (e,)),
    ):
        yield f"embeddings.{name}", f"embeddings_{parameter}", shape, ...
    if sizes.embedding:
        yield "embeddings_project.weight", "embeddings_project_kernel", (d, e), ...
        yield "embeddings_project.bias", "embeddings_project_bias", (d,), ...
    for i in range(arch.layers):
        prefix = f"encoder.layer.{i}."
        for part, name in enumerate(("query", "key", "value")):
            name = f"{prefix}attention.self.{name}"
            kernel = (i, slice(None), part)
            yield f"{name}.weight", "layers_qkv_kernel", (w, d), kernel
            yield f"{name}.bias", "layers_qkv_bias", (w,), (i, part)
        for name, parameter, shape in (
            ("attention.output.dense.weight", "attention_kernel", (d, w)),
            ("attention.output.dense.bias", "attention_bias", (d,)),
            ("attention.output.LayerNorm.weight", "attention_norm_scale", (d,)),
            ("attention.output.LayerNorm.bias", "attention_norm_bias", (d,)),
            ("intermediate.dense.weight", "ffn_in_kernel", (f, d)),
            ("intermediate.dense.bias", "ffn_in_bias", (f,)),
            ("output.dense.weight", "ffn_out_kernel", (d, f)),
            ("output.dense.bias", "ffn_out_bias", (d,)),
            ("output.LayerNorm.weight", "ffn_norm_scale", (d,)),
            ("output.LayerNorm.bias", "ffn_norm_bias", (d,)),
        ):
            yield prefix + name, f"layers_{parameter}", shape, (i,)
    if FAMILIES[sizes.family].pooler:
        yield "pooler.dense.weight", "pooler_kernel", (d, d), ...
        yield "pooler.dense.bias", "pooler_bias", (d,), ...


def _find(tensors, name):
    # Checkpoints from before 2019 say gamma and beta.
    old = name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
    return tensors.get(name, tensors.get(old))


def _turned(parameter: str, value: np.ndarray) -> np.ndarray:
    """Torch keeps Linear weights as [out, in]; ours are [in, out]."""
    return value.T if parameter.endswith("_kernel") else value
