"""Are the masked-LM and next-sentence heads those of transformers, in and out?"""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from autodistill_jax.archs.arch import Arch, MobileArch
from autodistill_jax.interop import huggingface
from autodistill_jax.models import build, extract, heads
from autodistill_jax.train import pretraining

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
MOBILE = SHAPE | {
    "embedding_size": 10,
    "intra_bottleneck_size": 12,
    "num_feedforward_networks": 2,
}
CASES = {
    "Bert": SHAPE,
    "MobileBert": MOBILE,
    "MobileBert, no pooler": MOBILE | {"classifier_activation": False},
    "MobileBert, as wide as its words": MOBILE | {"embedding_size": 24},
}


def write(folder, case, kind="ForPreTraining"):
    """A random checkpoint of transformers, no parameter of it 0."""
    import torch
    import transformers

    torch.manual_seed(0)
    name = case.split(",")[0]
    config = getattr(transformers, f"{name}Config")(**CASES[case])
    model = getattr(transformers, f"{name}{kind}")(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    model.save_pretrained(folder)


def transformers_output(folder, batch, name, kind):
    import torch
    import transformers

    model, info = getattr(transformers, f"{name}{kind}").from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        return model.eval()(
            input_ids=torch.tensor(np.array(batch["input_ids"])).long(),
            attention_mask=torch.tensor(np.array(batch["attention_mask"])).long(),
            token_type_ids=torch.tensor(np.array(batch["token_type_ids"])).long(),
        )


def head_logits(loaded, batch):
    module = build.build_module(loaded.arch, loaded.dims)
    params = {**loaded.params, **loaded.mlm_head, **(loaded.nsp_head or {})}
    places = jnp.tile(jnp.arange(6), (2, 1))
    return pretraining.pretraining_logits(
        module, params, batch | {"masked_positions": places}
    )


def save(folder, arch, loaded, params, head):
    huggingface.save_pretrained(
        folder, arch, loaded.dims, params, loaded.folder, "pooler", False, "",
        lambda _: None, head,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_heads_equal_transformers_in_and_out(tmp_path, batch, case):
    name, batch = case.split(",")[0], batch | {"token_type_ids": jnp.asarray([[0, 0, 1, 1, 1, 1]] * 2)}  # fmt: skip
    real = np.asarray(batch["attention_mask"], bool)
    write(tmp_path / "in", case)
    loaded = huggingface.load_pretrained(str(tmp_path / "in"))
    assert loaded.mlm_head is not None and loaded.nsp_head["nsp_kernel"].shape == (
        24,
        2,
    )

    def same(folder, logits):
        expected = transformers_output(folder, batch, name, "ForPreTraining")
        off = logits["mlm"] - expected.prediction_logits.numpy()
        assert np.abs(off)[real].max() < 1e-4
        off = logits["nsp"] - expected.seq_relationship_logits.numpy()
        assert np.abs(off).max() < 1e-4

    same(tmp_path / "in", head_logits(loaded, batch))
    # A smaller network with the heads of its channels goes out, and comes in again.
    small = {
        "Bert": Arch(1, 16, 2, 12, 8),
        "MobileBert": MobileArch(1, 16, 8, 2, 12, 1),
    }
    arch = small[name]
    if loaded.dims.embedding == 24:  # A MobileBERT is no narrower than its words.
        arch = MobileArch(1, 24, 8, 2, 12, 1)
    params = extract.extract(loaded.params, loaded.arch, arch)
    head = heads.slice_mlm_head(loaded.mlm_head, arch.hidden, loaded.dims)
    head |= {
        **loaded.nsp_head,
        "nsp_kernel": loaded.nsp_head["nsp_kernel"][: arch.hidden],
    }
    save(tmp_path / "out", arch, loaded, params, head)
    reloaded = huggingface.load_pretrained(str(tmp_path / "out"))
    assert reloaded.arch == arch
    for key, value in head.items():
        assert np.array_equal({**reloaded.mlm_head, **reloaded.nsp_head}[key], value), (
            key
        )
    same(tmp_path / "out", head_logits(reloaded, batch))
    kind = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"]
    assert kind == [f"{name}ForPreTraining"]


@pytest.mark.parametrize("name", ["Bert", "MobileBert"])
def test_a_masked_word_head_alone(tmp_path, batch, name):
    """Nothing has trained the pooler then: it is left out, and not taken for one."""
    batch = batch | {"token_type_ids": jnp.zeros((2, 6), jnp.int32)}
    write(tmp_path / "in", name)
    loaded = huggingface.load_pretrained(str(tmp_path / "in"))
    save(tmp_path / "out", loaded.arch, loaded, loaded.params, loaded.mlm_head)
    reloaded = huggingface.load_pretrained(str(tmp_path / "out"))
    assert reloaded.nsp_head is None and reloaded.pooling == "mean" != loaded.pooling
    logits = head_logits(reloaded, batch)
    assert logits.keys() == {"mlm"}
    expected = transformers_output(
        tmp_path / "out", batch, name, "ForMaskedLM"
    ).logits.numpy()
    off = np.abs(logits["mlm"] - expected)[np.asarray(batch["attention_mask"], bool)]
    assert off.max() < 1e-4
