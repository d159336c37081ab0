"""Is a MobileBERT the original's, elastic, and out again as a stock model?"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers_parity as parity
from network_outputs import arrays, outputs

from autodistill_jax.archs.arch import MobileArch, parse_arch
from autodistill_jax.archs.cost import MOBILEBERT_DIMS, student_dims
from autodistill_jax.archs.space import Space
from autodistill_jax.errors import UserError
from autodistill_jax.interop import huggingface
from autodistill_jax.models import build, elastic, extract, heads
from autodistill_jax.models.mobilebert import MobileBert

DIMS = MOBILEBERT_DIMS._replace(vocab=60, positions=16, embedding=10)
SPACE = Space(
    layers=(1, 3),
    hidden=(16, 24),
    bottleneck=(8, 16),
    heads=(1, 2, 4),
    ffn=(12, 20),
    stacks=(1, 3),
)
BIG = MobileArch(3, 24, 16, 4, 20, 3)
# Every way to read and to norm; each pair is a model that somebody has.
KINDS = [("shared", "no_norm"), ("stream", "layer_norm"), ("bottleneck", "no_norm")]


def random(dims):
    """Random, biases too, and larger than at a usual start: nothing may hide in 0."""
    rng = np.random.default_rng(1)
    initial = build.init_params(MobileBert(BIG, dims), jax.random.key(0))
    return {
        name: np.asarray(value) + rng.normal(0, 0.2, value.shape).astype(np.float32)
        for name, value in initial.items()
    }


@pytest.mark.parametrize(("reads", "norm"), KINDS)
def test_sub_network_is_the_extracted_student(batch, reads, norm, monkeypatch):
    if reads == "bottleneck":  # Too many sizes for a branch each: rounded up to a tile.
        monkeypatch.setitem(elastic.BRANCH_LIMITS, "cpu", (3, 32))
    dims, traces = DIMS._replace(attention_input=reads, norm=norm), []
    params, module = random(dims), MobileBert(BIG, dims, space=SPACE)

    @jax.jit
    def run(params, arch):
        traces.append(arch)
        inputs = (batch["input_ids"], batch["attention_mask"], arch)
        return module.apply({"params": params}, *inputs, qkv=True)

    real = np.asarray(batch["attention_mask"], bool)
    middle = MobileArch(3, 16, 16, 2, 12, 1)
    sampled = SPACE.sample(np.random.default_rng(0), 4 if reads == "shared" else 0)
    for arch in [SPACE.smallest(), SPACE.largest(), middle, *sampled]:
        inside = jax.tree.map(np.asarray, run(params, arrays(arch)))
        n = arch.hidden
        student = extract.extract(params, BIG, arch)
        alone = outputs(MobileBert(arch, dims), student, batch, qkv=True)
        assert np.abs(inside.hidden[..., :n] - alone.hidden)[real].max() < 1e-5
        assert np.abs(inside.pooler[:, :n] - alone.pooler).max() < 1e-5
        same = inside.qkv[..., : arch.bottleneck] - alone.qkv
        assert np.abs(same)[real].max() < 1e-5
        # Dead channels are exactly 0.
        assert not np.any(inside.hidden[..., n:]) and not np.any(inside.pooler[:, n:])
        assert not np.any(inside.qkv[..., arch.bottleneck :])
    assert len(traces) == 1  # For all these Archs.


def test_heads_split_the_bottleneck_anew(batch):
    """They are no axis of a parameter: the same weights give other outputs."""
    params = random(DIMS)
    one_head, four_heads = (dataclasses.replace(BIG, heads=heads) for heads in (1, 4))
    assert extract.extract(params, BIG, one_head).keys() == params.keys()
    a, b = (
        outputs(MobileBert(arch, DIMS), params, batch).hidden
        for arch in (one_head, four_heads)
    )
    assert np.abs(a - b).max() > 1e-3


def test_gradients_are_the_students(batch):
    params, arch = random(DIMS), MobileArch(3, 16, 8, 2, 12, 1)
    mix = jnp.asarray(np.random.default_rng(2).normal(size=(2, 6, BIG.hidden)))
    mix = (mix * batch["attention_mask"][:, :, None])[..., : arch.hidden]

    def gradient(module, params, *arch):
        def loss(params):
            inputs = (batch["input_ids"], batch["attention_mask"], *arch)
            hidden = module.apply({"params": params}, *inputs).hidden
            return (hidden[..., : mix.shape[-1]] * mix).sum()

        return jax.jit(jax.grad(loss))(params)

    inside = gradient(MobileBert(BIG, DIMS, space=SPACE), params, arrays(arch))
    alone = gradient(MobileBert(arch, DIMS), extract.extract(params, BIG, arch))
    inside = jax.tree.map(np.asarray, inside)
    for name, value in extract.extract(inside, BIG, arch).items():
        if not name.startswith("pooler"):
            scale = np.abs(alone[name]).max() + 1e-6
            assert np.abs(value - alone[name]).max() / scale < 1e-4, name
            # All else of the SuperLM has no gradient.
            outside = float(np.abs(inside[name]).sum() - np.abs(value).sum())
            assert abs(outside) < 1e-4 * scale * value.size, name


def test_unrolled_padded_and_dropped(batch):
    params = random(DIMS)
    looped = outputs(MobileBert(BIG, DIMS), params, batch).hidden
    unrolled = build.unstack_layers(params)
    flat = outputs(MobileBert(BIG, DIMS, unroll=True), unrolled, batch)
    assert np.abs(looped - flat.hidden).max() < 1e-5
    module = MobileBert(BIG, DIMS, dropout=0.5, space=SPACE)
    dropped = outputs(module, params, batch, key=jax.random.key(0)).hidden
    assert np.abs(looped - dropped).max() > 0.1
    small = SPACE.smallest()
    key = jax.random.key(0)
    inside = outputs(module, params, batch, arch=arrays(small), key=key)
    assert not np.any(inside.hidden[..., small.hidden :])


def write(folder, kind="Model", **fields):
    """A small random MobileBERT as transformers writes it."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.MobileBertConfig(
        **{
            "vocab_size": 60,
            "hidden_size": 24,
            "embedding_size": 10,
            "intra_bottleneck_size": 16,
            "num_attention_heads": 4,
            "intermediate_size": 20,
            "num_feedforward_networks": 3,
            "num_hidden_layers": 3,
            "max_position_embeddings": 16,
            **fields,
        }
    )
    model = getattr(transformers, f"MobileBert{kind}")(config).eval()
    for name, value in model.named_parameters():
        value.data += 0.1 * torch.randn_like(value) * ("position_ids" not in name)
    model.save_pretrained(folder)
    return model


