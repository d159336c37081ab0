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

_LAST = "config.json"
_mirrors: dict[str, Path] = {}


def remote(path: epath.PathLike) -> bool:
    return "://" in os.fspath(path)


def check(folder: epath.Path) -> None:
    """Raises UserError where nothing can be written, or not all processes see it: found
    out before the work is."""
    probe = folder / multihost.once(lambda: f".{uuid.uuid4().hex}.probe")
    made = multihost.once(lambda: _probed(folder, probe))
    seen = multihost.every(_seen(probe))
    multihost.once(lambda: (probe.unlink(), [one.rmdir() for one in made]))
    if not seen:
        raise UserError(
            f"{folder} is not the same folder for all {multihost.count()} "
            "processes; give one that all see: gs://bucket/folder, or a shared disk"
        )


def _seen(probe: epath.Path) -> bool:
    try:
        return probe.exists()
    except Exception:  # noqa: BLE001 Whatever keeps this host from it.
        return False


def _probed(folder: epath.Path, probe: epath.Path) -> list[epath.Path]:
    """The folders that were made for the probe, the inner one first."""
    try:
        ways = [] if remote(folder) else [folder, *folder.parents]
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


def near(path: epath.PathLike) -> Path:
    """A file or folder to read: itself, or a copy of now that lasts as long as the
    process."""
    path = epath.Path(path)
    if not remote(path):
        return Path(path)
    return _fetched(path, Path(tempfile.mkdtemp(dir=_scratch())) / path.name)


@contextlib.contextmanager
def whole(path: epath.PathLike, folder: bool = False) -> Iterator[Path]:
    """Where to write a file or a folder, which takes its name and place when it is done;
    a stop in between leaves the old one, but of a folder in a bucket: see `there`."""
    path = epath.Path(path)
    if remote(path):
        made = Path(tempfile.mkdtemp(dir=_scratch())) / path.name
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
    if remote(path):
        _sent(made, path)
        return
    if folder:
        shutil.rmtree(path, ignore_errors=True)
    made.replace(path)


def there(folder: epath.PathLike) -> bool:
    """Is a network's folder there, whole? Its config.json comes last, and goes first."""
    return (epath.Path(folder) / _LAST).exists()


def mirror(path: epath.PathLike) -> Path:
    """A file to read and change in place, by one process: itself, or the one copy that
    `keep` sends back."""
    path = epath.Path(path)
    if not remote(path):
        return Path(path)
    key = os.fspath(path)
    if key not in _mirrors:
        made = Path(tempfile.mkdtemp(dir=_scratch())) / path.name
        _mirrors[key] = _fetched(path, made) if path.exists() else made
    return _mirrors[key]


def keep(path: epath.PathLike) -> None:
    """Sends a `mirror` back."""
    made = _mirrors.get(os.fspath(path))
    if made is not None and made.exists():
        _sent(made, epath.Path(path))


def write_json(path: epath.Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: epath.Path, text: str) -> None:
    """By the first process; whole or not at all: a stop in between leaves the old file."""

    def write():
        with whole(path) as made:
            made.write_text(text)

    multihost.once(write)


def write_arrays(path: epath.Path, arrays: Mapping[str, Any]) -> None:
    """As `write_text`, an .npz; of arrays that this process has whole."""

    def write():
        with whole(path) as made:
            np.savez(made, **{name: np.asarray(x) for name, x in arrays.items()})

    multihost.once(write)


def read_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz."""
    with np.load(near(path)) as kept:
        return dict(kept)


def mapped_arrays(path: epath.Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of an .npz that never changes, which stay on disk: of them is read what is
    looked at. What is in a bucket is copied whole, once a process."""
    file = mirror(path)
    with zipfile.ZipFile(file) as kept:
        return {name: _mapped(file, kept, f"{name}.npy") for name in names}


def _mapped(file: Path, kept: zipfile.ZipFile, name: str) -> np.ndarray:
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
def _scratch() -> str:
    made = tempfile.mkdtemp(prefix="autodistill_jax-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _fetched(path, made: Path) -> Path:
    if not path.is_dir():
        made.write_bytes(path.read_bytes())
        return made
    made.mkdir()
    for one in path.iterdir():
        _fetched(one, made / one.name)
    return made


def _sent(made: Path, path) -> None:
    if not made.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.read_bytes())
        return
    (path / _LAST).unlink(missing_ok=True)
    if path.exists():
        path.rmtree()
    for one in sorted(made.iterdir(), key=lambda one: one.name == _LAST):
        _sent(one, path / one.name)
