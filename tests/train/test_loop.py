"""Does a killed run go on as if nothing had been, on any number of devices?"""

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
    tokens = (np.arange(6) < rng.integers(3, 7, (40, 1))).astype(np.int8)
    return {
        "input_ids": rng.integers(1, 60, (40, 6)).astype(np.int32),
        "attention_mask": tokens,
    }


class Run:
    """A small distillation; `train` may be told to die after some steps."""

    def __init__(self, devices=1):
        self.mesh = mesh_of(devices)
        self.teacher = Bert(TEACHER, DIMS)
        params = build.init_params(self.teacher, jax.random.key(3))
        # At an initial spread of .02 relations are all but flat.
        self.teacher_params = {
            k: v * 10 if k.endswith("kernel") else v for k, v in params.items()
        }
        self.objective = parse_objective(SETTINGS, [SPACE], kind("mean", True))
        self.superlm = Bert(BIG, DIMS, space=SPACE)
        self.moves = optimizer.make_optimizer(
            SETTINGS, STEPS, build.param_axes(self.superlm)
        )
        self.feed = loader.train_batches(rows(), 8, seed=0)
        self.step = sandwich.make_sandwich_step(
            self.superlm, self.teacher, self.objective, self.moves
        )
        self.losses = []

    def start(self):
        params = extract.extract(
            self.teacher_params, TEACHER, extract.superlm_arch(TEACHER, BIG)
        )
        params |= distillation.init_projections(
            self.objective, BIG.hidden, TEACHER.hidden
        )
        params = {k: jnp.array(v) for k, v in params.items()}
        self.frozen = {"embeddings_word": params.pop("embeddings_word")}
        state = {"params": params, "optimizer": self.moves.init(params)}
        return jax.device_put(state, sharding.replicated(self.mesh))

    def inputs(self, i):
        archs = sandwich.stack_archs(sandwich.sandwich_archs(SPACE, 2, 0, i))
        batch = loader.batch_at_step(self.feed, i, self.mesh)
        key = jax.random.fold_in(jax.random.key(0), i)
        return self.frozen, self.teacher_params, batch, archs, key

    def train(self, state, start=0, dies_after=None, kept=None):
        def after(done, state):
            if done == dies_after:
                raise KeyboardInterrupt

        return loop.fit(
            self.step,
            state,
            self.inputs,
            STEPS,
            label="test",
            start=start,
            save_fn=lambda i, s: kept and checkpoint.save_checkpoint(kept, i, s),
            save_every=2,
            log_fn=lambda done, values: self.losses.append(values),
            log_every=1,
            on_step_end=after,
        )


@pytest.fixture(scope="module")
def whole():
    run = Run()
    return run, run.train(run.start())


def test_it_learns_for_every_role(whole):
    run, _ = whole
    for role in sandwich.ROLES:
        totals = [values[f"{role}/total"] for values in run.losses]
        assert totals[-1] < totals[0], role


def test_a_step_adds_up_the_gradients_of_its_sub_networks(whole):
    run, _ = whole
    step = sandwich.make_sandwich_step(
        run.superlm, run.teacher, run.objective, optax.sgd(1.0)
    )
    params = run.start()["params"]
    state = {"params": params, "optimizer": optax.sgd(1.0).init(params)}
    archs = [SPACE.largest(), SPACE.smallest(), Arch(2, 16, 2, 24, 8)]
    batch = loader.batch_at_step(run.feed, 0, run.mesh)
    target = distillation.teacher_targets(
        run.teacher, run.teacher_params, batch, run.objective
    )

    @jax.jit
    def gradient(params, arch):
        def loss(params):
            made = distillation.distillation_losses(
                run.superlm,
                {**run.frozen, **params},
                batch,
                target,
                run.objective,
                jax.tree.map(lambda x: x[0], arch),
            )
            return made["total"].mean()

        return jax.grad(loss)(params)

    parts = [gradient(params, sandwich.stack_archs([arch])) for arch in archs]
    wanted = jax.tree.map(lambda p, *g: np.asarray(p - sum(g)), params, *parts)
    key = jax.random.key(0)
    arrays = sandwich.stack_archs(archs)
    made, _ = step(state, run.frozen, run.teacher_params, batch, arrays, key)
    for name, value in wanted.items():
        assert np.abs(made["params"][name] - value).max() < 1e-4, name


