"""The table of methods over seeds: workdirs of configs/baselines.py, a seed each.

    for seed in 0 1 2; do autodistill_jax run --config=configs/baselines.py --workdir=W$seed \
      --config.seed=$seed --config.data.source=FOLDER --config.finetune.glue_dir=GLUE; done
    python tests/benchmarks/methods.py W0 W1 W2

Mean and deviation of every figure that each seed's report has: costs, STS-B's Spearman
without fine-tuning on dev and test, the tasks' scores after it. A Markdown table.
"""

import argparse
import json
from typing import Any

import student_scores
from etils import epath

import autodistill_jax as ad
from autodistill_jax.experiment.baseline import in_table_order, model_label
from autodistill_jax.report import tables
from autodistill_jax.report.result import read_result

_COLUMNS = {  # {figure: (its heading, its format, what it is divided by)}.
    "params": ("parameters, M", ".2f", 1e6),
    "flops": ("multiply-adds, G", ".3f", 1e9),
    "latency_ms": ("latency, ms", ".3g", 1),
    "seconds": ("training, s", ".0f", 1),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdirs", nargs="+", type=epath.Path)
    figures = [model_figures(folder) for folder in parser.parse_args().workdirs]
    print(tables.markdown_table(*seeds_table(figures)), end="")


def model_figures(workdir: epath.Path) -> dict[str, dict[str, float]]:
    """{model: {figure: value}} of one run, as its config.json says it was made."""
    config = ad.base_config()
    config.update(_with_tuples(json.loads((workdir / "config.json").read_text())))
    result = read_result(config, workdir)
    figures = {model: dict(costs) for model, costs in result.costs.items()}
    for task, by_model in result.tasks.items():
        for model, record in by_model.items():
            of_model = figures.setdefault(model, {})
            of_model[f"{task}, fine-tuned"] = record["score"]
            for key, side in (("similarity", "dev"), ("similarity_test", "test")):
                if key in record:
                    of_model[f"{task} {side}, no fine-tuning"] = record[key]
    return figures


def seeds_table(
    figures: list[dict[str, dict[str, float]]],
) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of what `model_figures` gave of each seed."""
    models = in_table_order({model for of_seed in figures for model in of_seed})
    keys = dict.fromkeys(k for seed in figures for m in models for k in seed.get(m, {}))
    names = [*_COLUMNS, *sorted(keys.keys() - _COLUMNS.keys())]
    rows = []
    for model in models:
        cells = []
        for name in names:
            _, spec, unit = _COLUMNS.get(name, (name, ".3f", 1))
            of_seeds = [
                {name: seed[model][name] / unit}
                for seed in figures
                if name in seed.get(model, {})
            ]
            cell = ""
            if of_seeds:
                mean, *deviations = student_scores.mean_and_deviation(of_seeds).values()
                # Costs have no deviation.
                mean_and_deviation = [mean, *filter(None, deviations)]
                cell = " ± ".join(f"{value:{spec}}" for value in mean_and_deviation)
            cells.append(cell)
        rows.append([model_label(model), *cells])
    header = ["model", *(_COLUMNS.get(name, (name,))[0] for name in names)]
    return header, rows


def _with_tuples(fields: Any) -> Any:
    """JSON's lists as a config's tuples."""
    if isinstance(fields, dict):
        return {key: _with_tuples(value) for key, value in fields.items()}
    return tuple(map(_with_tuples, fields)) if isinstance(fields, list) else fields


if __name__ == "__main__":
    main()
