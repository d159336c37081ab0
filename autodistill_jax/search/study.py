"""Where are trials kept? In an Optuna study: SQLite in the workdir."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

from autodistill_jax.arch import AnyArch, Arch
from autodistill_jax.errors import UserError
from autodistill_jax.space import Space


def open_study(folder: Path, spaces: Mapping[str, Space], name: str):
    """The study of these spaces by the proxy of that name, made if it is new; objectives
    proxy and FLOPs, both small. optuna-dashboard opens its file.

    Raises:
      UserError: it holds other spaces (says which axis differs).
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=name,
        storage=f"sqlite:///{folder / 'study.db'}",
        directions=["minimize", "minimize"],
        load_if_exists=True,
    )
    ours = json.loads(json.dumps(_values(spaces)))
    theirs = study.user_attrs.get("space")
    if theirs is None:
        study.set_user_attr("space", ours)
    elif theirs != ours:
        axis = next(axis for axis in ours if ours[axis] != theirs.get(axis))
        raise UserError(
            f"{folder / 'study.db'} is a study of another space: {axis} is "
            f"{theirs.get(axis)} there and {ours[axis]} here; use another --workdir"
        )
    return study


def _values(spaces: Mapping[str, Space]) -> dict[str, list[int]]:
    grid = [arch for space in spaces.values() for arch in space.grid()]
    family = next(iter(spaces.values())).family
    return {
        axis: sorted({getattr(arch, axis) for arch in grid})
        for axis in (*family.axes, *(("head_size",) if family is Arch else ()))
    }


def record(
    study, spaces: Mapping[str, Space], arch: AnyArch, values: Mapping[str, float]
) -> None:
    """Adds a finished trial: `values` has proxy and flops; the rest are attributes."""
    import optuna

    choices = _values(spaces)
    study.add_trial(
        optuna.trial.create_trial(
            params={axis: getattr(arch, axis) for axis in arch.axes},
            distributions={
                axis: optuna.distributions.CategoricalDistribution(choices[axis])
                for axis in arch.axes
            },
            values=[values["proxy"], values["flops"]],
            user_attrs={k: v for k, v in values.items() if k not in ("proxy", "flops")},
        )
    )


def trials(study, spaces: Mapping[str, Space]) -> dict[AnyArch, dict[str, float]]:
    """The finished trials: {arch: {"proxy", "flops", ...}}."""
    import optuna

    space = next(iter(spaces.values()))
    finished = study.get_trials(
        deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)
    )
    return {
        space.arch(trial.params): {
            "proxy": trial.values[0],
            "flops": trial.values[1],
            **trial.user_attrs,
        }
        for trial in finished
    }


def write_csv(path: Path, table: Mapping[AnyArch, Mapping[str, float]]) -> None:
    """trials.csv: a line an Arch."""
    columns = list(dict.fromkeys(key for values in table.values() for key in values))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    axes = next(iter(table)).axes
    writer.writerow([*axes, *columns])
    for arch, values in sorted(table.items()):
        writer.writerow(
            [getattr(arch, a) for a in axes] + [values.get(c, "") for c in columns]
        )
    path.write_text(buffer.getvalue())
