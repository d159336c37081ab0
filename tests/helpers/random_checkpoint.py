"""Random checkpoints of stock transformers classes, written as folders."""

from texts import VOCAB

SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 56,
    "max_position_embeddings": 20,
    "layer_norm_eps": 1e-5,
    "initializer_range": 0.3,
}


def write(folder, model, kind, **fields):
    """A random checkpoint, biases and LayerNorms random too: nothing may hide in 0."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{model}Config")(**{**SHAPE, **fields})
    network = getattr(transformers, f"{model}{kind}")(config).eval()
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.ndim == 1:
                value.add_(torch.randn(value.shape) * 0.2)
    network.save_pretrained(folder)
    return network
