"""Are the pairs half strangers and half near neighbours by the teacher?"""

import numpy as np

from autodistill_jax.experiment.similarity import similarity_pairs


def test_half_of_the_pairs_are_near_neighbours():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(20, 5))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    first, second = similarity_pairs(embeddings, 10)
    assert len(first) == len(second) == 10 and (first != second).all()
    assert not set(first[:5]) & set(second[:5])
    similarities = embeddings @ embeddings.T
    np.fill_diagonal(similarities, -1)
    assert (second[5:] == similarities[first[5:]].argmax(axis=1)).all()
