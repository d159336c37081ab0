"""Which trials does a study run, and on what? For `search`, where it does not list all."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from autodistill_jax import log, multihost, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.data import loader
from autodistill_jax.data.tasks import Task
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import labelled_data, proxy_inputs
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.text_rows import held_out, rows
from autodistill_jax.experiment.workdir import search_of
from autodistill_jax.latency import table
from autodistill_jax.models import build, extract
from autodistill_jax.search import proxies, study_storage
from autodistill_jax.train import distillation, flash_distillation
from autodistill_jax.train import objective as objectives

LISTED = 1_000_000  # The Archs of the largest space of which each may be taken.

# An Arch and the transfer losses of those before it -> {"proxy": ..., and what else}.
Evaluate = Callable[[AnyArch, list[float]], Mapping[str, Any]]


def check(experiment: Experiment) -> None:
    """Raises UserError for a sampler, or a proxy, that this experiment cannot have."""
    settings = experiment.config.search
    if settings.proxy == "flash" and experiment.config.rank.archs:
        raise UserError(
            f"rank.archs is {experiment.config.rank.archs}, which ranks sub-networks of a "
            "SuperLM, and search.proxy flash trains none; set rank.archs to 0"
        )
    if settings.sampler == "all":
        if settings.proxy == "flash":
            raise UserError(
                "search.proxy is flash, which trains every candidate, and search.sampler "
                "is all, which takes every Arch; set search.sampler to bayes"
            )
        if settings.storage:
            raise UserError(
                f"search.storage is {study_storage.shown(settings.storage)}, and search.sampler "
                "all keeps its trials in the workdir, for one process; set search.storage "
                "to '', or take another sampler"
            )
        if max(map(len, experiment.spaces.values())) > LISTED:
            raise UserError(
                f"search.sampler is all, which takes every Arch, and the space has "
                f"{experiment.count():,}; set search.sampler to bayes"
            )
        return
    if experiment.count() < 2:
        raise UserError(
            f"search.sampler is {settings.sampler}, and the space has one Arch, which "
            "needs no search; set it to all"
        )
    if len(experiment.spaces) > 1:
        raise UserError(
            f"search.sampler is {settings.sampler}, which searches one space, and there "
            f"are {len(experiment.spaces)}; set it to all, or space.partition to 0"
        )
    heads = experiment.teacher.arch.heads
    narrowest = min(space.smallest().width for space in experiment.spaces.values())
    if settings.proxy == "flash" and narrowest < heads:
        raise UserError(
            f"search.proxy is flash, which compares attention in the teacher's {heads} "
            f"heads, and the narrowest Arch has {narrowest} query channels; give the "
            "space wider ones"
        )
    if settings.proxy == "flash" and experiment.special.hide is None:
        raise UserError(
            "search.proxy is flash, which hides words, but the teacher's tokenizer has no "
            "token for a hidden word ([MASK] or <mask>); take another proxy"
        )


def run(
    experiment: Experiment,
    workdir: epath.Path,
    superlms: Mapping[str, dict],
    latency: Callable[[AnyArch], float],
    bound: float | None,
    conditions: Mapping[str, Any],
    task: Task | None,
    stage: str,
) -> dict[AnyArch, dict]:
    """The study's finished trials, `search.trials` of all states in all.

    A study is of one experiment under one budget and one kind of latency; those under
    another budget, in the same storage, are what it starts from.

    Args:
      superlms: {space: parameters}, for a proxy that inherits their weights.
      conditions: what latencies depend on. task: that a labelled proxy needs.
      latency: milliseconds of an Arch, asked before it is evaluated. bound: on it.
    """
    works = {
        "latency": latency,
        "evaluate": _evaluate(experiment, workdir, superlms, task, stage),
    }
    # The first process has the study and says what comes next; all compute it.
    return multihost.led(
        lambda ask: _led(experiment, workdir, ask, bound, dict(conditions), stage),
        lambda what, *given: works[what](*given),
    )


def _led(experiment, workdir, ask, bound, conditions, stage) -> dict[AnyArch, dict]:
    # With it optuna and scipy's optimisers are loaded, which other jobs do without.
    from autodistill_jax.search import study_loop

    config = experiment.config
    settings = config.search
    (space,) = experiment.spaces.values()
    kin, bounds = search_of(config, conditions)
    made = study_storage.open_study(
        workdir / "search",
        experiment.spaces,
        f"{proxy_inputs.study_name(experiment)}-{settings.sampler}-{bounds}",
        settings.storage,
        "latency_ms",
    )
    allowed = experiment.affordable.__contains__
    begun = len(made.trials)
    made.sampler = study_loop.sampler(
        settings.sampler, space, config.seed, allowed, begun
    )
    if not begun:
        kind = f"{proxy_inputs.study_name(experiment)}-{kin}"
        count = study_loop.inherit(made, kind, space, allowed, bound)
        if count:
            log.say(f"{stage}: {count} trials under other bounds are known already")
    if settings.arch and not begun:
        (named,) = experiment.affordable
        made.enqueue_trial(space.chosen(named))
    log.say(
        f"{stage}: up to {settings.trials} trials by {settings.sampler}, latency first, "
        f"then {settings.proxy!r}: {proxies.PROXIES[settings.proxy]}"
    )
    if settings.proxy == "flash" and experiment.teacher.head is None:
        log.say(
            f"{stage}: the teacher has no masked-word head: no soft labels and no last "
            "stage, the score is the blocks' held-out loss"
        )

    def evaluate(arch):
        others = [one.user_attrs.get("transfer") for one in study_loop.finished(made)]
        return ask("evaluate", arch, [loss for loss in others if loss is not None])

    study_loop.run(
        made,
        space,
        1 if settings.arch else settings.trials,
        latency=lambda arch: ask("latency", arch),
        evaluate=evaluate,
        bound=bound,
        allowed=allowed,
        stage=stage,
        alone=not settings.storage,
        keep=lambda: study_storage.keep(workdir / "search"),
    )
    done = {}
    for one in study_loop.finished(made):
        arch = space.at(one.params)
        if arch in experiment.affordable:
            done[arch] = {
                "flops": experiment.budget.counted(experiment.cost(arch))["flops"],
                "proxy": one.values[0],
                **{k: v for k, v in one.user_attrs.items() if k not in study_loop.OWN},
                "latency_ms": one.values[1],
            }
    if not done:
        told = "; ".join(
            sorted({str(one.user_attrs.get("error", "")) for one in made.trials} - {""})
        )
        timed = [one for one in made.trials if "latency_ms" in one.user_attrs]
        if bound is not None and timed:
            least = min(timed, key=lambda one: one.user_attrs["latency_ms"])
            told += (
                f"latency_ms <= {bound:.4g}, and the fastest tried, "
                f"{space.at(least.params)}, takes {least.user_attrs['latency_ms']:.4g}"
            )
        raise UserError(
            f"none of the {len(made.trials)} trials came to an end within the budget"
            f"{f' ({told})' if told else ''}; raise the bound or search.trials, or give "
            "the space smaller Archs"
        )
    return done


def _evaluate(experiment, workdir, superlms, task, stage) -> Evaluate:
    settings = experiment.config.search
    if settings.proxy != "flash":
        ((home, params),) = superlms.items()
        labels = labelled_data.rows(experiment, task) if task else None
        given = proxy_inputs.given(
            experiment, workdir, home, params, labels, experiment.config.seed
        )
        proxy = proxies.make(settings.proxy, given)
        return lambda arch, others: proxy([arch])[arch]

    from autodistill_jax.search import proxy_flash

    text = rows(experiment, workdir, "train")
    judged_on = held_out(experiment, workdir)[0]

    def evaluate(arch, others):
        how = recipe(experiment)
        return proxy_flash.score(
            transfer(experiment, arch),
            loader.training(text, how["batch_size"], experiment.config.seed),
            judged_on,
            how,
            experiment.mesh,
            experiment.config.seed,
            f"{stage}: {arch}",
            others,
        )

    return evaluate


def transfer(experiment: Experiment, arch: AnyArch) -> flash_distillation.Transfer:
    """Of the teacher's knowledge to a student of this Arch, from where training starts."""
    teacher, config = experiment.teacher, experiment.config
    there, params = experiment.start
    objective = objectives.transfer(
        config.distill.to_dict(),
        arch.layers,
        teacher,
        experiment.special,
        config.data.unit == "pair",
    )
    same = experiment.sizes.family == teacher.sizes.family
    student = extract.extract(params, there, arch) | distillation.matcher(
        objective,
        arch.hidden,
        teacher.arch.hidden,
        teacher.head if same else None,
        experiment.sizes,
    )
    word = "embeddings_word"
    return flash_distillation.Transfer(
        build.module(
            arch,
            experiment.sizes,
            dtype=jnp.dtype(config.distill.dtype),
            dropout=config.distill.dropout,
            mesh=experiment.mesh,
            remat=config.mesh.remat,
        ),
        student,
        experiment.teacher_module(),
        teacher.params | (teacher.head or {}),
        objective,
        # Equal to the teacher's own, not a cut or a projection of them.
        copied=np.array_equal(student[word], teacher.params[word]),
        parts=config.mesh.accumulate,
    )


