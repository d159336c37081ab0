"""How does text become token ids? Hugging Face `tokenizers`, with the teacher's files."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autodistill_jax.errors import UserError, read_json_object


class SpecialTokens(NamedTuple):
    """Ids of the special tokens: padding, first, between and last; and the one that
    stands for a hidden word (None where the vocabulary has none)."""

    pad_token_id: int
    cls_token_id: int
    sep_token_id: int
    mask_token_id: int | None


# BERT's and RoBERTa's names of them.
_SPECIAL_NAMES = (
    ("[PAD]", "[CLS]", "[SEP]", "[MASK]"),
    ("<pad>", "<s>", "</s>", "<mask>"),
)


def special_tokens(made) -> SpecialTokens:
    """The ids of a tokenizer's special tokens.

    Raises:
      UserError: its vocabulary has neither BERT's nor RoBERTa's.
    """
    for names in _SPECIAL_NAMES:
        found = SpecialTokens(*(made.token_to_id(name) for name in names))
        if None not in found[:3]:
            return found
    raise UserError(
        "the tokenizer's vocabulary needs [PAD], [CLS] and [SEP], or <pad>, <s> and "
        "</s>, and has neither; use the teacher's own tokenizer files"
    )


def load_tokenizer(folder: Path, vocab: int):
    """The fast tokenizer of a Hugging Face folder.

    From tokenizer.json; or vocab.txt (WordPiece, BERT and ELECTRA); or vocab.json and
    merges.txt (byte-level BPE, RoBERTa).

    Raises:
      UserError: no such files, no special tokens that are known, or a vocabulary that
        does not fit `vocab`, the number of word embeddings that the teacher has.
    """
    import tokenizers

    path = folder / "tokenizer_config.json"
    settings = read_json_object(path) if path.exists() else {}
    path = folder / "tokenizer.json"
    if path.exists():
        try:
            made = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # The library's own are plain Exceptions.
            raise UserError(f"{path} cannot be read: {error}") from error
    elif (folder / "vocab.txt").exists():
        try:
            made = tokenizers.BertWordPieceTokenizer(
                str(folder / "vocab.txt"),
                lowercase=settings.get("do_lower_case", True),
                strip_accents=settings.get("strip_accents"),
                handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
            )._tokenizer
        except TypeError as error:  # No [CLS], or no [SEP].
            raise UserError(f"{folder / 'vocab.txt'}: {error}; it is needed") from error
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        made = _byte_level_bpe(folder, settings.get("add_prefix_space", False))
    else:
        raise UserError(
            f"{folder} has neither tokenizer.json nor vocab.txt nor vocab.json with "
            "merges.txt; the teacher's folder needs one of them"
        )
    size = made.get_vocab_size()
    highest = max(made.get_vocab().values()) + 1
    if max(size, highest) > vocab:
        raise UserError(
            f"the vocabulary in {folder} has {max(size, highest)} entries, but the "
            f"teacher has {vocab} word embeddings; use the teacher's own tokenizer files"
        )
    special_tokens(made)
    made.no_padding()
    made.no_truncation()
    return made


def _byte_level_bpe(folder: Path, prefix_space: bool):
    """RoBERTa's tokenizer: byte-level BPE, <s> a </s> and <s> a </s></s> b </s>."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    made = tokenizers.Tokenizer(
        models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    made.decoder = decoders.ByteLevel()
    there = (
        name
        for name in (*_SPECIAL_NAMES[1], "<unk>")
        if made.token_to_id(name) is not None
    )
    made.add_special_tokens(list(there))
    first, last = _SPECIAL_NAMES[1][1:3]
    ids = special_tokens(made)
    made.post_processor = processors.RobertaProcessing(
        (last, ids.sep_token_id),
        (first, ids.cls_token_id),
        add_prefix_space=prefix_space,
    )
    return made


def encode_texts(made, texts: Sequence, length: int) -> dict[str, np.ndarray]:
    """Texts, or pairs of texts, as `input_ids`, `attention_mask` and `token_type_ids`, each [rows, length].

    The special tokens of the teacher's kind are added, longer texts cut, shorter ones
    padded; `attention_mask` is 1 where there is a token and 0 where there is padding.
    """
    made.enable_truncation(length)
    ids = np.full((len(texts), length), special_tokens(made).pad_token_id, np.int32)
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
    return {"input_ids": ids, "attention_mask": tokens, "token_type_ids": types}
