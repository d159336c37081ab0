"""What the teacher's own outputs say of its layers and channels: kept in the workdir.

The teacher is permuted once, so that the first n channels are the best n wherever
something is cut, and the layers that each depth keeps are chosen (see `pruning`).
"""

import dataclasses
import json
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from autodistill_jax import log, multihost, storage
from autodistill_jax.data.loader import evenly_spaced_rows
from autodistill_jax.data.mlm import mask_tokens
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.text_rows import text_rows
from autodistill_jax.interop.huggingface import Teacher
from autodistill_jax.models import build
from autodistill_jax.pruning import order, streams
from autodistill_jax.pruning.depth import make_layer_loss, nested_layers
from autodistill_jax.pruning.moments import input_moments

_MAX_LAYER_ROWS = 128  # that sets of layers are judged on


def with_evidence(
    experiment: Experiment, workdir: epath.Path, stage: str
) -> Experiment:
    """The experiment under what its text says of the teacher.

    Read from the workdir, where an earlier job has left it; else found, which takes
    seconds to a minute, and left there: start/orders.npz, start/layers.json.

    Args:
      experiment: complete.
      workdir: with the text's rows.
      stage: what log lines begin with.

    Returns:
      The experiment with rows to fit on, its teacher permuted and its layers chosen;
      with the rows alone where training does not start from the teacher's weights, or
      where the config asks for neither.
    """
    settings, teacher = experiment.config.distill, experiment.teacher
    train_rows = text_rows(experiment, workdir, "train")
    rows = evenly_spaced_rows(train_rows, settings.calibration_rows)
    experiment = dataclasses.replace(experiment, calibration_rows=rows)
    if not experiment.starts_from_teacher:
        return experiment
    if settings.order == "evidence":
        path = workdir / "start" / "orders.npz"
        if not path.exists():
            log.say(f"{stage}: ordering the teacher's channels by what they carry ...")
            multihost.on_first_process(
                lambda: storage.write_arrays(path, _channel_orders(experiment))
            )
        orders = storage.read_arrays(path)
        teacher = reordered_teacher(teacher, orders)
        experiment = dataclasses.replace(
            experiment,
            teacher=teacher,
            initial_params=(teacher.arch, teacher.params),
            hidden_order=orders["hidden"],
        )
    if settings.kept_layers == "evidence":
        path = workdir / "start" / "layers.json"
        if not path.exists():
            multihost.on_first_process(
                lambda: storage.write_json(
                    path, _ranked_layers(experiment, rows, stage)
                )
            )
        layer_sets = json.loads(path.read_text())["kept"]
        kept_by_depth = {len(indices): tuple(indices) for indices in layer_sets}
        experiment = dataclasses.replace(experiment, kept_by_depth=kept_by_depth)
    return experiment


def reordered_teacher(teacher: Teacher, orders: Mapping[str, np.ndarray]) -> Teacher:
    """The same teacher with its channels in another order, its heads' among them.

    Args:
      teacher: a teacher of any family.
      orders: of `order.channel_orders`.

    Returns:
      The teacher; its hidden states are the same up to the order of their channels.
    """
    module = build.build_module(teacher.arch, teacher.dims)
    of_heads: dict[str, tuple[streams.AxisStream, ...]] = {
        "mlm_kernel": ("hidden", None),
        "nsp_kernel": ("hidden", None),
    }
    if not teacher.dims.embedding:  # The head's channels are the word embeddings'.
        of_heads |= dict.fromkeys(
            ("mlm_bias", "mlm_norm_scale", "mlm_norm_bias"), ("hidden",)
        )
        of_heads["mlm_kernel"] = ("hidden", "hidden")

    def reorder_head(head):
        return head and streams.reorder(head, of_heads, orders)

    return teacher._replace(
        params=streams.reorder(teacher.params, streams.param_streams(module), orders),
        mlm_head=reorder_head(teacher.mlm_head),
        nsp_head=reorder_head(teacher.nsp_head),
    )


def _channel_orders(experiment: Experiment) -> dict[str, np.ndarray]:
    teacher = experiment.teacher
    module = build.build_module(teacher.arch, teacher.dims)
    moments = input_moments(module, teacher.params, experiment.calibration_batches())
    return order.channel_orders(module, teacher.params, moments)


def _ranked_layers(
    experiment: Experiment, rows: Mapping[str, np.ndarray], stage: str
) -> dict:
    """The table of layers, and the losses that it was chosen by."""
    teacher, objective = experiment.teacher, experiment.objective
    params: build.Params = {**teacher.params, **(teacher.mlm_head or {})}
    if not teacher.mlm_head:
        objective = objective._replace(
            weights={
                k: w for k, w in objective.weights.items() if k not in ("mlm", "logits")
            }
        )
    key = jax.random.key(experiment.config.seed)
    layer_rows = evenly_spaced_rows(rows, _MAX_LAYER_ROWS)
    batch = mask_tokens(key, layer_rows, teacher.dims.vocab, objective.masking)
    module = build.build_module(teacher.arch, teacher.dims)
    losses: dict[str, float] = {}
    layer_loss = make_layer_loss(module, params, objective, batch)

    def loss_fn(layer_sets):
        values = layer_loss(layer_sets)
        losses.update({" ".join(map(str, s)): v for s, v in zip(layer_sets, values)})
        return values

    depths = {depth for space in experiment.spaces.values() for depth in space.layers}
    log.say(f"{stage}: choosing among the teacher's {teacher.arch.layers} layers ...")
    table = nested_layers(teacher.arch.layers, depths, loss_fn)
    for depth in sorted(depths):
        log.say(f"{stage}: {depth} layers: {', '.join(map(str, table[depth]))}")
    return {"kept": [table[depth] for depth in sorted(table)], "losses": losses}
