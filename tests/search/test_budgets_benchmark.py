"""Does the benchmark of latency bounds run, on a small table and on the real one?"""

import json

import budgets
import numpy as np


def test_a_table_that_follows_its_costs_is_searched_well():
    rng = np.random.default_rng(0)
    points = []
    for layers in (2, 4, 6):
        for hidden in (128, 256):
            for ratio in (2.0, 4.0):
                ms = 1 + layers * hidden**2 * (4 + 2 * ratio) / 1e6
                points.append(
                    {
                        "params": {
                            "layers": layers,
                            "hidden": hidden,
                            "heads": 4,
                            "ffn_ratio": ratio,
                        },
                        "proxy": [0.5 - 0.02 * ms],
                        "latency": (ms * (1 + 0.01 * rng.standard_normal(4))).tolist(),
                    }
                )
    report = budgets.budgets_report({"points": points}, 20, 8)
    assert report["bounds"] == 20 and 1 <= report["measurements"] <= 8
    assert report["within_1_percent"] >= 0.9 and report["within_bound"] >= 0.9


def test_the_real_table_is_searched_well():
    report = budgets.budgets_report(json.loads(budgets.TABLE.read_text()), 40, 12)
    assert report["within_1_percent"] >= 0.95 and report["within_bound"] >= 0.95
    assert report["most_measurements"] <= 12
