"""Do imports go down only?"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "autodistill_jax"
FLOORS = {
    "errors": 0, "arch": 1, "budget": 0, "cost": 1, "space": 1, "within": 1, "papers": 1,
    "named": 1, "losses": 1, "sharding": 1, "metrics": 1, "multihost": 1, "storage": 1,
    "hosts": 1, "files": 1, "log": 1, "archs": 1, "data": 2, "model": 2, "models": 2,
    "interop": 2, "train": 3, "latency": 4, "search": 4, "experiment": 5, "report": 5,
    "jobs": 5, "main": 6, "cli": 6, "__main__": 7, "__init__": 7,
}  # fmt: skip


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def floor(parts):
    return FLOORS[parts[0]]


def test_imports_go_down():
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).with_suffix("").parts
        for name in imports(path):
            parts = name.split(".")[1:]
            if not name.startswith("autodistill_jax.") or parts[0] not in FLOORS:
                continue
            assert floor(parts) <= floor(own), f"{path} imports {name}"


def test_jobs_meet_on_disk():
    """Jobs import what they start from, never each other; only `run` calls them."""
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py")} - {
        "asked",
        "experiment",
        "fields",
        "judged",
        "labelled",
        "page",
        "pictures",
        "reloaded",
        "run",
        "spans",
        "steps",
        "tables",
        "teachers",
        "texts",
        "training",
        "trials",
        "workdir",
    }
    for path in (ROOT / "jobs").glob("*.py"):
        if path.stem == "run":
            continue
        found = {name.split(".")[-1] for name in imports(path) if ".jobs." in name}
        assert not found & jobs, path


def test_only_jobs_and_main_see_a_config():
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).with_suffix("").parts
        if own[0] not in ("jobs", "experiment", "report", "main", "cli"):
            assert not any(name.startswith("ml_collections") for name in imports(path))


def test_heavy_libraries_have_one_door_each():
    doors = {
        "tensorflow_datasets": 1, "grain": 1, "orbax": 2, "optuna": 3, "matplotlib": 1,
        "tokenizers": 1, "transformers": 2, "torch": 2,
    }  # fmt: skip
    for library, limit in doors.items():
        users = [
            path
            for path in ROOT.rglob("*.py")
            if any((name or "").split(".")[0] == library for name in imports(path))
        ]
        assert 1 <= len(users) <= limit, (library, users)


def test_files_say_which_question_they_answer():
    for path in ROOT.rglob("*.py"):
        first = ast.get_docstring(ast.parse(path.read_text()))
        assert first, path
        assert len(path.read_text().splitlines()) <= 400, path
