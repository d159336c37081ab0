"""What each kept result depends on: a run resumes it only where these are equal."""

import json
import zlib
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from autodistill_jax.archs.budget import parse_budgets
from autodistill_jax.experiment import schema
from autodistill_jax.experiment.baseline import SECONDS, is_trained, parse_baseline
from autodistill_jax.experiment.schema import to_json

# A workdir stays the same experiment whatever these are: the trained SuperLMs and the
# proxies do not depend on them.
FREE_FIELDS = (
    "budget.",
    "latency.",
    "search.fixed_arch",
    "search.batch_size",
    "search.proxy",
    "search.tolerance",
    "search.proxy_task",
    "search.proxy_steps",
    "search.sampler",
    "search.trials",
    "search.second_looks",
    "search.storage",
    "flash_distillation.",
    "rank.",
    "baselines",
    "baseline_learning_rates",
    "finetune.",
    "mesh.",
    "tensorboard",
    "distill.checkpoint_every_steps",
    "distill.finish_steps",
    "pretrain.checkpoint_every_steps",
)


def is_free_field(name: str) -> bool:
    """May the field of that name, or all of its section, differ in the same workdir?"""
    section = name.partition(".")[0] + "."
    return name in FREE_FIELDS or section in FREE_FIELDS


def choice_fingerprint(config: ConfigDict) -> dict:
    """What the choice of an Arch depends on besides the trained SuperLM."""
    fingerprint = {key: to_json(config)[key] for key in ("budget", "latency", "search")}
    for name in ("storage", "batch_size"):  # The same whatever they are.
        del fingerprint["search"][name]
    if config.search.proxy == "flash":
        fingerprint["flash"] = transfer_fingerprint(config)
    del fingerprint["latency"]["calibrate"]  # It corrects no figure that a choice sees.
    if config.search.proxy_task:
        task = task_dirname(config.finetune, config.search.proxy_task)
        fingerprint["tuning"] = {"task": task, **finetune_fingerprint(config)}
    return fingerprint


def study_fingerprint(config: ConfigDict, latency: dict) -> tuple[str, str]:
    """What the trials of a study depend on, as short hashes.

    Args:
      config: the experiment's.
      latency: the conditions that latencies are taken under.

    Returns:
      (the hash of all but the bounds, which studies that share trials have in common;
      the hash with the bounds).
    """
    fixed = {
        name: value
        for name, value in schema.flatten(to_json(config)).items()
        if not is_free_field(name)
    }
    family = {**fixed, "latency": latency}
    bounds = {"budget": to_json(config)["budget"], "arch": config.search.fixed_arch}
    return short_hash(family), short_hash(family | bounds)


def transfer_fingerprint(config: ConfigDict) -> dict:
    """What a transfer depends on, of the section flash_distillation."""
    names = (
        "block_steps",
        "last_stage_steps",
        "step_fraction",
        "learning_rate",
        "warmup_ratio",
    )
    return {name: config.flash_distillation[name] for name in names}


def finetune_fingerprint(config: ConfigDict) -> dict:
    """What a score on a task depends on besides the network, the task and its steps."""
    names = (
        "batch_size",
        "learning_rate",
        "warmup_ratio",
        "lr_decay",
        "weight_decay",
        "grad_clip_norm",
        "dropout",
        "compute_dtype",
        "max_seq_length",
        "pair_encoding",
        "glue_dir",
        "max_train_rows",
        "max_dev_rows",
    )
    return {name: config.finetune[name] for name in names}


def rank_fingerprint(config: ConfigDict) -> dict:
    """What rank.json depends on besides the trained SuperLM."""
    return {
        "rank": to_json(config)["rank"],
        "proxy": config.search.proxy,
        "tuning": {
            "task": task_dirname(config.finetune, config.rank.task),
            "epochs": config.finetune.epochs,
            **finetune_fingerprint(config),
        },
        "search": {
            "proxy_steps": config.search.proxy_steps,
            "proxy_rows": config.search.proxy_rows,
        },
    }


def weight_source(config: ConfigDict) -> str:
    """Where students' weights come from: "superlm", "finish-" and how many steps alone,
    or "flash-" and a recipe's hash."""
    if config.search.proxy != "flash":
        steps = config.distill.finish_steps
        return f"finish-{steps}" if steps else "superlm"
    return f"flash-{short_hash(transfer_fingerprint(config))}"


def model_origin(config: ConfigDict, model: str) -> str:
    """What the weights of a compared model depend on, of fields that may differ in the
    same workdir; "" of what is not trained.

    Args:
      config: the experiment's.
      model: "teacher", "student" or a baseline's name.
    """
    if model == "student":
        return weight_source(config)
    if model == "teacher" or not is_trained(parse_baseline(model).method):
        return ""
    rates = " ".join(f"{rate:g}" for rate in config.baseline_learning_rates)
    origin = f"{weight_source(config)}, rates {rates}"
    if parse_baseline(model).budget == SECONDS:
        # The SuperLM's seconds are parted among the students of all budgets.
        origin += f", budgets {len(parse_budgets(config.budget.to_dict()))}"
    return origin


def task_dirname(settings: ConfigDict, task: str) -> str:
    """The name of the folder of a task's results.

    Args:
      settings: the section finetune.
      task: as in `finetune.tasks`.

    Returns:
      The task's name; of a file of one's own its stem and a hash of its content and
      columns.
    """
    path = Path(task)
    if not path.is_file():
        return task
    fields = ("text", "text_pair", "label", "metric", "dev_file")
    settings_bytes = repr([settings[name] for name in fields]).encode()
    if Path(settings.dev_file).is_file():
        settings_bytes += Path(settings.dev_file).read_bytes()
    return f"{path.stem}-{zlib.crc32(path.read_bytes() + settings_bytes):08x}"


def short_hash(value: Any) -> str:
    """The CRC-32 of a JSON value, in any order of keys: eight hexadecimal digits."""
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"
