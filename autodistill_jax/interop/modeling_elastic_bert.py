"""BERT and its kin whose q/k/v width is heads * head_size, whatever the hidden size is.

Written by autodistill_jax beside a student that no stock class of transformers holds.
"""

from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)


class ElasticBertConfig(BertConfig):
    model_type = "elastic_bert"

    def __init__(self, head_size=64, **kwargs):
        super().__init__(**kwargs)
        self.head_size = head_size


class ElasticElectraConfig(ElectraConfig):
    model_type = "elastic_electra"

    def __init__(self, head_size=64, embeddings_project=False, **kwargs):
        super().__init__(**kwargs)
        self.head_size = head_size
        self.embeddings_project = embeddings_project


class ElasticRobertaConfig(RobertaConfig):
    model_type = "elastic_roberta"

    def __init__(self, head_size=64, **kwargs):
        super().__init__(**kwargs)
        self.head_size = head_size


class ElasticXLMRobertaConfig(XLMRobertaConfig):
    model_type = "elastic_xlm_roberta"

    def __init__(self, head_size=64, **kwargs):
        super().__init__(**kwargs)
        self.head_size = head_size


class _Elastic:
    def __init__(self, config, **kwargs):
        # Stock attention refuses a hidden size that the heads do not divide, so the
        # layers are made with one that they do, and their projections put right after.
        hidden = config.hidden_size
        width = config.num_attention_heads * config.head_size
        config.hidden_size = width
        try:
            super().__init__(config, **kwargs)
        finally:
            config.hidden_size = hidden
        eps = config.layer_norm_eps
        e = self.embeddings
        wide = getattr(config, "embedding_size", hidden)
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
            old = getattr(e, name)
            new = nn.Embedding(old.num_embeddings, wide, padding_idx=old.padding_idx)
            setattr(e, name, new)
        e.LayerNorm = nn.LayerNorm(wide, eps=eps)
        if hasattr(self, "embeddings_project"):
            del self.embeddings_project
        if getattr(config, "embeddings_project", False):
            self.embeddings_project = nn.Linear(wide, hidden)
        for layer in self.encoder.layer:
            attention = layer.attention.self
            attention.query = nn.Linear(hidden, width)
            attention.key = nn.Linear(hidden, width)
            attention.value = nn.Linear(hidden, width)
            layer.attention.output.dense = nn.Linear(width, hidden)
            layer.attention.output.LayerNorm = nn.LayerNorm(hidden, eps=eps)
            layer.intermediate.dense = nn.Linear(hidden, config.intermediate_size)
            layer.output.dense = nn.Linear(config.intermediate_size, hidden)
            layer.output.LayerNorm = nn.LayerNorm(hidden, eps=eps)
        if getattr(self, "pooler", None) is not None:
            self.pooler.dense = nn.Linear(hidden, hidden)
        self.post_init()


class ElasticBertModel(_Elastic, BertModel):
    config_class = ElasticBertConfig


class ElasticElectraModel(_Elastic, ElectraModel):
    config_class = ElasticElectraConfig


class ElasticRobertaModel(_Elastic, RobertaModel):
    config_class = ElasticRobertaConfig


class ElasticXLMRobertaModel(_Elastic, XLMRobertaModel):
    config_class = ElasticXLMRobertaConfig