FIELDS = [
    {},
    {"normalization_type": "layer_norm", "hidden_act": "gelu"},
    {"use_bottleneck_attention": True, "key_query_shared_bottleneck": False},
    {"classifier_activation": False, "num_feedforward_networks": 1},
]


@pytest.mark.parametrize("fields", FIELDS)
def test_outputs_equal_transformers_in_and_out(tmp_path, batch, fields):
    write(tmp_path / "teacher", **fields)
    batch = batch | {"token_type_ids": jnp.asarray([[0, 0, 0, 1, 1, 1]] * 2)}
    parity.assert_equal(tmp_path / "teacher", batch)
    loaded = huggingface.load_pretrained(str(tmp_path / "teacher"))
    arch = MobileArch(2, 16, 8, 2, 12, 1)
    params = extract.extract(loaded.params, loaded.arch, arch)
    huggingface.save_pretrained(
        tmp_path / "student",
        arch,
        loaded.dims,
        params,
        loaded.folder,
        loaded.pooling,
        False,
        "# A student\n",
        lambda folder: None,
    )
    assert not list((tmp_path / "student").glob("*.py"))  # A stock class loads it.
    parity.assert_equal(tmp_path / "student", batch)
    reloaded = huggingface.load_pretrained(str(tmp_path / "student"))
    assert (reloaded.arch, reloaded.dims._replace(reference_heads=4)) == (
        arch,
        loaded.dims,
    )


