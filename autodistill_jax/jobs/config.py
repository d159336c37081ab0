"""Job `config`: the whole config as text, what differs from the base marked."""

from ml_collections import ConfigDict

from autodistill_jax.experiment import schema
from autodistill_jax.experiment.base_config import base_config


def run_config(config: ConfigDict) -> None:
    """Prints a line a field on stdout, `section.field = value`; behind a value that is
    not the base's stands the base's.

    Args:
      config: with all flags in it.

    Raises:
      UserError: a field that is unknown, missing, or out of its bounds.
    """
    schema.check_config(config)
    print("\n".join(config_lines(config)))


def config_lines(config: ConfigDict) -> list[str]:
    """A config's fields, a line each, in the order of the base."""
    values = schema.flatten(config.to_dict())
    return [
        f"{name} = {values[name]!r}"
        + (f"  # base: {default!r}" if values[name] != default else "")
        for name, default in schema.flatten(base_config().to_dict()).items()
    ]
