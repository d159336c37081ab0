"""The loop of a study: trial after trial, on one machine or on many."""

import contextlib
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from autodistill_jax import log
from autodistill_jax.archs.arch import AnyArch
from autodistill_jax.archs.space import Space
from autodistill_jax.errors import UserError
from autodistill_jax.search import bayes

# The attribute of a trial that another study has run.
WARM_START = "warm_start"
# The attribute of a running trial: when its process last gave a sign of life.
_HEARTBEAT = "heartbeat"
# The attribute of a study: what its trials share with those of other studies.
_STUDY_FAMILY = "study_family"
INTERNAL_ATTRS = (_HEARTBEAT, WARM_START)  # What trials carry for this file alone.
HEARTBEAT_SECONDS = 10.0  # Seconds between a running trial's signs of life.
# A study ends with so many times its trials over the bound on latency.
_MAX_REFUSED = 4
# What a trial, or a second look at one, may fail by; a study goes on.
FAILURES = (UserError, RuntimeError, MemoryError, OSError)
HEARTBEAT_TIMEOUT = 60.0  # Seconds without one after which it is taken for lost.


class TrialPruned(Exception):
    """An evaluation that a rule has stopped."""


class _TrialRules(NamedTuple):
    """How a trial is run; see `run_study`.

    Attributes:
      latency: of an Arch, milliseconds.
      evaluate: an Arch -> {"proxy": ..., and what else is known}.
      bound: on the latency, milliseconds.
      allowed: may an Arch be tried at all?
    """

    latency: Callable[[AnyArch], float]
    evaluate: Callable[[AnyArch], Mapping[str, Any]]
    bound: float | None
    allowed: Callable[[AnyArch], bool]


def make_sampler(
    name: str,
    space: Space,
    seed: int,
    allowed: Callable[[AnyArch], bool],
    num_trials: int = 0,
) -> optuna.samplers.BaseSampler:
    """The sampler of that name; ours never suggests what is not `allowed`.

    Args:
      name: "bayes" (ours), "random", "nsga2" or "tpe" (Optuna's).
      space: what it suggests from.
      seed: of its draws.
      allowed: may an Arch be tried at all?
      num_trials: how many trials there are already. Optuna's samplers start anew in
        every process: with the same seed they would suggest the same again.

    Returns:
      The sampler, of the space's axes as categories.
    """
    if name == "bayes":
        return bayes.BayesSampler(
            search_distributions(space),
            seed,
            allowed=lambda params: allowed(space.decode(params)),
        )
    samplers = {
        "random": optuna.samplers.RandomSampler,
        "nsga2": optuna.samplers.NSGAIISampler,
        "tpe": optuna.samplers.TPESampler,
    }
    return samplers[name](seed=zlib.crc32(repr((seed, num_trials)).encode()))


def search_distributions(space: Space) -> dict[str, CategoricalDistribution]:
    """The search space as Optuna takes it: {axis of `space`: its values}."""
    return {
        name: CategoricalDistribution(values)
        for name, values in space.search_axes().items()
    }


