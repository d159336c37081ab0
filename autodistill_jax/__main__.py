"""`python -m autodistill_jax`."""

import sys

from autodistill_jax.main import main

sys.exit(main(sys.argv))
