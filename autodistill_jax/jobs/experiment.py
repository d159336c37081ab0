"""What does a config say? Where all jobs start from."""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from autodistill_jax import named as named_archs
from autodistill_jax import sharding
from autodistill_jax.arch import Arch, Space, nearest
from autodistill_jax.budget import Budget
from autodistill_jax.cost import cost
from autodistill_jax.data import text, tokens
from autodistill_jax.errors import UserError
from autodistill_jax.jobs import fields
from autodistill_jax.jobs.workdir import settle, superlm_folder
from autodistill_jax.model import extract, huggingface
from autodistill_jax.model.bert import Bert
from autodistill_jax.spaces import partition
from autodistill_jax.train import checkpoint, log, objectives


class Experiment(NamedTuple):
    """A checked config: nothing in it can still be refused.

    spaces: {name: Space}; a SuperLM each. affordable: {Arch under the budget: the name
    of its space}; an Arch of several spaces belongs to the first. start: what training
    starts from, (its Arch, its parameters).
    """

    config: ConfigDict
    teacher: huggingface.Teacher
    tokenizer: Any
    special: Any
    spaces: dict[str, Space]
    budget: Budget
    objective: objectives.Objective
    affordable: dict[Arch, str]
    start: tuple[Arch, dict]
    mesh: jax.sharding.Mesh

    def envelope(self, space: Space) -> Arch:
        """Sizes of the parameters of a space's SuperLM: its widths, all layers there
        are; a space of one Arch is that network and no more."""
        if len(space.grid()) == 1:
            return space.grid()[0]
        return extract.superlm_arch(self.start[0], space.envelope())

    def superlm(self, space: Space) -> Bert:
        settings = self.config.distill
        return Bert(
            self.envelope(space),
            self.teacher.sizes,
            space=None if len(space.grid()) == 1 else space,
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

    def grid(self) -> dict[Arch, str]:
        """All Archs, and the first space that each is in."""
        made = {}
        for name, space in self.spaces.items():
            made = {arch: name for arch in space.grid()} | made
        return made


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
    named = spaces(config.space, teacher.arch)
    special = tokens.special(made)
    objective = objectives.objective(
        config.distill.to_dict(), list(named.values()), teacher, special
    )
    for name in config.distill.freeze:
        if name not in teacher.params:
            raise UserError(
                f"distill.freeze names {name!r}; known: {', '.join(teacher.params)}"
            )
    for section in ("search", "finetune", "distill"):
        name = f"{section}.batch_size"
        mesh = sharding.make_mesh(config[section].batch_size, config.mesh.data, name)
    experiment = Experiment(
        config,
        teacher,
        made,
        special,
        named,
        Budget(**config.budget.to_dict()),
        objective,
        {},
        _start(config, teacher, named),
        mesh,
    )
    return experiment._replace(affordable=_affordable(experiment))


def spaces(settings: ConfigDict, teacher: Arch) -> dict[str, Space]:
    """The spaces of a config: its one grid, `main`, or the teacher's `partition`.

    Raises:
      UserError: both are given, or a grid that cannot be.
    """
    grid = settings.to_dict()
    count = grid.pop("partition")
    if count:
        given = [name for name, value in grid.items() if value]
        if given:
            raise UserError(
                f"space.partition is {count} and space.{given[0]} is "
                f"{grid[given[0]]!r}; give one of the two: the grid's fields are () "
                "and 0 beside a partition"
            )
        names = {3: ("tiny", "small", "base")}.get(count)
        names = names or [f"part{i}" for i in range(1, count + 1)]
        return dict(zip(names, partition(teacher, count)))
    grid["head_size"] = grid["head_size"] or teacher.head_size
    return {"main": Space(**grid)}


def _start(config, teacher, named) -> tuple[Arch, dict]:
    """Where training starts: the teacher's weights, random ones, or a student's."""
    kind = config.distill.start
    widest = Arch(
        *(
            max(getattr(space.envelope(), axis) for space in named.values())
            for axis in ("layers", "hidden", "heads", "ffn")
        ),
        head_size=next(iter(named.values())).head_size,
    )
    if kind == "random":
        if config.distill.freeze:
            raise UserError(
                "distill.start is random, and distill.freeze keeps "
                f"{', '.join(config.distill.freeze)} as they start; give "
                "--config.distill.freeze='()'"
            )
        module = Bert(widest, teacher.sizes)
        params = extract.init(module, jax.random.key(config.seed))
        return widest, {k: np.asarray(v) for k, v in params.items()}
    if not kind:
        raise UserError(
            "distill.start is empty; give teacher, random, or a student's folder"
        )
    source = teacher if kind == "teacher" else huggingface.load(kind)
    if source.sizes._replace(heads=0) != teacher.sizes._replace(heads=0):
        raise UserError(
            f"distill.start={kind} has {source.sizes}, and the teacher has "
            f"{teacher.sizes}; they must share vocabulary, positions and activation"
        )
    try:
        extract.check_fits(source.arch, widest)
    except UserError as error:
        raise UserError(f"distill.start={kind} and the space: {error}") from None
    return source.arch, source.params


def _affordable(experiment: Experiment) -> dict[Arch, str]:
    """The Archs under the budget, or the one that `search.arch` names."""
    config = experiment.config
    if config.search.arch:
        head_size = next(iter(experiment.spaces.values())).head_size
        arch = named_archs.read(config.search.arch, head_size, "search.arch")
        homes = experiment.grid()
        if arch not in homes:
            raise UserError(
                f"search.arch: {arch} is outside the space; the nearest inside is "
                f"{nearest(homes, arch)}"
            )
        return {arch: homes[arch]}
    teacher = experiment.teacher
    made, refusals = {}, []
    for name, space in experiment.spaces.items():
        try:
            inside = space.within(
                experiment.budget,
                experiment.cost(teacher.arch),
                sizes=teacher.sizes,
                length=config.latency.length,
            )
        except UserError as error:
            refusals.append(error)
            continue
        made = {arch: name for arch in inside} | made
    if not made:
        raise refusals[0]
    return made


def rows(
    experiment: Experiment,
    workdir: epath.Path,
    split: str,
    enough: Callable[[dict], None] = lambda held_out: None,
) -> dict[str, np.ndarray]:
    """The unlabelled token rows of a split, "train" or "heldout"; cut once, kept in the
    workdir.

    enough: raises UserError where there are too few held-out rows.

    Raises:
      UserError: text that cannot be used; nothing has been written then.
    """
    path = workdir / "data" / "rows.npz"
    names = ("ids", "tokens")
    if not path.exists():
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
        enough(made["heldout"])
        settle(experiment.config, workdir)
        flat = {f"{side}/{name}": made[side][name] for side in made for name in names}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **flat)
        partial.replace(path)
        log.say(
            f"text: {count:,} training rows and {len(flat['heldout/ids']):,} held-out "
            f"rows of {data.length} tokens"
        )
    with np.load(path) as kept:  # Only what is asked for is read.
        return {name: kept[f"{split}/{name}"] for name in names}


def held_out(experiment: Experiment, workdir: epath.Path) -> tuple[dict, dict]:
    """The held-out rows in two: those the search chooses on, and those that its choice
    is judged on."""
    return halves(experiment, rows(experiment, workdir, "heldout"))


def halves(experiment: Experiment, made: dict) -> tuple[dict, dict]:
    cut = min(experiment.config.search.rows, len(made["ids"]) // 2)
    return {k: x[:cut] for k, x in made.items()}, {k: x[cut:] for k, x in made.items()}


def trained_superlm(experiment: Experiment, workdir: epath.Path, space: str) -> dict:
    """The parameters of a space's trained SuperLM, matchers included, on the devices.

    Raises:
      UserError: it is not trained, or not to the end.
    """
    steps = experiment.config.distill.steps
    folder = superlm_folder(workdir, space)
    kept = checkpoint.manager(folder)
    if (kept.latest_step() or 0) < steps:
        raise UserError(
            f"{folder} has {kept.latest_step() or 0} of {steps} steps; "
            "run the job distill first"
        )
    state = checkpoint.restore_on(kept, sharding.replicated(experiment.mesh))
    return {**state["params"], **state["frozen"]}
