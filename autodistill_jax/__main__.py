"""`python -m autodistill_jax`."""

import sys

from autodistill_jax.cli import main

sys.exit(main(sys.argv))
