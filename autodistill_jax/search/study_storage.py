"""The storage of trials: an Optuna study, in the workdir or in a database."""

import csv
import io
import json
import re
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from autodistill_jax import storage as stored_files
from autodistill_jax.archs.arch import AnyArch, Arch
from autodistill_jax.archs.space import Space
from autodistill_jax.errors import UserError

if TYPE_CHECKING:
    import optuna

_STUDY_FILE = "study.db"


def open_study(
    folder: epath.Path,
    spaces: Mapping[str, Space],
    name: str,
    storage: str = "",
    second_objective: str = "flops",
):
    """The study of these spaces by the proxy of that name, made if it is new.

    Its objectives are the proxy and the `second_objective`, both minimised.
    optuna-dashboard opens it.

    Args:
      folder: where a study that is a file lies.
      spaces: {name: space}; the study remembers their axes.
      name: of the study.
      storage: "": SQLite in the folder; "journal": a file in the folder that several
        machines may share; or a database's URL.
      second_objective: its name, "flops" or "latency_ms".

    Raises:
      UserError: it holds other spaces (says which axis differs), or the database does
        not answer.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _create_study(folder, name, storage)
    with warnings.catch_warnings():  # That it may change one day.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(["proxy", second_objective])
    sizes = json.loads(json.dumps(_axis_sizes(spaces)))
    stored_sizes = study.user_attrs.get("space")
    if stored_sizes is None:
        study.set_user_attr("space", sizes)
    elif stored_sizes != sizes:
        axes = sizes | stored_sizes
        axis = next(axis for axis in axes if sizes.get(axis) != stored_sizes.get(axis))
        raise UserError(
            f"{redacted_url(storage) or folder / 'study.db'} holds a study {name!r} of "
            f"another space: {axis} is {stored_sizes.get(axis)} there and "
            f"{sizes.get(axis)} here; use another --workdir"
            + (" or storage" if storage else "")
        )
    return study


def upload_study(folder: epath.Path) -> None:
    """Uploads a study that is a file in `folder`, if that is in a bucket."""
    stored_files.upload_mirror(folder / _STUDY_FILE)


def check_storage(storage: str, folder: epath.Path) -> None:
    """Refuses a storage that cannot be used, within 10 s.

    Args:
      storage: see `open_study`.
      folder: where a study that is a file would lie.

    Raises:
      UserError: a database does not answer, or the folder cannot hold a journal.
    """
    if storage == "journal" and stored_files.is_remote(folder):
        raise UserError(
            f"search.storage is journal, a file that grows, and {folder} is in a "
            "bucket, whose files do not; use '' for one program, a database's URL "
            "for several"
        )
    if storage in ("", "journal"):
        return
    if "://" not in storage:
        raise UserError(
            f"search.storage is {redacted_url(storage)!r}; it must be '' (a file in "
            "the workdir), 'journal' (one that several machines may share) or a "
            "database's URL, such as postgresql://user:password@host/name"
        )
    _with_storage_errors(storage, lambda: _open_database(storage))


def _create_study(folder: epath.Path, name: str, storage: str):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    def create():
        if storage == "journal":
            folder.mkdir(parents=True, exist_ok=True)
            backend = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
        elif storage:
            backend = _open_database(storage)
        else:
            stored_files.local_mirror(folder / _STUDY_FILE).parent.mkdir(
                parents=True, exist_ok=True
            )
            backend = f"sqlite:///{stored_files.local_mirror(folder / _STUDY_FILE)}"
        return optuna.create_study(
            study_name=name,
            storage=backend,
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )

    return _with_storage_errors(storage, create)


def _open_database(url: str):
    from optuna.storages import RDBStorage

    url = re.sub("^postgres(ql)?://", "postgresql+psycopg://", url)
    wait = {"connect_timeout": 5} if url.startswith("postgresql") else {}
    return RDBStorage(url, engine_kwargs={"connect_args": wait})


def _with_storage_errors(storage: str, make: Callable[[], Any]) -> Any:
    """What make() gives; what it raises is the storage's."""
    try:
        return make()
    except Exception as error:
        if not storage:
            raise
        if isinstance(error, ImportError) or isinstance(error.__cause__, ImportError):
            is_postgres = storage.startswith("postgres")
            cure = (
                "pip install 'autodistill_jax[postgres]'" if is_postgres else str(error)
            )
            raise UserError(
                f"search.storage={redacted_url(storage)} needs its database's driver, "
                "which is not installed; "
                f"{'run' if is_postgres else 'install it'}: {cure}"
            ) from error
        reason = (str(error.__cause__ or error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"search.storage={redacted_url(storage)} does not answer: {reason}; start "
            "the database, correct the URL, or use 'journal' or ''"
        ) from error


def redacted_url(storage: str) -> str:
    """A URL without its password."""
    # Whatever the slip: all between the first colon of the address and the last @.
    plain = re.sub(r"^(.*?://)?([^:/@]*):.*@", r"\1\2:***@", storage)
    return re.sub(r"(password=)[^&]*", r"\1***", plain)


def _axis_sizes(spaces: Mapping[str, Space]) -> dict[str, list[int]]:
    family = next(iter(spaces.values())).family
    sizes = {
        axis: sorted(
            {size for s in spaces.values() for (size,) in s.axis_values_product(axis)}
        )
        for axis in family.axes
    }
    if family is Arch:
        sizes["head_size"] = sorted({space.head_size for space in spaces.values()})
    return sizes


def record_trial(
    study: "optuna.Study",
    spaces: Mapping[str, Space],
    arch: AnyArch,
    values: Mapping[str, float],
) -> None:
    """Adds a finished trial.

    Args:
      study: what it is added to.
      spaces: of the study.
      arch: what was tried.
      values: "proxy" and "flops" are the objectives; the rest become attributes.
    """
    import optuna

    choices = _axis_sizes(spaces)
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


def read_trials(
    study: "optuna.Study", spaces: Mapping[str, Space]
) -> dict[AnyArch, dict[str, float]]:
    """The finished trials of a study that `record_trial` filled, over those spaces.

    Returns:
      {arch: {"proxy", "flops", ...}}.
    """
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


def trials_csv(table: Mapping[AnyArch, Mapping[str, float]]) -> str:
    """The text of trials.csv: a line for each Arch of {arch: {column: value}}."""
    columns = list(dict.fromkeys(key for values in table.values() for key in values))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    axes = next(iter(table)).axes
    writer.writerow([*axes, *columns])
    for arch, values in sorted(table.items()):
        writer.writerow(
            [getattr(arch, a) for a in axes] + [values.get(c, "") for c in columns]
        )
    return buffer.getvalue()
