"""A workdir: whose experiment it is, where its files are, what jobs left in them."""

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
    choice_fingerprint,
    is_free_field,
    rank_fingerprint,
    short_hash,
    transfer_fingerprint,
)
from autodistill_jax.experiment.schema import to_json


def open_workdir(config: ConfigDict, workdir: str) -> epath.Path:
    """The folder of this experiment; nothing stays written yet (see `write_config`).

    Args:
      config: the experiment's.
      workdir: the flag --workdir, a path here or gs://bucket/folder.

    Returns:
      The folder, which need not exist.

    Raises:
      UserError: it holds another experiment (says which fields differ), or other
        files; a bucket that cannot be written.
    """
    if (kind := re.match(r"(\w+):/", workdir)) and not workdir.startswith("gs://"):
        raise UserError(
            f"--workdir={workdir} is {kind[0]}..., and a workdir is a folder here or "
            "in a bucket of Google's; give a path, or gs://bucket/folder"
        )
    folder = epath.Path(workdir)
    if storage.is_remote(folder) or multihost.process_count() > 1:
        storage.check_writable(folder)
    path = folder / "config.json"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir={workdir} is a file; give a folder")
    if path.exists():
        fields = schema.flatten(to_json(config))
        fields_there = schema.flatten(json.loads(path.read_text()))
        if fields_there.keys() & RENAMED_FIELDS.keys():
            raise UserError(
                f"workdir {workdir} was made by autodistill_jax 0.2, whose fields had "
                "other names; use another --workdir, or version 0.2 to go on with it"
            )
        if new := [k for k in fields.keys() - fields_there if not is_free_field(k)]:
            raise UserError(
                f"workdir {workdir} was made before there was {min(new)}; use another "
                "--workdir, or the version that made it to go on with it"
            )
        differences = [
            text
            for key, text in _differences(fields, fields_there).items()
            if not is_free_field(key)
        ]
        if differences:
            raise UserError(
                f"workdir {workdir} holds another experiment: "
                f"{'; '.join(differences[:3])}{' ...' if len(differences) > 3 else ''}"
                "; give the same, or use another --workdir"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"workdir {workdir} holds files, but no config.json of an experiment; "
            "use another --workdir"
        )
    return folder


def write_config(config: ConfigDict, workdir: epath.Path) -> None:
    """Makes the workdir this experiment's: from here on it can only go on.

    Args:
      config: the experiment's.
      workdir: of `open_workdir`.

    Raises:
      UserError: the folder cannot be written.
    """
    try:
        storage.write_json(workdir / "config.json", to_json(config))
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error}") from error


def superlm_folder(workdir: epath.Path, space: str) -> epath.Path:
    """The folder of the checkpoints of the SuperLM of the space of that name."""
    return workdir / "superlm" / space / "checkpoints"


def baseline_folder(workdir: epath.Path, baseline: str, arch: AnyArch) -> epath.Path:
    """The folder of a baseline's student, a Hugging Face model."""
    return workdir / "students" / f"{baseline}-{arch.name}"


def finish_folder(config: ConfigDict, workdir: epath.Path, arch: AnyArch) -> epath.Path:
    """The folder of the checkpoints of a student that is trained alone at the end."""
    name = f"{arch.name}-{config.distill.finish_steps}"
    return workdir / "finish" / name / "checkpoints"


def finish_job(config: ConfigDict, arch: AnyArch) -> str:
    """The name under which its losses stand in metrics.jsonl."""
    return f"finish/{arch.name}-{config.distill.finish_steps}"


def transfer_path(config: ConfigDict, workdir: epath.Path, arch: AnyArch) -> epath.Path:
    """The file of the weights that a full transfer to an Arch left."""
    name = f"{arch.name}-{short_hash(transfer_fingerprint(config))}"
    return workdir / "transfer" / name / "weights.npz"


def read_front(config: ConfigDict, workdir: epath.Path) -> dict:
    """The front.json of a search under this very budget.

    Args:
      config: the experiment's.
      workdir: where the job search left it.

    Returns:
      What is in it: "chosen", "front", "trials", "asked", ...

    Raises:
      UserError: there was no search, or one under other settings.
    """
    front = require_json(workdir / "search" / "front.json", "search")
    differences = _differences(
        schema.flatten(choice_fingerprint(config)), schema.flatten(front["asked"])
    )
    if differences:
        raise UserError(
            f"{workdir / 'search' / 'front.json'} was chosen under other settings: "
            f"{'; '.join([*differences.values()][:3])}; give the same, or run the job "
            "search first"
        )
    return front


def chosen_arch(config: ConfigDict, workdir: epath.Path) -> AnyArch | None:
    """The Arch that a search under this very budget chose, if there was one."""
    path = workdir / "search" / "front.json"
    if not path.exists():
        return None
    front = json.loads(path.read_text())
    if front["asked"] != choice_fingerprint(config):
        return None
    return arch_from_json(front["chosen"])


def student_archs(config: ConfigDict, front: dict) -> list[AnyArch]:
    """The Archs that are handed over: of each budget the chosen one; of a search by
    Flash Distillation the next best of the front too, `flash_distillation.top_k` in all.

    Args:
      config: the experiment's.
      front: of `read_front`.

    Returns:
      The Archs, the first budget's first, each once.
    """
    archs = [arch_from_json(choice["arch"]) for choice in front["choices"]]
    if config.search.proxy == "flash":
        top_k = config.flash_distillation.top_k
        front_archs = [arch_from_json(record) for record in front["front"]]
        missing = [arch for arch in front_archs if arch not in archs]
        archs += missing[: max(top_k - len(set(archs)), 0)]
    return list(dict.fromkeys(archs))


def find_trial(front: dict, arch: AnyArch) -> dict:
    """The trial of an Arch, of the front.json that `read_front` gives."""
    return next(t for t in front["trials"] if arch_from_json(t["arch"]) == arch)


def read_rank_table(config: ConfigDict, workdir: epath.Path) -> dict | None:
    """The job rank's rank.json; None if there is none made under this config."""
    path = workdir / "search" / "rank.json"
    rank_table = json.loads(path.read_text()) if path.exists() else None
    if not rank_table or rank_table["asked"] != rank_fingerprint(config):
        return None
    return rank_table


def require_json(path: epath.Path, needed: str) -> dict:
    """What is in a file that another job leaves behind.

    Args:
      path: of the file, JSON.
      needed: the job's name.

    Returns:
      The file's content.

    Raises:
      UserError: it is not there: says which job to run first.
    """
    if not path.exists():
        raise UserError(f"{path} is not there; run the job {needed} first")
    return json.loads(path.read_text())


def arch_from_json(record: dict) -> AnyArch:
    """The Arch of {field: size}, as `arch_to_json` gives it."""
    return (MobileArch if "bottleneck" in record else Arch)(**record)


def arch_to_json(arch: AnyArch) -> dict:
    """An Arch as {field: size}."""
    return dataclasses.asdict(arch)


def _differences(fields: dict, fields_there: dict) -> dict[str, str]:
    """{field that differs: how, in words}, in the order of the names."""
    return {
        key: f"{key} is {fields_there.get(key)!r} there and {fields.get(key)!r} here"
        for key in sorted(fields.keys() | fields_there.keys())
        if fields.get(key) != fields_there.get(key)
    }
