"""Which trials does a study run, and on what? For `search`, where it does not list all."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from autodistill_jax import log, multihost, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.data import loader
from autodistill_jax.data.tasks import Task
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import labelled_data, proxy_inputs
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.fingerprints import study_fingerprint
from autodistill_jax.experiment.programs import blockwise_transfer, transfer_settings
from autodistill_jax.experiment.text_rows import heldout_splits, text_rows
from autodistill_jax.latency import table
from autodistill_jax.models import build
from autodistill_jax.search import proxies, study_storage

MAX_LISTED_ARCHS = (
    1_000_000  # The Archs of the largest space of which each may be taken.
)


# An Arch and the transfer losses of those before it -> {"proxy": ..., and what else}.
EvaluateFn = Callable[[AnyArch, list[float]], Mapping[str, Any]]


def check_search(experiment: Experiment) -> None:
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
                f"search.storage is {study_storage.redacted_url(settings.storage)}, and search.sampler "
                "all keeps its trials in the workdir, for one process; set search.storage "
                "to '', or take another sampler"
            )
        if max(map(len, experiment.spaces.values())) > MAX_LISTED_ARCHS:
            raise UserError(
                f"search.sampler is all, which takes every Arch, and the space has "
                f"{experiment.num_archs():,}; set search.sampler to bayes"
            )
        return
    if experiment.num_archs() < 2:
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
    if settings.proxy == "flash" and experiment.special_tokens.mask_token_id is None:
        raise UserError(
            "search.proxy is flash, which hides words, but the teacher's tokenizer has no "
            "token for a hidden word ([MASK] or <mask>); take another proxy"
        )


def run_trials(
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
        "evaluate": _evaluate_fn(experiment, workdir, superlms, task, stage),
    }
    # The first process has the study and says what comes next; all compute it.
    return multihost.run_on_leader(
        lambda ask: _run_study(
            experiment, workdir, ask, bound, dict(conditions), stage
        ),
        lambda what, *given: works[what](*given),
    )


def _run_study(
    experiment, workdir, ask, bound, conditions, stage
) -> dict[AnyArch, dict]:
    # With it optuna and scipy's optimisers are loaded, which other jobs do without.
    from autodistill_jax.search import study_loop

    config = experiment.config
    settings = config.search
    (space,) = experiment.spaces.values()
    kin, bounds = study_fingerprint(config, conditions)
    made = study_storage.open_study(
        workdir / "search",
        experiment.spaces,
        f"{proxy_inputs.study_name(experiment)}-{settings.sampler}-{bounds}",
        settings.storage,
        "latency_ms",
    )
    allowed = experiment.affordable.__contains__
    begun = len(made.trials)
    made.sampler = study_loop.make_sampler(
        settings.sampler, space, config.seed, allowed, begun
    )
    if not begun:
        kind = f"{proxy_inputs.study_name(experiment)}-{kin}"
        count = study_loop.warm_start(made, kind, space, allowed, bound)
        if count:
            log.say(f"{stage}: {count} trials under other bounds are known already")
    if settings.fixed_arch and not begun:
        (named,) = experiment.affordable
        made.enqueue_trial(space.encode(named))
    log.say(
        f"{stage}: up to {settings.trials} trials by {settings.sampler}, latency first, "
        f"then {settings.proxy!r}: {proxies.PROXIES[settings.proxy]}"
    )
    if settings.proxy == "flash" and experiment.teacher.mlm_head is None:
        log.say(
            f"{stage}: the teacher has no masked-word head: no soft labels and no last "
            "stage, the score is the blocks' held-out loss"
        )

    def evaluate(arch):
        others = [
            one.user_attrs.get("transfer") for one in study_loop.finished_trials(made)
        ]
        return ask("evaluate", arch, [loss for loss in others if loss is not None])

    study_loop.run_study(
        made,
        space,
        1 if settings.fixed_arch else settings.trials,
        latency=lambda arch: ask("latency", arch),
        evaluate=evaluate,
        bound=bound,
        allowed=allowed,
        stage=stage,
        alone=not settings.storage,
        keep=lambda: study_storage.upload_study(workdir / "search"),
    )
    done = {}
    for one in study_loop.finished_trials(made):
        arch = space.decode(one.params)
        if arch in experiment.affordable:
            done[arch] = {
                "flops": experiment.budget.convention_costs(experiment.cost(arch))[
                    "flops"
                ],
                "proxy": one.values[0],
                **{
                    k: v
                    for k, v in one.user_attrs.items()
                    if k not in study_loop.INTERNAL_ATTRS
                },
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
                f"{space.decode(least.params)}, takes {least.user_attrs['latency_ms']:.4g}"
            )
        raise UserError(
            f"none of the {len(made.trials)} trials came to an end within the budget"
            f"{f' ({told})' if told else ''}; raise the bound or search.trials, or give "
            "the space smaller Archs"
        )
    return done


def _evaluate_fn(experiment, workdir, superlms, task, stage) -> EvaluateFn:
    settings = experiment.config.search
    if settings.proxy != "flash":
        ((home, params),) = superlms.items()
        labels = labelled_data.classification_data(experiment, task) if task else None
        given = proxy_inputs.proxy_inputs(
            experiment, workdir, home, params, labels, experiment.config.seed
        )
        proxy = proxies.make_proxy(settings.proxy, given)
        return lambda arch, others: proxy([arch])[arch]

    from autodistill_jax.search import proxy_flash

    text = text_rows(experiment, workdir, "train")
    judged_on = heldout_splits(experiment, workdir)[0]

    def evaluate(arch, others):
        how = transfer_settings(experiment)
        return proxy_flash.flash_proxy(
            blockwise_transfer(experiment, arch),
            loader.train_batches(text, how["batch_size"], experiment.config.seed),
            judged_on,
            how,
            experiment.mesh,
            experiment.config.seed,
            f"{stage}: {arch}",
            others,
        )

    return evaluate


def latency_fn(
    experiment: Experiment, path: epath.Path, how: table.LatencyConditions, stage: str
) -> Callable[[AnyArch], dict]:
    """ask(arch): the latency of a student, or of the teacher, out of the table at `path`
    or taken now, with random weights: they do not matter to it."""
    teacher = experiment.teacher

    def tell(text):
        log.say(f"{stage}: {text}")

    def ask(arch):
        known = multihost.on_first_process(lambda: table.read_table(path))
        there = multihost.on_first_process(
            lambda: table.find_latency(known, arch, experiment.dims, how)
        )
        params, dims, name = None, experiment.dims, str(arch)
        if arch == teacher.arch:
            params, dims, name = teacher.params, teacher.dims, "teacher"
        elif not (how.target or there):
            params = build.init_params(
                build.build_module(arch, dims), jax.random.key(0)
            )
        count, network = len(known[how.source]), {name: (arch, dims, params)}
        made = table.take_latencies(known, network, how, False, tell)[name]
        if new := known[how.source][count:]:
            latest = table.read_table(path)  # Others may have written meanwhile.
            latest[how.source] += new
            storage.write_json(path, latest)
        return made

    return ask
