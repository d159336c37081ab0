"""What does the loader in a model card make of texts, where autodistill_jax is not?"""

import os
import subprocess
import sys

import numpy as np
import transformers_parity as parity

from autodistill_jax.interop import huggingface

# As if it were not installed: an import of it, or of flax, would fail.
BEFORE = """
import sys
sys.modules["autodistill_jax"] = sys.modules["flax"] = None
"""
AFTER = """
for name in sys.argv[2:]:
    given = np.load(f"{sys.argv[1]}/{name}.npz")
    made = student(weights, given["input_ids"], given["attention_mask"], given["token_type_ids"])
    np.savez(f"{sys.argv[1]}/{name}-served.npz", **made)
"""


def loader(card):
    """The block of Python in a README.md that reads student.stablehlo."""
    blocks = [
        part.split("```")[0] for part in card.read_text().split("```python\n")[1:]
    ]
    (code,) = [block for block in blocks if "student.stablehlo" in block]
    return code


def outputs(card, batches, tmp_path):
    """{name: outputs} of {name: ids, tokens and types}, by a Python of its own that runs
    beside the student's folder."""
    for name, batch in batches.items():
        np.savez(tmp_path / f"{name}.npz", **batch)
    subprocess.run(
        [sys.executable, "-c", BEFORE + loader(card) + AFTER, tmp_path, *batches],
        cwd=card.parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        check=True,
    )
    return {name: np.load(tmp_path / f"{name}-served.npz") for name in batches}


def assert_serves(card, tmp_path):
    """The loader in it, where autodistill_jax is not, at batches it never saw."""
    assert len(loader(card).split("\n\n")) == 2  # Imports, and then:
    assert sum(map(bool, loader(card).splitlines())) == 10
    student = huggingface.load_pretrained(str(card.parent))
    rng, batches = np.random.default_rng(0), {}
    for name, shape in {"one": (1, 32), "five": (5, 7)}.items():
        real = np.arange(shape[1]) < rng.integers(2, shape[1] + 1, shape[:1])[:, None]
        ids = rng.integers(0, student.dims.vocab, shape)
        batches[name] = {
            "input_ids": ids,
            "attention_mask": real,
            "token_type_ids": ids % 2 * real,
        }
        batches[name] = {k: np.int32(v) for k, v in batches[name].items()}
    results = outputs(card, batches, tmp_path)
    for name, batch in batches.items():
        expected, real = (
            parity.outputs(card.parent, batch),
            batch["attention_mask"].astype(bool),
        )
        error = np.abs(results[name]["last_hidden_state"] - expected.hidden)[real]
        assert error.max() < 1e-5
        assert np.abs(results[name]["pooler_output"] - expected.pooler).max() < 1e-5
