"""How do Hugging Face folders come in, and students go out as such folders?"""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from autodistill_jax.arch import Arch
from autodistill_jax.cost import Sizes
from autodistill_jax.errors import UserError
from autodistill_jax.model import bert, extract, sentence
from autodistill_jax.model.locate import locate

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
)
_MODELING = Path(__file__).with_name("modeling_elastic_bert.py")


class Teacher(NamedTuple):
    """A loaded BERT.

    `embeds`: a sentence-embedding model (its folder names the pooling). `pooling`: what
    stands for a text, see `losses.pool`: as the folder names it; else "pooler", or
    "mean" where the weights have no pooler. `folder` is where it came from.
    """

    arch: Arch
    sizes: Sizes
    params: dict[str, np.ndarray]
    pooling: str
    embeds: bool
    folder: Path


def load(name: str) -> Teacher:
    """A BERT by folder, packaged name or Hugging Face hub name.

    Raises:
      UserError: no such folder, package or hub model; another model type; pickled
        weights only; a tensor that is missing or of the wrong shape; a wrong checksum.
    """
    folder = locate(name)
    arch, sizes = read_config(folder)
    path = folder / "model.safetensors"
    if not path.exists():
        _refuse_weights(folder)
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except Exception as error:
        raise UserError(
            f"{path} is not a readable safetensors file: {error}"
        ) from error
    pooling = sentence.pooling(folder)
    has_pooler = any(name.endswith("pooler.dense.weight") for name in tensors)
    return Teacher(
        arch,
        sizes,
        _from_tensors(tensors, arch, sizes, path),
        pooling or ("pooler" if has_pooler else "mean"),
        pooling is not None,
        folder,
    )


def read_config(folder: Path) -> tuple[Arch, Sizes]:
    """Sizes from config.json (read, not assumed)."""
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder} has no config.json; give a Hugging Face folder")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object")
    kind = config.get("model_type")
    if kind not in ("bert", "elastic_bert"):
        raise UserError(f"{path} has model_type {kind!r}; known: 'bert'")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(
            f"{path} has position_embedding_type "
            f"{config['position_embedding_type']!r}; only 'absolute' is known"
        )
    if config.get("hidden_act", "gelu") not in bert.ACTIVATIONS:
        raise UserError(
            f"{path} has hidden_act {config['hidden_act']!r}; "
            f"known: {', '.join(bert.ACTIVATIONS)}"
        )
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head_size = config.get("head_size") or hidden // heads
        arch = Arch(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            ffn=config["intermediate_size"],
            head_size=head_size,
        )
        sizes = Sizes(
            vocab=config["vocab_size"],
            positions=config["max_position_embeddings"],
            types=config.get("type_vocab_size", 2),
            norm_epsilon=config.get("layer_norm_eps", 1e-12),
            activation=config.get("hidden_act", "gelu"),
            heads=heads,
        )
    except KeyError as error:
        raise UserError(f"{path} has no {error}; it is needed") from error
    return arch, sizes


def _refuse_weights(folder: Path) -> None:
    pickled = folder / "pytorch_model.bin"
    if pickled.exists():
        raise UserError(
            f"{pickled} is a pickle, which can run code when loaded; convert it once "
            'where you trust it: python -c "import torch; from safetensors.torch '
            f"import save_file; w = torch.load('{pickled}', map_location='cpu', "
            "weights_only=True); save_file({k: v.clone().contiguous() for k, v in "
            f"w.items()}}, '{folder / 'model.safetensors'}')\""
        )
    raise UserError(f"{folder} has no model.safetensors; the weights are needed there")


