"""Files that are complete at any time, on a local disk or in a bucket (gs://).

Many libraries read and write only local files; what is in a bucket is copied for them.
"""

import atexit
import contextlib
import functools
import json
import math
import os
import shutil
import struct
import tempfile
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from autodistill_jax import multihost
from autodistill_jax.errors import UserError

_LAST_FILE = "config.json"
_mirrors: dict[str, Path] = {}


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path lies in a bucket, as gs://bucket/folder does."""
    return "://" in os.fspath(path)


def check_writable(folder: epath.Path) -> None:
    """Checks, before any work is done, that a folder can be written and is shared.

    Args:
      folder: of the run; a local one that is not there yet is left so.

    Raises:
      UserError: nothing can be written there, or not all processes see what is.
    """
    probe = folder / multihost.on_first_process(lambda: f".{uuid.uuid4().hex}.probe")
    created = multihost.on_first_process(lambda: _write_probe(folder, probe))
    visible = multihost.all_processes(_is_visible(probe))
    multihost.on_first_process(
        lambda: (probe.unlink(), [parent.rmdir() for parent in created])
    )
    if not visible:
        raise UserError(
            f"{folder} is not the same folder for all {multihost.process_count()} "
            "processes; give one that all see: gs://bucket/folder, or a shared disk"
        )


def _is_visible(probe: epath.Path) -> bool:
    try:
        return probe.exists()
    except Exception:  # noqa: BLE001 Whatever the reason, this host cannot see it.
        return False


def _write_probe(folder: epath.Path, probe: epath.Path) -> list[epath.Path]:
    """Writes the probe. Returns the folders that it created, the innermost first."""
    try:
        ancestors = [] if is_remote(folder) else [folder, *folder.parents]
        new = [parent for parent in ancestors if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
    except ImportError as error:
        raise UserError(
            f"{folder} needs gcsfs, which is not installed; "
            "run: pip install 'autodistill_jax[gcs]'"
        ) from error
    except Exception as error:  # Of many libraries: access, the network, credentials.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{folder} cannot be written: {reason}; give a place that "
            "is there and that this account may write to"
        ) from error
    return new


def local_copy(path: epath.PathLike) -> Path:
    """A local path to read a file or folder at.

    Args:
      path: local or in a bucket.

    Returns:
      The path itself; of a bucket's a copy made now, which lasts until the
      process ends.
    """
    path = epath.Path(path)
    if not is_remote(path):
        return Path(path)
    return _download(path, Path(tempfile.mkdtemp(dir=_scratch_folder())) / path.name)


@contextlib.contextmanager
def atomic_write(path: epath.PathLike, folder: bool = False) -> Iterator[Path]:
    """A local path to write a file or folder at, which replaces the old one when done.

    A stop in between leaves the old one in place, except for a folder in a bucket: see
    `is_complete`.

    Args:
      path: where it is to be in the end, local or in a bucket.
      folder: whether it is a folder, not a file.

    Yields:
      The path to write to until the context ends.
    """
    path = epath.Path(path)
    if is_remote(path):
        partial = Path(tempfile.mkdtemp(dir=_scratch_folder())) / path.name
    elif folder:  # Whatever an interrupted write has left there is removed.
        partial = Path(path.with_name(f"{path.name}.partial"))
        shutil.rmtree(partial, ignore_errors=True)
    else:  # A unique name: several programs may write the same file.
        partial = Path(path.with_name(f".{uuid.uuid4().hex}.partial{path.suffix}"))
    (partial if folder else partial.parent).mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial) if folder else partial.unlink(missing_ok=True)
        raise
    if is_remote(path):
        _upload(partial, path)
        return
    if folder:
        shutil.rmtree(path, ignore_errors=True)
    partial.replace(path)


def is_complete(folder: epath.PathLike) -> bool:
    """Whether a network's folder is there with all its files.

    Its config.json is written last and removed first.
    """
    return (epath.Path(folder) / _LAST_FILE).exists()


def local_mirror(path: epath.PathLike) -> Path:
    """A local path to read a file at and change it in place, by one process.

    Args:
      path: local or in a bucket.

    Returns:
      The path itself; of a bucket's the process' one copy, see `upload_mirror`.
    """
    path = epath.Path(path)
    if not is_remote(path):
        return Path(path)
    key = os.fspath(path)
    if key not in _mirrors:
        target = Path(tempfile.mkdtemp(dir=_scratch_folder())) / path.name
        _mirrors[key] = _download(path, target) if path.exists() else target
    return _mirrors[key]


def upload_mirror(path: epath.PathLike) -> None:
    """Writes the copy of a `local_mirror` back to its bucket, if it is in one."""
    mirror = _mirrors.get(os.fspath(path))
    if mirror is not None and mirror.exists():
        _upload(mirror, epath.Path(path))


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a value as JSON, see `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: epath.Path, text: str) -> None:
    """Writes a text, on the first process; a stop in between leaves the old file."""

    def write():
        with atomic_write(path) as partial:
            partial.write_text(text)

    multihost.on_first_process(write)


def write_arrays(path: epath.Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays as an .npz, see `write_text`.

    Args:
      path: of the .npz.
      arrays: {name: array}, all of it on this process.
    """

    def write():
        with atomic_write(path) as partial:
            np.savez(partial, **{name: np.asarray(x) for name, x in arrays.items()})

    multihost.on_first_process(write)


def read_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz: {name: array}."""
    with np.load(local_copy(path)) as archive:
        return dict(archive)


def mapped_arrays(path: epath.Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Maps arrays of an .npz into memory: only what is looked at is read.

    Args:
      path: of an .npz that never changes; of a bucket's there is one copy a process.
      names: of the arrays.

    Returns:
      {name: memory-mapped array; a plain one where it is empty}.
    """
    file = local_mirror(path)
    with zipfile.ZipFile(file) as archive:
        return {name: _map_member(file, archive, f"{name}.npy") for name in names}


def _map_member(file: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    member = archive.getinfo(name)
    with archive.open(member) as inside, file.open("rb") as raw:
        read = {1: np.lib.format.read_array_header_1_0}
        read[2] = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read[np.lib.format.read_magic(inside)[0]](inside)
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        # A zip member's local header has 30 bytes, of which the last four are the
        # lengths of its name and of its extra field, which follow. `np.savez` does not
        # compress.
        raw.seek(member.header_offset + 26)
        lengths = struct.unpack("<HH", raw.read(4))
        start = member.header_offset + 30 + sum(lengths) + inside.tell()
    order = "F" if fortran else "C"
    return np.memmap(file, dtype, "r", start, shape, order)


@functools.cache
def _scratch_folder() -> str:
    folder = tempfile.mkdtemp(prefix="autodistill_jax-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _download(path, target: Path) -> Path:
    if not path.is_dir():
        target.write_bytes(path.read_bytes())
        return target
    target.mkdir()
    for child in path.iterdir():
        _download(child, target / child.name)
    return target


def _upload(source: Path, path) -> None:
    if not source.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read_bytes())
        return
    (path / _LAST_FILE).unlink(missing_ok=True)
    if path.exists():
        path.rmtree()
    for child in sorted(source.iterdir(), key=lambda child: child.name == _LAST_FILE):
        _upload(child, path / child.name)
