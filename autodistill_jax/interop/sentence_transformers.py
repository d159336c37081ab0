"""The files by which sentence-transformers knows a sentence-embedding model."""

import json
from pathlib import Path

from autodistill_jax.archs.arch import Arch
from autodistill_jax.errors import UserError, read_json_object


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


def write_modules(folder: Path, arch: Arch, pooling: str) -> None:
    """Writes what sentence-transformers reads beside the model: pooling, unit length.

    Args:
      folder: the model's folder.
      arch: the model's Arch.
      pooling: "mean" or "cls".
    """
    module_types = (
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Normalize", "Normalize"),
    )
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, (path, kind) in enumerate(module_types)
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n")
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    pooling = {
        "word_embedding_dimension": arch.hidden,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling) + "\n")