def run_study(
    study: optuna.Study,
    space: Space,
    num_trials: int,
    *,
    latency: Callable[[AnyArch], float],
    evaluate: Callable[[AnyArch], Mapping[str, Any]],
    bound: float | None = None,
    allowed: Callable[[AnyArch], bool] = lambda arch: True,
    stage: str = "search",
    single_process: bool = False,
    on_trial_end: Callable[[], None] = lambda: None,
) -> None:
    """Runs trials until the study has so many, with whoever else works on it.

    A trial's latency is asked first: what is over its bound is never evaluated, and is
    none of the `num_trials`, though the study also ends with `_MAX_REFUSED` times as
    many of those. A trial whose process died is run again by another; one that fails is
    kept as failed.

    Args:
      study: its sampler suggests.
      space: what the sampler suggests from.
      num_trials: of the study in all, whoever runs them.
      latency: of an Arch, milliseconds.
      evaluate: an Arch -> {"proxy": ..., and what else is known}; may raise
        TrialPruned.
      bound: on the latency, milliseconds.
      allowed: may an Arch be tried at all? Asked where the sampler does not ask it.
      stage: what the log lines begin with.
      single_process: does no other process work on the study? Then a trial that runs at
        the start is dead.
      on_trial_end: called after each trial.
    """
    rules = _TrialRules(latency, evaluate, bound, allowed)
    exhausted = waiting = False
    patience = 0.0 if single_process else HEARTBEAT_TIMEOUT
    while True:
        if _requeue_stale(study, space, patience, stage):
            exhausted = False
        patience = HEARTBEAT_TIMEOUT
        counted = counted_trials(study)
        num_refused = sum(map(_is_refused, study.get_trials(deepcopy=False)))
        if not exhausted and num_refused >= _MAX_REFUSED * num_trials:
            log.say(
                f"{stage}: {num_refused} Archs were over the bound: no more of them"
            )
            exhausted = True
        if exhausted or len(counted) >= num_trials:
            running = [t for t in counted if not t.state.is_finished()]
            if not running:
                return
            if not waiting:
                log.say(
                    f"{stage}: waiting for {len(running)} trials of other processes"
                )
            waiting = True
            time.sleep(min(1.0, HEARTBEAT_SECONDS))
            continue
        try:
            trial = study.ask(dict(search_distributions(space)))
        except bayes.SpaceExhausted as error:
            log.say(f"{stage}: {error}")
            exhausted = True
            continue
        if sum(t.number < trial.number for t in counted_trials(study)) >= num_trials:
            _requeue(study, trial.number)  # Another process was faster.
            continue
        arch = space.decode(trial.params)
        label = f"{stage}: trial {len(counted) + 1}/{num_trials}, {arch}"
        finished = {space.decode(t.params): t for t in finished_trials(study)}
        with _heartbeat(trial):
            try:
                _try_trial(study, trial, arch, finished, rules, label)
                on_trial_end()
            except (UpdateFinishedTrialError, ValueError):
                state = study.get_trials(deepcopy=False)[trial.number].state
                if not state.is_finished():
                    _requeue(study, trial.number, params=trial.params)
                    raise
                log.say(
                    f"{label}: was taken for lost meanwhile; another process has it"
                )
            except BaseException:
                _requeue(study, trial.number, params=trial.params)
                raise


def _try_trial(
    study: optuna.Study,
    trial: optuna.Trial,
    arch: AnyArch,
    finished: Mapping[AnyArch, optuna.trial.FrozenTrial],
    rules: _TrialRules,
    label: str,
) -> None:
    """Runs a trial; what stops or fails is recorded so, and the study goes on."""
    try:
        _run_trial(study, trial, arch, finished, rules, label)
    except TrialPruned as reason:
        study.tell(trial, state=TrialState.PRUNED)
        log.say(f"{label}: stopped early: {reason}")
    except UpdateFinishedTrialError:
        raise
    except FAILURES as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        trial.set_user_attr("error", message)
        study.tell(trial, state=TrialState.FAIL)
        log.say(f"{label}: failed: {message}")


def _run_trial(
    study: optuna.Study,
    trial: optuna.Trial,
    arch: AnyArch,
    finished: Mapping[AnyArch, optuna.trial.FrozenTrial],
    rules: _TrialRules,
    label: str,
) -> None:
    if not rules.allowed(arch):
        study.tell(trial, state=TrialState.PRUNED)
        log.say(f"{label}: over a bound that is known without a trial")
        return
    if arch in finished:  # Other samplers than ours may repeat themselves.
        for name, value in finished[arch].user_attrs.items():
            if name not in INTERNAL_ATTRS:
                trial.set_user_attr(name, value)
        study.tell(trial, finished[arch].values)
        return
    milliseconds = rules.latency(arch)
    trial.set_user_attr("latency_ms", milliseconds)
    if rules.bound is not None:
        trial.set_constraint("latency_ms", milliseconds - rules.bound)
        if milliseconds > rules.bound:
            study.tell(trial, state=TrialState.PRUNED)
            log.say(
                f"{label}: {milliseconds:.3g} ms, over {rules.bound:.3g} ms: "
                "not trained"
            )
            return
    log.say(f"{label}: {milliseconds:.3g} ms; its proxy ...")
    values = dict(rules.evaluate(arch))
    proxy = values.pop("proxy")
    for name, value in values.items():
        trial.set_user_attr(name, value)
    study.tell(trial, [proxy, milliseconds])
    log.say(f"{label}: proxy {proxy:.4f}, {milliseconds:.3g} ms")


