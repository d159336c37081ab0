"""Does a killed run go on as if nothing had been, on any number of devices?"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_networks import BIG, DIMS, SPACE, mesh_of

from autodistill_jax import sharding
from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.space import Space
from autodistill_jax.data import loader, tokenization
from autodistill_jax.errors import UserError
from autodistill_jax.interop import huggingface
from autodistill_jax.models import build, extract
from autodistill_jax.models.bert import Bert
from autodistill_jax.search import proxies
from autodistill_jax.train import checkpoint, distillation, loop, optimizer, sandwich
from autodistill_jax.train.objective import parse_objective

SETTINGS = {
    "losses": "relation+hidden+10*pooled",
    "relation_form": "minilmv2",
    "relation_heads": 4,
    "relation_pairs": "qq+kk+vv",
    "mlm_probability": 0.0,
    "max_predictions_per_seq": 20,
    "temperature": 2.0,
    "learning_rate": 1e-2,
    "warmup_ratio": 0.2,
    "weight_decay": 0.01,
    "grad_clip_norm": 1.0,
}
TEACHER = Arch(4, 32, 4, 64, 8)
SPECIAL = tokenization.SpecialTokens(
    pad_token_id=0, cls_token_id=1, sep_token_id=2, mask_token_id=3
)
STEPS = 8


def kind(pooling, embeds):
    """A teacher, of which an objective only asks how it pools and its sizes."""
    return huggingface.Teacher(TEACHER, DIMS, {}, pooling, embeds, None)


def rows():
    rng = np.random.default_rng(0)
    attention_mask = (np.arange(6) < rng.integers(3, 7, (40, 1))).astype(np.int8)
    return {
        "input_ids": rng.integers(1, 60, (40, 6)).astype(np.int32),
        "attention_mask": attention_mask,
    }


class Run:
    """A small distillation; `train` may be told to die after some steps."""

    def __init__(self, devices=1):
        self.mesh = mesh_of(devices)
        # With it a step leaves the state where it lay: it is compiled once.
        self.teacher = Bert(TEACHER, DIMS, mesh=self.mesh)
        params = build.init_params(self.teacher, jax.random.key(3))
        # At an initial spread of .02 relations are all but flat.
        self.teacher_params = {
            k: v * 10 if k.endswith("kernel") else v for k, v in params.items()
        }
        self.objective = parse_objective(SETTINGS, [SPACE], kind("mean", True))
        self.superlm = Bert(BIG, DIMS, space=SPACE, mesh=self.mesh)
        self.tx = optimizer.make_optimizer(
            SETTINGS, STEPS, build.param_axes(self.superlm)
        )
        self.batches = loader.train_batches(rows(), 8, seed=0)
        self.step = sandwich.make_sandwich_step(
            self.superlm, self.teacher, self.objective, self.tx
        )
        self.losses = []

    def start(self):
        params = extract.extract(
            self.teacher_params,
            TEACHER,
            dataclasses.replace(BIG, layers=TEACHER.layers),
        )
        params |= distillation.init_projections(
            self.objective, BIG.hidden, TEACHER.hidden
        )
        params = {k: jnp.array(v) for k, v in params.items()}
        self.frozen = {"embeddings_word": params.pop("embeddings_word")}
        state = {"params": params, "optimizer": self.tx.init(params)}
        return jax.device_put(state, sharding.replicated(self.mesh))

    def inputs(self, i):
        archs = sandwich.stack_archs(sandwich.sandwich_archs(SPACE, 2, 0, i))
        batch = loader.batch_at_step(self.batches, i, self.mesh)
        key = jax.random.fold_in(jax.random.key(0), i)
        return self.frozen, self.teacher_params, batch, archs, key

    def train(self, state, start=0, dies_after=None, manager=None):
        def die(done, state):
            if done == dies_after:
                raise KeyboardInterrupt

        return loop.fit(
            self.step,
            state,
            self.inputs,
            STEPS,
            label="test",
            start=start,
            save_fn=lambda i, s: manager and checkpoint.save_checkpoint(manager, i, s),
            save_every=2,
            log_fn=lambda done, values: self.losses.append(values),
            log_every=1,
            on_step_end=die,
        )


@pytest.fixture(scope="module")
def uninterrupted():
    run = Run()
    return run, run.train(run.start())


def test_it_learns_for_every_role(uninterrupted):
    run, _ = uninterrupted
    for role in sandwich.ROLES:
        totals = [values[f"{role}/total"] for values in run.losses]
        assert totals[-1] < totals[0], role


def test_a_step_adds_up_the_gradients_of_its_sub_networks(uninterrupted):
    run, _ = uninterrupted
    step = sandwich.make_sandwich_step(
        run.superlm, run.teacher, run.objective, optax.sgd(1.0)
    )
    params = run.start()["params"]
    state = {"params": params, "optimizer": optax.sgd(1.0).init(params)}
    archs = [SPACE.largest(), SPACE.smallest(), Arch(2, 16, 2, 24, 8)]
    batch = loader.batch_at_step(run.batches, 0, run.mesh)
    target = jax.jit(
        lambda params: distillation.teacher_targets(
            run.teacher, params, batch, run.objective
        )
    )(run.teacher_params)

    @jax.jit
    def gradient(params, arch):
        def loss(params):
            loss_values = distillation.distillation_losses(
                run.superlm,
                {**run.frozen, **params},
                batch,
                target,
                run.objective,
                jax.tree.map(lambda x: x[0], arch),
            )
            return loss_values["total"].mean()

        return jax.grad(loss)(params)

    parts = [gradient(params, sandwich.stack_archs([arch])) for arch in archs]
    expected = jax.tree.map(lambda p, *g: np.asarray(p - sum(g)), params, *parts)
    key = jax.random.key(0)
    arrays = sandwich.stack_archs(archs)
    new_state, _ = step(state, run.frozen, run.teacher_params, batch, arrays, key)
    for name, value in expected.items():
        assert np.abs(new_state["params"][name] - value).max() < 1e-4, name


def test_kill_and_resume_equals_uninterrupted(uninterrupted, tmp_path):
    _, expected = uninterrupted
    run = Run()
    manager = checkpoint.checkpoint_manager(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.train(run.start(), dies_after=5, manager=manager)
    manager.wait_until_finished()
    resumed = Run()
    manager = checkpoint.checkpoint_manager(tmp_path)
    assert manager.latest_step() == 4
    state = checkpoint.restore_checkpoint(manager, resumed.start())
    state = resumed.train(state, start=4, manager=manager)
    for expected_leaf, leaf in zip(jax.tree.leaves(expected), jax.tree.leaves(state)):
        assert np.array_equal(expected_leaf, leaf)


def test_a_checkpoint_of_eight_devices_is_read_on_one(uninterrupted, tmp_path):
    run, state = uninterrupted
    mesh = mesh_of(8)
    manager = checkpoint.checkpoint_manager(tmp_path)
    checkpoint.save_checkpoint(
        manager, 3, jax.device_put(state, sharding.replicated(mesh))
    )
    manager.wait_until_finished()
    manager = checkpoint.checkpoint_manager(tmp_path)
    restored = checkpoint.restore_sharded(manager, sharding.replicated(run.mesh))
    for name, value in state["params"].items():
        assert np.array_equal(value, restored["params"][name])
        assert restored["params"][name].sharding.device_set == {jax.devices()[0]}


@pytest.mark.parametrize(("save_every", "tell_every"), [(2, 2), (2, 7), (3, 7)])
def test_a_loss_that_is_not_finite_stops_before_it_is_kept(save_every, tell_every):
    saved = []
    with pytest.raises(UserError, match=r"not finite by step [34]; use a lower"):
        loop.fit(
            lambda state, x: (state, {"loss": x}),
            {},
            lambda i: (np.float32(np.nan if i == 2 else 1),),
            8,
            label="test",
            save_fn=lambda i, state: saved.append(i),
            save_every=save_every,
            log_every=tell_every,
        )
    assert saved == [2] * (save_every == 2)


def test_eight_devices_equal_one(uninterrupted):
    run, expected = uninterrupted
    sharded_run = Run(devices=8)
    state = sharded_run.train(sharded_run.start())
    for single, many in zip(run.losses, sharded_run.losses):
        assert abs(single["loss"] - many["loss"]) < 1e-4 * abs(single["loss"])
    for name, value in expected["params"].items():
        sharded_value = np.asarray(state["params"][name])
        assert np.abs(np.asarray(value) - sharded_value).max() < 2e-3, name


def proxy_inputs(run, state, **more):
    params = {**state["params"], **run.frozen}
    return proxies.ProxyInputs(
        run.superlm,
        params,
        run.teacher,
        run.teacher_params,
        rows(),
        16,
        run.objective,
        run.mesh,
        **more,
    )


def extracted(run, state, arch):
    params = {**state["params"], **run.frozen}
    encoder = {
        k: v for k, v in params.items() if not k.startswith("linear_projection_")
    }
    return extract.extract(encoder, BIG, arch) | {
        k: v[: arch.hidden]
        for k, v in params.items()
        if k.startswith("linear_projection_")
    }


def test_proxy_is_the_extracted_students_loss(uninterrupted):
    run, state = uninterrupted
    arch = SPACE.smallest()
    student = extracted(run, state, arch)
    batch = {k: jnp.asarray(v) for k, v in rows().items()}

    @jax.jit
    def losses_alone(teacher_params, params, batch):
        target = distillation.teacher_targets(
            run.teacher, teacher_params, batch, run.objective
        )
        return distillation.distillation_losses(
            Bert(arch, DIMS), params, batch, target, run.objective
        )

    alone = losses_alone(run.teacher_params, student, batch)
    measured = proxies.make_proxy("agnostic", proxy_inputs(run, state))([arch])[arch]
    assert (
        abs(measured["proxy"] - float(alone["total"].mean())) < 1e-4 * measured["proxy"]
    )
    for name in run.objective.weights:
        assert abs(measured[name] - float(alone[name].mean())) < 1e-4 * abs(
            measured[name]
        )


def test_the_sandwich_is_a_function_of_the_step():
    archs = sandwich.sandwich_archs(SPACE, 2, seed=1, step=7)
    assert archs == sandwich.sandwich_archs(SPACE, 2, seed=1, step=7)
    assert archs[:2] == [SPACE.largest(), SPACE.smallest()] and len(archs) == 4
    assert any(
        sandwich.sandwich_archs(SPACE, 2, 1, i)[2:] != archs[2:] for i in range(5)
    )
    alone = Space((2,), (16,), (2,), (24,), head_size=8)
    assert sandwich.sandwich_archs(alone, 2, 0, 0) == list(alone)


def test_objectives_follow_the_teachers_kind_and_refuse():
    def objective_of(embeds=True, spaces=(SPACE,), special=None, **more):
        settings = SETTINGS | more
        return parse_objective(settings, spaces, kind("cls", embeds), special)

    assert objective_of(losses="auto").weights == {"pooled": 1, "cosine": 3}
    assert objective_of(losses="auto", embeds=False).weights == {"relation": 1}
    assert objective_of(losses="0.5*hidden + 2*cosine").weights == {
        "hidden": 0.5,
        "cosine": 2,
    }
    assert objective_of(relation_heads=0).relation_heads == TEACHER.heads
    fixed_space = Space((2,), (16,), (2,), (24,), head_size=8)
    recipe = objective_of(losses="distilbert", spaces=[fixed_space], special=SPECIAL)
    assert recipe.weights == {"logits": 5, "mlm": 2, "cosine": 1}
    assert recipe.masking.mlm_probability == 0.15
    # 2 of 4 layers.
    assert objective_of(losses="tinybert", spaces=[fixed_space]).layer_map == (1, 3)
    for match, settings in (
        ("all have weight 0", {"losses": "0*relation"}),
        (r"distill\.losses has 'dance'", {"losses": "relation+dance"}),
        ("narrowest sub-network has 16 query channels", {"relation_heads": 17}),
        ("paper, code, minilmv2", {"relation_form": "x"}),
        (r"qq\+kk\+vv, qk\+vv", {"relation_pairs": "vv"}),
        ("needs a space of one Arch", {"losses": "tinybert"}),
        ("no mask token", {"losses": "distilbert"}),
        ("needs masked tokens", {"losses": "mlm", "special": SPECIAL}),
    ):
        with pytest.raises(UserError, match=match):
            objective_of(**settings)
