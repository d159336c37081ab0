"""How does a study go on, trial after trial, on one machine or on many?"""

import contextlib
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

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
WARM_START = "earlier"
INTERNAL_ATTRS = ("beat", WARM_START)  # What trials carry for this file alone.
HEARTBEAT_SECONDS = 10.0  # Seconds between a running trial's signs of life.
HEARTBEAT_TIMEOUT = 60.0  # Seconds without one after which it is taken for lost.


class TrialPruned(Exception):
    """An evaluation that a rule has stopped."""


def make_sampler(
    name: str,
    space: Space,
    seed: int,
    allowed: Callable[[AnyArch], bool],
    begun: int = 0,
) -> optuna.samplers.BaseSampler:
    """bayes, random, nsga2 or tpe; ours never suggests what is not `allowed`.

    begun: how many trials there are already. Optuna's samplers start anew in every
    process: with the same seed they would suggest the same again.
    """
    if name == "bayes":
        return bayes.BayesSampler(
            search_distributions(space),
            seed,
            allowed=lambda chosen: allowed(space.decode(chosen)),
        )
    made = {
        "random": optuna.samplers.RandomSampler,
        "nsga2": optuna.samplers.NSGAIISampler,
        "tpe": optuna.samplers.TPESampler,
    }
    return made[name](seed=zlib.crc32(repr((seed, begun)).encode()))


def search_distributions(space: Space) -> dict[str, CategoricalDistribution]:
    return {
        name: CategoricalDistribution(values)
        for name, values in space.search_axes().items()
    }


