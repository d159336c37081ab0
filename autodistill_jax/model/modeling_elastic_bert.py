"""BERT whose q/k/v width is heads * head_size, whatever the hidden size is.

Written by autodistill_jax beside a student that a stock BertModel cannot hold.
"""

from torch import nn
from transformers import BertConfig, BertModel


class ElasticBertConfig(BertConfig):
    model_type = "elastic_bert"

    def __init__(self, head_size=64, **kwargs):
        super().__init__(**kwargs)
        self.head_size = head_size


class ElasticBertModel(BertModel):
    config_class = ElasticBertConfig

    def __init__(self, config, add_pooling_layer=True):
        # BertSelfAttention refuses a hidden size that the heads do not divide, so the
        # layers are made with one that they do, and their projections put right after.
        hidden = config.hidden_size
        width = config.num_attention_heads * config.head_size
        config.hidden_size = width
        layers = config.num_hidden_layers
        try:
            super().__init__(config, add_pooling_layer=add_pooling_layer)
        finally:
            config.hidden_size = hidden
        eps = config.layer_norm_eps
        e = self.embeddings
        e.word_embeddings = nn.Embedding(
            config.vocab_size, hidden, padding_idx=config.pad_token_id
        )
        e.position_embeddings = nn.Embedding(config.max_position_embeddings, hidden)
        e.token_type_embeddings = nn.Embedding(config.type_vocab_size, hidden)
        e.LayerNorm = nn.LayerNorm(hidden, eps=eps)
        for i in range(layers):
            layer = self.encoder.layer[i]
            attention = layer.attention.self
            attention.query = nn.Linear(hidden, width)
            attention.key = nn.Linear(hidden, width)
            attention.value = nn.Linear(hidden, width)
            layer.attention.output.dense = nn.Linear(width, hidden)
            layer.attention.output.LayerNorm = nn.LayerNorm(hidden, eps=eps)
            layer.intermediate.dense = nn.Linear(hidden, config.intermediate_size)
            layer.output.dense = nn.Linear(config.intermediate_size, hidden)
            layer.output.LayerNorm = nn.LayerNorm(hidden, eps=eps)
        if self.pooler is not None:
            self.pooler.dense = nn.Linear(hidden, hidden)
        self.post_init()
