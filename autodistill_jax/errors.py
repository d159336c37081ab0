"""The errors that a user can put right, and reading JSON with them."""

import json
from pathlib import Path


class UserError(Exception):
    """A mistake in the input, not in the program.

    The message is one line: what was got, what is needed, what to do. The command
    line prints it without a traceback and exits with 2.
    """


class DivergedError(UserError):
    """The loss of a training is not finite."""


def read_json_object(path: Path) -> dict:
    """The JSON object in a file of a teacher's folder.

    Args:
      path: of the file.

    Returns:
      The object.

    Raises:
      UserError: the file is not JSON, or not an object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} is not a JSON object; use the teacher's own file")
    return record
