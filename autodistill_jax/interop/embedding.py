"""Texts as vectors, by a loaded teacher or student and its own tokenizer."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from autodistill_jax.data import loader, tokenization
from autodistill_jax.interop.huggingface import Teacher, network_module
from autodistill_jax.models import build

_LENGTH_STEP = 32  # tokens; each length of a batch is compiled once


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
      [texts, hidden] float32, or of the teacher's width from a student that is aligned
      with it; of unit length where the model embeds sentences, so that
      a dot product is their cosine.

    Raises:
      UserError: its folder has no tokenizer that is known.
    """
    length = min(max_seq_length, model.dims.positions)
    tokenizer = tokenization.load_tokenizer(model.folder, model.dims.vocab)
    rows = tokenization.encode_texts(tokenizer, list(texts), length)
    module = network_module(model)

    pooled = jax.jit(lambda p, b: build.text_embeddings(module, p, b, model.pooling))

    # By length: a batch is no longer than its longest text asks for.
    lengths = rows["attention_mask"].sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    sorted_rows = {name: x[order] for name, x in rows.items()}
    vectors = np.zeros((len(texts), model.arch.hidden), np.float32)
    for i, batch in enumerate(loader.eval_batches(sorted_rows, batch_size)):
        places = order[i * batch_size : (i + 1) * batch_size]
        longest = -(-int(lengths[places].max()) // _LENGTH_STEP) * _LENGTH_STEP
        inputs = {name: x[:, :longest] for name, x in batch.items() if x.ndim == 2}
        vectors[places] = np.asarray(pooled(model.params, inputs))[: len(places)]
    if model.dense is not None:
        vectors = vectors @ model.dense
    if not model.embeds_sentences:
        return vectors
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
