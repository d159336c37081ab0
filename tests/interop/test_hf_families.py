"""Do ELECTRA, RoBERTa and their kin come in, and go out, with equal outputs?"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_checkpoint import write
from texts import TEXTS, VOCAB
from transformers_parity import assert_equal

from autodistill_jax.archs.arch import Arch
from autodistill_jax.data import tokenization
from autodistill_jax.errors import UserError
from autodistill_jax.interop import hf_config, huggingface
from autodistill_jax.models import extract
from autodistill_jax.models.bert import Bert
from autodistill_jax.models.layers import layer_norm

CASES = {
    # name: (family, class after its prefix, fields, embedding, positions, types)
    "electra": ("Electra", "Model", {"embedding_size": 20}, 20, 20, 2),
    "electra, discriminator": (
        "Electra", "ForPreTraining", {"embedding_size": 20}, 20, 20, 2),
    "electra, equal widths": (
        "Electra", "ForPreTraining", {"embedding_size": 48}, 0, 20, 2),
    "roberta": ("Roberta", "Model", {"type_vocab_size": 1}, 0, 18, 1),
    "roberta, head": ("Roberta", "ForMaskedLM", {"type_vocab_size": 1}, 0, 18, 1),
    "roberta, padding 3": ("Roberta", "Model", {"pad_token_id": 3}, 0, 16, 2),
    "xlm-roberta": ("XLMRoberta", "ForMaskedLM", {"type_vocab_size": 1}, 0, 18, 1),
    "bert, head": ("Bert", "ForMaskedLM", {}, 0, 20, 2),
}  # fmt: skip


def batch_of(pad, length=16):
    """Random tokens, right-padded; no real token is the padding's."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, VOCAB, (3, length))
    real = np.ones((3, length), np.int32)
    real[1, 9:], real[2, 1:] = 0, 0
    ids[real == 0] = pad
    return {
        "input_ids": jnp.asarray(ids, jnp.int32),
        "attention_mask": jnp.asarray(real),
    }


@pytest.mark.parametrize("case", CASES)
def test_random_teachers_equal_transformers(tmp_path, case):
    model, kind, fields, embedding, positions, types = CASES[case]
    config = write(tmp_path, model, kind, **fields).config
    loaded = huggingface.load_pretrained(str(tmp_path))
    assert loaded.arch == Arch(3, 48, 3, 56, 16)
    sizes = loaded.dims
    assert (sizes.embedding, sizes.positions, sizes.types) == (
        embedding, positions, types)  # fmt: skip
    assert sizes.family == config.model_type
    assert (loaded.mlm_head is None) == (kind != "ForMaskedLM")
    batch = batch_of(config.pad_token_id)
    assert_equal(tmp_path, batch)
    batch["token_type_ids"] = jnp.asarray(
        np.arange(48).reshape(3, 16) % types, jnp.int32
    )
    assert_equal(tmp_path, batch)
    # As long as positions reach.
    assert_equal(tmp_path, batch_of(config.pad_token_id, positions))


def test_one_type_for_two_texts(tmp_path):
    write(tmp_path, "Roberta", "Model", type_vocab_size=1)
    loaded, batch = huggingface.load_pretrained(str(tmp_path)), batch_of(1)
    run = Bert(loaded.arch, loaded.dims).apply
    inputs = ({"params": loaded.params}, batch["input_ids"], batch["attention_mask"])
    second = jnp.ones_like(batch["input_ids"])
    assert np.array_equal(
        run(*inputs).hidden, run(*inputs, token_type_ids=second).hidden
    )


@pytest.mark.parametrize("model", ["Bert", "Roberta", "XLMRoberta"])
def test_masked_word_heads_equal_transformers(tmp_path, model):
    import torch

    reference = write(tmp_path, model, "ForMaskedLM", type_vocab_size=1)
    loaded = huggingface.load_pretrained(str(tmp_path))
    batch = batch_of(reference.config.pad_token_id)
    with torch.no_grad():
        expected = reference(
            input_ids=torch.tensor(np.array(batch["input_ids"])).long(),
            attention_mask=torch.tensor(np.array(batch["attention_mask"])).long(),
        ).logits.numpy()
    module, head = Bert(loaded.arch, loaded.dims), loaded.mlm_head
    x = module.apply(
        {"params": loaded.params}, batch["input_ids"], batch["attention_mask"]
    ).hidden
    x = x.reshape(-1, 48) @ head["mlm_kernel"] + head["mlm_bias"]
    x = layer_norm(
        jax.nn.gelu(x, approximate=False),
        head["mlm_norm_scale"],
        head["mlm_norm_bias"],
        n=48,
        epsilon=loaded.dims.norm_epsilon,
    )
    logits = x @ loaded.params["embeddings_word"].T + head["mlm_out_bias"]
    real = np.asarray(batch["attention_mask"], bool)
    assert np.abs(logits.reshape(expected.shape) - expected)[real].max() < 1e-4


def test_an_incomplete_or_untied_head_is_none(tmp_path):
    from safetensors.numpy import load_file, save_file

    write(tmp_path, "Bert", "ForMaskedLM")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    word = tensors["bert.embeddings.word_embeddings.weight"]
    save_file(tensors | {"cls.predictions.decoder.weight": word.copy()}, path)
    assert huggingface.load_pretrained(str(tmp_path)).mlm_head is not None
    save_file(tensors | {"cls.predictions.decoder.weight": word + 1}, path)
    assert huggingface.load_pretrained(str(tmp_path)).mlm_head is None
    del tensors["cls.predictions.transform.dense.bias"]
    save_file(tensors, path)
    assert huggingface.load_pretrained(str(tmp_path)).mlm_head is None


