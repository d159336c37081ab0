"""Does text become the ids that transformers gives it, by every kind of file?"""

import json

import numpy as np
import pytest
from texts import TEXTS, VOCAB

from autodistill_jax.data import tokenization
from autodistill_jax.errors import UserError


@pytest.mark.parametrize("prefix_space", [False, True])
def test_byte_level_ids_equal_transformers(tmp_path, byte_level, prefix_space):
    import transformers

    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text((byte_level / name).read_text())
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"add_prefix_space": prefix_space})
    )
    tokenizer = tokenization.load_tokenizer(tmp_path, VOCAB)
    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for texts in (TEXTS, list(zip(TEXTS, TEXTS[::-1], strict=True))):
        expected = hf_tokenizer(
            texts, padding="max_length", truncation=True, max_length=24
        )
        encoded = tokenization.encode_texts(tokenizer, texts, 24)
        assert np.array_equal(encoded["input_ids"], expected["input_ids"])
        assert np.array_equal(encoded["attention_mask"], expected["attention_mask"])
        assert not encoded["token_type_ids"].any()
    assert tokenization.special_tokens(tokenizer) == tokenization.SpecialTokens(
        pad_token_id=1, cls_token_id=0, sep_token_id=2, mask_token_id=4
    )
    words = [tokenizer.id_to_token(i) for i in tokenization.whole_words(tokenizer)]
    assert words and all(word[0] == "Ġ" and len(word) > 2 for word in words)


def test_special_tokens_by_their_own_names(tmp_path, minilm):
    tokenizer = tokenization.load_tokenizer(minilm.folder, minilm.dims.vocab)
    assert tokenization.special_tokens(tokenizer) == tokenization.SpecialTokens(
        0, 101, 102, 103
    )
    # Whole words: no special token, no single character, no part of a word.
    words = tokenization.whole_words(tokenizer)
    vocabulary = tokenizer.get_vocab()
    assert len(words) == 21727 and words == sorted(words)
    assert vocabulary["the"] in words
    for token in ("[unused5]", "[MASK]", "a", "##ing", "1990"):
        assert vocabulary[token] not in words
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    with pytest.raises(UserError, match=r"nor vocab\.json with merges\.txt"):
        tokenization.load_tokenizer(tmp_path, 10)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match=r"needs \[PAD\], .* or <pad>, <s> and </s>"):
        tokenization.load_tokenizer(tmp_path, 10)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[CLS]\na\n")
    with pytest.raises(UserError, match="sep_token not found"):
        tokenization.load_tokenizer(tmp_path, 10)
