"""The unlabelled token rows of an experiment: cut once, kept in the workdir."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath

from autodistill_jax import log, multihost, storage
from autodistill_jax.data import corpus, loader
from autodistill_jax.errors import UserError
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.workdir import write_config

# What embeds texts rarely reads more.
_MAX_POSITIONS, _POSITIONS_SEED = 256, 0
_ROW_KEYS = ("input_ids", "attention_mask")
_PAIR_KEYS = ("token_type_ids", "next_sentence_label")


def text_rows(
    experiment: Experiment,
    workdir: epath.Path,
    split: str,
    check_heldout: Callable[[dict], None] = lambda held_out: None,
) -> dict[str, np.ndarray]:
    """The unlabelled token rows of a split; the text is tokenized where they are not in
    the workdir yet.

    Args:
      experiment: its tokenizer, and its config's section data.
      workdir: where the rows of both splits lie.
      split: "train" or "heldout".
      check_heldout: called with the held-out rows before anything is written; raises
        UserError where there are too few.

    Returns:
      {"input_ids", "attention_mask": [rows, data.max_seq_length]}, mapped from disk; of
      pairs also "token_type_ids" and "next_sentence_label", see
      `nsp.sentence_pair_rows`.

    Raises:
      UserError: text that cannot be used; nothing has been written then.
    """
    path = workdir / "data" / "rows.npz"
    data = experiment.config.data
    names = (*_ROW_KEYS, *(_PAIR_KEYS if data.row_format == "pair" else ()))
    if not multihost.on_first_process(path.exists):
        multihost.on_first_process(
            lambda: _tokenize_text(experiment, workdir, path, names, check_heldout)
        )
    arrays = storage.mapped_arrays(path, [f"{split}/{name}" for name in names])
    return {name: arrays[f"{split}/{name}"] for name in names}


def has_positions(experiment: Experiment) -> bool:
    """Whether some training rows stand further on, see `data.shifted_ratio`."""
    data = experiment.config.data
    return data.row_format == "sentence" and data.shifted_ratio > 0


def training_rows(experiment: Experiment, workdir: epath.Path) -> dict:
    """The rows that students are distilled on: those of `text_rows`, and where their
    tokens stand, `position_ids`, where some stand further on. They are the same in all
    trainings, as are the targets that are kept of each row."""
    rows = text_rows(experiment, workdir, "train")
    if not has_positions(experiment):
        return rows
    data = experiment.config.data
    max_positions = min(_MAX_POSITIONS, experiment.teacher.dims.positions)
    position_ids = loader.shifted_positions(
        len(rows["input_ids"]),
        data.max_seq_length,
        data.shifted_ratio,
        max_positions,
        _POSITIONS_SEED,
    )
    return {**rows, "position_ids": position_ids}


def heldout_splits(experiment: Experiment, workdir: epath.Path) -> tuple[dict, dict]:
    """The held-out rows in two: those the search chooses on, and those that its choice
    is judged on, see `text_rows`."""
    return split_heldout(experiment, text_rows(experiment, workdir, "heldout"))


def split_heldout(
    experiment: Experiment, rows: Mapping[str, np.ndarray]
) -> tuple[dict, dict]:
    """Splits held-out rows: the first `search.proxy_rows`, half of them at most, and
    what follows."""
    cut = min(experiment.config.search.proxy_rows, len(rows["input_ids"]) // 2)
    return {k: x[:cut] for k, x in rows.items()}, {k: x[cut:] for k, x in rows.items()}


def _tokenize_text(
    experiment: Experiment,
    workdir: epath.Path,
    path: epath.Path,
    names: Sequence[str],
    check_heldout: Callable[[dict], None],
) -> None:
    """Writes the rows of both splits; with them the workdir is this config's."""
    data = experiment.config.data
    splits = corpus.corpus_rows(
        corpus.documents(data.source, data.packages, data.download, data.row_format),
        experiment.tokenizer,
        data.row_format,
        data.max_seq_length,
        data.max_train_rows,
        data.span_ratio,
        data.replaced_ratio,
        experiment.config.seed,
    )
    count = len(splits["train"]["input_ids"])
    pretrains = ("pretrain",) if experiment.config.pretrain.steps else ()
    for section in ("distill", *pretrains):
        batch_size = experiment.config[section].batch_size
        if count < batch_size:
            raise UserError(
                f"{section}.batch_size {batch_size} is larger than the {count} rows "
                "of data.source; use a smaller batch or more text"
            )
    check_heldout(splits["heldout"])
    write_config(experiment.config, workdir)
    flat = {
        f"{split}/{name}": splits[split][name] for split in splits for name in names
    }
    storage.write_arrays(path, flat)
    log.say(
        f"text: {count:,} training rows and {len(flat['heldout/input_ids']):,} "
        f"held-out rows of {data.max_seq_length} tokens"
    )
