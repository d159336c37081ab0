"""The mark of tests that compile for a TPU that is not here."""

from importlib import util

import pytest

_skip_without_libtpu = pytest.mark.skipif(
    not util.find_spec("libtpu"),
    reason="libtpu is not installed; pip install 'autodistill_jax[tpu]'",
)


def needs_libtpu(test):
    return pytest.mark.tpu_compile(_skip_without_libtpu(test))
