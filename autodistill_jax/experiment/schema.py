"""The type and bound of every field of a config, and their check before any work."""

import importlib.util
import json
from typing import Any

from ml_collections import ConfigDict

from autodistill_jax import multihost
from autodistill_jax.data import corpus
from autodistill_jax.errors import UserError
from autodistill_jax.experiment.base_config import RENAMED_FIELDS, RENAMED_VALUES
from autodistill_jax.latency.chips import CHIPS
from autodistill_jax.metrics import METRICS

_DTYPES = ("float32", "bfloat16")

# field -> (type, bound): the least value of a number, or the least and the most; the
# choices of a text. A tuple's type is that of its elements.
FIELDS: dict[str, tuple[Any, Any]] = {
    "teacher": (str, None),
    "seed": (int, 0),
    "tensorboard": (bool, None),
    "data.source": (str, None),
    "data.packages": ((str,), None),
    "data.download": (bool, None),
    "data.row_format": (str, corpus.ROW_FORMATS),
    "data.max_seq_length": (int, 8),
    "data.max_train_rows": (int, 0),
    "data.span_ratio": (float, 0.0),
    "data.length_buckets": (int, 1),
    "data.replaced_ratio": (float, (0.0, 1.0)),
    "data.shifted_ratio": (float, (0.0, 1.0)),
    "baselines": ((str,), None),
    "baseline_learning_rates": ((float,), 0.0),
    "space.partition": (int, 0),
    "space.layers": ((int,), 1),
    "space.hidden": ((int,), 1),
    "space.heads": ((int,), 1),
    "space.ffn": ((int,), 1),
    "space.ffn_ratio": ((float,), 0.01),
    "space.head_size": (int, 0),
    "space.bottleneck": ((int,), 1),
    "space.stacks": ((int,), 1),
    "space.norm": (str, ("", "no_norm", "layer_norm")),
    "budget.latency_ms": (float, 0.0),
    "budget.flops": (float, 0.0),
    "budget.params": (float, 0.0),
    "budget.latency_fraction": (float, (0.0, 1.0)),
    "budget.flops_fraction": (float, (0.0, 1.0)),
    "budget.params_fraction": (float, (0.0, 1.0)),
    "budget.convention": (str, ("executed", "paper")),
    "distill.init_from": (str, None),
    "distill.kept_layers": (str, None),
    "distill.order": (str, ("evidence", "checkpoint")),
    "distill.calibration_rows": (int, 1),
    "distill.steps": (int, 1),
    "distill.finish_steps": (int, 0),
    "distill.batch_size": (int, 1),
    "distill.learning_rate": (float, 0.0),
    "distill.warmup_ratio": (float, (0.0, 1.0)),
    "distill.optimizer": (str, ("adamw", "muon")),
    "distill.weight_decay": (float, 0.0),
    "distill.grad_clip_norm": (float, 0.0),
    "distill.random_subnetworks": (int, 0),
    "distill.losses": (str, None),
    "distill.relation_form": (str, None),
    "distill.relation_heads": (int, 0),
    "distill.relation_pairs": (str, None),
    "distill.mlm_probability": (float, (0.0, 0.9)),
    "distill.max_predictions_per_seq": (int, 1),
    "distill.temperature": (float, 0.01),
    "distill.mlm_head_steps": (int, 1),
    "distill.freeze": ((str,), None),
    "distill.word_map": (bool, None),
    "distill.dropout": (float, (0.0, 0.9)),
    "distill.compute_dtype": (str, _DTYPES),
    "distill.checkpoint_every_steps": (int, 0),
    "pretrain.steps": (int, 0),
    "pretrain.arch": (str, None),
    "pretrain.batch_size": (int, 1),
    "pretrain.learning_rate": (float, 0.0),
    "pretrain.warmup_ratio": (float, (0.0, 1.0)),
    "pretrain.weight_decay": (float, 0.0),
    "pretrain.grad_clip_norm": (float, 0.0),
    "pretrain.mlm_probability": (float, (0.01, 0.9)),
    "pretrain.max_predictions_per_seq": (int, 1),
    "pretrain.dropout": (float, (0.0, 0.9)),
    "pretrain.compute_dtype": (str, _DTYPES),
    "pretrain.checkpoint_every_steps": (int, 0),
    "search.proxy": (str, None),
    "search.sampler": (str, ("all", "bayes", "random", "nsga2", "tpe")),
    "search.trials": (int, 2),
    "search.second_looks": (int, 0),
    "search.storage": (str, None),
    "search.proxy_task": (str, None),
    "search.proxy_steps": (int, 1),
    "search.tolerance": (float, 0.0),
    "search.fixed_arch": (str, None),
    "search.proxy_rows": (int, 1),
    "search.batch_size": (int, 1),
    "flash_distillation.block_steps": (int, 1),
    "flash_distillation.last_stage_steps": (int, 1),
    "flash_distillation.step_fraction": (float, (0.0, 1.0)),
    "flash_distillation.learning_rate": (float, 0.0),
    "flash_distillation.warmup_ratio": (float, (0.0, 1.0)),
    "flash_distillation.prune_factor": (float, 0.0),
    "flash_distillation.top_k": (int, 1),
    "latency.target": (str, ("", *CHIPS)),
    "latency.batch": (int, 1),
    "latency.max_seq_length": (int, 1),
    "latency.compute_dtype": (str, _DTYPES),
    "latency.runs": (int, 10),
    "latency.max_measurements": (int, 1),
    "latency.calibrate": (int, 6),
    "export.pairs": (int, 10),
    "export.align": (bool, None),
    "finetune.tasks": ((str,), None),
    "finetune.glue_dir": (str, None),
    "finetune.squad_dir": (str, None),
    "finetune.squad_max_seq_length": (int, 8),
    "finetune.soft_label_weight": (float, (0.0, 1.0)),
    "finetune.text": (str, None),
    "finetune.text_pair": (str, None),
    "finetune.label": (str, None),
    "finetune.metric": (str, tuple(METRICS)),
    "finetune.dev_file": (str, None),
    "finetune.epochs": (int, 1),
    "finetune.batch_size": (int, 1),
    "finetune.max_seq_length": (int, 8),
    "finetune.pair_encoding": (str, ("auto", "cross", "bi")),
    "finetune.learning_rate": (float, 0.0),
    "finetune.scratch_learning_rate": (float, 0.0),
    "finetune.teacher_learning_rate": (float, 0.0),
    "finetune.warmup_ratio": (float, (0.0, 1.0)),
    "finetune.lr_decay": (bool, None),
    "finetune.weight_decay": (float, 0.0),
    "finetune.grad_clip_norm": (float, 0.0),
    "finetune.dropout": (float, (0.0, 0.9)),
    "finetune.compute_dtype": (str, _DTYPES),
    "finetune.seeds": (int, 1),
    "finetune.teacher_seeds": (int, 1),
    "finetune.glue_submission": (bool, None),
    "finetune.max_train_rows": (int, 0),
    "finetune.max_dev_rows": (int, 0),
    "finetune.teacher": (str, ("frozen", "full", "none")),
    "rank.archs": (int, 0),
    "rank.flops_bins": (int, 1),
    "rank.task": (str, None),
    "rank.seeds": (int, 1),
    "rank.proxies": ((str,), None),
    "mesh.data": (int, -1),
    "mesh.fsdp": (int, -1),
    "mesh.tensor": (int, -1),
    "mesh.topology": (str, None),
    "mesh.chip_price_per_hour": (float, 0.0),
    "mesh.gradient_accumulation_steps": (int, 1),
    "mesh.remat": (bool, None),
}


