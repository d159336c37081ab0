"""Does a search under a latency bound find the best Arch, few being timed?

    python tests/benchmarks/budgets.py [--table FILE] [--bounds 200] [--measurements 12]

On a table of all Archs of a trained SuperLM (`table.py`): the truth is the mean of
an Arch's rounds, a timing is one round, a further timing another one, whose noise the
search takes to be what it takes it to be of a real one. Bounds are drawn evenly in the
logarithm between the fastest and the slowest. Within 1 percent: the choice truly meets the
bound within the noise of its mean, two standard errors, and its proxy's R2 is within 1 %
of the best feasible one's; exactly: it meets the bound itself. One JSON line on stdout.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.cost import BERT_DIMS
from autodistill_jax.experiment.student_latencies import ROUND_NOISE
from autodistill_jax.latency.calibration import latency_features
from autodistill_jax.search import latency_bound

TABLE = Path(__file__).parent / "data" / "table.json"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bounds", type=int, default=200)
    parser.add_argument("--measurements", type=int, default=12)
    parser.add_argument("--table", type=Path, default=TABLE)
    args = parser.parse_args()
    if not args.table.exists():
        parser.error(f"{args.table} is not there; make one by table.py, see its top")
    table = json.loads(args.table.read_text())
    print(json.dumps(budgets_report(table, args.bounds, args.measurements)))


def budgets_report(table: dict, num_bounds: int, max_measurements: int) -> dict:
    """How often the search is right, of bounds between the fastest and the slowest.

    Args:
      table: of `table.py`, {"conditions", "axes",
        "points": [{"params", "proxy", "latency"}]}.
      num_bounds: how many bounds.
      max_measurements: of each search.

    Returns:
      {"within_1_percent": the share of the bounds, "exactly": where no noise excuses a
      bound that is missed, "within_bound": the share that is met, within the noise,
      "measurements": the mean number of timings, "most_measurements", "bounds",
      "round_noise": by what the rounds of one Arch differ, as a part of it}.
    """
    points = table["points"]
    archs = [_arch(point["params"]) for point in points]
    features = [latency_features(arch, BERT_DIMS, 1, 128) for arch in archs]
    rounds = np.asarray([point["latency"] for point in points])  # [N, rounds], ms
    truth, proxies = rounds.mean(axis=1), [np.mean(p["proxy"]) for p in points]
    r2 = 1 - np.asarray(proxies)  # The proxy `hidden` is 1 - R2.
    noise = float((rounds.std(axis=1, ddof=1) / truth).mean())  # Of one round.
    slack = 1 + 2 * noise / np.sqrt(rounds.shape[1])
    rng = np.random.default_rng(0)
    low, high = np.log(truth.min()), np.log(truth.max())
    right, exact, met, counts = [], [], [], []
    for bound in np.exp(rng.uniform(low, high, num_bounds)):
        drawn_rounds: dict[int, list[float]] = {}

        def time_fn(
            indices: list[int], drawn_rounds=drawn_rounds
        ) -> list[tuple[float, float]]:
            for i in indices:
                order = np.random.default_rng([len(counts), i]).permutation(rounds[i])
                drawn_rounds.setdefault(i, []).append(
                    order[len(drawn_rounds.get(i, []))]
                )
            means = [(np.mean(drawn_rounds[i]), len(drawn_rounds[i])) for i in indices]
            return [(mean, ROUND_NOISE * mean / count**0.5) for mean, count in means]

        chosen, *_ = latency_bound.search_within_latency(
            proxies, features, bound, time_fn, max_measurements
        )
        best = r2[truth <= bound].max()
        met.append(chosen is not None and truth[chosen] <= bound * slack)
        right.append(met[-1] and r2[chosen] >= 0.99 * best)
        exact.append(right[-1] and truth[chosen] <= bound)
        counts.append(sum(map(len, drawn_rounds.values())))
    return {
        "within_1_percent": float(np.mean(right)),
        "exactly": float(np.mean(exact)),
        "within_bound": float(np.mean(met)),
        "measurements": float(np.mean(counts)),
        "most_measurements": max(counts),
        "bounds": num_bounds,
        "round_noise": noise,
    }


def _arch(params: dict) -> Arch:
    """The Arch of a point: sizes, or a ratio for the ffn."""
    ffn = params.get("ffn") or int(params["hidden"] * params["ffn_ratio"])
    return Arch(params["layers"], params["hidden"], params["heads"], ffn, 32)


if __name__ == "__main__":
    main()
