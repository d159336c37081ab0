"""HTML of a report in one file: page with its style, tables, pictures."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem;
  margin-top: 2.2rem; } p.note, figcaption { color: #5a6876; font-size: .9rem; }
table { border-collapse: collapse; margin: .6rem 0; width: 100%; }
th, td { text-align: right; padding: .35rem .7rem; border-bottom: 1px solid #dde3e9;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; }
tr.chosen td { background: #fff4e0; } figure { margin: 1rem 0; }
img { width: 100%; height: auto; } code { background: #f2f5f8; padding: 0 .25rem; }
.wide { overflow-x: auto; }
.lead { background: #f2f5f8; border-left: 4px solid #d9822b; padding: .8rem 1rem; }
"""


def html_page(title: str, body: str) -> str:
    """A page that needs nothing beside it.

    Args:
      title: plain text, escaped here.
      body: HTML, as it is.

    Returns:
      The whole document.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)} - autodistill_jax</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def html_table(
    header: list[str], rows: list[list[str]], marks: Sequence[bool] = ()
) -> str:
    """A table of text cells; marked rows stand out.

    Args:
      header: the cells of the first row, plain text.
      rows: of cells, plain text, as many a row as the header has.
      marks: of each row, does it stand out? Empty: none does.

    Returns:
      HTML, the cells escaped.
    """

    def line(cells: Sequence[str], tag: str, mark: bool = False) -> str:
        content = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
        return f'<tr class="chosen">{content}</tr>' if mark else f"<tr>{content}</tr>"

    marks = list(marks) or [False] * len(rows)
    body = "\n".join(line(row, "td", mark) for row, mark in zip(rows, marks))
    return f'<div class="wide"><table>\n{line(header, "th")}\n{body}\n</table></div>'


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A matplotlib figure and its axes.

    Args:
      rows, columns: of axes.
      size: (width, height) in inches.

    Returns:
      (figure, axes): one axes where rows and columns are 1, else an array of them.
    """
    # Without pyplot, whose pictures may be a notebook's: it calls jobs in its own
    # process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    # What a notebook shows as a cell's value, whatever its backend is.
    figure._repr_png_ = lambda: _png_bytes(figure)
    return figure, figure.subplots(rows, columns)


def html_image(figure: Any, alt: str) -> str:
    """A matplotlib figure as an <img>, the data inside.

    Args:
      figure: a matplotlib figure, as of `new_figure`.
      alt: what it shows, plain text, escaped here.

    Returns:
      HTML, a <figure>.
    """
    data = base64.b64encode(_png_bytes(figure)).decode()
    source = f"data:image/png;base64,{data}"
    return f'<figure><img alt="{html.escape(alt)}" src="{source}"></figure>\n'


def _png_bytes(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
