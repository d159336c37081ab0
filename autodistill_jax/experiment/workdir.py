"""What is in a workdir, and whose is it? Where jobs meet on disk."""

import dataclasses
import json
import re
import zlib
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import multihost, storage
from autodistill_jax.archs.arch import AnyArch, Arch, MobileArch
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import schema

# A workdir stays the same experiment whatever these are: the trained SuperLMs and the
# proxies do not depend on them.
_FREE = (
    "budget.",
    "latency.",
    "search.arch",
    "search.batch_size",
    "search.proxy",
    "search.tolerance",
    "search.task",
    "search.steps",
    "search.sampler",
    "search.trials",
    "search.storage",
    "flash.",
    "rank.",
    "baselines",
    "finetune.",
    "mesh.",
    "tensorboard",
    "distill.save_every",
    "pretrain.save_every",
)


def open_workdir(config: ConfigDict, workdir: str) -> epath.Path:
    """The folder of this experiment, local or gs://; nothing stays written yet (see
    `settle`).

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
    if storage.remote(folder) or multihost.count() > 1:
        storage.check(folder)
    path = folder / "config.json"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir={workdir} is a file; give a folder")
    if path.exists():
        a, b = schema.flat(plain(config)), schema.flat(json.loads(path.read_text()))
        differ = [
            f"{key} is {b.get(key)!r} there and {a.get(key)!r} here"
            for key in sorted(a.keys() | b.keys())
            if a.get(key) != b.get(key) and not key.startswith(_FREE)
        ]
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


def settle(config: ConfigDict, workdir: epath.Path) -> None:
    """Makes the workdir this experiment's: from here on it can only go on.

    Raises:
      UserError: the folder cannot be written.
    """
    try:
        storage.write_json(workdir / "config.json", plain(config))
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error}") from error


def plain(config: ConfigDict) -> dict:
    return json.loads(json.dumps(config.to_dict()))


def task_folder(settings: ConfigDict, task: str) -> str:
    """Where a task's results go; a file of one's own by content and columns too."""
    path = Path(task)
    if not path.is_file():
        return task
    fields = ("text", "text_pair", "label", "metric", "dev_file")
    told = repr([settings[name] for name in fields]).encode()
    if Path(settings.dev_file).is_file():
        told += Path(settings.dev_file).read_bytes()
    return f"{path.stem}-{zlib.crc32(path.read_bytes() + told):08x}"


def superlm_folder(workdir: epath.Path, space: str) -> epath.Path:
    return workdir / "superlm" / space / "checkpoints"


def baseline_folder(workdir: epath.Path, baseline: str, arch: AnyArch) -> epath.Path:
    """Of a baseline's student."""
    return workdir / "students" / f"{baseline}-{arch.name}"


def origin(config: ConfigDict) -> str:
    """Where students' weights come from: "superlm", or a transfer by which recipe."""
    if config.search.proxy != "flash":
        return "superlm"
    return f"flash-{_short(recipe_of(config))}"


def recipe_of(config: ConfigDict) -> dict:
    """What a transfer depends on, of the section flash."""
    names = ("block_steps", "steps", "fraction", "learning_rate", "warmup")
    return {name: config.flash[name] for name in names}


def _short(value: Any) -> str:
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def search_of(config: ConfigDict, latency: dict) -> tuple[str, str]:
    """(what a study's trials depend on, and that with its bounds), shortened.

    latency: the conditions that latencies are taken under.
    """
    fixed = {
        name: value
        for name, value in schema.flat(plain(config)).items()
        if not name.startswith(_FREE)
    }
    kin = {**fixed, "latency": latency}
    bounds = {"budget": plain(config)["budget"], "arch": config.search.arch}
    return _short(kin), _short(kin | bounds)


def transferred(config: ConfigDict, workdir: epath.Path, arch: AnyArch) -> epath.Path:
    """The weights that a full transfer left."""
    name = f"{arch.name}-{_short(recipe_of(config))}"
    return workdir / "transfer" / name / "weights.npz"


def students(config: ConfigDict, found: dict) -> list[AnyArch]:
    """The Archs that are handed over: the chosen one; of a search by Flash Distillation
    the next best of the front too, `flash.winners` in all."""
    chosen = arch_of(found["chosen"])
    if config.search.proxy != "flash":
        return [chosen]
    rest = [arch_of(one) for one in found["front"]]
    return [chosen, *(one for one in rest if one != chosen)][: config.flash.winners]


def arch_of(record: dict) -> AnyArch:
    return (MobileArch if "bottleneck" in record else Arch)(**record)


def record_of(arch: AnyArch) -> dict:
    return dataclasses.asdict(arch)


def asked_of(config: ConfigDict) -> dict:
    """What the choice of an Arch depends on besides the trained SuperLM."""
    made = {key: plain(config)[key] for key in ("budget", "latency", "search")}
    for name in ("storage", "batch_size"):  # The same whatever they are.
        del made["search"][name]
    if config.search.proxy == "flash":
        made["flash"] = recipe_of(config)
    del made["latency"]["calibrate"]  # It corrects no figure that a choice sees.
    if config.search.task:
        task = task_folder(config.finetune, config.search.task)
        made["tuning"] = {"task": task, **tuning_of(config)}
    return made


def tuning_of(config: ConfigDict) -> dict:
    """What a score on a task depends on besides the network, the task and its steps."""
    names = (
        "batch_size",
        "learning_rate",
        "warmup",
        "decay",
        "weight_decay",
        "clip",
        "dropout",
        "dtype",
        "length",
        "pairs",
        "glue_dir",
        "rows",
        "dev_rows",
    )
    return {name: config.finetune[name] for name in names}


def chosen_already(config: ConfigDict, workdir: epath.Path) -> AnyArch | None:
    """The Arch that a search under this very budget chose, if there was one."""
    path = workdir / "search" / "front.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return arch_of(found["chosen"]) if found["asked"] == asked_of(config) else None


def front(config: ConfigDict, workdir: epath.Path) -> dict:
    """front.json, of a search under this very budget.

    Raises:
      UserError: there was no search, or one under other settings.
    """
    found = read_json(workdir / "search" / "front.json", "search")
    a, b = schema.flat(asked_of(config)), schema.flat(found["asked"])
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


def ranked(config: ConfigDict, workdir: epath.Path) -> dict | None:
    """rank.json, if it was made under these settings."""
    path = workdir / "search" / "rank.json"
    found = json.loads(path.read_text()) if path.exists() else None
    return found if found and found["asked"] == ranked_of(config) else None


def ranked_of(config: ConfigDict) -> dict:
    """What rank.json depends on besides the trained SuperLM."""
    return {
        "rank": plain(config)["rank"],
        "proxy": config.search.proxy,
        "tuning": {
            "task": task_folder(config.finetune, config.rank.task),
            "epochs": config.finetune.epochs,
            **tuning_of(config),
        },
        "search": {"steps": config.search.steps, "rows": config.search.rows},
    }


def trial_of(found: dict, arch: AnyArch) -> dict:
    """The trial of an Arch in front.json."""
    return next(t for t in found["trials"] if arch_of(t["arch"]) == arch)


def read_json(path: epath.Path, needed: str) -> dict:
    """A file another job leaves behind.

    Raises:
      UserError: it is not there: says which job to run first.
    """
    if not path.exists():
        raise UserError(f"{path} is not there; run the job {needed} first")
    return json.loads(path.read_text())
