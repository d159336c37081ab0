"""Does training on text alone learn, resume, and leave a teacher?"""

import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import ROOT
from tiny_networks import DIMS, mesh_of

from autodistill_jax import sharding
from autodistill_jax.archs.arch import Arch, MobileArch
from autodistill_jax.cli import main
from autodistill_jax.data import loader, tokenization
from autodistill_jax.data.mlm import MlmMasking
from autodistill_jax.errors import UserError
from autodistill_jax.experiment.teacher import pretraining_dims
from autodistill_jax.interop import huggingface
from autodistill_jax.jobs import pretrain as job
from autodistill_jax.models import build, heads
from autodistill_jax.train import distillation, loop, optimizer, pretraining
from autodistill_jax.train.objective import Objective

SPECIAL = tokenization.SpecialTokens(
    pad_token_id=0, cls_token_id=1, sep_token_id=2, mask_token_id=3
)


SETTINGS = {
    "learning_rate": 3e-3,
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "grad_clip_norm": 1.0,
}
TOPICS, HALF = 4, 5


def toy(count, seed):
    """Pairs of a language of four topics, each with a word of its own for every place:
    a masked token follows from its text's topic, and a text keeps to one."""
    rng = np.random.default_rng(seed)
    random_next = (np.arange(count) % 2).astype(np.int32)
    first = rng.integers(0, TOPICS, count)
    second = (first + random_next * rng.integers(1, TOPICS, count)) % TOPICS
    first_ids, second_ids = (
        4 + x[:, None] * HALF + np.arange(HALF) for x in (first, second)
    )
    cls, sep = (
        np.full((count, 1), SPECIAL.cls_token_id),
        np.full((count, 1), SPECIAL.sep_token_id),
    )
    ids = np.concatenate([cls, first_ids, sep, second_ids, sep], axis=1).astype(
        np.int32
    )
    types = np.tile(np.arange(ids.shape[1]) > HALF + 1, (count, 1)).astype(np.int8)
    real = np.ones(ids.shape, np.int8)
    return {
        "input_ids": ids,
        "attention_mask": real,
        "token_type_ids": types,
        "next_sentence_label": random_next,
    }


def start(module):
    params = build.init_params(module, jax.random.key(0))
    params |= heads.init_mlm_head(module.arch.hidden, module.dims)
    return params | heads.init_nsp_head(module.arch.hidden, jax.random.key(1))


def test_it_learns_words_and_next_sentences():
    mesh, steps = mesh_of(1), 400
    module = build.build_module(Arch(1, 32, 4, 64, 8), DIMS, mesh=mesh)
    params = start(module)
    tx = optimizer.make_optimizer(SETTINGS, steps, build.param_axes(module))
    held_out = toy(192, seed=1)

    masking = MlmMasking(0.15, 20, SPECIAL)

    def right(params, **more):
        return pretraining.pretraining_accuracies(
            module, heads.encoder_params(params), heads.head_params(params), held_out,
            masking, mesh, **more,
        )  # fmt: skip

    initial = right(params)
    assert initial["mlm"] < 0.2 and 0.3 < initial["nsp"] < 0.7
    batches = loader.train_batches(toy(2000, seed=0), 32, seed=0)
    state = {"params": params, "optimizer": tx.init(params)}
    state = loop.fit(
        pretraining.make_pretraining_step(module, tx, masking),
        jax.device_put(state, sharding.replicated(mesh)),
        lambda i: (
            loader.batch_at_step(batches, i, mesh),
            jax.random.fold_in(jax.random.key(0), i),
        ),
        steps,
        label="toy",
    )
    trained = right(state["params"])
    assert trained["mlm"] > 0.6 and trained["nsp"] > 0.8, trained
    # The same tokens are masked whatever the batch; the last one is filled up.
    assert right(state["params"], batch_size=48) == trained


