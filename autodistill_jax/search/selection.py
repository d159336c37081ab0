"""The front of evaluated Archs, and which Arch a search chooses, with the reason."""

from collections.abc import Mapping, Sequence
from typing import Any

from autodistill_jax.archs.arch import AnyArch, pareto_indices
from autodistill_jax.archs.budget import Budget

# {Arch: {"proxy": lower is better, "flops", of a timed one "latency_ms", ...}}.
_Trials = Mapping[AnyArch, Mapping[str, Any]]


# Of a trial: its proxy as the model of a Bayesian search believes it to be, which a lucky
# measurement moves less than the proxy itself.
POSTERIOR = "proxy_posterior"


def modelled_proxy(trial: Mapping[str, Any]) -> float:
    """A trial's `POSTERIOR` where it has one, else its proxy; lower is better."""
    return trial.get(POSTERIOR, trial["proxy"])


def pareto_front(trials: _Trials, cost: str) -> list[AnyArch]:
    """The Archs that no other beats in both proxy and cost, lowest proxy first.

    Args:
      trials: {Arch: its figures}, the cost and what `modelled_proxy` reads among them.
      cost: which figure is the cost: "flops" or "latency_ms".

    Returns:
      The front; of Archs with equal figures the first.
    """
    archs = list(trials)
    figures = ((trials[arch][cost], modelled_proxy(trials[arch])) for arch in archs)
    front = [archs[i] for i in pareto_indices(figures)]
    return sorted(front, key=lambda arch: modelled_proxy(trials[arch]))


def choose_arch(
    trials: _Trials,
    timed_archs: Sequence[AnyArch],
    teacher: Mapping[str, Any],
    budget: Budget,
    settings: Mapping[str, Any],
) -> tuple[AnyArch, str]:
    """The best student and why, among those that meet every bound.

    The rule for the best trade-off: of the Archs whose proxy is within the tolerance of
    the lowest, the one with the fewest multiply-adds. With a tolerance of 0 it is the
    lowest proxy. Where the trials have a `POSTERIOR`, that takes the proxy's place.
    Where latency is bounded, only Archs whose latency was taken can be chosen.

    Args:
      trials: {Arch: {"proxy", "flops", and of a timed one "latency_ms", ...}}.
      timed_archs: the Archs whose latency was taken.
      teacher: its cost, "latency_ms" and "latency_source".
      budget: the trials meet its bounds on parameters and multiply-adds already.
      settings: the config's section `search`: fixed_arch, proxy, sampler, tolerance.

    Returns:
      (the Arch, why it was chosen).

    Raises:
      UserError: none meets the latency bound: says what the nearest takes.
    """
    tolerance, fixed = settings["tolerance"], bool(settings["fixed_arch"])
    bounds = budget.bounds(teacher)
    limit, source = bounds.get("latency_ms"), teacher["latency_source"]
    archs = list(trials)
    if limit is not None and not fixed:
        timed = {arch: trials[arch] for arch in timed_archs}
        archs = _within_latency(timed, budget, limit, source, settings["sampler"])
    chosen = _best_tradeoff(trials, archs, tolerance)
    proxy = trials[chosen]["proxy"]
    if fixed:
        return chosen, f"the Arch that search.fixed_arch names (proxy {proxy:.4f})"
    networks = "Archs" if settings["proxy"] == "flash" else "sub-networks"
    group = f"{len(archs)} {networks} that meet" if len(archs) > 1 else "one that meets"
    bounds_text = ", ".join(f"{key} <= {bound:.4g}" for key, bound in bounds.items())
    reason = (
        f"{_rule_text(tolerance)} ({settings['proxy']} {proxy:.4f}) of the {group} the "
        f"budget ({bounds_text or 'no bound'}; {budget.convention} convention)"
    )
    if POSTERIOR in trials[chosen]:
        reason += f"; by the model of all trials it is {trials[chosen][POSTERIOR]:.4f}"
    if limit is not None:
        num_untimed = len(trials) - len(timed_archs)
        reason += _latency_caveats(trials[chosen], limit, num_untimed, source)
    return chosen, reason


def _best_tradeoff(
    trials: _Trials, archs: Sequence[AnyArch], tolerance: float
) -> AnyArch:
    losses = {arch: modelled_proxy(trials[arch]) for arch in archs}
    lowest = min(losses.values())
    near_lowest = [arch for arch in archs if losses[arch] <= lowest + tolerance]
    if tolerance == 0:
        return min(near_lowest, key=lambda arch: losses[arch])
    return min(near_lowest, key=lambda arch: (trials[arch]["flops"], losses[arch]))


def _rule_text(tolerance: float) -> str:
    if tolerance == 0:
        return "the lowest proxy"
    return f"the fewest multiply-adds within {tolerance:g} of the lowest proxy"


def _within_latency(
    trials: _Trials, budget: Budget, limit: float, source: str, sampler: str
) -> list[AnyArch]:
    """Those of the timed trials that take at most `limit` milliseconds; UserError: none
    does."""
    archs = [arch for arch in trials if trials[arch]["latency_ms"] <= limit]
    if archs:
        return archs
    where = (
        "that were taken (latency.max_measurements)"
        if sampler == "all"
        else "that were tried"
    )
    raise budget.infeasible_error(
        {"latency_ms": limit}, trials, f"{len(trials)} {source} Archs {where}"
    )


def _latency_caveats(
    values: Mapping[str, Any], limit: float, num_untimed: int, source: str
) -> str:
    """What to know of a choice under a latency bound of `limit` milliseconds.

    values: the chosen trial's. num_untimed: Archs without a latency.
    """
    text = ""
    if num_untimed > 0:
        text += f"; {num_untimed} others were not {source} (latency.max_measurements)"
    if values["latency_ms"] + values.get("latency_spread_ms", 0.0) > limit:
        text += "; its latency lies within its own spread of the bound"
    return text
