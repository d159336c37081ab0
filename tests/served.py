"""What does the loader in a model card make of texts, where autodistill_jax is not?"""

import os
import subprocess
import sys

import numpy as np

# As if it were not installed: an import of it, or of flax, would fail.
BEFORE = """
import sys
sys.modules["autodistill_jax"] = sys.modules["flax"] = None
"""
AFTER = """
for name in sys.argv[2:]:
    given = np.load(f"{sys.argv[1]}/{name}.npz")
    made = student(weights, given["ids"], given["tokens"], given["types"])
    np.savez(f"{sys.argv[1]}/{name}-served.npz", **made)
"""


def loader(card):
    """The block of Python in a README.md that reads student.stablehlo."""
    blocks = [
        part.split("```")[0] for part in card.read_text().split("```python\n")[1:]
    ]
    (found,) = [block for block in blocks if "student.stablehlo" in block]
    return found


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