def test_the_masked_word_head_equals_transformers(tmp_path, batch):
    import torch

    model = write(tmp_path, "ForPreTraining")
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(np.array(batch["input_ids"])).long(),
            attention_mask=torch.tensor(np.array(batch["attention_mask"])).long(),
        ).prediction_logits.numpy()
    loaded = huggingface.load_pretrained(str(tmp_path))
    module = MobileBert(loaded.arch, loaded.dims)
    hidden = module.apply(
        {"params": loaded.params}, batch["input_ids"], batch["attention_mask"]
    )
    places = jnp.tile(jnp.arange(6), (2, 1))
    logits = heads.mlm_logits(
        loaded.mlm_head,
        loaded.params["embeddings_word"],
        hidden.hidden,
        places,
        loaded.arch.hidden,
        loaded.dims,
    )
    real = np.asarray(batch["attention_mask"], bool)
    assert np.abs(logits - expected)[real].max() < 1e-4
    # A student's is that of its first channels; those beyond the embeddings' too.
    cut = heads.slice_mlm_head(loaded.mlm_head, 16, loaded.dims)
    assert cut["mlm_more"].shape == (6, 60) and cut["mlm_kernel"].shape == (16, 16)
    fresh = heads.init_mlm_head(16, loaded.dims)
    assert {k: v.shape for k, v in fresh.items()} == {
        k: v.shape for k, v in cut.items()
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"normalization_type": "rms_norm"}, "normalization_type 'rms_norm'; known"),
        ({"trigram_input": False}, "trigram_input False; only True is known"),
        ({"num_attention_heads": 3}, "heads 3 do not divide the bottleneck 16"),
    ],
)
def test_other_computations_are_refused(tmp_path, fields, message):
    write(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UserError, match=message):
        huggingface.load_pretrained(str(tmp_path))


def test_spaces_of_mobileberts():
    space = Space(
        layers=(24,),
        hidden=(128, 256, 384, 512),
        bottleneck=(64, 96, 128, 160),
        heads=(1, 2, 4, 8),
        ffn=(384, 512, 640),
        stacks=(2, 4, 6),
    )
    assert len(space) == 576
    assert parse_arch(
        "layers=24,hidden=512,bottleneck=128,heads=4,ffn=512,stacks=4", 64
    ) in (space)
    assert str(space.largest()) == (
        "layers=24,hidden=512,bottleneck=160,heads=8,ffn=640,stacks=6"
    )
    assert space.largest().name == "24x512-b160-h8-f640-s6"
    assert space.largest().ffn == 640 and space.smallest().hidden == 128
    for fields, message in (
        ({"heads": (3,)}, "heads 3 do not divide the bottleneck 64"),
        ({"stacks": ()}, "space.stacks is empty; a space of MobileBERTs"),
        ({"ffn_ratio": (2.0,)}, "ffn_ratio is .* in a space of MobileBERTs"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(space, **fields)


def test_sizes_of_students_under_a_teacher_of_another_family():
    bert = student_dims(DIMS, type(parse_arch("layers=1,hidden=8,heads=1,ffn=8", 8)))
    assert (bert.family, bert.vocab, bert.embedding, bert.norm) == (
        "bert", 60, 0, "layer_norm",
    )  # fmt: skip
    mobile = student_dims(bert, MobileArch)
    assert (mobile.family, mobile.vocab, mobile.embedding) == ("mobilebert", 60, 128)
    assert student_dims(bert, MobileArch, "layer_norm").norm == "layer_norm"
    with pytest.raises(UserError, match="another family"):
        extract.check_fits(parse_arch("layers=1,hidden=8,heads=1,ffn=8", 8), BIG)
