"""Names that say nothing of what they hold, counted where they are bound."""

import ast
from collections.abc import Iterator
from pathlib import Path

# Bare participles, pronouns and adverbs; a name says what a value holds.
VAGUE = frozenset(
    [
        "made",
        "told",
        "there",
        "given",
        "how",
        "home",
        "homes",
        "theirs",
        "ours",
        "mine",
        "moves",
        "moved",
        "kept",
        "asked",
        "own",
        "now",
        "whole",
        "one",
        "ones",
        "other",
        "others",
        "found",
        "some",
        "rest",
        "taken",
        "drawn",
        "named",
        "wanted",
        "known",
        "left",
        "seen",
        "shown",
        "each",
        "both",
        "again",
        "before",
        "after",
    ]
)


def vague_bindings(root: Path) -> list[tuple[str, int, str]]:
    """Where a vague name is bound: (file, line, name), of all Python files below root.

    Bound: assigned, a parameter, a loop or comprehension variable, a function or class,
    a field, an import's name, an exception's name. A leading underscore changes nothing.
    """
    return [
        (str(path.relative_to(root)), line, name)
        for path in sorted(root.rglob("*.py"))
        for name, line in _bindings(ast.parse(path.read_text()))
        if name.strip("_") in VAGUE
    ]


def _bindings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.arg(arg=name):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.ExceptHandler(name=str(name)):
                yield name, node.lineno
            case ast.alias(asname=str(name)):
                yield name, node.lineno
