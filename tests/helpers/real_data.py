"""The folder of real data sets beside a clone, and marks for tests that need it."""

from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the folder of real data sets is not beside this clone"
)

needs_squad = pytest.mark.skipif(
    not (DATA / "squad").is_dir(), reason="SQuAD is not beside this clone"
)
