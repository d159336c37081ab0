"""Which unlabelled rows of tokens does an experiment have? Cut once, kept on disk."""

from collections.abc import Callable

import numpy as np
from etils import epath

from autodistill_jax import log, multihost, storage
from autodistill_jax.data import corpus
from autodistill_jax.errors import UserError
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.workdir import write_config

_ROW_KEYS = ("input_ids", "attention_mask")
_PAIR_KEYS = ("token_type_ids", "next_sentence_label")


def text_rows(
    experiment: Experiment,
    workdir: epath.Path,
    split: str,
    enough: Callable[[dict], None] = lambda held_out: None,
) -> dict[str, np.ndarray]:
    """The unlabelled token rows of a split, "train" or "heldout"; cut once, kept in the
    workdir.

    `input_ids` and `attention_mask`; of pairs also `token_type_ids` and `next_sentence_label`, see `nsp.sentence_pair_rows`.

    enough: raises UserError where there are too few held-out rows.

    Raises:
      UserError: text that cannot be used; nothing has been written then.
    """
    path = workdir / "data" / "rows.npz"
    data = experiment.config.data
    names = (*_ROW_KEYS, *(_PAIR_KEYS if data.row_format == "pair" else ()))
    if not multihost.on_first_process(path.exists):
        multihost.on_first_process(
            lambda: _tokenize_text(experiment, workdir, path, names, enough)
        )
    made = storage.mapped_arrays(path, [f"{split}/{name}" for name in names])
    return {name: made[f"{split}/{name}"] for name in names}


def _tokenize_text(experiment, workdir, path, names, enough) -> None:
    data = experiment.config.data
    made = corpus.corpus_rows(
        corpus.documents(data.source, data.packages, data.download, data.row_format),
        experiment.tokenizer,
        data.row_format,
        data.max_seq_length,
        data.max_train_rows,
    )
    count = len(made["train"]["input_ids"])
    pretrains = ("pretrain",) if experiment.config.pretrain.steps else ()
    for section in ("distill", *pretrains):
        batch_size = experiment.config[section].batch_size
        if count < batch_size:
            raise UserError(
                f"{section}.batch_size {batch_size} is larger than the {count} rows "
                "of data.source; use a smaller batch or more text"
            )
    enough(made["heldout"])
    write_config(experiment.config, workdir)
    flat = {f"{side}/{name}": made[side][name] for side in made for name in names}
    storage.write_arrays(path, flat)
    log.say(
        f"text: {count:,} training rows and {len(flat['heldout/input_ids']):,} held-out "
        f"rows of {data.max_seq_length} tokens"
    )


def heldout_splits(experiment: Experiment, workdir: epath.Path) -> tuple[dict, dict]:
    """The held-out rows in two: those the search chooses on, and those that its choice
    is judged on."""
    return split_heldout(experiment, text_rows(experiment, workdir, "heldout"))


def split_heldout(experiment: Experiment, made: dict) -> tuple[dict, dict]:
    cut = min(experiment.config.search.proxy_rows, len(made["input_ids"]) // 2)
    return {k: x[:cut] for k, x in made.items()}, {k: x[cut:] for k, x in made.items()}
