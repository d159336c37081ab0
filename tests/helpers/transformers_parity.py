"""Are our outputs those of transformers? At real tokens, embeddings to last layer."""

import numpy as np
from safetensors import safe_open

from autodistill_jax.interop import huggingface
from autodistill_jax.models import build


def outputs(folder, batch):
    loaded = huggingface.load_pretrained(str(folder))
    module = build.build_module(loaded.arch, loaded.dims)
    return module.apply(
        {"params": loaded.params},
        batch["input_ids"],
        batch["attention_mask"],
        token_type_ids=batch.get("token_type_ids"),
        states=True,
    )


def transformers_outputs(folder, batch, **kwargs):
    import torch
    import transformers

    def tensor(name):
        return torch.tensor(np.array(batch[name])).long()

    types = (
        {"token_type_ids": tensor("token_type_ids")}
        if "token_type_ids" in batch
        else {}
    )
    model = transformers.AutoModel.from_pretrained(str(folder), **kwargs).eval()
    with torch.no_grad():
        output = model(
            input_ids=tensor("input_ids"),
            attention_mask=tensor("attention_mask"),
            output_hidden_states=True,
            **types,
        )
    return np.stack([x.numpy() for x in output.hidden_states]), output


def assert_equal(folder, batch, tolerance=1e-4, **kwargs):
    actual = outputs(folder, batch)
    states, expected = transformers_outputs(folder, batch, **kwargs)
    real = np.asarray(batch["attention_mask"], bool)
    assert actual.states.shape == states.shape
    assert np.abs(np.asarray(actual.states) - states)[:, real].max() < tolerance
    # Where the checkpoint has no pooler, transformers makes one at random.
    with safe_open(f"{folder}/model.safetensors", "numpy") as file:
        has_pooler = any("pooler" in name for name in file.keys())  # noqa: SIM118
    if has_pooler:
        assert np.abs(actual.pooler - expected.pooler_output.numpy()).max() < tolerance
