"""Is the Arch that a search chooses the best that is known, and not the luckiest?"""

from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.budget import Budget
from autodistill_jax.search.selection import POSTERIOR, choose_arch, pareto_front

LUCKY, STEADY, SMALL = (Arch(layers, 24, 3, 48, 8) for layers in (3, 2, 1))
SETTINGS = {
    "tolerance": 0.0,
    "fixed_arch": "",
    "proxy": "hidden",
    "sampler": "bayes",
}


def trials_of(posteriors):
    figures = {LUCKY: (0.10, 9.0), STEADY: (0.20, 8.0), SMALL: (0.29, 2.0)}
    return {
        arch: {"proxy": proxy, "flops": flops}
        | ({POSTERIOR: posterior} if posterior else {})
        for (arch, (proxy, flops)), posterior in zip(figures.items(), posteriors)
    }


def choose(posteriors=(None, None, None), tolerance=0.0):
    return choose_arch(
        trials_of(posteriors),
        [],
        {"params": 1.0, "flops": 1.0, "latency_source": "measured"},
        Budget(),
        SETTINGS | {"tolerance": tolerance},
    )


def test_what_the_model_believes_counts_where_there_is_one():
    assert choose()[0] == LUCKY
    chosen, reason = choose((0.30, 0.21, 0.28))
    assert chosen == STEADY
    assert (
        "hidden 0.2000" in reason and "by the model of all trials it is 0.21" in reason
    )


def test_the_front_is_of_what_the_model_believes():
    assert pareto_front(trials_of((None,) * 3), "flops") == [LUCKY, STEADY, SMALL]
    # The luckiest costs more than two that are as good or better.
    assert pareto_front(trials_of((0.30, 0.21, 0.28)), "flops") == [STEADY, SMALL]


def test_of_those_within_the_tolerance_the_cheapest():
    assert choose(tolerance=0.15)[0] == STEADY
    assert choose((0.30, 0.21, 0.28), tolerance=0.08)[0] == SMALL
