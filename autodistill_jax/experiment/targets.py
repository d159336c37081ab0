"""What the teacher says of the training rows, kept in the workdir where it may be.

Targets that depend on the text alone, its embeddings, are made when a row is first seen,
rounded to 16 bits, and read from then on: a step that finds them runs no teacher. The
SuperLM, the finished student and the baselines share them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from etils import epath

from autodistill_jax import multihost, storage
from autodistill_jax.data import loader
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.models import build
from autodistill_jax.train.distillation import TEACHER_EMBEDDING

ROW = "row"  # In a batch: which of the training rows each is.


def target_reader(
    experiment: Experiment, workdir: epath.Path, num_rows: int, batch_size: int
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None:
    """Adds the teacher's embeddings to batches of the training rows.

    Args:
      experiment: complete.
      workdir: where they are kept, targets/embeddings.f16.
      num_rows: training rows.
      batch_size: rows of a batch.

    Returns:
      (a batch with `ROW`, [batch_size]) -> the batch with `TEACHER_EMBEDDING`
      [batch_size, D] and without `ROW`; None where the objective's targets are others,
      or where several processes or a bucket would have to share the file.
    """
    shared = multihost.process_count() > 1 or storage.is_remote(workdir)
    if shared or not experiment.objective.has_text_targets():
        return None
    folder, width = workdir / "targets", experiment.teacher.arch.hidden
    folder.mkdir(parents=True, exist_ok=True)
    # Set once a row's embedding is written: what was cut short is made again.
    is_written = _open(folder / "is_written.u1", np.uint8, (num_rows,))
    embeddings = _open(folder / "embeddings.f16", np.float16, (num_rows, width))
    if not embeddings[is_written == 1].any(axis=1).all():
        is_written[:] = 0  # Without its embeddings.
    module, pooling = experiment.teacher_module(), experiment.objective.pooling

    embed = jax.jit(lambda p, rows: build.text_embeddings(module, p, rows, pooling))
    params = jax.device_put(experiment.teacher.params)

    def with_targets(batch):
        inputs = dict(batch)
        rows = inputs.pop(ROW)
        missing = np.flatnonzero(is_written[rows] == 0)
        if len(missing):
            texts = {name: x[missing] for name, x in inputs.items()}
            embeddings[rows[missing]] = loader.map_batches(
                lambda texts: embed(params, texts), texts, batch_size, experiment.mesh
            )
            is_written[rows[missing]] = 1
        return inputs | {TEACHER_EMBEDDING: np.asarray(embeddings[rows], np.float32)}

    return with_targets


def _open(path: epath.Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """A file as an array, which starts as zeros."""
    local = Path(path)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    is_whole = local.exists() and local.stat().st_size == size
    return np.memmap(local, dtype, "r+" if is_whole else "w+", shape=shape)
