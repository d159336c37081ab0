"""The laws of the house: imports go down, one door a library, names that say what they hold."""

import ast
import builtins
import collections

from paths import ROOT
from vague import vague_bindings

PACKAGE = ROOT / "autodistill_jax"
# From the ground up; what stands in one line does not import each other's neighbours above.
FLOORS = (
    "errors",
    "multihost storage sharding metrics log",
    "archs",
    "data",
    "models",
    "interop",
    "latency",
    "train",
    "pruning",
    "search",
    "experiment",
    "report",
    "jobs",
    "cli __init__",
    "__main__",
)
LEVEL = {name: i for i, names in enumerate(FLOORS) for name in names.split()}


def files():
    return sorted(PACKAGE.rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_imports_go_down():
    for path in files():
        module_parts = path.relative_to(PACKAGE).with_suffix("").parts
        for name in imports(path):
            parts = name.split(".")[1:]
            if not name.startswith("autodistill_jax.") or parts[0] not in LEVEL:
                continue
            assert LEVEL[parts[0]] <= LEVEL[module_parts[0]], f"{path} imports {name}"


def test_jobs_meet_on_disk():
    """Jobs never import each other; only `run` calls them."""
    jobs = {path.stem for path in (PACKAGE / "jobs").glob("*.py")} - {"__init__"}
    for path in (PACKAGE / "jobs").glob("*.py"):
        if path.stem == "run":
            continue
        imported = {name.split(".")[-1] for name in imports(path) if ".jobs." in name}
        assert not imported & jobs, path


def test_only_the_upper_floors_see_a_config():
    for path in files():
        module_parts = path.relative_to(PACKAGE).with_suffix("").parts
        if module_parts[0] not in ("experiment", "report", "jobs", "cli"):
            assert not any(name.startswith("ml_collections") for name in imports(path))


def test_heavy_libraries_have_one_door_each():
    doors = {
        "tensorflow_datasets": 1, "grain": 1, "orbax": 2, "optuna": 3, "matplotlib": 1,
        "tokenizers": 1, "transformers": 2, "torch": 2,
    }  # fmt: skip
    for library, limit in doors.items():
        users = [
            path
            for path in files()
            if any((name or "").split(".")[0] == library for name in imports(path))
        ]
        assert 1 <= len(users) <= limit, (library, users)


def test_files_say_what_they_hold():
    """A noun phrase on the first line, not a question; and no file is a book."""
    long = []
    for path in files():
        first = ast.get_docstring(ast.parse(path.read_text()))
        assert first and "?" not in first.splitlines()[0], path
        lines = len(path.read_text().splitlines())
        assert lines <= 400, path
        if lines > 300:
            long.append(f"{path.relative_to(ROOT)} {lines}")
    print("over 300 lines:", *long)


def test_a_name_has_one_meaning():
    """No two classes or public functions with one name; no module shadows a builtin."""
    where = collections.defaultdict(list)
    for path in files():
        for node in ast.parse(path.read_text()).body:
            is_public = not getattr(node, "name", "_").startswith("_")
            if is_public and isinstance(node, ast.FunctionDef | ast.ClassDef):
                where[node.name].append(str(path.relative_to(PACKAGE)))
    assert not {k: v for k, v in where.items() if len(v) > 1}
    stems = collections.Counter(p.stem for p in files() if p.parent.name != "jobs")
    assert not [n for n, count in stems.items() if count > 1 and n != "__init__"]
    assert not {path.stem for path in files()} & set(dir(builtins))


def test_names_say_what_they_hold():
    for folder in ("autodistill_jax", "configs", "launch", "tests"):
        assert not vague_bindings(ROOT / folder)
