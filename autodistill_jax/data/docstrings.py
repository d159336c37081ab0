"""Docstrings of installed packages: English text, and a labelled task.

They are read from the packages' sources with `ast` (nothing is imported): a corpus that
needs no download. The task is "which package is this from?". Deterministic: the same
versions installed give the same rows in the same order.
"""

import ast
import collections
import functools
import importlib.util
import inspect
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from autodistill_jax.errors import UserError

# Names that give a package away, blanked out of the text of the labelled task.
_ALIASES = {
    "jax": ("jnp", "lax", "xla"),
    "matplotlib": ("mpl", "pyplot", "plt"),
    "numpy": ("np",),
    "sklearn": ("scikit-learn", "scikit learn"),
    "sqlalchemy": ("sqla",),
    "flax": ("linen", "nnx"),
    "tensorflow_datasets": ("tfds", "tensorflow datasets"),
}


_SKIPPED_FOLDERS = {"tests", "test", "testing", "_vendor"}


class Docstring(NamedTuple):
    """One docstring.

    Attributes:
      package: the name of its package.
      module: the dotted name of its module.
      text: without the code's indentation.
      held_out: whether its module is kept for evaluation.
    """

    package: str
    module: str
    text: str
    held_out: bool


@functools.lru_cache(maxsize=2)  # Text and labelled task read the same files.
def read_docstrings(packages: tuple[str, ...]) -> list[Docstring]:
    """The docstrings of installed packages, in the order of package, file and line.

    Docstrings that stand twice, in one package or in two, are dropped altogether. Every
    fifth module (by a hash of its name) is held out as a whole, so no text leaks.

    Args:
      packages: names of installed packages.

    Returns:
      The docstrings.

    Raises:
      UserError: a package is not installed.
    """
    docs = []
    for package in packages:
        for path, module in _package_modules(package):
            # crc32, not hash(): the same on every machine and run.
            held_out = zlib.crc32(module.encode()) % 5 == 0
            for text in _file_docstrings(path):
                docs.append(Docstring(package, module, text, held_out))
    counts = collections.Counter(_normalized_text(doc.text) for doc in docs)
    return [doc for doc in docs if counts[_normalized_text(doc.text)] == 1]


def check_packages(packages: Sequence[str]) -> None:
    """Checks that packages are installed.

    Raises:
      UserError: one of them is not.
    """
    for package in packages:
        _package_folder(package)


def prose_paragraphs(text: str) -> Iterator[str]:
    """The prose of a docstring: no code, tables, parameter lists or headings."""
    for block in re.split(r"\n\s*\n", text):
        lines = block.splitlines()
        if any(
            re.match(r"\s*(>>>|\.\. |[-=~^*]{3,}|:|\||\+-)", line) for line in lines
        ):
            continue
        if any(line.startswith((" ", "\t")) for line in lines):
            continue
        prose = re.sub(r":\w+:`~?\.?([^`<]+)[^`]*`|``?([^`]+)``?", r"\1\2", block)
        prose = " ".join(prose.split())
        if len(prose.split()) >= 5 and prose[0].isalpha():
            yield prose


def blank_package_names(text: str, packages: Sequence[str]) -> str:
    """A text without the names of packages.

    Args:
      text: any.
      packages: names of packages.

    Returns:
      The text, an underscore for each word that has a name in it and for each usual
      short name.
    """
    packages_pattern = "|".join(map(re.escape, packages))
    aliases = {name for package in packages for name in _ALIASES.get(package, ())}
    longest_first = sorted(aliases, key=len, reverse=True)
    aliases_pattern = "|".join(map(re.escape, longest_first))
    text = re.sub(rf"(?i)\w*({packages_pattern})\w*", "_", text)
    if not aliases:
        return text
    return re.sub(rf"(?i)(?<![a-z0-9])({aliases_pattern})(?![a-z0-9])", "_", text)


def docstring_task(packages: tuple[str, ...]) -> tuple[list, list]:
    """The task "which package is this docstring from?".

    A text is the prose of the docstring with the packages' names blanked out. At most
    as many rows a package as the third smallest has, so that no class rules.

    Args:
      packages: names of installed packages, the classes in order.

    Returns:
      (train, dev), each [(text, label)].

    Raises:
      UserError: too few packages or too little text, or a package is not installed.
    """
    rows = {True: collections.defaultdict(list), False: collections.defaultdict(list)}
    seen_texts = set()
    for doc in read_docstrings(packages):
        text = blank_package_names(" ".join(prose_paragraphs(doc.text)), packages)
        if len(text.split()) < 8 or text in seen_texts:
            continue
        seen_texts.add(text)
        rows[doc.held_out][doc.package].append((text, packages.index(doc.package)))
    if len(packages) < 2 or not (rows[True] and rows[False]):
        raise UserError(
            f"data.packages {packages} give no task; name at least two packages "
            "with enough docstrings"
        )
    splits = []
    for held_out in (False, True):
        counts = sorted(len(rows[held_out][package]) for package in packages)
        limit = counts[min(2, len(counts) - 1)]
        picked = []
        for package in packages:
            ordered = sorted(
                rows[held_out][package], key=lambda row: zlib.crc32(row[0].encode())
            )
            picked += ordered[:limit]
        splits.append(sorted(picked, key=lambda row: zlib.crc32(row[0].encode())))
    return splits[0], splits[1]


def _package_folder(package: str) -> Path:
    try:
        spec = importlib.util.find_spec(package)
    except (ModuleNotFoundError, ValueError):  # Of "nosuch.part", or of "".
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"data.packages names {package!r}, which is not an installed package; "
            "install it or take it out of data.packages"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _package_modules(package: str) -> list[tuple[Path, str]]:
    root = _package_folder(package)
    files = sorted(
        root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()
    )
    return [
        (path, ".".join((package, *path.relative_to(root).with_suffix("").parts)))
        for path in files
        if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts)
    ]


def _file_docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Old sources have invalid escapes.
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds):
            text = ast.get_docstring(node, clean=False)
            if text and len(text) >= 40:
                yield inspect.cleandoc(text)


def _normalized_text(text: str) -> str:
    return " ".join(text.lower().split())
