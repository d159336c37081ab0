"""What does a sub-network cost inside the SuperLM, over the same network alone?

    python tests/benchmarks/elastic.py [--rounds 5] [--count 8]

Times a gradient step (mean square of the last hidden states) of sub-networks of the
small space of BERT-base, batch 8 x 128, beside the same step of the standalone student,
in one run and in turns. Ends with one JSON line.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from autodistill_jax.archs.arch import BERT_BASE, Arch
from autodistill_jax.archs.published import partition
from autodistill_jax.latency import measure
from autodistill_jax.models import build
from autodistill_jax.models.bert import Bert

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import reference_masked_bert as masked


def step_of(module, traces):
    def loss(params, ids, attention_mask, arch):
        traces.append(module)
        out = module.apply({"params": params}, ids, attention_mask, arch)
        return jnp.square(out.hidden).mean()

    return jax.jit(jax.value_and_grad(loss))


def seconds(fn, *args):
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=8)
    flags = parser.parse_args()
    space = partition(BERT_BASE, 3)[1]
    rng = np.random.default_rng(0)
    grid = list(space)
    archs = [space.smallest(), space.largest()]
    archs += [grid[i] for i in rng.choice(len(grid), flags.count - 2, replace=False)]
    ids = jnp.asarray(rng.integers(1000, 30000, (8, 128)), jnp.int32)
    attention_mask = jnp.ones_like(ids)

    def init(module):
        return build.init_params(module, jax.random.key(0))

    envelope = dataclasses.replace(space.largest(), layers=12)
    superlm = Bert(envelope, space=space)
    traces = []
    step, params = step_of(superlm, traces), init(superlm)
    start = time.perf_counter()

    def as_arrays(arch):
        return dataclasses.replace(
            arch, **{axis: jnp.asarray(getattr(arch, axis)) for axis in Arch.axes}
        )

    def temporaries(step, *args):
        memory = (
            step.lower(params, ids, attention_mask, *args).compile().memory_analysis()
        )
        return memory.temp_size_in_bytes

    temp = temporaries(step, as_arrays(archs[0]))
    print(f"SuperLM compiled in {time.perf_counter() - start:.1f} s")

    def masked_loss(params, ids, attention_mask, arch):
        # Masks hold whatever the depth: all layers, and sizes that are not known.
        arch = dataclasses.replace(arch, layers=envelope.layers)
        return jnp.square(
            masked.forward(params, ids, attention_mask, arch, envelope)[0]
        ).mean()

    masked_temp = temporaries(
        jax.jit(jax.value_and_grad(masked_loss)), as_arrays(archs[0])
    )
    print(f"temporaries: {temp / 1e6:.0f} MB, masked form {masked_temp / 1e6:.0f} MB")
    ratios = []
    for arch in archs:
        alone = Bert(arch)
        alone_step, alone_params = step_of(alone, []), init(alone)
        pairs = []
        for round_ in range(flags.rounds + 1):
            pair = (
                seconds(step, params, ids, attention_mask, as_arrays(arch)),
                seconds(alone_step, alone_params, ids, attention_mask, None),
            )
            if round_:  # The first compiles.
                pairs.append(pair)
        inside, outside = np.median(pairs, axis=0)
        ratios.append(inside / outside)
        print(f"{arch}: {inside:.3f} s inside, {outside:.3f} s alone: {ratios[-1]:.2f}")
    print(
        json.dumps(
            {
                "mean_ratio": round(float(np.mean(ratios)), 3),
                "max_ratio": round(float(np.max(ratios)), 3),
                "traces": len(traces),
                "temp_bytes": temp,
                "masked_temp_bytes": masked_temp,
                "device": measure.device_name(),
            }
        )
    )


if __name__ == "__main__":
    sys.exit(main())
