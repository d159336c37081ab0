"""What transformers, where it is installed, computes from a folder that we wrote."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# Who checked a folder, where transformers is not installed.
NOT_INSTALLED = "autodistill_jax (transformers and torch are not installed)"


def transformers_outputs(
    folder: Path,
    batch: Mapping[str, np.ndarray],
    auto_class: str = "AutoModel",
    trust_remote_code: bool = False,
) -> Any | None:
    """The outputs of a class of transformers for a batch.

    Args:
      folder: a Hugging Face folder.
      batch: `input_ids`, `attention_mask` and perhaps `token_type_ids`, [B, L] each.
      auto_class: name of the class of transformers that loads the folder.
      trust_remote_code: whether the folder's own modeling file may run.

    Returns:
      The output object of the class; None where transformers or torch is not installed.
    """
    if not (
        importlib.util.find_spec("transformers") and importlib.util.find_spec("torch")
    ):
        return None
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = getattr(transformers, auto_class).from_pretrained(
        str(folder), trust_remote_code=trust_remote_code
    )
    inputs = {
        name: torch.tensor(np.asarray(batch[name])).long()
        for name in ("input_ids", "attention_mask", "token_type_ids")
        if name in batch
    }
    with torch.no_grad():
        return model.eval()(**inputs)
