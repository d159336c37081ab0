"""The files by which sentence-transformers knows a sentence-embedding model."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.errors import UserError, read_json_object

DENSE_FILE, DENSE_TENSOR = "2_Dense/model.safetensors", "linear.weight"
_STATIC_FOLDER, _STATIC_TENSOR = "0_StaticEmbedding", "embedding.weight"
_IDENTITY = "torch.nn.modules.linear.Identity"


def read_pooling(folder: Path) -> str | None:
    """How a sentence-embedding model pools.

    Args:
      folder: a Hugging Face folder.

    Returns:
      "mean" or "cls"; None for other models.

    Raises:
      UserError: it pools in a way that is not known here.
    """
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return None
    settings = read_json_object(path)
    for key, name in (("mean_tokens", "mean"), ("cls_token", "cls")):
        if settings.get(f"pooling_mode_{key}"):
            return name
    raise UserError(f"{path} pools neither by mean_tokens nor by cls_token")


def read_dense(folder: Path) -> np.ndarray | None:
    """The linear map behind a student's pooling, as `write_modules` leaves it.

    Args:
      folder: a Hugging Face folder.

    Returns:
      [hidden, out], f32; None where there is none.

    Raises:
      UserError: one with a bias or an activation, which is not a linear map.
    """
    path = folder / DENSE_FILE
    if not path.exists():
        return None
    settings = read_json_object(path.with_name("config.json"))
    if settings.get("bias", True) or settings.get("activation_function") != _IDENTITY:
        raise UserError(
            f"{path.parent} has a bias or an activation; only a linear map behind the "
            "pooling is read, so use a model without that Dense"
        )
    from safetensors.numpy import load_file

    return load_file(path)[DENSE_TENSOR].T


def write_modules(
    folder: Path, arch: AnyArch, pooling: str, dense: np.ndarray | None = None
) -> None:
    """Writes what sentence-transformers reads beside the model: pooling, unit length.

    Args:
      folder: the model's folder.
      arch: the model's Arch.
      pooling: "mean" or "cls".
      dense: a linear map between the two, [hidden, out]; None: there is none.
    """
    kinds = ["Transformer", "Pooling", *["Dense"] * (dense is not None), "Normalize"]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    if dense is not None:
        _write_dense(folder, dense)
    _write_module_list(folder, dict(zip(paths, kinds)))
    (folder / "1_Pooling").mkdir()
    (folder / paths[-1]).mkdir()
    pooling = {
        "word_embedding_dimension": arch.hidden,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling) + "\n")


def _write_dense(folder: Path, dense: np.ndarray) -> None:
    from safetensors.numpy import save_file

    path = folder / DENSE_FILE
    path.parent.mkdir()
    weight = np.ascontiguousarray(dense.T, np.float32)
    save_file({DENSE_TENSOR: weight}, path, metadata={"format": "pt"})
    settings = {
        "in_features": dense.shape[0],
        "out_features": dense.shape[1],
        "bias": False,
        "activation_function": _IDENTITY,
    }
    (path.parent / "config.json").write_text(json.dumps(settings) + "\n")


def write_static_table(folder: Path, table: np.ndarray, tokenizer: Any) -> None:
    """Writes a static table as sentence-transformers reads it: the mean of the tokens'
    vectors, at unit length.

    Args:
      folder: a new one.
      table: [V, D].
      tokenizer: of `tokenization.load_tokenizer`.
    """
    from safetensors.numpy import save_file

    _write_module_list(
        folder, {_STATIC_FOLDER: "StaticEmbedding", "1_Normalize": "Normalize"}
    )
    (folder / "1_Normalize").mkdir()
    (folder / _STATIC_FOLDER).mkdir()
    path = folder / _STATIC_FOLDER / "model.safetensors"
    save_file({_STATIC_TENSOR: np.ascontiguousarray(table)}, path)
    tokenizer.save(str(path.with_name("tokenizer.json")))


def read_static_table(folder: Path) -> np.ndarray:
    """The table that `write_static_table` left, [V, D]."""
    from safetensors.numpy import load_file

    return load_file(folder / _STATIC_FOLDER / "model.safetensors")[_STATIC_TENSOR]


def _write_module_list(folder: Path, kinds: dict[str, str]) -> None:
    """modules.json: {folder of a module: its kind}, in the order they run in."""
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n")
