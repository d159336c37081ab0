"""Text to token ids, with Hugging Face `tokenizers` and the teacher's own files."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autodistill_jax.errors import UserError, read_json_object


class SpecialTokens(NamedTuple):
    """Ids of the special tokens.

    Attributes:
      pad_token_id: fills rows up.
      cls_token_id: the first of a row.
      sep_token_id: between texts, and the last.
      mask_token_id: stands for a masked token; None where the vocabulary has none.
    """

    pad_token_id: int
    cls_token_id: int
    sep_token_id: int
    mask_token_id: int | None


# BERT's and RoBERTa's names of them.
_SPECIAL_NAMES = (
    ("[PAD]", "[CLS]", "[SEP]", "[MASK]"),
    ("<pad>", "<s>", "</s>", "<mask>"),
)


def special_tokens(tokenizer: Any) -> SpecialTokens:
    """The ids of a tokenizer's special tokens.

    Args:
      tokenizer: of Hugging Face `tokenizers`.

    Returns:
      The ids, by BERT's names of the tokens or by RoBERTa's.

    Raises:
      UserError: its vocabulary has neither BERT's nor RoBERTa's.
    """
    for names in _SPECIAL_NAMES:
        ids = SpecialTokens(*(tokenizer.token_to_id(name) for name in names))
        if None not in ids[:3]:
            return ids
    raise UserError(
        "the tokenizer's vocabulary needs [PAD], [CLS] and [SEP], or <pad>, <s> and "
        "</s>, and has neither; use the teacher's own tokenizer files"
    )


def whole_words(tokenizer: Any) -> list[int]:
    """The ids of the vocabulary's whole words, of two letters or more.

    Args:
      tokenizer: of `load_tokenizer`.

    Returns:
      Token ids, rising.
    """
    vocabulary = tokenizer.get_vocab()
    # Byte-level BPE and Unigram mark what begins a word, WordPiece what does not.
    is_marked = any(re.match("[Ġ▁].", token) for token in vocabulary)
    word = re.compile(("[Ġ▁]" if is_marked else "") + r"[^\W\d_]{2,}")
    return sorted(i for token, i in vocabulary.items() if word.fullmatch(token))


def load_tokenizer(folder: Path, vocab: int) -> Any:
    """The fast tokenizer of a Hugging Face folder.

    From tokenizer.json; or vocab.txt (WordPiece, BERT and ELECTRA); or vocab.json and
    merges.txt (byte-level BPE, RoBERTa).

    Args:
      folder: a local one.
      vocab: how many token embeddings the teacher has.

    Returns:
      A `tokenizers.Tokenizer` that neither pads nor truncates.

    Raises:
      UserError: no such files, no special tokens that are known, or a vocabulary
        larger than `vocab`.
    """
    import tokenizers

    path = folder / "tokenizer_config.json"
    settings = read_json_object(path) if path.exists() else {}
    path = folder / "tokenizer.json"
    if path.exists():
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # The library's own are plain Exceptions.
            raise UserError(f"{path} cannot be read: {error}") from error
    elif (folder / "vocab.txt").exists():
        try:
            tokenizer = tokenizers.BertWordPieceTokenizer(
                str(folder / "vocab.txt"),
                lowercase=settings.get("do_lower_case", True),
                strip_accents=settings.get("strip_accents"),
                handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
            )._tokenizer
        except TypeError as error:  # No [CLS], or no [SEP].
            raise UserError(f"{folder / 'vocab.txt'}: {error}; it is needed") from error
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        tokenizer = _byte_level_bpe(folder, settings.get("add_prefix_space", False))
    else:
        raise UserError(
            f"{folder} has neither tokenizer.json nor vocab.txt nor vocab.json with "
            "merges.txt; the teacher's folder needs one of them"
        )
    size = tokenizer.get_vocab_size()
    highest = max(tokenizer.get_vocab().values()) + 1
    if max(size, highest) > vocab:
        raise UserError(
            f"the vocabulary in {folder} has {max(size, highest)} entries, but the "
            f"teacher has {vocab} word embeddings; use the teacher's own tokenizer "
            "files"
        )
    special_tokens(tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _byte_level_bpe(folder: Path, prefix_space: bool) -> Any:
    """RoBERTa's tokenizer: byte-level BPE, <s> a </s> and <s> a </s></s> b </s>."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    tokenizer = tokenizers.Tokenizer(
        models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    present = (
        name
        for name in (*_SPECIAL_NAMES[1], "<unk>")
        if tokenizer.token_to_id(name) is not None
    )
    tokenizer.add_special_tokens(list(present))
    first, last = _SPECIAL_NAMES[1][1:3]
    ids = special_tokens(tokenizer)
    tokenizer.post_processor = processors.RobertaProcessing(
        (last, ids.sep_token_id),
        (first, ids.cls_token_id),
        add_prefix_space=prefix_space,
    )
    return tokenizer


def encode_texts(tokenizer: Any, texts: Sequence, length: int) -> dict[str, np.ndarray]:
    """Texts, or pairs of texts, as token rows.

    The special tokens of the teacher's kind are added, longer texts cut, shorter ones
    padded.

    Args:
      tokenizer: of `load_tokenizer`.
      texts: strings, or pairs of strings.
      length: tokens a row, special ones included.

    Returns:
      {"input_ids", "attention_mask", "token_type_ids"}, each [rows, length];
      `attention_mask` is 1 where there is a token and 0 where there is padding.
    """
    tokenizer.enable_truncation(length)
    input_ids = np.full(
        (len(texts), length), special_tokens(tokenizer).pad_token_id, np.int32
    )
    attention_mask = np.zeros((len(texts), length), np.int8)
    token_type_ids = np.zeros((len(texts), length), np.int8)
    for start in range(0, len(texts), 4096):
        batch = [
            text if isinstance(text, str) else tuple(text)
            for text in texts[start : start + 4096]
        ]
        for i, encoded in enumerate(tokenizer.encode_batch(batch), start):
            n = len(encoded.ids)
            input_ids[i, :n] = encoded.ids
            attention_mask[i, :n] = 1
            token_type_ids[i, :n] = encoded.type_ids
    tokenizer.no_truncation()
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
    }
