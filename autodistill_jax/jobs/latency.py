"""Job `latency`: seconds of one Arch, here or on a TPU that is not here."""

from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import log, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import ModelDims, cost, student_dims
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import arch_flag, schema
from autodistill_jax.experiment.experiment import latency_conditions
from autodistill_jax.experiment.workdir import open_workdir, write_config
from autodistill_jax.latency import calibration, chips, estimate, table
from autodistill_jax.models import build
from autodistill_jax.search import ranking

# Of a compiled latency: each is judged as it is, before any correction.
_ESTIMATE_FIELDS = ("seconds", "cycles_seconds", "roofline_seconds", "optimal_seconds")
_MAX_DRAWN_FROM = 20_000  # Archs of a space, at most.


def run_latency(
    config: ConfigDict, folder: str | None, text: str | None, calibrating: bool
) -> dict[str, Any]:
    """Prints one JSON object on stdout: {arch, seconds, source, device, batch, length,
    dtype, ...}, see `measure.measure_latency` and `estimate.estimate_latency`.

    Weights are random. With a workdir the latency is looked up in its table first, and
    kept there.

    Args:
      config: of the experiment, whose section `latency` says on what it is taken.
      folder: the workdir; None where there is none.
      text: the Arch as --arch takes it, any sizes or a name; None where it is missing.
      calibrating: instead of one Arch, see `_calibrate`.

    Returns:
      What it prints.

    Raises:
      UserError: no such Arch; a target that cannot be compiled for; another
        experiment's workdir.
    """
    schema.check_config(config)
    conditions = latency_conditions(config)
    if conditions.target:
        estimate.check_target(conditions.target)
    workdir = open_workdir(config, folder) if folder else None
    if calibrating:
        if workdir is None:
            raise UserError("--calibrate needs --workdir, where the correction is kept")
        if text:
            raise UserError("--calibrate draws its own Archs; take --arch out")
        return _calibrate(config, workdir, conditions)
    arch_text, arch, dims = arch_flag.resolve_arch_flag(
        config, text, "latency.max_seq_length"
    )
    latencies = (
        table.read_table(_table_path(workdir)) if workdir else table.empty_table()
    )
    params = None if conditions.target else _random_params(arch, dims)
    if table.find_latency(latencies, arch, dims, conditions):
        log.say(
            f"known already, from {_table_path(workdir)}; without --workdir it is "
            "taken anew"
        )
    networks = {arch_text: (arch, dims, params)}
    records = table.take_latencies(latencies, networks, conditions, False, log.say)
    record = records[arch_text]
    if workdir:
        _write_table(config, workdir, latencies)
    result = {"arch": arch_text}
    names = ("seconds", "source", "device", "batch", "length", "dtype")
    result |= {name: record[name] for name in names}
    result |= {k: v for k, v in record.items() if k not in ("network", *result)}
    correction = (
        table.find_correction(latencies, conditions) if conditions.target else None
    )
    if correction:
        result["corrected_seconds"] = calibration.predict_latency(
            correction["coefficients"], record
        )
    log.print_result(result)
    return result


def _table_path(workdir: epath.Path) -> epath.Path:
    """The table of a workdir, which the job `search` reads and fills too."""
    return workdir / "search" / "latency.json"


def _calibrate(
    config: ConfigDict, workdir: epath.Path, conditions: table.LatencyConditions
) -> dict[str, Any]:
    """Measures `latency.calibrate` Archs over the space, fits what predicts them to one
    half and judges it on the other; prints that and keeps it in the workdir's table.

    What predicts: with a target, which must be the device at hand, the latencies that
    are compiled for it; else multiply-adds, bytes of weights and layers.
    """
    measured_here = conditions._replace(target="")
    target = conditions.target
    if target and jax.devices()[0].device_kind != chips.CHIPS[target].kind:
        raise UserError(
            f"latency.target is {target} and the device at hand "
            f"{measured_here.record()['device']}; calibrate on that TPU, or leave "
            "latency.target '' to predict from multiply-adds and bytes"
        )
    _, dims, spaces = arch_flag.teacher_dims_and_spaces(
        config, "latency.max_seq_length"
    )
    dims = student_dims(dims, spaces[0].family, config.space.norm)
    flops = {
        arch: cost(arch, dims, conditions.length)["flops"]
        for space in spaces
        for arch in space.subset(_MAX_DRAWN_FROM, config.seed)
    }
    num_archs = config.latency.calibrate
    # In order of their FLOPs, so every other one of all sizes.
    archs = list(ranking.draw_by_flops(flops, num_archs, num_archs // 2, config.seed))
    if len(archs) < 6:
        raise UserError(
            f"the space has {len(archs)} Archs, and a fit needs 6; give it more sizes"
        )
    latencies = table.read_table(_table_path(workdir))
    networks = {str(arch): (arch, dims, _random_params(arch, dims)) for arch in archs}
    measured = table.take_latencies(latencies, networks, measured_here, False, log.say)
    seconds = [record["seconds"] for record in measured.values()]
    in_fit = [i % 2 == 0 for i in range(len(archs))]
    correction = {
        **conditions.record(),
        "device_at_hand": measured_here.record()["device"],
    }
    if target:
        compiled = table.take_latencies(
            latencies, networks, conditions, False, log.say
        ).values()
        features = {"seconds": [record["seconds"] for record in compiled]}
        unseen = ~np.asarray(in_fit)
        correction["uncorrected"] = {
            name: calibration.prediction_errors(
                np.asarray([record[name] for record in compiled])[unseen],
                np.asarray(seconds)[unseen],
            )
            for name in _ESTIMATE_FIELDS
        }
    else:
        rows = [
            calibration.latency_features(a, dims, conditions.batch, conditions.length)
            for a in archs
        ]
        features = {name: [row[name] for row in rows] for name in rows[0]}
    fit = calibration.fit_latency(features, seconds, in_fit)
    predicted = fit.pop("predicted")
    correction |= {"archs": len(archs), "unseen": in_fit.count(False), **fit}
    correction["points"] = [
        {"arch": str(arch), "seconds": value, "predicted": prediction, "seen": fitted}
        for arch, value, prediction, fitted in zip(archs, seconds, predicted, in_fit)
    ]
    latencies["corrections"].append(correction)
    _write_table(config, workdir, latencies)
    log.say(
        f"latency: predicted from {', '.join(features)}: on {correction['unseen']} of "
        f"{len(archs)} Archs that the fit has not seen it is off by "
        f"{correction['mape']:.1%} on average; rank correlation: Kendall "
        f"{correction['kendall']:.2f}, Spearman {correction['spearman']:.2f}"
    )
    log.print_result(correction)
    return correction


def _random_params(arch: AnyArch, dims: ModelDims) -> dict[str, np.ndarray]:
    """Weights that nothing has trained: no pass is faster or slower for it."""
    module = build.build_module(arch, dims)
    shapes = jax.eval_shape(lambda: build.init_params(module, jax.random.key(0)))
    rng = np.random.default_rng(0)
    # Scales of 1: small ones, one after another, would end in slow denormal numbers.
    return {
        name: np.ones(shape.shape, np.float32)
        if "scale" in name
        else 0.02 * rng.standard_normal(shape.shape, np.float32)
        for name, shape in shapes.items()
    }


def _write_table(
    config: ConfigDict, workdir: epath.Path, latencies: table.LatencyTable
) -> None:
    if not (workdir / "config.json").exists():
        write_config(config, workdir)
    storage.write_json(_table_path(workdir), latencies)