def run_study(
    study: optuna.Study,
    space: Space,
    trials: int,
    *,
    latency: Callable[[AnyArch], float],
    evaluate: Callable[[AnyArch], Mapping[str, Any]],
    bound: float | None = None,
    allowed: Callable[[AnyArch], bool] = lambda arch: True,
    stage: str = "search",
    alone: bool = False,
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Runs trials until the study has so many, with whoever else works on it.

    A trial's latency is asked first: what is over its bound is never evaluated. A trial
    whose process died is run again by another; one that fails is kept as failed.

    Args:
      study: its sampler suggests.
      trials: of the study in all, whoever runs them.
      latency: milliseconds.
      evaluate: {"proxy": ..., and what else is known}; may raise Unpromising.
      bound: on the latency, milliseconds.
      allowed: may an Arch be tried at all? Asked where the sampler does not ask it.
      alone: does no other process work on the study? What runs at the start is dead then.
      keep: called after each trial.
    """
    exhausted = waiting = False
    patience = 0.0 if alone else HEARTBEAT_TIMEOUT
    while True:
        if _requeue_stale(study, space, patience, stage):
            exhausted = False
        patience = HEARTBEAT_TIMEOUT
        there = counted_trials(study)
        if exhausted or len(there) >= trials:
            others = [one for one in there if not one.state.is_finished()]
            if not others:
                return
            if not waiting:
                log.say(f"{stage}: waiting for {len(others)} trials of other processes")
            waiting = True
            time.sleep(min(1.0, HEARTBEAT_SECONDS))
            continue
        try:
            trial = study.ask(search_distributions(space))
        except bayes.SpaceExhausted as error:
            log.say(f"{stage}: {error}")
            exhausted = True
            continue
        if sum(one.number < trial.number for one in counted_trials(study)) >= trials:
            _requeue(study, trial.number)  # Another process was faster.
            continue
        arch = space.decode(trial.params)
        told = f"{stage}: trial {len(there) + 1}/{trials}, {arch}"
        known = {space.decode(one.params): one for one in finished_trials(study)}
        with _heartbeat(trial):
            try:
                _try_trial(
                    study, trial, arch, known, latency, evaluate, bound, allowed, told
                )
                keep()
            except (UpdateFinishedTrialError, ValueError):
                now = study.get_trials(deepcopy=False)[trial.number].state
                if not now.is_finished():
                    _requeue(study, trial.number, again=trial.params)
                    raise
                log.say(f"{told}: was taken for lost meanwhile; another process has it")
            except BaseException:
                _requeue(study, trial.number, again=trial.params)
                raise


def _try_trial(study, trial, arch, *args):
    told = args[-1]
    try:
        _run_trial(study, trial, arch, *args)
    except TrialPruned as reason:
        study.tell(trial, state=TrialState.PRUNED)
        log.say(f"{told}: stopped early: {reason}")
    except UpdateFinishedTrialError:
        raise
    except (UserError, RuntimeError, MemoryError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        trial.set_user_attr("error", reason)
        study.tell(trial, state=TrialState.FAIL)
        log.say(f"{told}: failed: {reason}")


def _run_trial(study, trial, arch, known, latency, evaluate, bound, allowed, told):
    if not allowed(arch):
        study.tell(trial, state=TrialState.PRUNED)
        log.say(f"{told}: over a bound that is known without a trial")
        return
    if arch in known:  # Other samplers than ours may repeat themselves.
        for name, value in known[arch].user_attrs.items():
            if name not in INTERNAL_ATTRS:
                trial.set_user_attr(name, value)
        study.tell(trial, known[arch].values)
        return
    milliseconds = latency(arch)
    trial.set_user_attr("latency_ms", milliseconds)
    if bound is not None:
        trial.set_constraint("latency_ms", milliseconds - bound)
        if milliseconds > bound:
            study.tell(trial, state=TrialState.PRUNED)
            log.say(f"{told}: {milliseconds:.3g} ms, over {bound:.3g} ms: not trained")
            return
    log.say(f"{told}: {milliseconds:.3g} ms; its proxy ...")
    values = dict(evaluate(arch))
    proxy = values.pop("proxy")
    for name, value in values.items():
        trial.set_user_attr(name, value)
    study.tell(trial, [proxy, milliseconds])
    log.say(f"{told}: proxy {proxy:.4f}, {milliseconds:.3g} ms")


def warm_start(
    study: optuna.Study,
    kin: str,
    space: Space,
    allowed: Callable[[AnyArch], bool],
    bound: float | None,
) -> int:
    """Copies what earlier studies of the same `kin` in the storage have finished and these
    bounds let in; they do not count among the study's own. How many there are."""
    study.set_user_attr("kin", kin)
    count = 0
    for other in optuna.get_all_study_summaries(study._storage):
        if other.study_name == study.study_name or other.user_attrs.get("kin") != kin:
            continue
        earlier = optuna.load_study(study_name=other.study_name, storage=study._storage)
        known = {tuple(one.params.items()) for one in finished_trials(study)}
        fit = [
            optuna.trial.create_trial(
                values=one.values,
                params=one.params,
                distributions=search_distributions(space),
                user_attrs={**one.user_attrs, WARM_START: True},
                constraints=_constraints(one.values[1], bound),
            )
            for one in finished_trials(earlier)
            if tuple(one.params.items()) not in known
            and allowed(space.decode(one.params))
            and (bound is None or one.values[1] <= bound)
        ]
        study.add_trials(fit)
        count += len(fit)
    return count


def _constraints(milliseconds: float, bound: float | None) -> dict[str, float] | None:
    return None if bound is None else {"latency_ms": milliseconds - bound}


def counted_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that count: all but the lost ones, which others run again, and those
    that came from an earlier study."""
    return [
        one
        for one in study.get_trials(deepcopy=False)
        if not (bayes.is_abandoned(one) or one.user_attrs.get(WARM_START))
        and one.state != TrialState.WAITING
    ]


def finished_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _requeue_stale(
    study: optuna.Study, space: Space, patience: float, stage: str
) -> bool:
    """Hands on the trials whose process gives no sign of life any more; were there any?"""
    now, found = time.time(), False
    for one in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        began = one.datetime_start.timestamp() if one.datetime_start else now
        if now - max(one.user_attrs.get("beat", 0.0), began) >= patience and _requeue(
            study, one.number, again=one.params
        ):
            arch = space.decode(one.params) if one.params else "a trial"
            log.say(f"{stage}: {arch} was lost with its process: again")
            found = True
    return found


def _requeue(study, number: int, again: Mapping[str, Any] | None = None) -> bool:
    """Marks a trial as lost, to be run again with the same parameters. False if another
    process was faster."""
    one = study.get_trials(deepcopy=False)[number]
    try:
        study._storage.set_trial_user_attr(one._trial_id, bayes.ABANDONED, True)
        study.tell(number, state=TrialState.FAIL)
    except (RuntimeError, ValueError):  # Finished meanwhile.
        return False
    if again:
        study.enqueue_trial(dict(again))
    return True


@contextlib.contextmanager
def _heartbeat(trial: optuna.Trial) -> Iterator[None]:
    """Gives signs of life while a trial runs."""
    over = threading.Event()

    def beat():
        while not over.is_set():
            # Told meanwhile, or the storage is away for a moment: the next may get there.
            with contextlib.suppress(Exception):
                trial.set_user_attr("beat", time.time())
            over.wait(HEARTBEAT_SECONDS)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
