"""Does a transfer go block by block, resume exactly, and bring the student nearer?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import BIG, DIMS, mesh_of

from autodistill_jax.archs.arch import MobileArch
from autodistill_jax.archs.cost import MOBILEBERT_DIMS
from autodistill_jax.data import loader
from autodistill_jax.data.mlm import MlmMasking
from autodistill_jax.data.tokenization import SpecialTokens
from autodistill_jax.models import build, extract, heads
from autodistill_jax.pruning import projection
from autodistill_jax.search import proxy_flash
from autodistill_jax.search.study_loop import TrialPruned
from autodistill_jax.train import checkpoint, distillation, flash_distillation
from autodistill_jax.train.objective import Objective

ARCH = MobileArch(2, 16, 8, 2, 12, 2)
OWN = MOBILEBERT_DIMS._replace(vocab=60, positions=16, embedding=10)
OBJECTIVE = Objective(
    {"logits": 1.0, "mlm": 1.0, "nsp": 1.0},
    layer_map=(1, 3),
    masking=MlmMasking(0.2, special_tokens=SpecialTokens(0, 1, 2, 3)),
)
SETTINGS = {
    "block_steps": 40,
    "last_stage_steps": 60,
    "learning_rate": 3e-3,
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "grad_clip_norm": 1.0,
}


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 60, (64, 6)).astype(np.int32)
    ids[:, 0], ids[:, -1] = 1, 2
    types = np.repeat([[0, 0, 0, 1, 1, 1]], 64, axis=0).astype(np.int32)
    follows = (ids[:, 1] > 30).astype(np.int32)  # Something to learn.
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": types,
        "next_sentence_label": follows,
    }


@pytest.fixture(scope="module", autouse=True)
def steps_compiled_once():
    """One set of programs for all runs of one transfer; they hold no state."""
    transfer_steps = flash_distillation.transfer_steps
    kept_steps = {}

    def cached(transfer, settings, *args):
        key = (id(transfer), *args)
        if key not in kept_steps:
            kept_steps[key] = (transfer, transfer_steps(transfer, settings, *args))
        return kept_steps[key][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash_distillation, "transfer_steps", cached)
        yield


@pytest.fixture(scope="module")
def transfer():
    # With its mesh a step leaves the state where it lay: it is compiled once.
    mesh = mesh_of(1)
    teacher = build.build_module(BIG, DIMS, mesh=mesh)
    rng = np.random.default_rng(3)
    params = {
        name: np.asarray(value) + rng.normal(0, 0.1, value.shape).astype(np.float32)
        for name, value in build.init_params(teacher, jax.random.key(3)).items()
    }
    params |= {
        k: np.asarray(v) for k, v in heads.init_mlm_head(BIG.hidden, DIMS).items()
    }
    module = build.build_module(ARCH, OWN, mesh=mesh)
    student = build.init_params(
        module, jax.random.key(0)
    ) | distillation.init_projections(OBJECTIVE, ARCH.hidden, BIG.hidden, None, OWN)
    return flash_distillation.BlockwiseTransfer(
        module, student, teacher, params, OBJECTIVE
    )


def run(transfer, rows, fraction=0.1, **more):
    mesh = mesh_of(1)
    batches = loader.train_batches(rows, 8, 0)
    return flash_distillation.train_blockwise(
        transfer, batches, SETTINGS, fraction, mesh, 0, "flash", **more
    )


def test_a_fraction_of_the_recipes_steps():
    assert flash_distillation.stage_steps(SETTINGS, 3, 1.0) == [40, 40, 40, 60]
    assert flash_distillation.stage_steps(SETTINGS, 3, 0.05) == [2, 2, 2, 3]
    assert flash_distillation.stage_steps(SETTINGS, 2, 1e-6) == [1, 1, 1]


def test_a_depth_is_the_network_cut_there(transfer, rows):
    batch = {name: jnp.asarray(x[:2]) for name, x in rows.items()}
    for module, params in (
        (transfer.teacher, heads.encoder_params(transfer.teacher_params)),
        (transfer.module, heads.encoder_params(transfer.params)),
    ):
        inputs = ({"params": params}, batch["input_ids"], batch["attention_mask"])
        full = module.apply(*inputs, qkv=True, states=True)
        cut = module.apply(*inputs, qkv=True, depth=jnp.int32(1))
        assert np.abs(cut.hidden - full.states[1]).max() < 1e-5
        assert np.abs(cut.qkv - full.qkvs[0]).max() < 1e-5


def test_a_teacher_is_no_way_from_itself(transfer, rows):
    params = transfer.teacher_params | {
        flash_distillation.BLOCK_PROJECTIONS: jnp.tile(jnp.eye(BIG.hidden), (4, 1, 1))
    }
    same = transfer._replace(
        module=transfer.teacher,
        params=params,
        objective=OBJECTIVE._replace(layer_map=(0, 1, 2, 3)),
    )
    batch = {name: jnp.asarray(x[:2]) for name, x in rows.items()}
    losses = flash_distillation.block_loss(
        same, params, transfer.teacher_params, batch, jnp.int32(2)
    )
    assert all(np.abs(value).max() < 1e-5 for value in losses.values())
    # The student's second block follows the teacher's last, not its second.
    last = flash_distillation.block_loss(
        same._replace(objective=OBJECTIVE._replace(layer_map=(1, 3, 3, 3))),
        params,
        transfer.teacher_params,
        batch,
        jnp.int32(1),
    )
    assert last["total"].min() > 0.01


@pytest.mark.parametrize("copied", [False, True])
def test_blocks_learn_in_turn(copied):
    names = [
        "embeddings_word",
        "layers_out_kernel",
        "pooler_bias",
        flash_distillation.BLOCK_PROJECTIONS,
    ]
    scales = flash_distillation.lr_scales(names, 3, 1, copied)
    assert scales["layers_out_kernel"].tolist() == pytest.approx([0.1, 1, 0])
    assert scales[flash_distillation.BLOCK_PROJECTIONS].tolist() == [0, 1, 0]
    assert scales["pooler_bias"] == 0
    assert float(scales["embeddings_word"]) == pytest.approx(0 if copied else 0.1)
    first = flash_distillation.lr_scales(names, 3, 0, copied)
    assert float(first["embeddings_word"]) == (0 if copied else 1)


def test_a_transfer_brings_the_student_nearer(transfer, rows):
    mesh, seen_at_end = mesh_of(1), []
    loss = proxy_flash.heldout_block_loss(transfer, rows, 8, mesh, 0)

    def judge(params):
        seen_at_end.append({name: np.asarray(value) for name, value in params.items()})
        seen_at_end.append(loss(params))

    start = dict(transfer.params)
    start[flash_distillation.BLOCK_PROJECTIONS] = jnp.tile(
        jnp.eye(ARCH.hidden, BIG.hidden), (2, 1, 1)
    )
    final_params = run(transfer, rows, 1.0, on_blocks_end=judge)
    block_params, reached = seen_at_end
    assert reached < 0.8 * loss(start)
    # All blocks are done then; the pooler and the head learn in the last stage alone.
    head = "mlm_out_bias"
    assert np.array_equal(block_params[head], transfer.params[head])
    assert not np.array_equal(final_params[head], block_params[head])
    assert not np.array_equal(
        block_params["layers_out_kernel"][1], start["layers_out_kernel"][1]
    )


def test_a_stopped_transfer_goes_on_the_same(transfer, rows, tmp_path):
    uninterrupted = run(transfer, rows)

    class Stop(Exception):
        pass

    manager = checkpoint.checkpoint_manager(tmp_path)

    def until(stop):
        def tell(done, values):
            if done > stop:
                raise Stop

        return tell

    for stop in (4, 11):  # Where the second block begins, and in the last stage.
        with pytest.raises(Stop):
            run(transfer, rows, checkpoints=manager, save_every=1, log_fn=until(stop))
        manager.wait_until_finished()
        assert manager.latest_step() == stop
    resumed = run(transfer, rows, checkpoints=manager, save_every=1)
    assert all(
        np.array_equal(resumed[name], uninterrupted[name]) for name in uninterrupted
    )


def test_a_candidates_score(transfer, rows, monkeypatch):
    """With a head 1 - accuracy, without one the blocks' loss and no last stage."""
    calls = []

    def no_training(transfer, batches, settings, fraction, *_, on_blocks_end):
        calls.append((fraction, dict(transfer.objective.weights)))
        params = dict(transfer.params)
        params[flash_distillation.BLOCK_PROJECTIONS] = jnp.tile(
            jnp.eye(ARCH.hidden, BIG.hidden), (2, 1, 1)
        )
        on_blocks_end(params)
        return params

    monkeypatch.setattr(flash_distillation, "train_blockwise", no_training)
    mesh = mesh_of(1)
    settings = SETTINGS | {"step_fraction": 0.05, "batch_size": 8, "prune_factor": 0.5}
    args = (loader.train_batches(rows, 8, 0), rows, settings, mesh, 0, "flash")
    result = proxy_flash.flash_proxy(transfer, *args)
    accuracies = [result["accuracy_mlm"], result["accuracy_nsp"]]
    assert result["proxy"] == 1 - np.mean(accuracies) and 0.3 < result["proxy"] <= 1
    headless = OBJECTIVE._replace(weights={"mlm": 1.0})
    headless_result = proxy_flash.flash_proxy(
        transfer._replace(objective=headless), *args
    )
    assert (
        headless_result["proxy"]
        == headless_result["transfer"]
        == pytest.approx(result["transfer"])
    )
    assert calls == [(0.05, OBJECTIVE.weights), (0.05, {})]
    with pytest.raises(
        TrialPruned, match=r"over flash_distillation.prune_factor 0.5 times the median"
    ):
        proxy_flash.flash_proxy(
            transfer, *args, finished_losses=[headless_result["transfer"]]
        )


