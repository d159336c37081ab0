"""How does a folder say that it embeds sentences? As sentence-transformers reads it."""

import json
from pathlib import Path

from autodistill_jax.arch import Arch


def pooling(folder: Path) -> str:
    """ "mean" for a sentence-embedding model that pools so, else "cls"."""
    path = folder / "1_Pooling" / "config.json"
    if path.exists() and json.loads(path.read_text()).get("pooling_mode_mean_tokens"):
        return "mean"
    return "cls"


def save(folder: Path, arch: Arch) -> None:
    """What sentence-transformers reads beside the model: mean pooling, unit length."""
    kinds = (
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
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n")
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    pooling = {
        "word_embedding_dimension": arch.hidden,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling) + "\n")
