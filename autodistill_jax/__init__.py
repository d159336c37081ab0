"""autodistill_jax: the best student of a BERT-like teacher for a budget."""

__version__ = "0.3.0"
