"""What does a config say, and which workdir is its? Where all jobs start from."""

import dataclasses
import importlib.util
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import sharding
from autodistill_jax.arch import Arch, Space
from autodistill_jax.budget import Budget
from autodistill_jax.cost import cost
from autodistill_jax.data import text, tokens
from autodistill_jax.errors import UserError
from autodistill_jax.jobs import fields
from autodistill_jax.model import extract, huggingface
from autodistill_jax.model.bert import Bert
from autodistill_jax.train import checkpoint, log, objectives

# A workdir stays the same experiment whatever these are: the trained SuperLM and the
# proxies do not depend on them.
_FREE = (
    "budget.",
    "latency.",
    "search.batch_size",
    "finetune.",
    "mesh.",
    "tensorboard",
    "distill.save_every",
)


class Experiment(NamedTuple):
    """A checked config: nothing in it can still be refused."""

    config: ConfigDict
    teacher: huggingface.Teacher
    tokenizer: Any
    space: Space
    budget: Budget
    objective: objectives.Objective
    affordable: list[Arch]
    mesh: jax.sharding.Mesh

    @property
    def envelope(self) -> Arch:
        """Sizes of the SuperLM's parameters."""
        return extract.superlm_arch(self.teacher.arch, self.space.envelope())

    def superlm(self) -> Bert:
        settings = self.config.distill
        return Bert(
            self.envelope,
            self.teacher.sizes,
            space=self.space,
            dtype=jnp.dtype(settings.dtype),
            dropout=settings.dropout,
        )

    def teacher_module(self) -> Bert:
        return Bert(
            self.teacher.arch,
            self.teacher.sizes,
            dtype=jnp.dtype(self.config.distill.dtype),
        )

    def cost(self, arch: Arch) -> dict[str, int]:
        return cost(arch, self.teacher.sizes, self.config.latency.length)


def read(config: ConfigDict) -> Experiment:
    """Checks a config before any work; loads the teacher.

    Raises:
      UserError: whatever cannot work, in one line.
    """
    fields.check(config)
    if config.tensorboard and not all(
        importlib.util.find_spec(name) for name in ("tensorflow", "tensorboard")
    ):
        raise UserError(
            "tensorboard is True, but its packages are not installed; "
            "run: pip install 'autodistill_jax[tensorboard]'"
        )
    data = config.data
    text.check(data.source, data.packages, data.download)
    teacher = huggingface.load(config.teacher)
    made = tokens.tokenizer(teacher.folder, teacher.sizes.vocab)
    length = max(data.length, config.latency.length, config.finetune.length)
    if length > teacher.sizes.positions:
        raise UserError(
            f"a length of {length} tokens is more than the teacher's "
            f"{teacher.sizes.positions} positions; use shorter texts"
        )
    grid = config.space.to_dict()
    grid["head_size"] = grid["head_size"] or teacher.arch.head_size
    space = Space(**grid)
    extract.check_fits(teacher.arch, space.envelope())
    budget = Budget(**config.budget.to_dict())
    affordable = space.within(
        budget,
        cost(teacher.arch, teacher.sizes, config.latency.length),
        sizes=teacher.sizes,
        length=config.latency.length,
    )
    objective = objectives.objective(
        config.distill.to_dict(), space, teacher.pooling, teacher.embeds
    )
    for name in config.distill.freeze:
        if name not in teacher.params:
            raise UserError(
                f"distill.freeze names {name!r}; known: {', '.join(teacher.params)}"
            )
    for section in ("search", "finetune", "distill"):
        name = f"{section}.batch_size"
        mesh = sharding.make_mesh(config[section].batch_size, config.mesh.data, name)
    return Experiment(config, teacher, made, space, budget, objective, affordable, mesh)


def open_workdir(config: ConfigDict, workdir: str) -> epath.Path:
    """The folder of this experiment; nothing is written yet (see `settle`).

    Raises:
      UserError: it holds another experiment (says which fields differ), or other files.
    """
    folder = epath.Path(workdir)
    path = folder / "config.json"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir={workdir} is a file; give a folder")
    if path.exists():
        a, b = fields.flat(_plain(config)), fields.flat(json.loads(path.read_text()))
        differ = [
            f"{key} is {b.get(key)!r} there and {a.get(key)!r} here"
            for key in sorted(a.keys() | b.keys())
            if a.get(key) != b.get(key) and not key.startswith(_FREE)
        ]
        if differ:
            raise UserError(
                f"workdir {workdir} holds another experiment: {'; '.join(differ[:3])}"
                f"{' ...' if len(differ) > 3 else ''}; use another --workdir"
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
        write_json(workdir / "config.json", _plain(config))
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error}") from error