def test_the_loss_is_the_mean_over_hidden_words_and_rows():
    """Against the definition, on a batch of whose texts unequally many tokens are masked."""
    dims = DIMS._replace(
        family="mobilebert", embedding=10, norm="layer_norm", pooler=False
    )
    module = build.build_module(MobileArch(1, 16, 8, 2, 12, 1), dims)
    params, rows = start(module), toy(8, seed=2)
    rows["attention_mask"][:4, 9:] = 0
    tx = optimizer.make_optimizer(SETTINGS, 10, {})
    masking = MlmMasking(0.3, 20, SPECIAL)
    step = pretraining.make_pretraining_step(module, tx, masking)
    key = jax.random.key(5)
    hidden = pretraining._mask_once(jax.random.split(key)[0], rows, 60, masking)
    logits = jax.jit(lambda p, b: pretraining.pretraining_logits(module, p, b))(
        params, hidden
    )
    log_p = jax.nn.log_softmax(logits["mlm"])
    token_losses = [
        -log_p[b, k, hidden["masked_labels"][b, k]]
        for b in range(8)
        for k in range(hidden["masked_positions"].shape[1])
        if hidden["masked_weights"][b, k]
    ]
    log_q = jax.nn.log_softmax(logits["nsp"])
    of_next = np.mean([-log_q[b, rows["next_sentence_label"][b]] for b in range(8)])
    state = {"params": params, "optimizer": tx.init(params)}
    _, values = step(state, rows, key)
    assert abs(values["mlm"] - np.mean(token_losses)) < 1e-4
    assert abs(values["nsp"] - of_next) < 1e-4
    assert abs(values["loss"] - np.mean(token_losses) - of_next) < 1e-4


def test_distillation_sees_the_types_of_pairs():
    module = build.build_module(Arch(1, 16, 2, 24, 8), DIMS)
    params, rows = start(module), jax.tree.map(jnp.asarray, toy(2, seed=3))
    objective = Objective({"hidden": 1.0})
    inputs = (
        {"params": heads.encoder_params(params)},
        rows["input_ids"],
        rows["attention_mask"],
    )
    actual = distillation.teacher_targets(module, params, rows, objective)["hidden"]
    expected = module.apply(*inputs, token_type_ids=rows["token_type_ids"]).hidden
    # Rounded to 16 bits, as the ones that are kept.
    assert np.array_equal(actual, jax.lax.reduce_precision(expected, 5, 10))
    student = {**heads.encoder_params(params), "linear_projection_hidden": jnp.eye(16)}
    same = distillation.distillation_losses(
        module, student, rows, {"hidden": expected}, objective
    )
    assert not np.any(same["hidden"])
    untyped_hidden = module.apply(*inputs).hidden
    untyped_losses = distillation.distillation_losses(
        module, student, rows, {"hidden": untyped_hidden}, objective
    )
    assert np.all(untyped_losses["hidden"] > 1e-6)


def flags(workdir, corpus, *more):
    return [
        "autodistill_jax",
        "pretrain",
        f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke",
        f"--workdir={workdir}",
        f"--config.data.source={corpus}",
        "--config.data.row_format=pair",
        "--config.pretrain.arch=layers=1,hidden=16,heads=2,ffn=32",
        "--config.pretrain.steps=6",
        "--config.pretrain.checkpoint_every_steps=2",
        *more,
    ]


