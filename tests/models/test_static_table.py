"""Is a static table what a teacher says of each token, the frequent ones least?"""

import json

import numpy as np

from autodistill_jax.data import tokenization
from autodistill_jax.interop import embedding, huggingface, sentence_transformers
from autodistill_jax.models.static_table import StaticTable, distill_static_table


def test_a_table_keeps_the_teachers_geometry_and_weighs_by_frequency():
    rng = np.random.default_rng(0)
    # Three axes are all that varies.
    vectors = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 8)) + 2.0
    embedded = []

    def embed(rows):
        embedded.append(rows)
        return vectors[rows[:, 1]]

    counts = np.full(50, 1000)
    counts[7] = 0
    table = distill_static_table(embed, counts, (0, 1), width=3, smoothing=1 / 49)
    (rows,) = embedded
    assert (rows[:, 0] == 0).all() and (rows[:, 2] == 1).all()
    assert table.shape == (50, 3) and not table[:2].any()
    centred = vectors - vectors.mean(axis=0)
    weights = np.where(np.arange(50) == 7, 1.0, 0.5)[2:, None]
    expected = (weights * centred[2:]) @ (weights * centred[2:]).T
    np.testing.assert_allclose(table[2:] @ table[2:].T, expected, atol=1e-4)
    ids, mask = np.asarray([[0, 9, 5, 1]]), np.ones((1, 4), int)
    hidden = StaticTable().apply({"params": {"table": table}}, ids, mask).hidden
    np.testing.assert_allclose(hidden.sum(axis=1)[0], table[9] + table[5], rtol=1e-6)


def test_a_table_is_written_as_sentence_transformers_reads_it(tmp_path, minilm):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(minilm.dims.vocab, 16)).astype(np.float32)
    table[[101, 102]] = 0
    tokenizer = tokenization.load_tokenizer(minilm.folder, minilm.dims.vocab)
    sentence_transformers.write_static_table(tmp_path, table, tokenizer)
    kinds = [m["type"] for m in json.loads((tmp_path / "modules.json").read_text())]
    assert [kind.split(".")[-1] for kind in kinds] == ["StaticEmbedding", "Normalize"]
    assert np.array_equal(sentence_transformers.read_static_table(tmp_path), table)
    network = huggingface.static_network(minilm, table)
    (vector,) = embedding.embed(network, ["a static table"])
    ids = tokenizer.encode("a static table", add_special_tokens=False).ids
    mean = table[ids].mean(axis=0)
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
