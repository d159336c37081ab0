"""The folder of real data sets beside a clone, and marks for tests that need it."""

from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / "shared" / "data"
_skip_without_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the folder of real data sets is not beside this clone"
)
_skip_without_squad = pytest.mark.skipif(
    not (DATA / "squad").is_dir(), reason="SQuAD is not beside this clone"
)


def needs_data(test):
    return pytest.mark.real_data(_skip_without_data(test))


def needs_squad(test):
    return pytest.mark.real_data(_skip_without_squad(test))
