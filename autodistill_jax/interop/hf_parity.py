"""What does transformers make of a folder that we wrote? Where it is installed."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# By whom a folder was checked where it is not.
NOT_INSTALLED = "autodistill_jax (transformers and torch are not installed)"


def transformers_outputs(
    folder: Path,
    batch: Mapping[str, np.ndarray],
    kind: str = "AutoModel",
    remote: bool = False,
) -> Any | None:
    """The outputs of a class of transformers for `input_ids`, `attention_mask` and, where they are
    there, `token_type_ids`; None where transformers or torch is not installed.

    remote: may the folder's own modeling file run?
    """
    if not (
        importlib.util.find_spec("transformers") and importlib.util.find_spec("torch")
    ):
        return None
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = getattr(transformers, kind).from_pretrained(
        str(folder), trust_remote_code=remote
    )
    names = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "token_type_ids": "token_type_ids",
    }
    given = {
        theirs: torch.tensor(np.asarray(batch[ours])).long()
        for ours, theirs in names.items()
        if ours in batch
    }
    with torch.no_grad():
        return model.eval()(**given)
