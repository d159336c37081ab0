"""Texts as vectors, by a loaded teacher or student and its own tokenizer."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from autodistill_jax.data import loader, tokenization
from autodistill_jax.interop.huggingface import Teacher, network_module
from autodistill_jax.models import build
from autodistill_jax.models.static_table import StaticTable

# Compiled once for each network and each length of a batch.
_text_embeddings = jax.jit(build.text_embeddings, static_argnums=(0, 3))
_MIN_LENGTH_STEP, _MAX_LENGTHS = 16, 8  # tokens; of batches


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
    vectors = np.zeros((0, model.arch.hidden), np.float32)
    if len(texts):
        vectors = embed_rows(
            network_module(model), model.params, rows, model.pooling, batch_size
        )
    if model.dense is not None:
        vectors = vectors @ model.dense
    if not model.embeds_sentences:
        return vectors
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def embed_rows(
    module: build.Module | StaticTable,
    params: build.Params,
    rows: Mapping[str, np.ndarray],
    pooling: str,
    batch_size: int = 64,
) -> Float[np.ndarray, "N D"]:
    """A vector a row of tokens, by a network as it is.

    Rows of like lengths go together: a batch is no longer than its longest row asks for.

    Args:
      module: of the network.
      params: its parameters.
      rows: of `tokenization.encode_texts`, [rows, L] each; one at least.
      pooling: see `encoder.pool_tokens`.
      batch_size: rows a forward pass.

    Returns:
      [rows, hidden] float32, not of unit length.
    """
    lengths = np.asarray(rows["attention_mask"]).sum(axis=1)
    step = max(_MIN_LENGTH_STEP, rows["input_ids"].shape[1] // _MAX_LENGTHS)
    order = np.argsort(lengths, kind="stable")
    sorted_rows = {name: np.asarray(x)[order] for name, x in rows.items()}
    params = jax.device_put(params)  # Once, not with every batch.
    parts = []
    for i, batch in enumerate(loader.eval_batches(sorted_rows, batch_size)):
        places = order[i * batch_size : (i + 1) * batch_size]
        longest = -(-int(lengths[places].max()) // step) * step
        inputs = {name: x[:, :longest] for name, x in batch.items() if x.ndim == 2}
        vectors = np.asarray(_text_embeddings(module, params, inputs, pooling))
        parts.append(vectors[: len(places)])
    return np.concatenate(parts)[np.argsort(order)]