def recipe(experiment: Experiment) -> dict[str, Any]:
    """The settings of a transfer: the section flash, what is common from distill."""
    distill = experiment.config.distill
    common = ("batch_size", "weight_decay", "clip")
    return experiment.config.flash.to_dict() | {name: distill[name] for name in common}


def latencies(
    experiment: Experiment, path: epath.Path, how: table.How, stage: str
) -> Callable[[AnyArch], dict]:
    """ask(arch): the latency of a student, or of the teacher, out of the table at `path`
    or taken now, with random weights: they do not matter to it."""
    teacher = experiment.teacher

    def tell(text):
        log.say(f"{stage}: {text}")

    def ask(arch):
        known = multihost.once(lambda: table.read(path))
        there = multihost.once(lambda: table.find(known, arch, experiment.sizes, how))
        params, sizes, name = None, experiment.sizes, str(arch)
        if arch == teacher.arch:
            params, sizes, name = teacher.params, teacher.sizes, "teacher"
        elif not (how.target or there):
            params = build.init(build.module(arch, sizes), jax.random.key(0))
        count, network = len(known[how.source]), {name: (arch, sizes, params)}
        made = table.latencies(known, network, how, False, tell)[name]
        if new := known[how.source][count:]:
            latest = table.read(path)  # Others may have written meanwhile.
            latest[how.source] += new
            storage.write_json(path, latest)
        return made

    return ask
