"""How are files whole at any time, and used where they are in a bucket (gs://)?

Many libraries read and write local files alone. What is in a bucket is copied for them.
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
    return "://" in os.fspath(path)


def check_writable(folder: epath.Path) -> None:
    """Raises UserError where nothing can be written, or not all processes see it: found
    out before the work is."""
    probe = folder / multihost.on_first_process(lambda: f".{uuid.uuid4().hex}.probe")
    made = multihost.on_first_process(lambda: _write_probe(folder, probe))
    seen = multihost.all_processes(_is_visible(probe))
    multihost.on_first_process(lambda: (probe.unlink(), [one.rmdir() for one in made]))
    if not seen:
        raise UserError(
            f"{folder} is not the same folder for all {multihost.process_count()} "
            "processes; give one that all see: gs://bucket/folder, or a shared disk"
        )


def _is_visible(probe: epath.Path) -> bool:
    try:
        return probe.exists()
    except Exception:  # noqa: BLE001 Whatever keeps this host from it.
        return False


def _write_probe(folder: epath.Path, probe: epath.Path) -> list[epath.Path]:
    """The folders that were made for the probe, the inner one first."""
    try:
        ways = [] if is_remote(folder) else [folder, *folder.parents]
        new = [one for one in ways if not one.exists()]
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
    """A file or folder to read: itself, or a copy of now that lasts as long as the
    process."""
    path = epath.Path(path)
    if not is_remote(path):
        return Path(path)
    return _download(path, Path(tempfile.mkdtemp(dir=_scratch_folder())) / path.name)


@contextlib.contextmanager
def atomic_write(path: epath.PathLike, folder: bool = False) -> Iterator[Path]:
    """Where to write a file or a folder, which takes its name and place when it is done;
    a stop in between leaves the old one, but of a folder in a bucket: see `is_complete`."""
    path = epath.Path(path)
    if is_remote(path):
        made = Path(tempfile.mkdtemp(dir=_scratch_folder())) / path.name
    elif folder:  # What an earlier stop left of it goes.
        made = Path(path.with_name(f"{path.name}.partial"))
        shutil.rmtree(made, ignore_errors=True)
    else:  # Of a name of its own: several programs may write the same.
        made = Path(path.with_name(f".{uuid.uuid4().hex}.partial{path.suffix}"))
    (made if folder else made.parent).mkdir(parents=True, exist_ok=True)
    try:
        yield made
    except BaseException:
        shutil.rmtree(made) if folder else made.unlink(missing_ok=True)
        raise
    if is_remote(path):
        _upload(made, path)
        return
    if folder:
        shutil.rmtree(path, ignore_errors=True)
    made.replace(path)


def is_complete(folder: epath.PathLike) -> bool:
    """Is a network's folder there, whole? Its config.json comes last, and goes first."""
    return (epath.Path(folder) / _LAST_FILE).exists()


def local_mirror(path: epath.PathLike) -> Path:
    """A file to read and change in place, by one process: itself, or the one copy that
    `upload_mirror` sends back."""
    path = epath.Path(path)
    if not is_remote(path):
        return Path(path)
    key = os.fspath(path)
    if key not in _mirrors:
        made = Path(tempfile.mkdtemp(dir=_scratch_folder())) / path.name
        _mirrors[key] = _download(path, made) if path.exists() else made
    return _mirrors[key]


def upload_mirror(path: epath.PathLike) -> None:
    """Sends a `local_mirror` back."""
    made = _mirrors.get(os.fspath(path))
    if made is not None and made.exists():
        _upload(made, epath.Path(path))


def write_json(path: epath.Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: epath.Path, text: str) -> None:
    """By the first process; whole or not at all: a stop in between leaves the old file."""

    def write():
        with atomic_write(path) as made:
            made.write_text(text)

    multihost.on_first_process(write)


def write_arrays(path: epath.Path, arrays: Mapping[str, Any]) -> None:
    """As `write_text`, an .npz; of arrays that this process has whole."""

    def write():
        with atomic_write(path) as made:
            np.savez(made, **{name: np.asarray(x) for name, x in arrays.items()})

    multihost.on_first_process(write)


def read_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz."""
    with np.load(local_copy(path)) as kept:
        return dict(kept)


def mapped_arrays(path: epath.Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of an .npz that never changes, which stay on disk: of them is read what is
    looked at. What is in a bucket is copied whole, once a process."""
    file = local_mirror(path)
    with zipfile.ZipFile(file) as kept:
        return {name: _map_member(file, kept, f"{name}.npy") for name in names}


def _map_member(file: Path, kept: zipfile.ZipFile, name: str) -> np.ndarray:
    member = kept.getinfo(name)
    with kept.open(member) as inside, file.open("rb") as raw:
        read = {1: np.lib.format.read_array_header_1_0}
        read[2] = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read[np.lib.format.read_magic(inside)[0]](inside)
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        # A member's own header: 30 bytes, of which the last four are the lengths of its
        # name and of what else it says. `np.savez` packs nothing.
        raw.seek(member.header_offset + 26)
        lengths = struct.unpack("<HH", raw.read(4))
        start = member.header_offset + 30 + sum(lengths) + inside.tell()
    order = "F" if fortran else "C"
    return np.memmap(file, dtype, "r", start, shape, order)


@functools.cache
def _scratch_folder() -> str:
    made = tempfile.mkdtemp(prefix="autodistill_jax-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _download(path, made: Path) -> Path:
    if not path.is_dir():
        made.write_bytes(path.read_bytes())
        return made
    made.mkdir()
    for one in path.iterdir():
        _download(one, made / one.name)
    return made


def _upload(made: Path, path) -> None:
    if not made.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.read_bytes())
        return
    (path / _LAST_FILE).unlink(missing_ok=True)
    if path.exists():
        path.rmtree()
    for one in sorted(made.iterdir(), key=lambda one: one.name == _LAST_FILE):
        _upload(one, path / one.name)
