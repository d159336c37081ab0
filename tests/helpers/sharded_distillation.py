"""What does a small distillation give on a mesh? Also a program, one of many processes:

python tests/helpers/sharded_distillation.py PORT PROCESSES PROCESS AXES_AS_JSON  # the losses
python tests/helpers/sharded_distillation.py  # temporaries of 4 and of 64 devices
"""

import json
import sys

import jax
import numpy as np

from autodistill_jax import multihost, sharding
from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.archs.space import Space
from autodistill_jax.data import loader, tokenization
from autodistill_jax.data.mlm import MlmMasking
from autodistill_jax.models import build, extract
from autodistill_jax.models.bert import Bert
from autodistill_jax.models.heads import init_mlm_head
from autodistill_jax.train import distillation, loop, optimizer, sandwich
from autodistill_jax.train.objective import Objective

STEPS = 20
# A vocabulary that nothing divides.
DIMS = ModelDims(vocab=61, positions=16)
# Larger than the SuperLM: what equals its teacher has gradients of nothing but rounding,
# which AdamW makes full steps of.
TEACHER = Arch(4, 48, 6, 96, 8)
SPACE = Space(
    layers=(1, 3), hidden=(16, 32), heads=(2, 4), ffn_ratio=(1.5,), head_size=8
)
OBJECTIVE = Objective(
    {"relation": 1.0, "hidden": 1.0, "logits": 1.0},
    relation_heads=4,
    masking=MlmMasking(
        0.2,
        3,
        tokenization.SpecialTokens(
            pad_token_id=0, cls_token_id=1, sep_token_id=2, mask_token_id=3
        ),
    ),
)
SETTINGS = {
    "optimizer": "muon",
    "learning_rate": 1e-3,
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "grad_clip_norm": 1.0,
}
BATCH = 16


def rows(count=48):
    rng = np.random.default_rng(0)
    real = np.arange(8) < rng.integers(4, 9, (count, 1))
    ids = rng.integers(4, 61, (count, 8)).astype(np.int32)
    return {"input_ids": ids * real, "attention_mask": real.astype(np.int8)}


def program(mesh, *, parts=1, remat=False, dtype=None, batch=BATCH):
    """(the first state, the step, its other arguments by step) of a distillation."""
    more = {"dtype": dtype} if dtype else {}
    teacher = Bert(TEACHER, DIMS, mesh=mesh, **more)
    big = SPACE.largest()
    superlm = Bert(big, DIMS, space=SPACE, mesh=mesh, remat=remat, **more)
    params = build.init_params(teacher, jax.random.key(3))
    # At an initial spread of .02 relations are all but flat.
    teacher_params = {
        k: v * 10 if k.endswith("kernel") else v for k, v in params.items()
    }
    start = extract.extract(teacher_params, TEACHER, big)
    head = {k: np.asarray(v) for k, v in init_mlm_head(TEACHER.hidden, DIMS).items()}
    start |= distillation.init_projections(
        OBJECTIVE, big.hidden, TEACHER.hidden, head, DIMS
    )
    axes = build.param_axes(superlm)
    tx = optimizer.make_optimizer(SETTINGS, STEPS, axes)
    state = optimizer.init_state(tx, start, axes, mesh)
    teacher_params = sharding.place_params(
        {**teacher_params, **head}, build.param_axes(teacher), mesh
    )
    step = sandwich.make_sandwich_step(superlm, teacher, OBJECTIVE, tx, parts)
    batches = loader.train_batches(rows(max(48, batch)), batch, seed=0)

    def inputs(i):
        archs = sandwich.stack_archs(sandwich.sandwich_archs(SPACE, 1, 0, i))
        key = jax.random.fold_in(jax.random.key(0), i)
        return {}, teacher_params, loader.batch_at_step(batches, i, mesh), archs, key

    return state, step, inputs


def losses(mesh, steps=STEPS, **more):
    """The loss of each step."""
    state, step, inputs = program(mesh, **more)
    history = []
    loop.fit(
        step,
        state,
        inputs,
        steps,
        label="test",
        log_fn=lambda done, values: history.append(values["loss"]),
        log_every=1,
    )
    return history


def temporaries(mesh, rows_each=4, **more):
    """Bytes a device of the compiled step's temporaries."""
    batch = rows_each * sharding.num_batch_shards(mesh)
    state, step, inputs = program(mesh, batch=batch, **more)
    compiled = step.lower(state, *inputs(0)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    if sys.argv[1:]:
        port, count, process, axes = sys.argv[1:]
        multihost.join_processes(f"localhost:{port}", int(count), int(process))
        result = losses(sharding.make_mesh(json.loads(axes)))
    else:
        wide = {"data": -1, "fsdp": 2, "tensor": 2}
        result = [
            temporaries(sharding.make_mesh(wide, jax.devices()[:count]))
            for count in (4, 64)
        ]
    print(json.dumps(result))
