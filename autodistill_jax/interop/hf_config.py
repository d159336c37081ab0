"""The config.json of a Hugging Face folder: read, and written for a student."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autodistill_jax.archs.arch import AnyArch, Arch, MobileArch, check_head_split
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.errors import UserError, read_json_object
from autodistill_jax.interop.hf_weights import FAMILIES
from autodistill_jax.models.layers import ACTIVATIONS

# Fields that would change the computation, and the one value that is known here.
_FIXED_FIELDS = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
}
# Of a MobileBERT alone: other values are another computation.
_MOBILEBERT_FIXED_FIELDS = {"trigram_input": True, "use_bottleneck": True}
# The families that a stock class may not hold: see `is_stock`.
_ELASTIC_TYPES = {
    f"elastic_{name.replace('-', '_')}": name
    for name in FAMILIES
    if name != "mobilebert"
}


def read_config_json(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json.

    Raises:
      UserError: there is none, or it is not a JSON object.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder} has no config.json; give a Hugging Face folder")
    return read_json_object(path)


def read_arch_and_dims(folder: Path) -> tuple[AnyArch, ModelDims]:
    """The sizes that a folder's config.json states (read, not assumed).

    Args:
      folder: a Hugging Face folder.

    Returns:
      The network's Arch, and its sizes that are not elastic.

    Raises:
      UserError: another model type, or a field that is missing, or that asks for a
        computation that is not known here.
    """
    config, path = read_config_json(folder), folder / "config.json"
    model_type = config.get("model_type")
    if model_type not in FAMILIES and model_type not in _ELASTIC_TYPES:
        raise UserError(
            f"{path} has model_type {model_type!r}; known: {', '.join(FAMILIES)}"
        )
    fixed_fields = _FIXED_FIELDS | (
        _MOBILEBERT_FIXED_FIELDS if model_type == "mobilebert" else {}
    )
    for field, allowed in fixed_fields.items():
        setting = config.get(field)
        if setting is not None and setting != allowed and (setting or allowed):
            raise UserError(
                f"{path} has {field} {config[field]!r}; only {allowed!r} is known"
            )
    default = "relu" if model_type == "mobilebert" else "gelu"
    activation = config.get("hidden_act", default)
    if activation not in ACTIVATIONS:
        raise UserError(
            f"{path} has hidden_act {activation!r}; known: {', '.join(ACTIVATIONS)}"
        )

    def size(field, default=None):
        value = config.get(field, default)
        if value is None:
            raise UserError(f"{path} has no {field!r}; it is needed")
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{path} has {field} {value!r}; it must be a whole number")
        return value

    if model_type == "mobilebert":
        return _read_mobilebert(config, path, size, activation)
    family = _ELASTIC_TYPES.get(model_type, model_type)
    hidden, heads = size("hidden_size"), size("num_attention_heads")
    if model_type in FAMILIES and hidden % heads:
        raise UserError(
            f"{path} has hidden_size {hidden}, which num_attention_heads {heads} does "
            "not divide; give a model whose heads divide its width"
        )
    arch = Arch(
        layers=size("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        ffn=size("intermediate_size"),
        head_size=hidden // heads if model_type in FAMILIES else size("head_size"),
    )
    embedding = 0
    if family == "electra":
        width = size("embedding_size", 128)
        # Our own code can project between equal widths; the stock model cannot.
        if config.get("embeddings_project", width != hidden):
            embedding = width
    return arch, ModelDims(
        vocab=size("vocab_size"),
        positions=size("max_position_embeddings") - position_offset(config, path),
        types=size("type_vocab_size", 2),
        norm_epsilon=config.get("layer_norm_eps", 1e-12),
        activation=activation,
        reference_heads=heads,
        embedding=embedding,
        family=family,
    )


def _read_mobilebert(
    config: dict[str, Any],
    path: Path,
    size: Callable[..., int],
    activation: str,
) -> tuple[MobileArch, ModelDims]:
    """As `read_arch_and_dims`; defaults are those of transformers' MobileBertConfig.

    size: (field, default) -> a size in `config`, checked.
    """
    arch = MobileArch(
        layers=size("num_hidden_layers", 24),
        hidden=size("hidden_size", 512),
        bottleneck=size("intra_bottleneck_size", 128),
        heads=size("num_attention_heads", 4),
        ffn=size("intermediate_size", 512),
        stacks=size("num_feedforward_networks", 4),
    )
    check_head_split(arch.bottleneck, arch.heads, str(path))
    norm = config.get("normalization_type", "no_norm")
    if norm not in ("no_norm", "layer_norm"):
        raise UserError(
            f"{path} has normalization_type {norm!r}; known: no_norm, layer_norm"
        )
    attention_input = (
        "shared" if config.get("key_query_shared_bottleneck", True) else "stream"
    )
    if config.get("use_bottleneck_attention", False):
        attention_input = "bottleneck"
    return arch, ModelDims(
        vocab=size("vocab_size", 30522),
        positions=size("max_position_embeddings", 512),
        types=size("type_vocab_size", 2),
        norm_epsilon=config.get("layer_norm_eps", 1e-12),
        activation=activation,
        reference_heads=arch.heads,
        embedding=size("embedding_size", 128),
        family="mobilebert",
        norm=norm,
        attention_input=attention_input,
        pooler=config.get("classifier_activation", True),
    )


def position_offset(config: dict[str, Any], path: Path) -> int:
    """How many leading rows of the position table are for padding, never for a token.

    RoBERTa counts positions from the padding's id + 1.

    Args:
      config: the content of a config.json.
      path: its path, named in errors.

    Returns:
      Rows, 0 for families that count positions from 0.

    Raises:
      UserError: RoBERTa without such an id, or with so few positions that none is left.
    """
    family = FAMILIES[_ELASTIC_TYPES.get(config["model_type"], config["model_type"])]
    if not family.positions_from_pad:
        return 0
    pad = config.get("pad_token_id", 1)
    rows = config.get("max_position_embeddings", 0)
    if not isinstance(pad, int) or not 0 <= pad < rows - 1:
        raise UserError(
            f"{path} has pad_token_id {pad!r} and max_position_embeddings {rows!r}; "
            "positions are counted from the padding's id + 1, so more of them "
            "are needed"
        )
    return pad + 1


def class_names(config: dict[str, Any]) -> tuple[str, ...] | None:
    """The names of a classifier's classes.

    Args:
      config: the content of a config.json.

    Returns:
      The names in the order of the logits; None if unnamed (LABEL_0, LABEL_1, ... are
      placeholders, not names).
    """
    names = config.get("id2label")
    if not names:
        return None
    try:
        names = {int(number): str(name) for number, name in names.items()}
    except (AttributeError, ValueError):
        return None
    ordered_names = tuple(names.get(i) for i in range(len(names)))
    is_placeholder = (
        name is None or re.fullmatch(r"LABEL_\d+", name) for name in ordered_names
    )
    return None if any(is_placeholder) else ordered_names


def is_stock(arch: AnyArch, dims: ModelDims) -> bool:
    """Whether a class of transformers itself can hold this shape, without code of ours.

    Stock ELECTRA projects its embeddings only to another width than theirs.

    Args:
      arch: the network's Arch.
      dims: its sizes that are not elastic.

    Returns:
      True: a folder of it needs no `trust_remote_code`.
    """
    return arch.is_stock_hf and (
        isinstance(arch, MobileArch) or dims.embedding != arch.hidden
    )


def student_config(
    arch: AnyArch,
    dims: ModelDims,
    teacher_config: dict[str, Any],
    modeling_module: str,
) -> dict[str, Any]:
    """The content of a student's config.json.

    Args:
      arch: the student's Arch.
      dims: its sizes that are not elastic.
      teacher_config: config.json of its teacher, whose special tokens it has.
      modeling_module: name of the module of our own classes, for what stock classes
        cannot hold.

    Returns:
      A JSON object; its key order is that of the file.
    """
    family = FAMILIES[dims.family]
    offset = position_offset(
        {**teacher_config, "model_type": dims.family}, Path("config.json")
    )
    config = {
        "architectures": [f"{family.class_prefix}Model"],
        "model_type": dims.family,
        "attention_probs_dropout_prob": 0.1,
        "hidden_dropout_prob": 0.1,
        "hidden_act": dims.activation,
        "hidden_size": arch.hidden,
        "initializer_range": 0.02,
        "intermediate_size": arch.ffn,
        "layer_norm_eps": dims.norm_epsilon,
        "max_position_embeddings": dims.positions + offset,
        "num_attention_heads": arch.heads,
        "num_hidden_layers": arch.layers,
        "pad_token_id": 1 if family.positions_from_pad else 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": dims.types,
        "vocab_size": dims.vocab,
    }
    for field in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if field in teacher_config:
            config[field] = teacher_config[field]
    if dims.family == "electra":
        config["embedding_size"] = dims.embedding or arch.hidden
    if isinstance(arch, MobileArch):
        config |= {
            "classifier_activation": dims.pooler,
            "embedding_size": dims.embedding,
            "hidden_dropout_prob": 0.0,
            "intra_bottleneck_size": arch.bottleneck,
            "key_query_shared_bottleneck": dims.attention_input == "shared",
            "normalization_type": dims.norm,
            "num_feedforward_networks": arch.stacks,
            "trigram_input": True,
            "use_bottleneck": True,
            "use_bottleneck_attention": dims.attention_input == "bottleneck",
        }
        del config["position_embedding_type"]
    if is_stock(arch, dims):
        return config
    elastic_types = {name: kind for kind, name in _ELASTIC_TYPES.items()}
    config |= {
        "architectures": [f"Elastic{family.class_prefix}Model"],
        "model_type": elastic_types[dims.family],
        "head_size": arch.head_size,
        "tokenizer_class": family.tokenizer_class,
        "auto_map": {
            "AutoConfig": f"{modeling_module}.Elastic{family.class_prefix}Config",
            "AutoModel": f"{modeling_module}.Elastic{family.class_prefix}Model",
        },
    }
    if dims.family == "electra":
        config["embeddings_project"] = dims.embedding > 0
    return config
