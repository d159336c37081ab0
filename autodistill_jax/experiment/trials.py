"""The trials of a study: what may be searched, how an Arch is judged and timed.

For the job search, where it does not take every Arch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from autodistill_jax import log, multihost, storage
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.space import Space
from autodistill_jax.data import loader
from autodistill_jax.data.tasks import Task
from autodistill_jax.errors import UserError
from autodistill_jax.experiment import labelled_data, proxy_inputs
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.experiment.fingerprints import study_fingerprint
from autodistill_jax.experiment.programs import blockwise_transfer, transfer_settings
from autodistill_jax.experiment.text_rows import heldout_splits, training_rows
from autodistill_jax.latency import table
from autodistill_jax.models import build
from autodistill_jax.search import proxies, study_storage
from autodistill_jax.search.selection import POSTERIOR

# The Archs of the largest space of which each may be taken.
MAX_LISTED_ARCHS = 1_000_000

_MIN_MODELLED = 5  # Trials from which the model says more than they do.

# An Arch, the transfer losses of those before it, a seed -> {"proxy": ..., and more}.
EvaluateFn = Callable[[AnyArch, list[float], int], Mapping[str, Any]]


def check_search(experiment: Experiment) -> None:
    """Raises UserError for a sampler, or a proxy, that this experiment cannot have."""
    settings = experiment.config.search
    if settings.proxy == "flash" and experiment.config.rank.archs:
        raise UserError(
            f"rank.archs is {experiment.config.rank.archs}, which ranks sub-networks "
            "of a SuperLM, and search.proxy flash trains none; set rank.archs to 0"
        )
    if settings.sampler == "all":
        if settings.proxy == "flash":
            raise UserError(
                "search.proxy is flash, which trains every candidate, and "
                "search.sampler is all, which takes every Arch; set search.sampler to "
                "bayes"
            )
        if settings.storage:
            raise UserError(
                f"search.storage is {study_storage.redacted_url(settings.storage)}, "
                "and search.sampler all keeps its trials in the workdir, for one "
                "process; set search.storage to '', or take another sampler"
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
            f"search.sampler is {settings.sampler}, which searches one space, and "
            f"there are {len(experiment.spaces)}; set it to all, or space.partition to "
            "0"
        )
    if settings.proxy == "flash" and experiment.special_tokens.mask_token_id is None:
        raise UserError(
            "search.proxy is flash, which masks tokens, but the teacher's tokenizer "
            "has no token for that ([MASK] or <mask>); take another proxy"
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
    """The study's finished trials: of `search.trials` that were begun, those refused by
    their latency not counted.

    A study is of one experiment under one budget and one kind of latency; those under
    another budget, in the same storage, are what it starts from.

    Args:
      experiment: complete, of one space.
      workdir: with the study and the text's rows.
      superlms: {space: parameters}, for a proxy that inherits their weights.
      latency: milliseconds of an Arch, asked before it is evaluated.
      bound: on the latency, in milliseconds.
      conditions: what latencies depend on.
      task: that a labelled proxy needs.
      stage: of the log's lines.

    Returns:
      {Arch: {"flops", "proxy", "latency_ms", and what else was recorded}}.

    Raises:
      UserError: no trial came to an end within the budget; no such storage.
    """
    handlers: dict[str, Callable[..., Any]] = {
        "latency": latency,
        "evaluate": _evaluate_fn(experiment, workdir, superlms, task, stage),
    }
    # The first process has the study and says what comes next; all compute it.
    return multihost.run_on_leader(
        lambda ask: _run_study(
            experiment, workdir, ask, bound, dict(conditions), stage
        ),
        lambda name, *args: handlers[name](*args),
    )


def latency_fn(
    experiment: Experiment,
    path: epath.Path,
    conditions: table.LatencyConditions,
    stage: str,
) -> Callable[[AnyArch], dict]:
    """What gives the latency of a student, or of the teacher: out of a table, or taken
    now.

    Args:
      experiment: complete.
      path: of the table, see `table.read_table`; what is taken now is added to it.
      conditions: that latencies are taken under.
      stage: of the log's lines.

    Returns:
      latency_of(arch), the table's entry. A student has random weights: they do not
      matter to it.
    """
    teacher = experiment.teacher

    def say(text):
        log.say(f"{stage}: {text}")

    def latency_of(arch):
        entries = multihost.on_first_process(lambda: table.read_table(path))
        recorded = multihost.on_first_process(
            lambda: table.find_latency(entries, arch, experiment.dims, conditions)
        )
        params, dims, name = None, experiment.dims, str(arch)
        if arch == teacher.arch:
            params, dims, name = teacher.params, teacher.dims, "teacher"
        elif not (conditions.target or recorded):
            params = build.init_params(
                build.build_module(arch, dims), jax.random.key(0)
            )
        count, network = len(entries[conditions.source]), {name: (arch, dims, params)}
        latency = table.take_latencies(entries, network, conditions, False, say)[name]
        if new := entries[conditions.source][count:]:
            latest = table.read_table(path)  # Others may have written meanwhile.
            latest[conditions.source] += new
            storage.write_json(path, latest)
        return latency

    return latency_of


def _run_study(
    experiment: Experiment,
    workdir: epath.Path,
    ask: Callable,
    bound: float | None,
    conditions: dict,
    stage: str,
) -> dict[AnyArch, dict]:
    """`run_trials` on the process that has the study; ask("latency" or "evaluate", ...)
    has all processes compute."""
    # With it optuna and scipy's optimisers are loaded, which other jobs do without.
    from autodistill_jax.search import study_loop

    config = experiment.config
    settings = config.search
    (space,) = experiment.spaces.values()
    family_hash, study_hash = study_fingerprint(config, conditions)
    trials_name = proxy_inputs.study_name(experiment)
    study = study_storage.open_study(
        workdir / "search",
        experiment.spaces,
        f"{trials_name}-{settings.sampler}-{study_hash}",
        settings.storage,
        "latency_ms",
    )
    allowed = experiment.affordable.__contains__
    num_earlier = len(study.trials)
    study.sampler = study_loop.make_sampler(
        settings.sampler, space, config.seed, allowed, num_earlier
    )
    if not num_earlier:
        family_name = f"{trials_name}-{family_hash}"
        count = study_loop.warm_start(study, family_name, space, allowed, bound)
        if count:
            log.say(f"{stage}: {count} trials under other bounds are known already")
    if settings.fixed_arch and not num_earlier:
        (fixed_arch,) = experiment.affordable
        study.enqueue_trial(space.encode(fixed_arch))
    log.say(
        f"{stage}: up to {settings.trials} trials by {settings.sampler}, latency "
        f"first, then {settings.proxy!r}: {proxies.PROXIES[settings.proxy]}"
    )
    if settings.proxy == "flash" and experiment.teacher.mlm_head is None:
        log.say(
            f"{stage}: the teacher has no MLM head: no soft labels and no last stage, "
            "the score is the blocks' held-out loss"
        )

    def evaluate(arch):
        trials = study_loop.finished_trials(study)
        losses = [trial.user_attrs.get("transfer") for trial in trials]
        losses = [loss for loss in losses if loss is not None]
        return ask("evaluate", arch, losses, config.seed)

    study_loop.run_study(
        study,
        space,
        1 if settings.fixed_arch else settings.trials,
        latency=lambda arch: ask("latency", arch),
        evaluate=evaluate,
        bound=bound,
        allowed=allowed,
        stage=stage,
        single_process=not settings.storage,
        on_trial_end=lambda: study_storage.upload_study(workdir / "search"),
    )
    records: dict[AnyArch, dict] = {}
    for trial in study_loop.finished_trials(study):
        arch = space.decode(trial.params)
        if arch in experiment.affordable:
            costs = experiment.budget.convention_costs(experiment.cost(arch))
            attrs = trial.user_attrs.items()
            records[arch] = {
                "flops": costs["flops"],
                "proxy": trial.values[0],
                **{k: v for k, v in attrs if k not in study_loop.INTERNAL_ATTRS},
                "latency_ms": trial.values[1],
            }
    if not records:
        raise UserError(
            f"none of the {len(study.trials)} trials came to an end within the budget"
            f"{_failure_reasons(study.trials, space, bound)}; raise the bound or "
            "search.trials, or give the space smaller Archs"
        )
    if settings.sampler == "bayes" and len(records) >= _MIN_MODELLED:
        looks = settings.second_looks if settings.proxy == "flash" else 0
        _add_posteriors(study, space, records)
        for arch in sorted(records, key=lambda a: records[a][POSTERIOR])[:looks]:
            key = f"second look, {arch}"
            if key not in study.user_attrs:
                log.say(f"{stage}: {arch} with another seed ...")
                try:
                    look = ask("evaluate", arch, [], config.seed + 1)["proxy"]
                except study_loop.FAILURES as error:  # As a trial's would be.
                    log.say(f"{stage}: {arch} with another seed failed: {error}")
                    look = None
                study.set_user_attr(key, look)
                study_storage.upload_study(workdir / "search")
            if study.user_attrs[key] is not None:
                records[arch]["second_proxy"] = study.user_attrs[key]
        if looks:
            _add_posteriors(study, space, records)
    return records


def _add_posteriors(study: Any, space: Space, records: dict[AnyArch, dict]) -> None:
    """Writes what the sampler's model makes of each Arch's noisy proxies, `POSTERIOR`."""
    observed = [
        (arch, values[key])
        for arch, values in records.items()
        for key in ("proxy", "second_proxy")
        if key in values
    ]
    medians = study.sampler.posterior_medians(
        [space.encode(arch) for arch, _ in observed], [value for _, value in observed]
    )
    for (arch, _), median in zip(observed, medians):
        records[arch][POSTERIOR] = float(median)


def _failure_reasons(trials: Sequence, space: Space, bound: float | None) -> str:
    """The errors of a study's trials, and how fast the fastest was, " (...)"; or ""."""
    errors = {str(trial.user_attrs.get("error", "")) for trial in trials}
    reasons = "; ".join(sorted(errors - {""}))
    timed = [trial for trial in trials if "latency_ms" in trial.user_attrs]
    if bound is not None and timed:
        fastest = min(timed, key=lambda trial: trial.user_attrs["latency_ms"])
        reasons += (
            f"latency_ms <= {bound:.4g}, and the fastest tried, "
            f"{space.decode(fastest.params)}, takes "
            f"{fastest.user_attrs['latency_ms']:.4g}"
        )
    return f" ({reasons})" if reasons else ""


def _evaluate_fn(
    experiment: Experiment,
    workdir: epath.Path,
    superlms: Mapping[str, dict],
    task: Task | None,
    stage: str,
) -> EvaluateFn:
    """What judges an Arch by `search.proxy`."""
    settings = experiment.config.search
    if settings.proxy != "flash":
        ((space_name, params),) = superlms.items()
        labels = labelled_data.classification_data(experiment, task) if task else None
        inputs = proxy_inputs.proxy_inputs(
            experiment, workdir, space_name, params, labels, experiment.config.seed
        )
        proxy = proxies.make_proxy(settings.proxy, inputs)
        return lambda arch, earlier_losses, seed: proxy([arch])[arch]

    from autodistill_jax.search import proxy_flash

    text = training_rows(experiment, workdir)
    heldout = heldout_splits(experiment, workdir)[0]

    def evaluate(arch, earlier_losses, seed):
        recipe = transfer_settings(experiment)
        return proxy_flash.flash_proxy(
            blockwise_transfer(experiment, arch),
            loader.train_batches(text, recipe["batch_size"], seed),
            heldout,
            recipe,
            experiment.mesh,
            seed,
            f"{stage}: {arch}",
            earlier_losses,
        )

    return evaluate