def _tensors_of(sizes: Sizes, arch: Arch):
    """(Hugging Face name, parameter, its shape there, layer or None, part of q/k/v)."""
    d, w, f = arch.hidden, arch.heads * arch.head_size, arch.ffn
    yield "embeddings.word_embeddings.weight", "embeddings_word", (sizes.vocab, d), None
    yield (
        "embeddings.position_embeddings.weight",
        "embeddings_position",
        (sizes.positions, d),
        None,
    )
    yield (
        "embeddings.token_type_embeddings.weight",
        "embeddings_type",
        (sizes.types, d),
        None,
    )
    yield "embeddings.LayerNorm.weight", "embeddings_norm_scale", (d,), None
    yield "embeddings.LayerNorm.bias", "embeddings_norm_bias", (d,), None
    for i in range(arch.layers):
        prefix = f"encoder.layer.{i}."
        for part, name in enumerate(("query", "key", "value")):
            place = (i, slice(None), part)
            yield (
                f"{prefix}attention.self.{name}.weight",
                "layers_qkv_kernel",
                (w, d),
                place,
            )
            yield (
                f"{prefix}attention.self.{name}.bias",
                "layers_qkv_bias",
                (w,),
                (i, part),
            )
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
    yield "pooler.dense.weight", "pooler_kernel", (d, d), None
    yield "pooler.dense.bias", "pooler_bias", (d,), None


def _is_matrix(parameter: str) -> bool:
    """Torch keeps Linear weights as [out, in]; ours are [in, out]."""
    return parameter.endswith("_kernel")


def _from_tensors(tensors, arch, sizes, path) -> dict[str, np.ndarray]:
    prefix = "bert." if any(name.startswith("bert.") for name in tensors) else ""
    shapes = jax.eval_shape(
        functools.partial(extract.init, bert.Bert(arch, sizes)), jax.random.key(0)
    )
    params = {k: np.empty(v.shape, np.float32) for k, v in shapes.items()}
    for name, parameter, shape, place in _tensors_of(sizes, arch):
        # Checkpoints from before 2019 say gamma and beta.
        old = name.replace("Norm.weight", "Norm.gamma").replace(
            "Norm.bias", "Norm.beta"
        )
        tensor = tensors.get(prefix + name, tensors.get(prefix + old))
        if tensor is None and name.startswith("pooler."):
            tensor = np.zeros(shape, np.float32)  # Masked-word models have none.
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
        value = value.T if _is_matrix(parameter) else value
        if place is None:
            params[parameter][:] = value
        else:
            params[parameter][place] = value
    return params


def save(
    folder: Path,
    arch: Arch,
    sizes: Sizes,
    params: dict,
    teacher: Path,
    pooling: str,
    embeds: bool,
    card: str,
    check: Callable[[Path], None],
) -> None:
    """Writes a student as a folder that `transformers.AutoModel` loads.

    A stock BertModel where heads * head_size == hidden; else with a small modeling file
    of ours, loaded with trust_remote_code=True. Tokenizer files come from the teacher's
    folder. `check` is called on the finished folder before it takes its final name.
    """
    from safetensors.numpy import save_file

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {}
    for name, parameter, _, place in _tensors_of(sizes, arch):
        value = np.asarray(params[parameter], np.float32)
        value = value if place is None else value[place]
        value = value.T if _is_matrix(parameter) else value
        tensors[name] = np.ascontiguousarray(value)
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "attention_probs_dropout_prob": 0.1,
        "hidden_dropout_prob": 0.1,
        "hidden_act": sizes.activation,
        "hidden_size": arch.hidden,
        "initializer_range": 0.02,
        "intermediate_size": arch.ffn,
        "layer_norm_eps": sizes.norm_epsilon,
        "max_position_embeddings": sizes.positions,
        "num_attention_heads": arch.heads,
        "num_hidden_layers": arch.layers,
        "pad_token_id": json.loads((teacher / "config.json").read_text()).get(
            "pad_token_id", 0
        ),
        "position_embedding_type": "absolute",
        "type_vocab_size": sizes.types,
        "vocab_size": sizes.vocab,
    }
    if not arch.exportable:
        config |= {
            "architectures": ["ElasticBertModel"],
            "model_type": "elastic_bert",
            "head_size": arch.head_size,
            "auto_map": {
                "AutoConfig": "modeling_elastic_bert.ElasticBertConfig",
                "AutoModel": "modeling_elastic_bert.ElasticBertModel",
            },
        }
        shutil.copy(_MODELING, partial / _MODELING.name)
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in TOKENIZER_FILES:
        if (teacher / name).exists():
            shutil.copy(teacher / name, partial / name)
    if embeds:
        sentence.save(partial, arch, pooling)
    (partial / "README.md").write_text(card)
    check(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
