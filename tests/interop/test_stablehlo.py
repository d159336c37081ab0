"""Is the program that serves a student the student, at every batch and length?"""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import export
from random_checkpoint import write
from safetensors.numpy import load_file
from texts import VOCAB
from transformers_parity import outputs

from autodistill_jax.archs.arch import Arch
from autodistill_jax.data import tokenization
from autodistill_jax.errors import UserError
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.interop import huggingface, stablehlo
from autodistill_jax.interop.embedding import embed
from autodistill_jax.jobs import export as exporting
from autodistill_jax.models import build, extract
from autodistill_jax.pruning import streams

MOBILE = {
    "embedding_size": 20,
    "intra_bottleneck_size": 24,
    "num_feedforward_networks": 2,
    "num_hidden_layers": 2,
    "initializer_range": 0.1,
}
CASES = {
    "bert": ("Bert", {}),
    "electra": ("Electra", {"embedding_size": 20}),
    "roberta": ("Roberta", {"type_vocab_size": 1}),
    "mobilebert": ("MobileBert", MOBILE),
    "mobilebert, as IB-BERT": (
        "MobileBert",
        MOBILE
        | {
            "use_bottleneck_attention": True,
            "key_query_shared_bottleneck": False,
            "normalization_type": "layer_norm",
            "num_feedforward_networks": 1,
            "classifier_activation": False,
        },
    ),
}


def texts(batch, length, vocab=VOCAB):
    rng = np.random.default_rng(batch)
    attention_mask = np.ones((batch, length), np.int32)
    attention_mask[-1, length // 2 :] = 0
    input_ids = rng.integers(0, vocab, (batch, length)).astype(np.int32)
    token_types = np.int32(np.arange(length) > length // 3) * attention_mask
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_types,
    }


def assert_served(program, folder, batch):
    actual, expected = (
        stablehlo.run_program(program, folder, batch),
        outputs(folder, batch),
    )
    hidden = actual["last_hidden_state"]
    assert hidden.shape == (*batch["input_ids"].shape, expected.hidden.shape[-1])
    real = batch["attention_mask"].astype(bool)
    assert np.abs(hidden - expected.hidden)[real].max() < 1e-5
    if "pooler_output" in actual:
        assert np.abs(actual["pooler_output"] - expected.pooler).max() < 1e-5
    return actual


@pytest.mark.parametrize("case", CASES)
def test_programs_equal_the_networks(tmp_path, case):
    model, fields = CASES[case]
    write(tmp_path, model, "Model", **fields)
    program = stablehlo.export_program(tmp_path)
    for shape in ((1, 5), (3, 12)):  # One trace, any shape.
        result = assert_served(program, tmp_path, texts(*shape))
    assert ("pooler_output" in result) == (model != "Electra")
    without = {
        name: value for name, value in texts(3, 12).items() if name != "token_type_ids"
    }
    one_type = fields.get("type_vocab_size") == 1
    hidden = assert_served(program, tmp_path, without)["last_hidden_state"]
    assert np.array_equal(hidden, result["last_hidden_state"]) == one_type


def test_a_student_with_its_own_code(tmp_path, minilm):
    arch = Arch(2, 48, 2, 100, 32)
    student = extract.extract(minilm.params, minilm.arch, arch)
    folder = tmp_path / "s"
    huggingface.save_pretrained(
        folder, arch, minilm.dims, student, minilm.folder, "mean", True, "",
        lambda _: None,
    )  # fmt: skip
    program = stablehlo.export_program(folder)
    assert_served(program, folder, texts(2, 9, minilm.dims.vocab))
    loaded = export.deserialize(bytearray(program))
    assert loaded.platforms == ("tpu", "cuda", "cpu")
    assert b".py" not in program  # Nothing of the machine that it was made on.
    assert stablehlo.export_program(folder) == program
    # The weights are apart: the file's own tensors go in, and none is inside.
    weights = load_file(folder / "model.safetensors")
    (avals, *_), _ = loaded.in_tree.unflatten(loaded.in_avals)
    assert {name: weight.shape for name, weight in avals.items()} == {
        name: weight.shape for name, weight in weights.items()
    }
    assert (
        len(program) < 50_000 < sum(weight.nbytes for weight in weights.values()) / 100
    )


def test_an_aligned_student_speaks_in_the_teachers_space(tmp_path, minilm):
    """Of a permuted teacher itself: as if nothing had been permuted, by every reader."""
    module = build.build_module(minilm.arch, minilm.dims)
    order = np.random.default_rng(0).permutation(minilm.arch.hidden)
    orders = {
        stream: np.broadcast_to(np.arange(size), (minilm.arch.layers, size))
        for stream, size in (("context", minilm.arch.width), ("ffn", minilm.arch.ffn))
    }
    orders["hidden"] = order
    permuted = streams.reorder(minilm.params, streams.param_streams(module), orders)
    projection = {"linear_projection_pooled": np.eye(minilm.arch.hidden)}
    run = SimpleNamespace(
        config=SimpleNamespace(export=SimpleNamespace(align=True)),
        teacher=minilm,
        hidden_order=order,
    )
    dense = Experiment.aligning_map(run, minilm.arch, projection)
    folder = tmp_path / "s"
    huggingface.save_pretrained(
        folder, minilm.arch, minilm.dims, permuted, minilm.folder, "mean", True, "",
        lambda _: None, dense=dense,
    )  # fmt: skip
    sentences = ["A man plays a guitar.", "Two dogs run over a wide green field."]
    expected = embed(minilm, sentences)
    student = huggingface.load_pretrained(str(folder))
    assert np.abs(embed(student, sentences) - expected).max() < 1e-5
    tokenizer = tokenization.load_tokenizer(minilm.folder, minilm.dims.vocab)
    rows = tokenization.encode_texts(tokenizer, sentences, 16)
    served = stablehlo.run_program(stablehlo.export_program(folder), folder, rows)
    assert np.abs(served["sentence_embedding"] - expected).max() < 1e-5
    modules = json.loads((folder / "modules.json").read_text())
    assert [m["path"] for m in modules] == ["", "1_Pooling", "2_Dense", "3_Normalize"]
    settings = folder / "2_Dense" / "config.json"
    settings.write_text(settings.read_text().replace("false", "true"))
    with pytest.raises(UserError, match="2_Dense has a bias or an activation"):
        huggingface.load_pretrained(str(folder))


def test_a_program_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    write(tmp_path, "Bert", "Model")
    sample, outputs = texts(2, 6), stablehlo.run_program

    def wrong(*args):
        # Where products of float32 are not rounded, whatever device there is.
        assert jax.config.jax_default_device == jax.local_devices(backend="cpu")[0]
        result = outputs(*args)
        return result | {"pooler_output": result["pooler_output"] + 0.001}

    with monkeypatch.context() as patch:
        patch.setattr(stablehlo, "run_program", wrong)
        with pytest.raises(RuntimeError, match=r"student\.stablehlo differ by 0\.00"):
            exporting._checked_program(tmp_path, sample, "export")
    program = exporting._checked_program(tmp_path, sample, "export")
    assert program == stablehlo.export_program(tmp_path)


def test_a_text_of_more_tokens_than_positions_is_refused(tmp_path):
    write(tmp_path, "Roberta", "Model")
    program = stablehlo.export_program(tmp_path)
    assert_served(program, tmp_path, texts(2, 18))  # 20 rows, two of them for padding.
    with pytest.raises(ValueError, match="refining shapes"):
        stablehlo.run_program(program, tmp_path, texts(2, 19))