def test_labels_are_names_in_order(tmp_path):
    write(tmp_path, "Roberta", "ForSequenceClassification", num_labels=3)
    loaded = huggingface.load_pretrained(str(tmp_path))
    assert (
        loaded.class_names is None
        and loaded.pooling == "mean"
        and loaded.mlm_head is None
    )
    edit(tmp_path, id2label={"10": "k", **{str(i): "abcdefghij"[i] for i in range(10)}})
    assert huggingface.load_pretrained(str(tmp_path)).class_names == (
        *"abcdefghij",
        "k",
    )
    edit(tmp_path, id2label={"1": "a", "2": "b"})
    assert huggingface.load_pretrained(str(tmp_path)).class_names is None


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def teacher(folder, model, byte_level, tokenizer_json, **fields):
    """A random teacher with the tokenizer files of its family."""
    folder.mkdir()
    # Of masked words, so without a pooler, where it came with its tokenizer.json.
    write(folder, model, "ForMaskedLM" if tokenizer_json else "Model", **fields)
    if "Roberta" in model:
        for name in ("vocab.json", "merges.txt"):
            (folder / name).write_text((byte_level / name).read_text())
        kind = "RobertaTokenizer"
    else:
        pieces = sorted({c for text in TEXTS for c in text.lower() if c != " "})
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "student", "teacher"]
        words += [*pieces, *(f"##{c}" for c in pieces)]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        kind = "BertTokenizer"
    settings = {"tokenizer_class": kind, "model_max_length": 16}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if tokenizer_json:
        import transformers

        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        for name in ("vocab.json", "merges.txt", "vocab.txt"):
            (folder / name).unlink(missing_ok=True)
        assert (folder / "tokenizer.json").exists()
    return huggingface.load_pretrained(str(folder))


@pytest.mark.parametrize(
    "arch, tokenizer_json",
    [
        (Arch(2, 32, 2, 24, 16), False),
        (Arch(2, 32, 2, 24, 16), True),
        (Arch(3, 20, 2, 30, 16), False),
        (Arch(2, 32, 1, 24, 16), True),
    ],
    ids=["stock", "stock, tokenizer.json", "wide heads", "narrow heads"],
)
@pytest.mark.parametrize(
    "model, fields",
    [
        ("Electra", {"embedding_size": 20}),
        ("Electra", {"embedding_size": 32}),  # As wide as a student, and projected.
        ("Electra", {"embedding_size": 48}),
        ("Roberta", {"type_vocab_size": 1, "eos_token_id": 9}),
        ("XLMRoberta", {"type_vocab_size": 1}),
        ("Bert", {}),
    ],
)
def test_students_go_out_as_their_teachers_family(
    tmp_path, byte_level, model, fields, tokenizer_json, arch
):
    loaded = teacher(tmp_path / "t", model, byte_level, tokenizer_json, **fields)
    params = extract.extract(loaded.params, loaded.arch, arch)
    folder = tmp_path / "s"
    huggingface.save_pretrained(
        folder, arch, loaded.dims, params, loaded.folder, loaded.pooling, False, "",
        lambda _: None,
    )  # fmt: skip
    stock = hf_config.is_stock(arch, loaded.dims)
    assert stock == (arch.hidden == 32 and arch.heads == 2
                     and fields.get("embedding_size") != 32)  # fmt: skip
    assert (folder / "modeling_elastic_bert.py").exists() != stock
    remote = {} if stock else {"trust_remote_code": True}
    tokenizer = tokenization.load_tokenizer(folder, VOCAB)
    batch = tokenization.encode_texts(tokenizer, TEXTS, 14)
    batch.pop("token_type_ids")
    assert_equal(folder, batch, **remote)
    reloaded = huggingface.load_pretrained(str(folder))
    assert reloaded.arch == arch
    assert reloaded.dims == loaded.dims._replace(reference_heads=arch.heads)
    assert all(np.array_equal(reloaded.params[k], v) for k, v in params.items())
    assert reloaded.pooling == loaded.pooling
    # A student can be a teacher: fine-tuned ones are saved from its folder.
    third = tmp_path / "third"
    huggingface.save_pretrained(
        third,
        arch,
        reloaded.dims,
        params,
        folder,
        reloaded.pooling,
        False,
        "",
        lambda _: None,
    )
    assert (third / "config.json").read_text() == (folder / "config.json").read_text()
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, **remote)
    teacher_config = transformers.AutoConfig.from_pretrained(tmp_path / "t")
    for field in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert getattr(config, field) == getattr(teacher_config, field)
    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **remote)
    ids = hf_tokenizer(TEXTS, padding="max_length", truncation=True, max_length=14)
    assert np.array_equal(ids["input_ids"], batch["input_ids"])


def test_what_would_change_the_computation_is_refused(tmp_path):
    write(tmp_path, "Roberta", "Model")
    good = json.loads((tmp_path / "config.json").read_text())
    for field, value, message in (
        ("is_decoder", True, "is_decoder True; only False"),
        ("add_cross_attention", True, "only False is known"),
        ("position_embedding_type", "relative_key", "only 'absolute' is known"),
        ("pruned_heads", {"0": [1]}, "pruned_heads"),
        ("num_attention_heads", 5, "48, which num_attention_heads 5 does not divide"),
        ("pad_token_id", None, "pad_token_id None"),
        ("pad_token_id", 19, "max_position_embeddings 20; positions"),
        ("hidden_size", "48", "hidden_size '48'; it must be a whole number"),
        ("vocab_size", None, "no 'vocab_size'"),
        ("model_type", "mpnet", "'mpnet'; known: bert, electra, roberta, xlm-roberta"),
        ("model_type", None, "model_type None; known"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**good, field: value}))
        with pytest.raises(UserError, match=message):
            huggingface.load_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(good))
    huggingface.load_pretrained(str(tmp_path))