def _plain(config: ConfigDict) -> dict:
    return json.loads(json.dumps(config.to_dict()))


def rows(experiment: Experiment, workdir: epath.Path) -> dict[str, dict]:
    """The unlabelled token rows, {"train", "heldout"}; cut once, kept in the workdir.

    Raises:
      UserError: text that cannot be used; nothing has been written then.
    """
    path = workdir / "data" / "rows.npz"
    if path.exists():
        with np.load(path) as kept:
            flat = dict(kept)
    else:
        data = experiment.config.data
        made = text.rows(
            text.documents(data.source, data.packages, data.download),
            experiment.tokenizer,
            data.unit,
            data.length,
            data.rows,
        )
        count = len(made["train"]["ids"])
        if count < experiment.config.distill.batch_size:
            raise UserError(
                f"distill.batch_size {experiment.config.distill.batch_size} is larger "
                f"than the {count} rows of data.source; use a smaller batch or more text"
            )
        settle(experiment.config, workdir)
        flat = {
            f"{split}/{name}": made[split][name]
            for split in made
            for name in ("ids", "tokens")
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **flat)
        partial.replace(path)
        log.say(
            f"text: {count:,} training rows and {len(flat['heldout/ids']):,} held-out "
            f"rows of {data.length} tokens"
        )
    split = {"train": {}, "heldout": {}}
    for key, value in flat.items():
        split[key.split("/")[0]][key.split("/")[1]] = value
    return split


def held_out(experiment: Experiment, workdir: epath.Path) -> tuple[dict, dict]:
    """The held-out rows in two: those the search chooses on, and those that its choice
    is judged on."""
    made = rows(experiment, workdir)["heldout"]
    cut = min(experiment.config.search.rows, len(made["ids"]) // 2)
    return {k: x[:cut] for k, x in made.items()}, {k: x[cut:] for k, x in made.items()}


def task_folder(settings: ConfigDict, task: str) -> str:
    """Where a task's results go; a file of one's own by content and columns too."""
    path = Path(task)
    if not path.is_file():
        return task
    fields = ("text", "text_pair", "label", "metric", "dev_file")
    told = repr([settings[name] for name in fields]).encode()
    return f"{path.stem}-{zlib.crc32(path.read_bytes() + told):08x}"


def superlm_folder(workdir: epath.Path) -> Path:
    return Path(workdir) / "superlm" / "main" / "checkpoints"


def trained_superlm(experiment: Experiment, workdir: epath.Path) -> dict:
    """The parameters of the trained SuperLM, matchers included, on the devices.

    Raises:
      UserError: it is not trained, or not to the end.
    """
    steps = experiment.config.distill.steps
    kept = checkpoint.manager(superlm_folder(workdir))
    if (kept.latest_step() or 0) < steps:
        raise UserError(
            f"{superlm_folder(workdir)} has {kept.latest_step() or 0} of {steps} steps; "
            "run the job distill first"
        )
    state = checkpoint.restore_on(kept, sharding.replicated(experiment.mesh))
    return {**state["params"], **state["frozen"]}


def arch_of(record: dict) -> Arch:
    return Arch(**record)


def record_of(arch: Arch) -> dict:
    return dataclasses.asdict(arch)


def asked_of(config: ConfigDict) -> dict:
    """What the choice of an Arch depends on besides the trained SuperLM."""
    return {key: _plain(config)[key] for key in ("budget", "latency", "search")}


def chosen_already(config: ConfigDict, workdir: epath.Path) -> Arch | None:
    """The Arch that a search under this very budget chose, if there was one."""
    path = workdir / "search" / "front.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return arch_of(found["chosen"]) if found["asked"] == asked_of(config) else None


def trial_of(found: dict, arch: Arch) -> dict:
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


def write_json(path: epath.Path, value: Any) -> None:
    """Whole or not at all: a stop in between leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)
