"""Do teachers come in, and students go out, with equal outputs?"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from real_data import DATA, needs_data
from transformers_parity import assert_equal, outputs

from autodistill_jax import metrics
from autodistill_jax.archs.arch import Arch
from autodistill_jax.archs.cost import ModelDims
from autodistill_jax.data import glue, tokenization
from autodistill_jax.errors import UserError
from autodistill_jax.interop import huggingface
from autodistill_jax.models import encoder, extract
from autodistill_jax.models.bert import Bert
from autodistill_jax.train import losses

TEXTS = ["A student learns from its teacher.", "Short.", "2 ms on a v5e, please!"]


@pytest.mark.parametrize("headed", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_random_berts_equal_transformers(tmp_path, batch, headed, activation):
    import transformers

    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=40,
        num_hidden_layers=3,
        num_attention_heads=5,
        intermediate_size=56,
        max_position_embeddings=20,
        type_vocab_size=3,
        hidden_act=activation,
        layer_norm_eps=1e-5,
        initializer_range=0.3,
    )
    # With a head, tensors carry the prefix `bert.`.
    kind = transformers.BertForPreTraining if headed else transformers.BertModel
    kind(config).save_pretrained(tmp_path)
    loaded = huggingface.load_pretrained(str(tmp_path))
    assert loaded.arch == Arch(3, 40, 5, 56, 8)
    assert loaded.dims == ModelDims(60, 20, 3, 1e-5, activation, reference_heads=5)
    assert_equal(tmp_path, batch)


def test_minilm_equals_transformers(minilm):
    tokenizer = tokenization.load_tokenizer(minilm.folder, minilm.dims.vocab)
    assert_equal(minilm.folder, tokenization.encode_texts(tokenizer, TEXTS, 16))


def test_minilm_stored_numbers(minilm):
    # Made with transformers 5.23.0 and torch 2.13.0: the first text's first two
    # channels of the embeddings, of the middle and of the last layer, at [CLS].
    tokenizer = tokenization.load_tokenizer(minilm.folder, minilm.dims.vocab)
    states = outputs(
        minilm.folder, tokenization.encode_texts(tokenizer, TEXTS, 16)
    ).states
    channels = np.asarray(states)[[0, 3, 6], 0, 0, :2]
    assert np.abs(channels - np.array(STORED)).max() < 1e-4
    assert minilm.pooling == "mean"


STORED = [[-0.176567, -0.048236], [-0.018262, -0.012279], [-0.300519, -0.001829]]


@needs_data
def test_minilm_sts_b(minilm):
    task = glue.load_glue_task("stsb", str(DATA / "glue"))
    tokenizer = tokenization.load_tokenizer(minilm.folder, minilm.dims.vocab)
    module = Bert(minilm.arch, minilm.dims)

    @jax.jit
    def embed(params, batch):
        out = module.apply(
            {"params": params}, batch["input_ids"], batch["attention_mask"]
        )
        return encoder.mean_pool(out.hidden, batch["attention_mask"])

    def side(i):
        rows = tokenization.encode_texts(
            tokenizer, [pair[i] for pair in task.dev[0]], 64
        )
        # Most are short: by length, each batch is no longer than it must be.
        lengths = rows["attention_mask"].sum(axis=1)
        embeddings = np.zeros((len(lengths), minilm.arch.hidden), np.float32)
        for places in np.array_split(np.argsort(lengths), 6):
            length = -(-lengths[places].max() // 16) * 16
            batch = {name: value[places, :length] for name, value in rows.items()}
            embeddings[places] = embed(minilm.params, batch)
        return jnp.asarray(embeddings)

    cosines = np.asarray(losses.cosine(side(0), side(1)))
    assert abs(metrics.spearman(task.dev[1], cosines) - 0.867) < 5e-4


@pytest.mark.parametrize(
    "arch", [Arch(2, 64, 2, 96, 32), Arch(3, 48, 2, 100, 32)], ids=["stock", "own code"]
)
def test_students_go_out_with_equal_outputs(tmp_path, minilm, arch):
    student = extract.extract(minilm.params, minilm.arch, arch)
    checked = []
    folder = tmp_path / "a student"
    huggingface.save_pretrained(
        folder,
        arch,
        minilm.dims,
        student,
        minilm.folder,
        "mean",
        True,
        "card",
        checked.append,
    )
    assert checked and folder.is_dir() and not checked[0].exists()
    tokenizer = tokenization.load_tokenizer(folder, minilm.dims.vocab)
    batch = tokenization.encode_texts(tokenizer, TEXTS, 16)
    remote = {} if arch.is_stock_hf else {"trust_remote_code": True}
    assert (folder / "modeling_elastic_bert.py").exists() == bool(remote)
    assert_equal(folder, batch, **remote)
    import transformers

    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    ids = hf_tokenizer(TEXTS, padding="max_length", max_length=16)["input_ids"]
    assert np.array_equal(ids, batch["input_ids"])
    reloaded = huggingface.load_pretrained(str(folder))
    assert reloaded.pooling == "mean" and reloaded.embeds_sentences


def test_a_failed_check_leaves_nothing_behind(tmp_path, minilm):
    arch = Arch(1, 32, 1, 32, 32)
    student = extract.extract(minilm.params, minilm.arch, arch)

    def check(folder):
        raise RuntimeError("differs")

    with pytest.raises(RuntimeError, match="differs"):
        huggingface.save_pretrained(
            tmp_path / "s",
            arch,
            minilm.dims,
            student,
            minilm.folder,
            "pooler",
            False,
            "",
            check,
        )
    assert not (tmp_path / "s").exists()


@pytest.fixture
def folder(tmp_path, minilm):
    """A small student's folder, to be spoilt."""
    arch = Arch(1, 32, 1, 32, 32)
    student = extract.extract(minilm.params, minilm.arch, arch)
    huggingface.save_pretrained(
        tmp_path / "t",
        arch,
        minilm.dims,
        student,
        minilm.folder,
        "pooler",
        False,
        "",
        lambda _: None,
    )
    return tmp_path / "t"


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_refusals(folder, tmp_path):
    edit(folder, hidden_size=64)
    with pytest.raises(UserError, match="word_embeddings.weight has shape"):
        huggingface.load_pretrained(str(folder))
    edit(folder, hidden_size=32, num_hidden_layers=2)
    with pytest.raises(UserError, match=r"no tensor encoder\.layer\.1\."):
        huggingface.load_pretrained(str(folder))
    edit(folder, num_hidden_layers=1, model_type="t5")
    with pytest.raises(
        UserError, match="model_type 't5'; known: bert, electra, roberta"
    ):
        huggingface.load_pretrained(str(folder))
    edit(folder, model_type="bert", hidden_act="swish")
    with pytest.raises(UserError, match="hidden_act 'swish'; known: gelu"):
        huggingface.load_pretrained(str(folder))
    edit(folder, hidden_act="gelu")
    with pytest.raises(UserError, match="has 30522 entries, but the teacher has 100"):
        tokenization.load_tokenizer(folder, 100)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="is a pickle.*save_file"):
        huggingface.load_pretrained(str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        huggingface.load_pretrained(str(folder))
    with pytest.raises(UserError, match="no such folder"):
        huggingface.load_pretrained(str(tmp_path / "nowhere"))


def test_old_names_and_a_missing_pooler(folder):
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    original = huggingface.load_pretrained(str(folder)).params
    old = {
        "bert."
        + k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v
        for k, v in load_file(path).items()
        if not k.startswith("pooler")
    }
    save_file(old, path)
    loaded = huggingface.load_pretrained(str(folder))
    assert (
        loaded.pooling == "mean" and not loaded.embeds_sentences
    )  # No pooler to stand for it.
    params = loaded.params
    for name, value in original.items():
        expected = np.zeros_like(value) if name.startswith("pooler") else value
        assert np.array_equal(params[name], expected), name


def test_the_pickle_command_converts(folder):
    import subprocess
    import sys

    import torch
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["tied"] = weights["pooler.dense.weight"]  # As a head often is.
    torch.save(weights, folder / "pytorch_model.bin")
    original = huggingface.load_pretrained(str(folder)).params
    path.unlink()
    with pytest.raises(UserError) as error:
        huggingface.load_pretrained(str(folder))
    code = str(error.value).split('-c "')[1].rsplit('"', 1)[0]
    subprocess.run([sys.executable, "-c", code], check=True)
    converted = huggingface.load_pretrained(str(folder)).params
    assert all(np.array_equal(original[name], converted[name]) for name in original)
    shutil.rmtree(folder)


def test_a_cls_sentence_model(folder):
    """Its folder says that the first token stands for the text, not the pooler."""
    (folder / "1_Pooling").mkdir()
    settings = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    loaded = huggingface.load_pretrained(str(folder))
    assert loaded.pooling == "cls" and loaded.embeds_sentences
    hidden, pooler = jnp.arange(12.0).reshape(1, 3, 4), jnp.ones((1, 4))
    pooled = encoder.pool_tokens(hidden, pooler, jnp.ones((1, 3)), loaded.pooling)
    assert pooled.tolist() == [[0.0, 1.0, 2.0, 3.0]]
