"""Job `latency`: how long does one Arch take, here or on a TPU that is not here?"""

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import log, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.cost import ModelDims, cost, student_dims
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import arch_flag, schema, workdir
from autodistill_jax.experiment.experiment import latency_conditions
from autodistill_jax.latency import calibration, estimate, table
from autodistill_jax.models import build
from autodistill_jax.search import ranking

# Of a compiled latency: each is judged as it is, before any correction.
_ESTIMATE_FIELDS = ("seconds", "cycles_seconds", "roofline_seconds", "optimal_seconds")
_MAX_DRAWN_FROM = 20_000  # Archs of a space, at most.


def run_latency(
    config: ConfigDict, folder: str | None, text: str | None, calibrating: bool
) -> None:
    """Prints one JSON object on stdout: {arch, seconds, source, device, batch, length,
    dtype, ...}, see `measure.measure_latency` and `estimate.estimate_latency`; weights are random.

    Any Arch will do, by sizes or by name. With a workdir the latency is looked up in its
    table first, and kept there.

    calibrating: instead of one Arch, see `_calibrate`.

    Raises:
      UserError: no such Arch; a target that cannot be compiled for; another
        experiment's workdir.
    """
    schema.check_config(config)
    how = latency_conditions(config)
    if how.target:
        estimate.check_target(how.target)
    home = workdir.open_workdir(config, folder) if folder else None
    if calibrating:
        if home is None:
            raise UserError("--calibrate needs --workdir, where the correction is kept")
        if text:
            raise UserError("--calibrate draws its own Archs; take --arch out")
        _calibrate(config, home, how)
        return
    told, arch, dims = arch_flag.resolve_arch_flag(
        config, text, "latency.max_seq_length"
    )
    known = table.read_table(_table_path(home)) if home else table.empty_table()
    network = {told: (arch, dims, None if how.target else _random_params(arch, dims))}
    if table.find_latency(known, arch, dims, how):
        log.say(
            f"known already, from {_table_path(home)}; without --workdir it is taken anew"
        )
    found = table.take_latencies(known, network, how, False, log.say)[told]
    if home:
        _write_table(config, home, known)
    made = {"arch": told}
    names = ("seconds", "source", "device", "batch", "length", "dtype")
    made |= {name: found[name] for name in names}
    made |= {k: v for k, v in found.items() if k not in ("network", *made)}
    corrected = table.find_correction(known, how) if how.target else None
    if corrected:
        made["corrected_seconds"] = calibration.predict_latency(
            corrected["coefficients"], found
        )
    log.print_result(made)


def _table_path(home: epath.Path) -> epath.Path:
    """The table of a workdir, which the job `search` reads and fills too."""
    return home / "search" / "latency.json"


def _calibrate(
    config: ConfigDict, home: epath.Path, how: table.LatencyConditions
) -> None:
    """Measures `latency.calibrate` Archs over the space, fits what predicts them to one
    half and judges it on the other; prints that and keeps it in the workdir's table.

    What predicts: with a target, which must be the device at hand, the latencies that
    are compiled for it; else multiply-adds, bytes of weights and layers.
    """
    here = how._replace(target="")
    if how.target and jax.devices()[0].device_kind != estimate.CHIPS[how.target].kind:
        raise UserError(
            f"latency.target is {how.target} and the device at hand "
            f"{here.conditions()['device']}; calibrate on that TPU, or leave "
            "latency.target '' to predict from multiply-adds and bytes"
        )
    _, dims, spaces = arch_flag.teacher_dims_and_spaces(
        config, "latency.max_seq_length"
    )
    dims = student_dims(dims, spaces[0].family, config.space.norm)
    flops = {
        arch: cost(arch, dims, how.length)["flops"]
        for space in spaces
        for arch in space.subset(_MAX_DRAWN_FROM, config.seed)
    }
    wanted = config.latency.calibrate
    # In order of their FLOPs, so every other one of all sizes.
    archs = list(ranking.draw_by_flops(flops, wanted, wanted // 2, config.seed))
    if len(archs) < 6:
        raise UserError(
            f"the space has {len(archs)} Archs, and a fit needs 6; give it more sizes"
        )
    known = table.read_table(_table_path(home))
    networks = {str(arch): (arch, dims, _random_params(arch, dims)) for arch in archs}
    measured = table.take_latencies(known, networks, here, False, log.say)
    seconds = [one["seconds"] for one in measured.values()]
    seen = [i % 2 == 0 for i in range(len(archs))]
    made = {**how.conditions(), "device_at_hand": here.conditions()["device"]}
    if how.target:
        compiled = table.take_latencies(known, networks, how, False, log.say).values()
        features = {"seconds": [one["seconds"] for one in compiled]}
        unseen = ~np.asarray(seen)
        made["uncorrected"] = {
            name: calibration.prediction_errors(
                np.asarray([one[name] for one in compiled])[unseen],
                np.asarray(seconds)[unseen],
            )
            for name in _ESTIMATE_FIELDS
        }
    else:
        rows = [
            calibration.latency_features(a, dims, how.batch, how.length) for a in archs
        ]
        features = {name: [row[name] for row in rows] for name in rows[0]}
    found = calibration.fit_latency(features, seconds, seen)
    predicted = found.pop("predicted")
    made |= {"archs": len(archs), "unseen": seen.count(False), **found}
    made["points"] = [
        {"arch": str(arch), "seconds": one, "predicted": other, "seen": fitted}
        for arch, one, other, fitted in zip(archs, seconds, predicted, seen)
    ]
    known["corrections"].append(made)
    _write_table(config, home, known)
    log.say(
        f"latency: predicted from {', '.join(features)}: on {made['unseen']} of "
        f"{len(archs)} Archs that the fit has not seen it is off by {made['mape']:.1%} "
        f"on average; rank correlation: Kendall {made['kendall']:.2f}, Spearman "
        f"{made['spearman']:.2f}"
    )
    log.print_result(made)


def _random_params(arch: AnyArch, dims: ModelDims) -> dict[str, np.ndarray]:
    """Weights that nothing has trained: no pass is faster or slower for it."""
    module = build.build_module(arch, dims)
    shapes = jax.eval_shape(lambda: build.init_params(module, jax.random.key(0)))
    rng = np.random.default_rng(0)
    # Scales of 1: small ones, one after another, would end in slow denormal numbers.
    return {
        name: np.ones(one.shape, np.float32)
        if "scale" in name
        else 0.02 * rng.standard_normal(one.shape, np.float32)
        for name, one in shapes.items()
    }


def _write_table(
    config: ConfigDict, home: epath.Path, known: table.LatencyTable
) -> None:
    if not (home / "config.json").exists():
        workdir.write_config(config, home)
    storage.write_json(_table_path(home), known)
