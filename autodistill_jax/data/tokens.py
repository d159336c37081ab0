"""How does text become token ids? Hugging Face `tokenizers`, with the teacher's files."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autodistill_jax.errors import UserError


def tokenizer(folder: Path, vocab: int):
    """The fast tokenizer of a Hugging Face folder (tokenizer.json, or vocab.txt).

    Raises:
      UserError: no such file, or its vocabulary does not fit `vocab`, the number of
        word embeddings that the teacher has.
    """
    import tokenizers

    if (folder / "tokenizer.json").exists():
        made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif (folder / "vocab.txt").exists():
        settings = {}
        if (folder / "tokenizer_config.json").exists():
            settings = json.loads((folder / "tokenizer_config.json").read_text())
        made = tokenizers.BertWordPieceTokenizer(
            str(folder / "vocab.txt"), lowercase=settings.get("do_lower_case", True)
        )._tokenizer
    else:
        raise UserError(
            f"{folder} has neither tokenizer.json nor vocab.txt; "
            "the teacher's folder needs one of them"
        )
    size = made.get_vocab_size()
    highest = max(made.get_vocab().values()) + 1
    if max(size, highest) > vocab:
        raise UserError(
            f"the vocabulary in {folder} has {max(size, highest)} entries, but the "
            f"teacher has {vocab} word embeddings; use the teacher's own tokenizer files"
        )
    for name in ("[PAD]", "[CLS]", "[SEP]"):
        if made.token_to_id(name) is None:
            raise UserError(f"the vocabulary in {folder} has no {name}; BERT needs it")
    made.no_padding()
    made.no_truncation()
    return made


def encode(made, texts: Sequence, length: int) -> dict[str, np.ndarray]:
    """Texts, or pairs of texts, as `ids`, `tokens` and `types`, each [rows, length].

    [CLS] and [SEP] are added, longer texts cut, shorter ones padded; `tokens` is 1
    where there is a token and 0 where there is padding.
    """
    made.enable_truncation(length)
    ids = np.full((len(texts), length), made.token_to_id("[PAD]"), np.int32)
    tokens = np.zeros((len(texts), length), np.int8)
    types = np.zeros((len(texts), length), np.int8)
    for start in range(0, len(texts), 4096):
        batch = [
            text if isinstance(text, str) else tuple(text)
            for text in texts[start : start + 4096]
        ]
        for i, encoded in enumerate(made.encode_batch(batch), start):
            n = len(encoded.ids)
            ids[i, :n] = encoded.ids
            tokens[i, :n] = 1
            types[i, :n] = encoded.type_ids
    made.no_truncation()
    return {"ids": ids, "tokens": tokens, "types": types}
