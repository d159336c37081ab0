"""What is in a workdir, and whose is it? Where jobs meet on disk."""

import dataclasses
import json
import re

from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import multihost, storage
from autodistill_jax.archs.arch import AnyArch, Arch, MobileArch
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import schema
from autodistill_jax.experiment.base_config import RENAMED_FIELDS
from autodistill_jax.experiment.fingerprints import (
    _short_hash,
    choice_fingerprint,
    is_free_field,
    rank_fingerprint,
    transfer_fingerprint,
)
from autodistill_jax.experiment.schema import to_json


def open_workdir(config: ConfigDict, workdir: str) -> epath.Path:
    """The folder of this experiment, local or gs://; nothing stays written yet (see
    `write_config`).

    Raises:
      UserError: it holds another experiment (says which fields differ), or other
        files; a bucket that cannot be written.
    """
    if (kind := re.match(r"(\w+):/", workdir)) and not workdir.startswith("gs://"):
        raise UserError(
            f"--workdir={workdir} is {kind[0]}..., and a workdir is a folder here or in a "
            "bucket of Google's; give a path, or gs://bucket/folder"
        )
    folder = epath.Path(workdir)
    if storage.is_remote(folder) or multihost.process_count() > 1:
        storage.check_writable(folder)
    path = folder / "config.json"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir={workdir} is a file; give a folder")
    if path.exists():
        a, b = (
            schema.flatten(to_json(config)),
            schema.flatten(json.loads(path.read_text())),
        )
        differ = [
            f"{key} is {b.get(key)!r} there and {a.get(key)!r} here"
            for key in sorted(a.keys() | b.keys())
            if a.get(key) != b.get(key) and not is_free_field(key)
        ]
        if b.keys() & RENAMED_FIELDS.keys():
            raise UserError(
                f"workdir {workdir} was made by autodistill_jax 0.2, whose fields had other "
                "names; use another --workdir, or version 0.2 to go on with it"
            )
        if differ:
            raise UserError(
                f"workdir {workdir} holds another experiment: {'; '.join(differ[:3])}"
                f"{' ...' if len(differ) > 3 else ''}; give the same, or use another --workdir"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"workdir {workdir} holds files, but no config.json of an experiment; "
            "use another --workdir"
        )
    return folder


def write_config(config: ConfigDict, workdir: epath.Path) -> None:
    """Makes the workdir this experiment's: from here on it can only go on.

    Raises:
      UserError: the folder cannot be written.
    """
    try:
        storage.write_json(workdir / "config.json", to_json(config))
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error}") from error


def superlm_folder(workdir: epath.Path, space: str) -> epath.Path:
    return workdir / "superlm" / space / "checkpoints"


def baseline_folder(workdir: epath.Path, baseline: str, arch: AnyArch) -> epath.Path:
    """Of a baseline's student."""
    return workdir / "students" / f"{baseline}-{arch.name}"


def transfer_path(config: ConfigDict, workdir: epath.Path, arch: AnyArch) -> epath.Path:
    """The weights that a full transfer left."""
    name = f"{arch.name}-{_short_hash(transfer_fingerprint(config))}"
    return workdir / "transfer" / name / "weights.npz"


def student_archs(config: ConfigDict, found: dict) -> list[AnyArch]:
    """The Archs that are handed over: the chosen one; of a search by Flash Distillation
    the next best of the front too, `flash_distillation.top_k` in all."""
    chosen = arch_from_json(found["chosen"])
    if config.search.proxy != "flash":
        return [chosen]
    rest = [arch_from_json(one) for one in found["front"]]
    return [chosen, *(one for one in rest if one != chosen)][
        : config.flash_distillation.top_k
    ]


def arch_from_json(record: dict) -> AnyArch:
    return (MobileArch if "bottleneck" in record else Arch)(**record)


def arch_to_json(arch: AnyArch) -> dict:
    return dataclasses.asdict(arch)


def chosen_arch(config: ConfigDict, workdir: epath.Path) -> AnyArch | None:
    """The Arch that a search under this very budget chose, if there was one."""
    path = workdir / "search" / "front.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return (
        arch_from_json(found["chosen"])
        if found["asked"] == choice_fingerprint(config)
        else None
    )


def read_front(config: ConfigDict, workdir: epath.Path) -> dict:
    """front.json, of a search under this very budget.

    Raises:
      UserError: there was no search, or one under other settings.
    """
    found = require_json(workdir / "search" / "front.json", "search")
    a, b = schema.flatten(choice_fingerprint(config)), schema.flatten(found["asked"])
    differ = [
        f"{key} is {b.get(key)!r} there and {a.get(key)!r} here"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]
    if differ:
        raise UserError(
            f"{workdir / 'search' / 'front.json'} was chosen under other settings: "
            f"{'; '.join(differ[:3])}; give the same, or run the job search first"
        )
    return found


def read_rank_table(config: ConfigDict, workdir: epath.Path) -> dict | None:
    """rank.json, if it was made under these settings."""
    path = workdir / "search" / "rank.json"
    found = json.loads(path.read_text()) if path.exists() else None
    return found if found and found["asked"] == rank_fingerprint(config) else None


def find_trial(found: dict, arch: AnyArch) -> dict:
    """The trial of an Arch in front.json."""
    return next(t for t in found["trials"] if arch_from_json(t["arch"]) == arch)


def require_json(path: epath.Path, needed: str) -> dict:
    """A file another job leaves behind.

    Raises:
      UserError: it is not there: says which job to run first.
    """
    if not path.exists():
        raise UserError(f"{path} is not there; run the job {needed} first")
    return json.loads(path.read_text())
