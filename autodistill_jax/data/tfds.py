"""Data sets of tensorflow_datasets, as stored on this machine or fetched on demand.

Stored as array_record and read as a data source: TensorFlow is not needed.
"""

import contextlib
import importlib.util
import os
from types import SimpleNamespace
from typing import Any
from unittest import mock

from autodistill_jax.errors import UserError


def find_builder(name: str, description: str, alternative: str, download: bool) -> Any:
    """A data set's builder, prepared or not; it takes a moment and no network.

    Args:
      name: what tensorflow_datasets calls it, as "glue/rte".
      description: how the user asked for it; errors begin with it.
      alternative: what else the user can do where it is not prepared.
      download: whether it may be fetched later, by `prepare_builder`.

    Returns:
      A `tfds.core.DatasetBuilder` of array_record files.

    Raises:
      UserError: no such data set, or it is not prepared and may not be fetched, or it
        is prepared in another format.
    """
    import tensorflow_datasets as tfds  # Slow to import; few need it.
    import tensorflow_datasets.text  # Its builders are found only then.

    try:
        # tfds reads its variable when it is imported; here it may be set later.
        folder = os.environ.get("TFDS_DATA_DIR")
        builder = tfds.builder(name, file_format="array_record", data_dir=folder)
        splits = builder.info.splits
    except Exception as error:
        # Also where it was prepared as tfrecord, which only TensorFlow reads.
        raise UserError(
            f"{description} cannot be read ({_first_line(error)}); {alternative}"
        ) from error
    if not splits and not download:
        # Asking the network would take minutes of retries on a machine without one.
        raise UserError(
            f"{description} is not prepared on this machine; add "
            f"--config.data.download=True to fetch it, or {alternative}"
        )
    return builder


def prepare_builder(builder: Any, description: str, alternative: str) -> None:
    """Fetches a data set where it is not on this machine yet.

    Args:
      builder: of `find_builder`.
      description, alternative: see there.

    Raises:
      UserError: it cannot be fetched (after minutes of retries without a network).
    """
    if builder.info.splits:
        return
    try:
        with _tensorflow_stub():
            builder.download_and_prepare()
    except Exception as error:
        raise UserError(
            f"{description} cannot be fetched ({_first_line(error)}); {alternative}"
        ) from error


@contextlib.contextmanager
def _tensorflow_stub():
    """Lets tfds unpack an archive where TensorFlow is not installed.

    It asks TensorFlow for nothing but `open` and `str`, and fails without it.
    """
    if importlib.util.find_spec("tensorflow"):
        yield
        return
    from tensorflow_datasets.core.download import extractor

    stand_in = SimpleNamespace(
        compat=SimpleNamespace(as_text=str),
        io=SimpleNamespace(gfile=SimpleNamespace(GFile=open)),
    )
    with mock.patch.object(extractor, "tf", stand_in):
        yield


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
