"""Config files: loaded by address, and their presets."""

import ast
import importlib.util
import re
from pathlib import Path

from ml_collections import ConfigDict

from autodistill_jax.errors import UserError


def load_config(address: str) -> ConfigDict:
    """The config of a file, as `--config=` takes it.

    Args:
      address: FILE.py or FILE.py:preset.

    Returns:
      What the file's `get_config` gives for the preset.

    Raises:
      UserError: no such file, or no such preset in it.
    """
    parts = re.fullmatch(r"(.+\.py)(?::(.*))?", address)
    if parts is None or not Path(parts[1]).is_file():
        raise UserError(f"no config file {address}; give FILE.py or FILE.py:preset")
    path, preset = Path(parts[1]), parts[2] or ""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # As of every .py file.
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.get_config(preset)
    except KeyError as error:
        if text := preset_error(path, preset, error):
            raise UserError(text) from error
        raise


def preset_error(path: Path, preset: str, error: BaseException) -> str | None:
    """What to say where a config file looked its preset up and did not find it.

    Args:
      path: of the file.
      preset: that was asked for.
      error: what `get_config` raised.

    Returns:
      The text, with the presets that the file says it has; None: it is another error.
    """
    name = str(error.args[0]) if isinstance(error, KeyError) and error.args else ""
    if not name or not preset.startswith(name):
        return None
    statements = ast.parse(path.read_text()).body
    docs = [ast.get_docstring(s) for s in statements if isinstance(s, ast.FunctionDef)]
    return f"{path} has no preset {preset!r}. {' '.join(filter(None, docs))}"
