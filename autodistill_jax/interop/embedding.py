"""Texts as vectors, by a loaded teacher or student and its own tokenizer."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from autodistill_jax.data import loader, tokenization
from autodistill_jax.interop.huggingface import Teacher
from autodistill_jax.models import build
from autodistill_jax.models.encoder import pool_tokens


def embed(
    model: Teacher,
    texts: Sequence[str],
    max_seq_length: int = 128,
    batch_size: int = 64,
) -> Float[np.ndarray, "N D"]:
    """A vector a text, pooled as the model's folder says.

    Args:
      model: of `huggingface.load_pretrained`.
      texts: longer ones are cut.
      max_seq_length: tokens a text, special ones included.
      batch_size: texts a forward pass.

    Returns:
      [texts, hidden] float32; of unit length where the model embeds sentences, so that
      a dot product is their cosine.

    Raises:
      UserError: its folder has no tokenizer that is known.
    """
    length = min(max_seq_length, model.dims.positions)
    tokenizer = tokenization.load_tokenizer(model.folder, model.dims.vocab)
    rows = tokenization.encode_texts(tokenizer, list(texts), length)
    module = build.build_module(model.arch, model.dims)

    @jax.jit
    def pooled(params: dict, batch: dict) -> jax.Array:
        attention_mask = batch["attention_mask"]
        out = module.apply(
            {"params": params},
            batch["input_ids"],
            attention_mask,
            token_type_ids=batch["token_type_ids"],
        )
        return pool_tokens(out.hidden, out.pooler, attention_mask, model.pooling)

    vectors = [
        np.asarray(pooled(model.params, batch))[batch["valid_rows"]]
        for batch in loader.eval_batches(rows, batch_size)
    ]
    vectors = np.concatenate(vectors)
    if not model.embeds_sentences:
        return vectors
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