def test_kill_and_resume_equals_uninterrupted(whole, tmp_path):
    _, expected = whole
    run = Run()
    kept = checkpoint.checkpoint_manager(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.train(run.start(), dies_after=5, kept=kept)
    kept.wait_until_finished()
    again = Run()
    kept = checkpoint.checkpoint_manager(tmp_path)
    assert kept.latest_step() == 4
    state = checkpoint.restore_checkpoint(kept, again.start())
    state = again.train(state, start=4, kept=kept)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(state)):
        assert np.array_equal(one, other)


def test_a_checkpoint_of_eight_devices_is_read_on_one(whole, tmp_path):
    run, state = whole
    mesh = mesh_of(8)
    kept = checkpoint.checkpoint_manager(tmp_path)
    checkpoint.save_checkpoint(
        kept, 3, jax.device_put(state, sharding.replicated(mesh))
    )
    kept.wait_until_finished()
    kept = checkpoint.checkpoint_manager(tmp_path)
    again = checkpoint.restore_sharded(kept, sharding.replicated(run.mesh))
    for name, value in state["params"].items():
        assert np.array_equal(value, again["params"][name])
        assert again["params"][name].sharding.device_set == {jax.devices()[0]}


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


def test_eight_devices_equal_one(whole):
    run, expected = whole
    other = Run(devices=8)
    state = other.train(other.start())
    for one, many in zip(run.losses, other.losses):
        assert abs(one["loss"] - many["loss"]) < 1e-4 * abs(one["loss"])
    for name, value in expected["params"].items():
        other_value = np.asarray(state["params"][name])
        assert np.abs(np.asarray(value) - other_value).max() < 2e-3, name


def given(run, state, **more):
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


def test_proxy_is_the_extracted_students_loss(whole):
    run, state = whole
    arch = SPACE.smallest()
    student = extracted(run, state, arch)
    batch = {k: jnp.asarray(v) for k, v in rows().items()}
    target = distillation.teacher_targets(
        run.teacher, run.teacher_params, batch, run.objective
    )
    alone = distillation.distillation_losses(
        Bert(arch, DIMS), student, batch, target, run.objective
    )
    made = proxies.make_proxy("agnostic", given(run, state))([arch])[arch]
    assert abs(made["proxy"] - float(alone["total"].mean())) < 1e-4 * made["proxy"]
    for term in run.objective.weights:
        assert abs(made[term] - float(alone[term].mean())) < 1e-4 * abs(made[term])


def test_the_sandwich_is_a_function_of_the_step():
    one = sandwich.sandwich_archs(SPACE, 2, seed=1, step=7)
    assert one == sandwich.sandwich_archs(SPACE, 2, seed=1, step=7)
    assert one[:2] == [SPACE.largest(), SPACE.smallest()] and len(one) == 4
    assert any(sandwich.sandwich_archs(SPACE, 2, 1, i)[2:] != one[2:] for i in range(5))
    alone = Space((2,), (16,), (2,), (24,), head_size=8)
    assert sandwich.sandwich_archs(alone, 2, 0, 0) == list(alone)


def test_objectives_follow_the_teachers_kind_and_refuse():
    def made(embeds=True, spaces=(SPACE,), special=None, **more):
        settings = SETTINGS | more
        return parse_objective(settings, spaces, kind("cls", embeds), special)

    assert made(losses="auto").weights == {"relation": 1, "pooled": 10}
    assert made(losses="auto", embeds=False).weights == {"relation": 1}
    assert made(losses="0.5*hidden + 2*cosine").weights == {"hidden": 0.5, "cosine": 2}
    assert made(relation_heads=0).relation_heads == TEACHER.heads
    one = Space((2,), (16,), (2,), (24,), head_size=8)
    recipe = made(losses="distilbert", spaces=[one], special=SPECIAL)
    assert recipe.weights == {"logits": 5, "mlm": 2, "cosine": 1}
    assert recipe.masking.mlm_probability == 0.15
    assert made(losses="tinybert", spaces=[one]).layer_map == (1, 3)  # 2 of 4 layers
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
            made(**settings)
