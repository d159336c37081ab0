"""What the teacher says of the training rows, kept in the workdir where it may be.

Targets that depend on the text alone, its embeddings, its last hidden states, and the
queries, keys and values that relations are made of, are made when a row is first seen,
rounded to 16 bits, and read from then on: a step that finds them runs no teacher. The
SuperLM, the finished student and the baselines share them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from etils import epath

from autodistill_jax import log, multihost, sharding, storage
from autodistill_jax.data import loader
from autodistill_jax.experiment.experiment import Experiment
from autodistill_jax.train import distillation
from autodistill_jax.train.distillation import (
    TEACHER_EMBEDDING,
    TEACHER_HIDDEN,
    TEACHER_QKV,
)

ROW = "row"  # In a batch: which of the training rows each is.
# Of what is kept of all rows' tokens; above it the teacher runs in every step.
_MAX_BYTES = 8 << 30


class _RowArray:
    """A file of vectors, some to each row, 16 bits a number; it starts as zeros.

    Attributes:
      starts: [rows + 1], where each row's vectors begin.
      values: [vectors, D], memory-mapped.
      is_written: [rows], memory-mapped: 1 once a row's vectors are written, so that what
        was cut short is made again.
    """

    def __init__(self, folder: epath.Path, name: str, counts: np.ndarray, width: int):
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.values = _open(
            folder / f"{name}.f16", np.float16, (int(self.starts[-1]), width)
        )
        self.is_written = _open(
            folder / f"{name}_is_written.u1", np.uint8, (len(counts),)
        )
        written_first = self.starts[:-1][(self.is_written == 1) & (counts > 0)]
        if not self.values[written_first].any(axis=1).all():
            self.is_written[:] = 0  # Without its vectors.

    def read(self, rows: np.ndarray, length: int) -> np.ndarray:
        """[rows, length, D] f32, zeros behind a row's last vector."""
        out = np.zeros((len(rows), length, self.values.shape[1]), np.float32)
        for i, row in enumerate(rows):
            vectors = self.values[self.starts[row] : self.starts[row + 1]]
            out[i, : len(vectors)] = vectors
        return out

    def write(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Of [rows, length, D] the first vectors of each row."""
        for row, of_row in zip(rows, vectors):
            start, end = self.starts[row], self.starts[row + 1]
            self.values[start:end] = of_row[: end - start]
        self.is_written[rows] = 1


def target_reader(
    experiment: Experiment,
    workdir: epath.Path,
    attention_mask: np.ndarray,
    batch_size: int,
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None:
    """Adds what the objective asks of the teacher to batches of the training rows.

    Args:
      experiment: complete.
      workdir: where it is kept, targets/embedding.f16, targets/hidden.f16 and
        targets/qkv.f16.
      attention_mask: of all training rows, [rows, L].
      batch_size: rows of a batch.

    Returns:
      (a batch with `ROW`, [batch_size]) -> the batch with what `text_targets` would make
      of it, and without `ROW`; None where the objective's targets are others or too
      large, or where several processes or a bucket would have to share the files.
    """
    objective, arch = experiment.objective, experiment.teacher.arch
    module = experiment.teacher_module()
    if not distillation.has_kept_targets(module, objective):
        return None
    if multihost.process_count() > 1 or storage.is_remote(workdir):
        log.say(
            "the teacher's targets are kept for one process and a local workdir: "
            "it runs every step"
        )
        return None
    lengths = np.asarray(attention_mask, bool).sum(axis=1)
    widths = {}
    if objective.needs_hidden():
        widths[TEACHER_HIDDEN] = arch.hidden
    if objective.needs_relations():
        widths[TEACHER_QKV] = 3 * arch.width
    num_bytes = 2 * int(lengths.sum()) * sum(widths.values())
    if num_bytes > _MAX_BYTES:
        log.say(
            f"the teacher's targets would take {num_bytes / 2**30:.1f} GiB, more than "
            f"{_MAX_BYTES / 2**30:.0f}: it runs every step"
        )
        return None
    folder = workdir / "targets"
    folder.mkdir(parents=True, exist_ok=True)
    target_arrays = {
        name: _RowArray(folder, name.removeprefix("teacher_"), lengths, width)
        for name, width in widths.items()
    }
    if objective.needs_embedding():
        target_arrays[TEACHER_EMBEDDING] = _RowArray(
            folder, "embedding", np.ones_like(lengths), arch.hidden
        )
    params = jax.device_put(experiment.teacher.params)

    @jax.jit
    def targets_of(params, texts):
        outputs = distillation.text_targets(module, params, texts, objective)
        return {name: x.reshape(len(x), -1, x.shape[-1]) for name, x in outputs.items()}

    def with_targets(batch):
        inputs = dict(batch)
        rows = inputs.pop(ROW)
        length = inputs["input_ids"].shape[1]
        is_written = np.all(
            [array.is_written[rows] for array in target_arrays.values()], axis=0
        )
        if len(missing := np.flatnonzero(is_written == 0)):
            texts = {name: x[missing] for name, x in inputs.items()}
            (texts,) = loader.eval_batches(texts, batch_size)
            outputs = targets_of(params, loader.to_devices(texts, experiment.mesh))
            for name, array in target_arrays.items():
                vectors = sharding.to_host(outputs[name])[: len(missing)]
                array.write(rows[missing], vectors)
        targets = {
            name: array.read(rows, 1 if name == TEACHER_EMBEDDING else length)
            for name, array in target_arrays.items()
        }
        if TEACHER_EMBEDDING in targets:
            targets[TEACHER_EMBEDDING] = targets[TEACHER_EMBEDDING][:, 0]
        return inputs | targets

    return with_targets


def _open(path: epath.Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """A file as an array, which starts as zeros."""
    local = Path(path)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    is_whole = local.exists() and local.stat().st_size == size
    return np.memmap(local, dtype, "r+" if is_whole else "w+", shape=shape)