def test_a_truncated_student_of_the_same_family_can_start(transfer, rows):
    arch = BIG.__class__(2, 16, 2, 24, 8)
    student = extract.extract(heads.encoder_params(transfer.teacher_params), BIG, arch)
    module = build.build_module(arch, DIMS)
    truncated = transfer._replace(
        module=module, params=student, embeddings_copied=False
    )
    batch = {name: jnp.asarray(x[:2]) for name, x in rows.items()}
    params = student | {
        flash_distillation.BLOCK_PROJECTIONS: jnp.tile(
            jnp.eye(16, BIG.hidden), (2, 1, 1)
        )
    }
    losses = [
        flash_distillation.block_loss(
            truncated, params, transfer.teacher_params, batch, jnp.int32(block)
        )
        for block in (0, 1)
    ]
    assert all(np.isfinite(values["total"]).all() for values in losses)
    # By regression its blocks are nearer to the teacher's from the start.
    teacher_params = heads.encoder_params(transfer.teacher_params)
    networks = module, student, transfer.teacher, teacher_params
    pairs = [(i + 1, layer + 1) for i, layer in enumerate(OBJECTIVE.layer_map)]
    fitted = projection.fit_state_projections(*networks, [batch], pairs)
    assert fitted.shape == (2, 16, BIG.hidden)
    params[flash_distillation.BLOCK_PROJECTIONS] = fitted
    for block, values in enumerate(losses):
        fitted_values = flash_distillation.block_loss(
            truncated, params, transfer.teacher_params, batch, jnp.int32(block)
        )
        assert fitted_values["output"].mean() < 0.7 * values["output"].mean()
    # The map to any other of the teacher's layers fits the block's own layer less well.
    of_first = []
    for layer in range(3):
        pairs = [(1, layer + 1), (2, layer + 1)]
        params[flash_distillation.BLOCK_PROJECTIONS] = projection.fit_state_projections(
            *networks, [batch], pairs
        )
        values = flash_distillation.block_loss(
            truncated, params, transfer.teacher_params, batch, jnp.int32(0)
        )
        of_first.append(float(values["output"].mean()))
    assert np.argmin(of_first) == OBJECTIVE.layer_map[0]