def warm_start(
    study: optuna.Study,
    study_family: str,
    space: Space,
    allowed: Callable[[AnyArch], bool],
    bound: float | None,
) -> int:
    """Copies the finished trials of earlier studies in the same storage.

    Only those that the bounds let in; they do not count among the study's own.

    Args:
      study: what they are copied to.
      study_family: the same for all studies whose trials are of the same thing under
        different bounds.
      space: of the study.
      allowed: may an Arch be tried at all?
      bound: on the latency, milliseconds.

    Returns:
      How many were copied.
    """
    study.set_user_attr(_STUDY_FAMILY, study_family)
    count = 0
    for summary in optuna.get_all_study_summaries(study._storage):
        if (
            summary.study_name == study.study_name
            or summary.user_attrs.get(_STUDY_FAMILY) != study_family
        ):
            continue
        earlier_study = optuna.load_study(
            study_name=summary.study_name, storage=study._storage
        )
        finished_params = {tuple(t.params.items()) for t in finished_trials(study)}
        copies = [
            optuna.trial.create_trial(
                values=t.values,
                params=t.params,
                distributions=dict(search_distributions(space)),
                user_attrs={**t.user_attrs, WARM_START: True},
                constraints=_constraints(t.values[1], bound),
            )
            for t in finished_trials(earlier_study)
            if tuple(t.params.items()) not in finished_params
            and allowed(space.decode(t.params))
            and (bound is None or t.values[1] <= bound)
        ]
        study.add_trials(copies)
        count += len(copies)
    return count


def _constraints(milliseconds: float, bound: float | None) -> dict[str, float] | None:
    return None if bound is None else {"latency_ms": milliseconds - bound}


def counted_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials of a study that count: all but the abandoned, which others run again,
    those that came from an earlier study, those that only wait, and those that their
    latency refused, which cost next to nothing."""
    return [
        t
        for t in study.get_trials(deepcopy=False)
        if not (bayes.is_abandoned(t) or t.user_attrs.get(WARM_START) or _is_refused(t))
        and t.state != TrialState.WAITING
    ]


def _is_refused(trial: optuna.trial.FrozenTrial) -> bool:
    """Was the trial over the bound on latency?"""
    over = trial.constraints.get("latency_ms", 0.0) > 0
    return over and trial.state == TrialState.PRUNED


def finished_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials of a study that have their values."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _requeue_stale(
    study: optuna.Study, space: Space, patience: float, stage: str
) -> bool:
    """Hands on the trials whose process gives no sign of life any more.

    Args:
      study: of which trials.
      space: decodes their parameters, for the log.
      patience: seconds without a sign of life.
      stage: what the log lines begin with.

    Returns:
      Were there any?
    """
    current_time, requeued = time.time(), False
    for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        began = t.datetime_start.timestamp() if t.datetime_start else current_time
        if current_time - max(
            t.user_attrs.get(_HEARTBEAT, 0.0), began
        ) >= patience and _requeue(study, t.number, params=t.params):
            arch = space.decode(t.params) if t.params else "a trial"
            log.say(f"{stage}: {arch} was lost with its process: again")
            requeued = True
    return requeued


def _requeue(study, number: int, params: Mapping[str, Any] | None = None) -> bool:
    """Marks a trial as abandoned, to be run again with the same parameters. False if
    another process was faster."""
    trial = study.get_trials(deepcopy=False)[number]
    try:
        study._storage.set_trial_user_attr(trial._trial_id, bayes.ABANDONED, True)
        study.tell(number, state=TrialState.FAIL)
    except (RuntimeError, ValueError):  # Finished meanwhile.
        return False
    if params:
        study.enqueue_trial(dict(params))
    return True


@contextlib.contextmanager
def _heartbeat(trial: optuna.Trial) -> Iterator[None]:
    """Gives signs of life while a trial runs."""
    finished = threading.Event()

    def beat():
        while not finished.is_set():
            # The trial has ended, or the storage is away for a moment: the next sign
            # may get there.
            with contextlib.suppress(Exception):
                trial.set_user_attr(_HEARTBEAT, time.time())
            finished.wait(HEARTBEAT_SECONDS)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