@pytest.fixture(scope="module")
def done(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("job") / "w"
    assert main(flags(workdir, corpus)) == 0
    return workdir


@pytest.mark.e2e
def test_the_job_leaves_a_teacher(done, corpus, capfd):
    loaded = huggingface.load_pretrained(str(done / "pretrained"))
    assert loaded.arch == Arch(1, 16, 2, 32, 8) and loaded.pooling == "pooler"
    assert (
        loaded.mlm_head is not None
        and loaded.nsp_head is not None
        and not loaded.embeds_sentences
    )
    card = (done / "pretrained" / "README.md").read_text()
    assert re.search(r"6 steps of 8 rows of 32 tokens\s\(1,536 tokens\)", card)
    assert "% of masked tokens named right" in card and "next sentences told" in card
    lines = (done / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["job"] for line in lines} == {
        "pretrain", "pretrain/heldout",
    }  # fmt: skip
    with np.load(done / "data" / "rows.npz") as arrays:
        assert {name.split("/")[1] for name in arrays} == {
            "input_ids",
            "attention_mask",
            "token_type_ids",
            "next_sentence_label",
        }
    assert main(flags(done, corpus)) == 0
    assert "done already" in capfd.readouterr().err
    # It is a teacher: here of itself, on masked LM alone, from its own weights.
    further = done.parent / "further"
    more = [
        f"--config.teacher={done / 'pretrained'}",
        "--config.pretrain.arch=",
        "--config.pretrain.learning_rate=0.0",
        "--config.data.row_format=chunk",
        "--config.space.layers=(1,)",
        "--config.space.hidden=(16,)",
        "--config.space.ffn_ratio=(2.0,)",
        "--config.budget.flops_fraction=0.0",
    ]
    assert main(flags(further, corpus, *more)) == 0
    err = capfd.readouterr().err
    assert "by transformers (BertForMaskedLM)" in err and "next sent" not in err
    reloaded = huggingface.load_pretrained(str(further / "pretrained"))
    assert reloaded.nsp_head is None
    for name, value in {**loaded.params, **loaded.mlm_head}.items():
        if not name.startswith("pooler"):
            assert np.array_equal(
                {**reloaded.params, **reloaded.mlm_head}[name], value
            ), name


@pytest.mark.e2e
def test_kill_and_resume_equals_uninterrupted(
    done, corpus, tmp_path, monkeypatch, capfd
):
    original_fit, dies = loop.fit, 5

    def dying(*args, **kwargs):
        def die(count, state):
            if count == dies:
                raise KeyboardInterrupt

        return original_fit(*args, **kwargs, on_step_end=die)

    monkeypatch.setattr(loop, "fit", dying)
    assert main(flags(tmp_path / "w", corpus)) == 130
    assert not (tmp_path / "w" / "pretrained").exists()
    monkeypatch.setattr(loop, "fit", original_fit)
    assert main(flags(tmp_path / "w", corpus)) == 0
    err = capfd.readouterr().err
    assert "going on after step 4" in err
    assert "by transformers (BertForPreTraining)" in err
    for name in ("model.safetensors", "README.md", "config.json"):
        expected, actual = (w / "pretrained" / name for w in (done, tmp_path / "w"))
        assert expected.read_bytes() == actual.read_bytes(), name


BAD = {
    "no steps": (["--config.pretrain.steps=0"], "pretrain.steps is 0, which means"),
    "nothing hidden": (["--config.pretrain.mlm_probability=0.0"], "mlm_probability is 0.0; it must be"),
    "no Arch": (["--config.pretrain.arch=huge"], "pretrain.arch=huge is not a known Arch name"),
    "no stock class": (["--config.pretrain.arch=agnostic"], "with heads of 64; pre"),
    "narrow": (
        ["--config.pretrain.arch=layers=1,hidden=64,bottleneck=16,heads=2,ffn=8,stacks=1"],
        "hidden 64, narrower than the 128 channels",
    ),
    "large batch": (["--config.pretrain.batch_size=4096"], "pretrain.batch_size 4096 is"),
    "no breaks": (
        [f"--config.data.source={ROOT / 'LICENSE'}"],
        "gave 25 training and 1 held-out documents",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, corpus, tmp_path, capfd):
    more, expected = BAD[name]
    assert main(flags(tmp_path / "w", corpus, *more)) == 2
    err = capfd.readouterr().err
    assert expected in err and err.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_which_networks_it_trains(minilm):
    def fake_experiment(arch="", family="bert", special=SPECIAL):
        dims = minilm.dims._replace(family=family)
        return SimpleNamespace(
            config=SimpleNamespace(
                teacher="t", pretrain=SimpleNamespace(steps=1, arch=arch)
            ),
            named_teacher=minilm._replace(dims=dims),
            special_tokens=special,
        )

    arch_and_dims = minilm.arch, minilm.dims
    assert pretraining_dims("", *arch_and_dims) == arch_and_dims
    arch, dims = pretraining_dims("mobilebert", *arch_and_dims)
    assert (arch.stacks, dims.vocab, dims.pooler) == (4, 30522, False)
    arch, _ = pretraining_dims("layers=2,hidden=96,heads=4,ffn=8", *arch_and_dims)
    assert arch.head_size == 24
    job.check_pretrain(fake_experiment("mobilebert", family="roberta"))
    for message, experiment in (
        ("would be of the type roberta", fake_experiment(family="roberta")),
        (
            "would be of the type electra",
            fake_experiment("bert_base", family="electra"),
        ),
        (
            "has no mask token",
            fake_experiment(special=SPECIAL._replace(mask_token_id=None)),
        ),
    ):
        with pytest.raises(UserError, match=message):
            job.check_pretrain(experiment)