# A number, or a tuple with one for each budget.
PER_BUDGET_FIELDS = (
    "budget.latency_ms",
    "budget.flops",
    "budget.params",
    "budget.latency_fraction",
    "budget.flops_fraction",
    "budget.params_fraction",
)


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """A nested dict as {"distill.steps": 400, ...}, `prefix` before each name."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def check_config(config: ConfigDict) -> None:
    """Every field there, none unknown, each of its type and within its bound.

    Raises:
      UserError: names the field, what it is and what it must be.
    """
    values = flatten(config.to_dict())
    unknown = sorted(values.keys() - FIELDS.keys())
    for name in unknown:
        if name in RENAMED_FIELDS:
            raise UserError(f"--config: {name} is now {RENAMED_FIELDS[name]}")
    if unknown:
        raise UserError(f"--config: unknown field {unknown[0]}; take it out")
    missing = sorted(FIELDS.keys() - values.keys())
    if missing:
        raise UserError(f"--config: the field {missing[0]} is missing; see configs/")
    for name, (kind, bound) in FIELDS.items():
        value = values[name]
        if name in PER_BUDGET_FIELDS and isinstance(value, tuple):
            kind = (kind,)
        if not isinstance(kind, tuple):
            _check_value(name, value, kind, bound)
            continue
        if not isinstance(value, tuple):
            raise UserError(f"{name} is {value!r}; it must be a tuple, like (1, 2)")
        for element in value:
            _check_value(name, element, kind[0], bound)
    if config.tensorboard and not all(
        importlib.util.find_spec(name) for name in ("tensorflow", "tensorboard")
    ):
        raise UserError(
            "tensorboard is True, but its packages are not installed; "
            "run: pip install 'autodistill_jax[tensorboard]'"
        )


def to_json(config: ConfigDict) -> dict:
    """A config as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(config.to_dict()))


def check_same_everywhere(name: str, config: ConfigDict) -> None:
    """Raises UserError, on all processes, where not all were asked for the same.

    Args:
      name: of the job.
      config: with all flags in it.
    """
    asked_here = {"job": name, **flatten(to_json(config))}
    asked_first = multihost.on_first_process(lambda: asked_here)
    if multihost.all_processes(asked_here == asked_first):
        return
    differ = [
        f"{key} is {asked_here.get(key)!r} here and {asked_first.get(key)!r} there"
        for key in sorted(asked_here.keys() | asked_first.keys())
        if asked_here.get(key) != asked_first.get(key)
    ]
    raise UserError(
        "the processes were given different jobs or flags"
        + (f": {'; '.join(differ[:3])} (the first process)" if differ else "")
        + "; give all the same"
    )


def _check_value(name: str, value: Any, kind: type, bound: Any) -> None:
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{name} has {value!r}; it must be of type {kind.__name__}")
    if kind is float and isinstance(bound, tuple):
        if not bound[0] <= value <= bound[1]:
            raise UserError(
                f"{name} is {value!r}; it must be from {bound[0]} to {bound[1]}"
            )
    elif isinstance(bound, tuple) and value in RENAMED_VALUES.get(name, {}):
        raise UserError(f"{name}: {value!r} is now {RENAMED_VALUES[name][value]!r}")
    elif isinstance(bound, tuple) and value not in bound:
        raise UserError(
            f"{name} is {value!r}; it must be one of {_list_choices(bound)}"
        )
    if isinstance(bound, int | float) and not value >= bound:
        raise UserError(f"{name} is {value!r}; it must be at least {bound}")


def _list_choices(bound: tuple[str, ...]) -> str:
    return ", ".join(choice or "''" for choice in bound)
