"""Every Arch of a trained SuperLM, judged and timed several times: a table for bayes.py.

    python -m autodistill_jax distill --config=configs/minilm.py --workdir=W \\
      --config.data.source=../shared/data/wikipedia-2015 --config.distill.steps=150 \\
      --config.space.layers="(3,4,5,6)" --config.space.hidden="(128,192,256,320)" \\
      --config.space.heads="(4,6,8,10)" --config.space.ffn_ratio="(1.5,2.0,3.0,4.0)"
    python tests/benchmarks/table.py W table.json [--repeats 4] [--rows 2048]
    python tests/benchmarks/bayes.py --problems= --table=table.json

The proxy is taken on as many parts of held-out text, of --rows rows in all, as there are
repeats, and the latency in as many rounds, each as the product measures: `latency.runs`
runs in turns with a fixed network, here the largest Arch, whose own time in that round is
divided out. Goes on from the table that is there.
"""

import argparse
import datetime
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

import autodistill_jax as ad
from autodistill_jax import log
from autodistill_jax.data import loader
from autodistill_jax.experiment import (
    evidence,
    loading,
    proxy_inputs,
    superlm,
    text_rows,
)
from autodistill_jax.latency import measure
from autodistill_jax.models import build
from autodistill_jax.search import proxies

_TOGETHER = 8  # Archs timed in turns, so that what else the machine does falls on all.


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--rows", type=int, default=2048)
    args = parser.parse_args()
    config = json.loads((args.workdir / "config.json").read_text())
    loaded_experiment = loading.load_experiment(ConfigDict(_tuples(config)))
    loaded_experiment = evidence.with_evidence(
        loaded_experiment, epath.Path(args.workdir), "start"
    )
    ((space_name, space),) = loaded_experiment.spaces.items()
    archs = list(space)
    chosen = {
        space.decode(dict(zip(space.search_axes(), values))): values
        for values in np.stack(
            np.meshgrid(*space.search_axes().values(), indexing="ij"), axis=-1
        )
        .reshape(-1, len(space.search_axes()))
        .tolist()
    }
    stored = json.loads(args.out.read_text()) if args.out.exists() else {}
    names = list(space.search_axes())
    points = {tuple(p["params"].values()): p for p in stored.get("points", [])}
    for arch in archs:
        points.setdefault(
            tuple(chosen[arch]),
            {"params": dict(zip(names, chosen[arch])), "proxy": [], "latency": []},
        )

    reference_ms = stored.get("reference_ms")
    conditions = stored.get("conditions") or {
        "date": str(datetime.date.today()),
        "device": ad.device_name(),
        "jax": jax.__version__,
        "teacher": config["teacher"],
        "superlm_steps": config["distill"]["steps"],
        "rows": args.rows,
    }

    def keep():
        axes = {name: list(values) for name, values in space.search_axes().items()}
        table = {
            "conditions": conditions,
            "axes": axes,
            "points": list(points.values()),
        }
        if reference_ms:
            table["reference_ms"] = reference_ms
        args.out.write_text(json.dumps(table))

    workdir = epath.Path(args.workdir)
    params = superlm.trained_superlm(loaded_experiment, workdir, space_name)
    inputs = proxy_inputs.proxy_inputs(
        loaded_experiment, workdir, space_name, params, None, 0
    )
    held_out = loader.evenly_spaced_rows(
        text_rows.text_rows(loaded_experiment, workdir, "heldout"), args.rows
    )
    for i in range(args.repeats):
        part = {name: x[i :: args.repeats] for name, x in held_out.items()}
        proxy = proxies.make_proxy(
            loaded_experiment.config.search.proxy, inputs._replace(held_out=part)
        )
        missing = [a for a in archs if len(points[tuple(chosen[a])]["proxy"]) <= i]
        progress = log.Progress(f"proxy, part {i + 1}/{args.repeats}", len(missing))
        for count, arch in enumerate(missing, 1):
            points[tuple(chosen[arch])]["proxy"].append(proxy([arch])[arch]["proxy"])
            progress(count)
            if count % 32 == 0 or count == len(missing):
                keep()
    missing = [a for a in archs if not points[tuple(chosen[a])]["latency"]]
    progress = log.Progress("latency", len(missing))
    settings = loaded_experiment.config.latency
    for start in range(0, len(missing), _TOGETHER):
        chunk = missing[start : start + _TOGETHER]
        ids = jnp.ones((settings.batch, settings.max_seq_length), jnp.int32)
        calls = [
            (
                measure.forward_fn(
                    arch, loaded_experiment.dims, settings.compute_dtype
                ),
                (
                    _random(arch, loaded_experiment.dims, settings.compute_dtype),
                    ids,
                    ids,
                ),
            )
            for arch in (space.largest(), *chunk)
        ]
        runs = 1e3 * np.asarray(
            measure.device_times(calls, settings.runs * args.repeats)
        )
        rounds = np.median(runs.reshape(len(runs), args.repeats, -1), axis=2)
        # In the time of the first turns: the machine's drift divides out by the largest.
        reference_ms = reference_ms or float(rounds[0].mean())
        for arch, medians in zip(chunk, rounds[1:] / rounds[0] * reference_ms):
            points[tuple(chosen[arch])]["latency"] = medians.tolist()
        progress(start + len(chunk))
        keep()


def _random(arch, sizes, dtype):
    params = build.init_params(build.build_module(arch, sizes), jax.random.key(0))
    return measure.serving_params(params, dtype)


def _tuples(tree):
    if isinstance(tree, dict):
        return {name: _tuples(value) for name, value in tree.items()}
    return tuple(tree) if isinstance(tree, list) else tree


if __name__ == "__main__":
    main()
