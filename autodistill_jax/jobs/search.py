"""Job `search`: every affordable sub-network's proxy and cost -> the front, one chosen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from autodistill_jax import log, multihost, sharding, storage
from autodistill_jax.archs.arch import AnyArch, pareto_indices
from autodistill_jax.data.tasks import Task
from autodistill_jax.experiment import labelled_data, proxy_inputs
from autodistill_jax.experiment import trials as studied
from autodistill_jax.experiment.experiment import Experiment, latency_conditions
from autodistill_jax.experiment.fingerprints import choice_fingerprint
from autodistill_jax.experiment.superlm import trained_superlm
from autodistill_jax.experiment.workdir import arch_to_json, chosen_arch
from autodistill_jax.latency import table as latency_table
from autodistill_jax.models import extract, heads
from autodistill_jax.search import proxies, study_storage

# Archs evaluated before their trials are recorded: what a stop can lose.
_ARCHS_A_RECORD = 8


def run_search(
    experiment: Experiment,
    workdir: epath.Path,
    task: Task | None = None,
    stage: str = "search",
) -> None:
    """Leaves search/study.db, trials.csv, latency.json and front.json.

    task: that a labelled proxy needs.

    Under another budget than last time the proxies there are, and what is missing of
    them and of the latencies, make another choice.
    """
    folder = workdir / "search"
    asked = choice_fingerprint(experiment.config)
    if chosen_arch(experiment.config, workdir):
        log.say(f"{stage}: done already, {folder / 'front.json'}")
        return
    listed = experiment.config.search.sampler == "all"
    homes = set(experiment.affordable.values()) if listed else set(experiment.spaces)
    if experiment.config.search.proxy == "flash":
        homes = set()  # Nothing is inherited.
    superlms = {
        name: trained_superlm(experiment, workdir, name) for name in sorted(homes)
    }
    settings = experiment.config.latency
    how = latency_conditions(experiment.config)
    if listed:
        trials = _listed_trials(experiment, workdir, superlms, task, stage)
    else:
        trials, latencies = _sampled_trials(
            experiment, workdir, superlms, how, task, stage
        )
    archs, cost = list(trials), "flops" if listed else "latency_ms"
    on_front = [
        archs[i]
        for i in pareto_indices((trials[a][cost], trials[a]["proxy"]) for a in archs)
    ]
    on_front.sort(key=lambda arch: trials[arch]["proxy"])
    # Each is a compile, so only the front's, evenly over it, the best always in.
    count = min(len(on_front), max(settings.max_measurements, 1))
    picks = sorted({round(i) for i in np.linspace(0, len(on_front) - 1, count)})
    if listed:
        timed = [on_front[i] for i in picks]
        latencies = _student_latencies(
            experiment, folder, superlms, on_front, timed, how, stage
        )
    there = on_front if listed else trials
    timed = [arch for arch in there if str(arch) in latencies]
    for arch in timed:
        trials[arch] |= latency_table.trial_fields(latencies[str(arch)])
    teacher = {
        **experiment.cost(experiment.teacher.arch),
        **latency_table.trial_fields(latencies["teacher"]),
    }
    chosen, reason = choose_arch(experiment, trials, on_front, timed, teacher)
    # The chosen one's figure is of its own extracted weights, too.
    if superlms and not (listed and chosen in timed):
        latencies = _student_latencies(
            experiment, folder, superlms, [], [chosen], how, stage
        )
        trials[chosen] |= latency_table.trial_fields(latencies[str(chosen)])
    # Last, so that params and flops are the executed ones whatever the budget counts.
    table = {a: {**values, **experiment.cost(a)} for a, values in trials.items()}
    storage.write_text(folder / "trials.csv", study_storage.trials_csv(table))
    storage.write_json(
        folder / "front.json",
        {
            "chosen": arch_to_json(chosen),
            "reason": reason,
            "front": [arch_to_json(arch) for arch in on_front],
            "trials": [
                {
                    "arch": arch_to_json(arch),
                    "space": experiment.affordable[arch],
                    **values,
                    "on_front": arch in on_front,
                }
                for arch, values in table.items()
            ],
            "asked": asked,
            "teacher": {"arch": arch_to_json(experiment.teacher.arch), **teacher},
            "space": experiment.num_archs(),
            "proxy": experiment.config.search.proxy,
            "sampler": experiment.config.search.sampler,
            "latency": how.conditions(),
        },
    )
    log.say(f"{stage}: chose {chosen}: {reason}")
    log.say(f"{stage}: made {folder / 'front.json'}")


def _sampled_trials(
    experiment, workdir, superlms, how, task, stage
) -> tuple[dict, dict]:
    """The trials of a study that does not take every Arch, and {Arch or "teacher":
    latency}, asked before they are evaluated: so with random weights."""
    path = workdir / "search" / "latency.json"
    ask = studied.latency_fn(experiment, path, how, stage)
    teacher = experiment.teacher.arch
    full = latency_table.trial_fields(ask(teacher))["latency_ms"]
    bounds = experiment.budget.bounds({**experiment.cost(teacher), "latency_ms": full})
    trials = studied.run_trials(
        experiment,
        workdir,
        superlms,
        lambda arch: latency_table.trial_fields(ask(arch))["latency_ms"],
        # A named Arch is taken whatever it costs.
        None if experiment.config.search.fixed_arch else bounds.get("latency_ms"),
        how.conditions(),
        task,
        stage,
    )
    return trials, {"teacher": ask(teacher)} | {str(arch): ask(arch) for arch in trials}


def _listed_trials(experiment, workdir, superlms, task, stage) -> dict[AnyArch, dict]:
    """The trials under the budget; those in the study already are not run again."""
    spaces, name = experiment.spaces, experiment.config.search.proxy
    folder = workdir / "search"

    made = None

    def known():
        nonlocal made
        made = study_storage.open_study(
            folder, spaces, proxy_inputs.study_name(experiment)
        )
        return study_storage.read_trials(made, spaces)

    def record(found):
        for arch, values in found.items():
            study_storage.record_trial(made, spaces, arch, values)
        study_storage.upload_study(folder)

    def flops(arch):
        return experiment.budget.convention_costs(experiment.cost(arch))["flops"]

    there = multihost.on_first_process(known)
    missing = [arch for arch in experiment.affordable if arch not in there]
    log.say(
        f"{stage}: {len(experiment.affordable)} of {experiment.num_archs()} "
        "sub-networks are within the bounds on parameters and multiply-adds, "
        f"{len(missing)} to evaluate by {name!r}: "
        f"{proxies.PROXIES[name]}"
    )
    rows = (
        labelled_data.classification_data(experiment, task)
        if task and missing
        else None
    )
    progress = log.Progress(f"{stage}: proxies", len(missing))
    done = 0
    for home, params in superlms.items():
        archs = [arch for arch in missing if experiment.affordable[arch] == home]
        if not archs:
            continue
        proxy = proxies.make_proxy(
            name,
            proxy_inputs.proxy_inputs(
                experiment, workdir, home, params, rows, experiment.config.seed
            ),
        )
        together = max(_ARCHS_A_RECORD, experiment.mesh.size)
        for start in range(0, len(archs), together):
            found = {
                arch: {"proxy": values["proxy"], "flops": flops(arch), **values}
                for arch, values in proxy(archs[start : start + together]).items()
            }
            multihost.on_first_process(functools.partial(record, found))
            multihost.raise_if_preempted()
            there |= found
            done += len(found)
            progress(done)
    return {
        # The study's FLOPs are those of the budget that it was made under.
        arch: there[arch] | {"flops": flops(arch)}
        for arch in experiment.affordable
    }


def _student_latencies(
    experiment, folder, superlms, on_front, picks, how, stage
) -> dict:
    """{Arch or "teacher": latency} of extracted students, measured or compiled: of the
    teacher, the picks, and what the table of earlier searches knows of the front."""
    path = folder / "latency.json"
    known = latency_table.read_table(path)
    teacher, dims = experiment.teacher, experiment.dims
    networks = {"teacher": (teacher.arch, teacher.dims, teacher.params)}

    @functools.cache  # On this host, whatever the mesh is.
    def weights_of(home):
        return jax.tree.map(sharding.to_host, heads.encoder_params(superlms[home]))

    for arch in dict.fromkeys([*picks, *on_front]):
        there = multihost.on_first_process(
            functools.partial(latency_table.find_latency, known, arch, dims, how, True)
        )
        if not (there or arch in picks):
            continue
        student = None
        if not there:
            home = experiment.affordable[arch]
            envelope = experiment.superlm_arch(experiment.spaces[home])
            student = extract.extract(weights_of(home), envelope, arch)
            student = jax.tree.map(jnp.asarray, student)
        networks[str(arch)] = (arch, dims, student)
    made = latency_table.take_latencies(
        known, networks, how, True, lambda text: log.say(f"{stage}: {text}")
    )
    storage.write_json(path, known)
    return made


def choose_arch(experiment, trials, on_front, timed, teacher) -> tuple[AnyArch, str]:
    """The best student and why, among those that meet every bound.

    The rule for the best trade-off: of the Archs whose proxy is within
    `search.tolerance` of the lowest, the one with the fewest multiply-adds. With a
    tolerance of 0 it is the lowest proxy. Where latency is bounded, only Archs whose
    latency was taken can be chosen.

    Raises:
      UserError: none meets the latency bound: says what the nearest takes.
    """
    bounds = experiment.budget.bounds(teacher)
    limit = bounds.get("latency_ms")
    source = teacher["latency_source"]
    candidates = list(trials)
    if limit is not None and not experiment.config.search.fixed_arch:
        candidates = [a for a in timed if trials[a]["latency_ms"] <= limit]
        listed = experiment.config.search.sampler == "all"
        where = (
            " of the front (latency.max_measurements)" if listed else " that were tried"
        )
        if not candidates:
            raise experiment.budget.infeasible_error(
                {"latency_ms": limit},
                {arch: trials[arch] for arch in timed},
                f"{len(timed)} {source} Archs{where}",
            )
    tolerance = experiment.config.search.tolerance
    lowest = min(trials[arch]["proxy"] for arch in candidates)
    close = [a for a in candidates if trials[a]["proxy"] <= lowest + tolerance]
    key = "proxy" if tolerance == 0 else "flops"
    chosen = min(close, key=lambda arch: (trials[arch][key], trials[arch]["proxy"]))
    if experiment.config.search.fixed_arch:
        return chosen, (
            f"the Arch that search.fixed_arch names (proxy {trials[chosen]['proxy']:.4f})"
        )
    told = ", ".join(f"{key} <= {bound:.4g}" for key, bound in bounds.items())
    count = len(candidates)
    what = "Archs" if experiment.config.search.proxy == "flash" else "sub-networks"
    those = f"{count} {what} that meet" if count > 1 else "one that meets"
    reason = (
        f"{_choice_rule(tolerance)} ({experiment.config.search.proxy} "
        f"{trials[chosen]['proxy']:.4f}) of the {those} the budget ({told or 'no bound'}; "
        f"{experiment.budget.convention} convention)"
    )
    if limit is not None and len(timed) < len(on_front):
        reason += (
            f"; {len(on_front) - len(timed)} Archs of the front were not {source} and "
            "could not be chosen: raise latency.max_measurements to let them in"
        )
    near = trials[chosen].get("latency_spread_ms", 0.0)
    if limit is not None and trials[chosen]["latency_ms"] + near > limit:
        reason += "; its latency lies within its own spread of the bound"
    return chosen, reason


def _choice_rule(tolerance: float) -> str:
    if tolerance == 0:
        return "the lowest proxy"
    return f"the fewest multiply-adds within {tolerance:g} of the lowest proxy"
