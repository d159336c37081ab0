"""The fields of a config as Markdown tables, made from base_config's source and comments.

python tests/helpers/config_fields.py     writes them into configs/README.md
"""

import ast
import inspect
import io
import re
import tokenize

from paths import ROOT

from autodistill_jax.experiment import base_config, schema

PAGE = ROOT / "configs" / "README.md"
MARK = "<!-- fields -->\n"


def comments() -> dict[str, str]:
    """{field or section: its comment}: what stands above it, and behind it."""
    source = inspect.getsource(base_config.base_config)
    lines = source.splitlines()
    notes = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    by_field: dict[str, str] = {}

    def visit(node: ast.Dict, prefix: str) -> None:
        for key, value in zip(node.keys, node.values):
            above, line = [], key.lineno - 1
            while lines[line - 1].strip().startswith("#"):
                above.insert(0, notes[line])
                line -= 1
            # Of a tuple over several lines the first line has the comment.
            name = prefix + key.value
            by_field[name] = " ".join([*above, notes.get(key.lineno, "")]).strip()
            if isinstance(value, ast.Dict):
                visit(value, f"{name}.")

    (call,) = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ConfigDict"
    ]
    visit(call.args[0], "")
    return by_field


def tables() -> str:
    """A table a section: field, default, meaning, bounds."""
    notes, defaults = comments(), schema.flatten(base_config.base_config().to_dict())
    sections: dict[str, list[str]] = {}
    for name in notes:  # In the order of the source.
        if name not in defaults:
            continue
        section = name.partition(".")[0] if "." in name else ""
        cells = (
            f"`{name}`",
            f"`{defaults[name]!r}`",
            _escape(notes[name]),
            _bound(name),
        )
        sections.setdefault(section, []).append(f"| {' | '.join(cells)} |")
    head = "| field | default | what it is | must be |\n|---|---|---|---|\n"
    parts = []
    for section, rows in sections.items():
        title = f"### {section}\n\n" if section else ""
        note = f"{notes[section]}\n\n" if notes.get(section) else ""
        parts.append(title + note + head + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _escape(text: str) -> str:
    return re.sub(r"(?<!`)\*", r"\\*", text).replace("|", r"\|")


def _bound(name: str) -> str:
    kind, bound = schema.FIELDS[name]
    kind = kind[0] if isinstance(kind, tuple) else kind
    if isinstance(bound, tuple) and kind is float:
        return f"{bound[0]:g} to {bound[1]:g}"
    if isinstance(bound, tuple):
        return ", ".join(f"`{choice or chr(39) * 2}`" for choice in bound)
    return "" if bound is None else f"at least {bound:g}"


def page() -> str:
    """configs/README.md with its tables made anew."""
    head, _, _ = PAGE.read_text().partition(MARK)
    return f"{head}{MARK}\n{tables()}"


if __name__ == "__main__":
    PAGE.write_text(page())
